"""Strict JSON: reports that any parser reads."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import torch

from deepinv_astro.io.atomic import atomic_path


def plain(value: Any) -> Any:
    """
    A value as strict JSON knows it: NaN and infinities become None, units become text.

    :param value: numbers, text, arrays, tensors, quantities, mappings and lists of them.
    :return: the same made of dict, list, str, int, float, bool and None.
    :raises TypeError: if it holds anything else.

    >>> plain({"flux": np.float32(0.5), "snr": torch.tensor([1.0, float("nan")]), "n": np.int64(3)})
    {'flux': 0.5, 'snr': [1.0, None], 'n': 3}
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, u.Quantity):
        return {"value": plain(value.value), "unit": str(value.unit)}
    if isinstance(value, (u.UnitBase, os.PathLike, torch.device, torch.dtype)):
        return str(value)
    if isinstance(value, torch.Tensor):
        return plain(value.detach().cpu().tolist())
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [plain(v) for v in value]
    raise TypeError(f"cannot write {type(value).__name__} as JSON: {value!r}")


def to_json(value: Any, indent: int | None = None) -> str:
    """
    Strict JSON text of a value, see :func:`plain`.

    >>> to_json({"r": float("inf")})
    '{"r": null}'
    """
    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def write_json(
    path: str | os.PathLike[str], content: Mapping[str, Any], overwrite: bool = False
) -> Path:
    """
    Write a report as strict JSON, whole or not at all.

    :param path: the file.
    :param content: what to write, see :func:`plain`; NaN becomes null.
    :param bool overwrite: whether an existing file may be replaced.
    :return: the path.
    :raises FileExistsError: if the file exists and ``overwrite`` is False.
    """
    text = to_json(content, indent=2) + "\n"
    with atomic_path(path, overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path).expanduser()
