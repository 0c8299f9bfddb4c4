"""Files that appear whole or not at all, and never in place of another by accident."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import torch


def check_writable(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """
    The path of a file that may be written; its folder is made if needed.

    :param path: the file.
    :param bool overwrite: whether an existing file may be replaced.
    :return: the path.
    :raises FileExistsError: if the file exists and ``overwrite`` is False.
    :raises OSError: if it is a folder, or its folder cannot be made or written.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists and was left as it is; to replace it pass overwrite=True "
            "(--overwrite on the command line), or choose another name"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"cannot make the folder {path.parent}: {error.strerror}") from error
    return path


@contextmanager
def atomic_path(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """
    A temporary file beside the target, which takes its place when the block ends well.

    If the block raises or is interrupted, the temporary file is removed and the target is as
    before. The temporary name keeps the suffix, so that writers which look at it work.

    :param path: the file to write.
    :param bool overwrite: whether an existing file may be replaced.
    :return: context manager of the temporary path, an empty file to be overwritten.
    :raises FileExistsError: if the file exists and ``overwrite`` is False.
    :raises OSError: if the folder cannot be made or written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder) / "new" / "a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     print((Path(folder) / "new" / "a.txt").read_text())
    whole
    """
    target = check_writable(path, overwrite)
    temporary = target.with_name(f".{secrets.token_hex(4)}-{target.name}")
    try:
        temporary.open("xb").close()
    except OSError as error:
        raise type(error)(
            f"cannot write in the folder {target.parent}: {error.strerror}; "
            "change its mode or choose another folder"
        ) from error
    try:
        yield temporary
        # Someone may have written the target in the meantime.
        check_writable(target, overwrite)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


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
