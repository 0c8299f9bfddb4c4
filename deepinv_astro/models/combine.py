r"""One image from frames in which some pixels are missing, and filling what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

#: From frames ``(..., T, H, W)`` with missing data as NaN to an image ``(..., H, W)``.
Combine = Callable[[Tensor], Tensor]


def temporal_mean(frames: Tensor) -> Tensor:
    r"""Mean over the frames that see a pixel.

    .. math::

        \bar y_p = \frac{1}{|V_p|}\sum_{t\in V_p} y_{t,p}, \qquad V_p = \{t : y_{t,p}\text{ known}\}

    :param torch.Tensor frames: ``(..., T, H, W)``, missing data NaN.
    :return: (:class:`torch.Tensor`) ``(..., H, W)``, NaN where no frame sees the pixel.

    |sep|

    :Examples:

        >>> import torch
        >>> temporal_mean(torch.tensor([[[1.0, 2.0]], [[4.0, float("nan")]]]))
        tensor([[2.5000, 2.0000]])
    """
    return frames.nanmean(-3)


def temporal_median(frames: Tensor) -> Tensor:
    r"""Median over the frames that see a pixel.

    It is the mean of the two middle values when their number is even.

    The frames are ordered by Batcher's odd-even merge network, a fixed sequence of elementwise
    minima and maxima of whole frames. That is several times faster than sorting pixel by pixel, on
    any device.

    :param torch.Tensor frames: ``(..., T, H, W)``, missing data NaN.
    :return: (:class:`torch.Tensor`) ``(..., H, W)``, NaN where no frame sees the pixel.

    |sep|

    :Examples:

        >>> import torch
        >>> frames = torch.tensor([[[1.0, 2.0]], [[9.0, float("nan")]], [[3.0, 7.0]]])
        >>> temporal_median(frames)
        tensor([[3.0000, 4.5000]])
    """
    missing = frames.isnan()
    gaps = bool(missing.any())
    planes = list((frames.masked_fill(missing, torch.inf) if gaps else frames).unbind(-3))
    for low, high in _comparators(len(planes)):
        a, b = planes[low], planes[high]
        planes[low], planes[high] = torch.minimum(a, b), torch.maximum(a, b)
    if not gaps:
        middle = len(planes)
        return (planes[(middle - 1) // 2] + planes[middle // 2]) / 2
    seen = (~missing).sum(-3, keepdim=True)
    ordered = torch.stack(planes, dim=-3)
    lower = ordered.gather(-3, ((seen - 1) // 2).clamp_min(0))
    upper = ordered.gather(-3, (seen // 2).clamp_max(len(planes) - 1))
    return ((lower + upper) / 2).masked_fill(seen == 0, torch.nan).squeeze(-3)


def _comparators(count: int) -> Iterator[tuple[int, int]]:
    """Pairs to compare, in order, to sort ``count`` lines (Batcher 1968; Knuth, vol. 3, 5.3.4)."""
    merged = 1
    while merged < count:
        step = merged
        while step >= 1:
            for start in range(step % merged, count - step, 2 * step):
                for low in range(start, min(start + step, count - step)):
                    if low // (2 * merged) == (low + step) // (2 * merged):
                        yield low, low + step
            step //= 2
        merged *= 2


def fill_missing(frames: Tensor) -> Tensor:
    r"""Put the mean of the frames that see a pixel where others miss it; zero if none sees it.

    :param torch.Tensor frames: ``(..., T, H, W)``, missing data NaN.
    :return: (:class:`torch.Tensor`) finite frames ``(..., T, H, W)``; the input itself when nothing
        is missing.

    |sep|

    :Examples:

        >>> import torch
        >>> fill_missing(torch.tensor([[[1.0, 2.0]], [[4.0, float("nan")]]]))[1]
        tensor([[4., 2.]])
    """
    missing = frames.isnan()
    if not bool(missing.any()):
        return frames
    mean = temporal_mean(frames).nan_to_num(0.0).unsqueeze(-3)
    return torch.where(missing, mean, frames)
