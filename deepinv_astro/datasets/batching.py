"""Batches of sequences of different lengths and sizes, each datum counted once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.functional import pad
from torch.utils.data import Sampler

__all__ = ["BucketBatchSampler", "collate_sequences", "data_weights"]


class BucketBatchSampler(Sampler[list[int]]):
    r"""Batches whose sequences have one shape: nothing is padded.

    Targets of equal shape make a bucket; each epoch, buckets are shuffled and cut into batches, and
    the batches of all buckets are shuffled. A batch that a bucket does not fill is smaller.

    Over several processes, ``batch_size * num_replicas`` targets of one bucket are drawn at once and
    dealt out, so that all processes see batches of one shape at each step, as many of them, and
    together exactly the batches of one process with ``num_replicas`` times the batch size. Only in
    a batch that is not full some targets are repeated, up to an equal number for each process;
    ``drop_last`` leaves such batches out.

    :param shapes: shape of each target, such as ``[survey.shape(i) for i in range(len(survey))]``.
    :param int batch_size: targets of a batch, in each process.
    :param bool shuffle: whether the order changes with the epoch.
    :param int seed: of the order; the same in all processes.
    :param bool drop_last: leave out batches that are not full.
    :param int num_replicas: number of processes; default: of ``torch.distributed``, or 1.
    :param int rank: of this process; default: of ``torch.distributed``, or 0.
    :raises ValueError: for no target, a batch size below 1, or a rank that is not one of the
        processes.

    |sep|

    :Examples:

        >>> shapes = [(4, 9, 9), (6, 9, 9), (4, 9, 9), (6, 9, 9), (4, 9, 9)]
        >>> sampler = BucketBatchSampler(shapes, batch_size=2, shuffle=False)
        >>> list(sampler), len(sampler)
        ([[0, 2], [4], [1, 3]], 3)
    """

    def __init__(
        self,
        shapes: Iterable[tuple[int, ...]],
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        spread = dist.is_available() and dist.is_initialized()
        self.num_replicas = num_replicas or (dist.get_world_size() if spread else 1)
        self.rank = rank if rank is not None else (dist.get_rank() if spread else 0)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= self.rank < self.num_replicas:
            raise ValueError(f"rank must be below num_replicas={self.num_replicas}, got {rank}")
        buckets: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, shape in enumerate(shapes):
            buckets[tuple(shape)].append(index)
        if not buckets:
            raise ValueError("shapes must hold the shape of at least one target, got none")
        self.buckets = list(buckets.values())
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """
        Choose the order; without it, every epoch has the same.

        :param int epoch: number of the epoch.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        whole = self.batch_size * self.num_replicas
        sizes = [len(bucket) for bucket in self.buckets]
        return sum(n // whole if self.drop_last else -(-n // whole) for n in sizes)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        whole = self.batch_size * self.num_replicas
        batches = []
        for bucket in self.buckets:
            order = self._order(len(bucket), generator)
            chosen = [bucket[i] for i in order]
            parts = [chosen[k : k + whole] for k in range(0, len(chosen), whole)]
            batches += [p for p in parts if len(p) == whole or not self.drop_last]
        for k in self._order(len(batches), generator):
            batch = batches[k]
            missing = -len(batch) % self.num_replicas
            filled = batch + [batch[i % len(batch)] for i in range(missing)]
            yield filled[self.rank :: self.num_replicas]

    def _order(self, count: int, generator: torch.Generator) -> list[int]:
        if not self.shuffle:
            return list(range(count))
        return torch.randperm(count, generator=generator).tolist()


def collate_sequences(items: list[dict[str, Any]]) -> dict[str, Any]:
    r"""Batch of sequences, the shorter ones padded with frames that the operator does not see.

    .. math::

        \tilde y = (y_1, \dots, y_T, 0, \dots, 0), \qquad \tilde g = (g_1, \dots, g_T, 0, \dots, 0)

    A frame of zero gain has :math:`A x = 0` for every sky, hence no residual and no gradient; a mean
    over all frames is too small by the share of the padding, and :func:`data_weights` makes up for
    it. Methods that do not know the gains (median, PCA) need whole sequences: use
    :class:`BucketBatchSampler`. PSFs of different sizes are padded with zeros around them.

    :param list items: dictionaries with ``"y"`` and ``"params"``, of one frame size; ``"params"`` hold
        at least ``angles`` and ``gain``.
    :return: one such dictionary with a batch axis; ``"x"`` only if all the items have it.
    :raises ValueError: if the frames differ in size.

    |sep|

    :Examples:

        >>> def item(frames):
        ...     params = {"angles": torch.arange(3.0, 3 + frames), "gain": torch.ones(frames)}
        ...     return {"y": torch.ones(1, frames, 5, 7), "params": params}
        >>> batch = collate_sequences([item(2), item(3)])
        >>> batch["y"].shape, batch["params"]["gain"].tolist()
        (torch.Size([2, 1, 3, 5, 7]), [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
        >>> batch["params"]["angles"].tolist()
        [[3.0, 4.0, 4.0], [3.0, 4.0, 5.0]]
    """
    sizes = {tuple(item["y"].shape[-2:]) for item in items}
    if len(sizes) > 1:
        raise ValueError(
            f"a batch needs frames of one size, got {sorted(sizes)}; pass `img_size` to the "
            "dataset, or batches from BucketBatchSampler"
        )
    longest = max(item["y"].shape[-3] for item in items)
    stamp = max((_side(item) for item in items), default=0)
    batch: dict[str, Any] = {"y": torch.stack([_longer(item["y"], longest, -3) for item in items])}
    names = items[0]["params"]
    batch["params"] = {
        name: torch.stack([_padded(name, item["params"][name], longest, stamp) for item in items])
        for name in names
    }
    if all("x" in item for item in items):
        batch["x"] = torch.stack([item["x"] for item in items])
    return batch


def data_weights(gain: Tensor, transmission: Tensor | None = None) -> Tensor:
    r"""Weights that take padding and missing data out of a mean.

    .. math::

        w_{n,t,p} = \frac{[g_{n,t} \ne 0]\, [\Gamma_{n,p} \ne 0]}
        {\langle [g_{n,t} \ne 0]\, [\Gamma_{n,p} \ne 0] \rangle_{t,p}}, \qquad
        \langle w\, (y - A x)^2 \rangle = \text{mean over the data there are.}

    Each sequence has a mean weight of one, whatever its length: in a loss, targets count alike.

    :param torch.Tensor gain: gains ``(B, T)``, as in the operator's buffer ``gain``.
    :param torch.Tensor transmission: ``(B, h, w)``, as in its buffer; ``None`` if all is seen.
    :return: (:class:`torch.Tensor`) weights ``(B, 1, T, h, w)``, or ``(B, 1, T, 1, 1)``.
    :raises ValueError: if a sequence has no data at all.

    |sep|

    :Examples:

        >>> data_weights(torch.tensor([[0.9, 1.1, 0.0]])).flatten().tolist()
        [1.5, 1.5, 0.0]
    """
    seen = (gain != 0)[:, None, :, None, None].to(gain)
    if transmission is not None:
        seen = seen * (transmission != 0)[:, None, None].to(gain)
    share = seen.mean((1, 2, 3, 4), keepdim=True)
    if not bool((share > 0).all()):
        empty = (share.flatten() == 0).nonzero().flatten().tolist()
        raise ValueError(f"sequences {empty} of the batch have no data; leave them out")
    return seen / share


def _side(item: dict[str, Any]) -> int:
    psf = item["params"].get("filter")
    return 0 if psf is None else int(psf.shape[-1])


def _padded(name: str, value: Tensor, frames: int, stamp: int) -> Tensor:
    """A parameter of a sequence as long as the longest of the batch."""
    if name == "filter":
        margin = (stamp - value.shape[-1]) // 2  # both sides are odd
        return pad(value, [margin] * 4)
    if name == "gain":
        return _longer(value, frames, -1)
    if name in ("angles", "smear"):  # finite, and of no effect
        return torch.cat([value, value[-1:].expand(frames - len(value))])
    return value


def _longer(value: Tensor, frames: int, axis: int) -> Tensor:
    """A tensor with zeros behind the last frame."""
    shape = list(value.shape)
    shape[axis] = frames - shape[axis]
    return torch.cat([value, value.new_zeros(shape)], axis)
