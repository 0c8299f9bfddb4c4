"""Gains of the frames of a sequence: clouds, seeing, transmission of the atmosphere."""

from __future__ import annotations

import math

import torch
from deepinv.physics.generator import PhysicsGenerator
from torch import Tensor

__all__ = ["GainGenerator"]


class GainGenerator(PhysicsGenerator):
    r"""Log-normal frame gains that vary slowly, of mean one.

    .. math::

        g_t = e^{s z_t - s^2 / 2}, \qquad z_t = a z_{t-1} + \sqrt{1 - a^2}\, \epsilon_t,
        \qquad a = e^{-1/\tau}

    with :math:`\epsilon_t \sim \mathcal N(0, 1)` and a stationary start.

    :param int n_frames: :math:`T`, number of frames.
    :param float scatter: standard deviation :math:`s` of :math:`\ln g`.
    :param float correlation_frames: time :math:`\tau` over which gains forget, in frames; 0 for
        independent gains.
    :param torch.Generator rng: source of randomness.
    :param str device: of the gains.
    :param torch.dtype dtype: of the gains.
    :raises ValueError: for no frame, or a negative scatter or time.

    >>> generator = GainGenerator(5, scatter=0.1)
    >>> generator.step(batch_size=2, seed=0)["gain"].shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        n_frames: int,
        scatter: float = 0.05,
        correlation_frames: float = 5.0,
        *,
        rng: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(rng=rng, device=device, dtype=dtype)
        if n_frames < 1:
            raise ValueError(f"a sequence has at least one frame, got n_frames={n_frames}")
        if scatter < 0 or correlation_frames < 0:
            raise ValueError(
                "scatter and correlation_frames must not be negative, "
                f"got {scatter} and {correlation_frames}"
            )
        self.n_frames = n_frames
        self.scatter = scatter
        self.correlation_frames = correlation_frames

    def step(
        self, batch_size: int = 1, seed: int | str | None = None, **kwargs: object
    ) -> dict[str, Tensor]:
        r"""Draw gains.

        :param int batch_size: number of sequences :math:`B`.
        :param int seed: seed of the generator.
        :return: dictionary with ``"gain"`` of shape ``(B, T)``.
        """
        self.rng_manual_seed(seed)
        tau = self.correlation_frames
        memory = math.exp(-1 / tau) if tau > 0 else 0.0
        noise = torch.randn(batch_size, self.n_frames, generator=self.rng, **self.factory_kwargs)
        z = [noise[:, 0]]
        for t in range(1, self.n_frames):
            z.append(memory * z[-1] + math.sqrt(1 - memory**2) * noise[:, t])
        gain = torch.exp(self.scatter * torch.stack(z, dim=1) - self.scatter**2 / 2)
        return {"gain": gain}
