"""A survey of simulated stars: lazily generated, each target its own, whatever was drawn before."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import astropy.units as u
import numpy as np
import torch
from deepinv.datasets import ImageDataset
from torch import Tensor

from deepinv_astro.datasets.disks import point_sources, sky_offset
from deepinv_astro.datasets.halos import Halo, PupilHalo, RicianHalo, Star, temporal_deviation
from deepinv_astro.datasets.population import PlanetDraw, SkyDraw, SkyPopulation, field_radius
from deepinv_astro.datasets.psf_error import PSFError
from deepinv_astro.datasets.simulate import PlanetTruth
from deepinv_astro.datasets.speckles import detect
from deepinv_astro.identifiability import mode_visibility
from deepinv_astro.io import Sequence
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf import blur
from deepinv_astro.physics.generator import AngleTrackGenerator, GainGenerator

__all__ = ["Part", "SurveyParts", "SurveyTruth", "SyntheticSurvey", "target_seed"]

Range = tuple[float, float]
#: Targets in each part of a survey, at most.
LARGEST_SURVEY = 1 << 30


class Part(str, Enum):
    """Parts of a survey that share no target."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class SurveyParts(NamedTuple):
    """The three parts of a survey, see :meth:`SyntheticSurvey.split`."""

    train: SyntheticSurvey
    validation: SyntheticSurvey
    test: SyntheticSurvey


@dataclass(frozen=True, eq=False)
class SurveyTruth:
    r"""What an observer of a target cannot know.

    :param torch.Tensor x: sky in counts per pixel, planets included, ``(1, H, W)``.
    :param torch.Tensor disk: the sky without planets, ``(1, H, W)``.
    :param tuple planets: one :class:`~deepinv_astro.datasets.PlanetTruth` per planet.
    :param SkyDraw sky: what was drawn from the population.
    :param torch.Tensor psf: PSF that made the data, ``(1, k, k)``.
    :param torch.Tensor deviation: temporal standard deviation :math:`\sigma(r)` of a pixel without
        the sky, counts, ``(1, H, W)``.
    :param torch.Tensor angles: derotation angles, degrees, ``(T,)``.
    """

    x: Tensor
    disk: Tensor
    planets: tuple[PlanetTruth, ...]
    sky: SkyDraw
    psf: Tensor
    deviation: Tensor
    angles: Tensor

    def visibility(self, modes: int = 10) -> Tensor:
        """
        Fraction of each angular mode that the sequence sees.

        :param int modes: number of modes, from 0.
        :return: see :func:`~deepinv_astro.identifiability.mode_visibility`, ``(modes,)``.
        """
        return mode_visibility(self.angles, modes)


@dataclass(frozen=True, eq=False)
class _Target:
    """Everything of one target."""

    y: Tensor
    params: dict[str, Tensor]
    star_flux: float
    truth: SurveyTruth


class SyntheticSurvey(ImageDataset):
    r"""Survey of simulated stars in angular differential imaging, of any size.

    .. math::

        y^{(i)}_t = \text{detector}\left\{ g_t \left( s^{(i)}_t + H^{(i)} Q_{\theta^{(i)}_t} x^{(i)}
        \right) \right\}

    Each star has its own speckles :math:`s`, PSF :math:`H`, track of angles :math:`\theta`, and
    disk and planets :math:`x`, or none. The ``filter`` that one is told is not the PSF that made
    the data: it is wrong by ``psf_error``.

    Target :math:`i` depends on the seed, the part and :math:`i` alone: not on what was drawn
    before, the number of workers or the size of the survey. It is simulated when asked for.
    An item is what deepinv's ``Trainer`` takes: ``{"y": (1, T, H, W), "params": {"angles": (T,),
    "filter": (1, k, k), "center": (2,), "gain": (T,)}}``, float32, and with ``"x": (1, H, W)`` only
    if asked for. Sequences of different lengths are batched by
    :class:`~deepinv_astro.datasets.BucketBatchSampler` or
    :func:`~deepinv_astro.datasets.collate_sequences`.

    :param int n: number of targets.
    :param int seed: of the survey.
    :param tuple img_size: rows and columns of a frame and of the sky.
    :param frames: number of frames :math:`T`, or the smallest and the largest.
    :param SkyPopulation population: of disks and planets.
    :param Halo halo: draws the stars: :class:`~deepinv_astro.datasets.PupilHalo` (physical optics)
        or :class:`~deepinv_astro.datasets.RicianHalo` (some hundred times faster).
    :param PSFError psf_error: of the PSF that one is told.
    :param tuple declination: range of the stars' declination, degrees.
    :param tuple hour_angle: range of the hour angle at half time, hours.
    :param tuple duration: range of the length of the sequences, hours.
    :param float gain_scatter: standard deviation of the logarithm of the frames' gains.
    :param int psf_size: side of the stamp of the PSF, odd; default 39, less for small images.
    :param bool with_truth: whether items hold ``"x"``.
    :param Part part: ``"train"``, ``"validation"`` or ``"test"``.
    :param int keep: number of targets kept in memory, the latest.
    :raises ValueError: for sizes or ranges that cannot be.

    |sep|

    :Examples:

        >>> survey = SyntheticSurvey.small(100, seed=1, img_size=(33, 41), frames=(8, 12))
        >>> item = survey[3]
        >>> item["y"].shape, sorted(item["params"]), "x" in item
        (torch.Size([1, 10, 33, 41]), ['angles', 'center', 'filter', 'gain'], False)
        >>> survey.truth(3).x.shape
        torch.Size([1, 33, 41])
    """

    def __init__(
        self,
        n: int,
        seed: int = 0,
        *,
        img_size: tuple[int, int] = (101, 101),
        frames: int | tuple[int, int] = 61,
        population: SkyPopulation | None = None,
        halo: Halo | None = None,
        psf_error: PSFError | None = None,
        declination: Range = (-70.0, 10.0),
        hour_angle: Range = (-0.5, 0.5),
        duration: Range = (1.0, 3.0),
        gain_scatter: float = 0.0,
        psf_size: int | None = None,
        with_truth: bool = False,
        part: Part | str = Part.TRAIN,
        keep: int = 1,
    ) -> None:
        super().__init__(use_dict_output=True)
        low, high = frames if isinstance(frames, tuple) else (frames, frames)
        if not 2 <= low <= high:
            raise ValueError(f"frames must be 2 or more, or an increasing pair, got {frames}")
        if len(img_size) != 2 or min(img_size) < 15:
            raise ValueError(f"img_size must be two numbers of 15 or more, got {img_size}")
        if keep < 0:
            raise ValueError(f"keep must not be negative, got {keep}")
        self.n, self.seed, self.part = _size(n), seed, Part(part)
        self.img_size = (int(img_size[0]), int(img_size[1]))
        self.frames = (int(low), int(high))
        self.population = population or SkyPopulation()
        self.halo: Halo = halo or PupilHalo()
        self.psf_error = psf_error or PSFError()
        self.tracks = partial(
            AngleTrackGenerator, declination=declination, hour_angle=hour_angle, duration=duration
        )
        self.tracks(2)  # refuses bad ranges now, not at the first target
        self.gain_scatter = gain_scatter
        self.psf_size = psf_size or min(39, (min(img_size) // 2) | 1)
        if self.psf_size % 2 == 0 or self.psf_size > min(img_size):
            raise ValueError(
                f"psf_size must be odd and at most {min(img_size)}, the image's shorter side, "
                f"got {psf_size}"
            )
        self.with_truth, self.keep = with_truth, keep
        self._kept: OrderedDict[int, _Target] = OrderedDict()

    @classmethod
    def small(cls, n: int, seed: int = 0, **changes: Any) -> SyntheticSurvey:
        r"""Survey that is quick to draw: 33 x 33 pixels, 12 frames, the halo of a formula, thin disks.

        :param int n: number of targets.
        :param int seed: of the survey.
        :param changes: any other argument of the class.
        :return: :class:`SyntheticSurvey`.
        """
        quick: dict[str, Any] = {
            "img_size": (33, 33),
            "frames": 12,
            "halo": RicianHalo(),
            "population": SkyPopulation(scale_height=0.0),
        }
        return cls(n, seed, **{**quick, **changes})

    def split(self, train: int, validation: int, test: int) -> SurveyParts:
        r"""Three surveys of the same stars' population that share no target, whatever their sizes.

        :param int train: number of targets to learn from.
        :param int validation: to choose with.
        :param int test: to judge by.
        :return: (:class:`SurveyParts`) target :math:`i` of a part is the same for every size.

        >>> parts = SyntheticSurvey.small(1).split(train=80, validation=10, test=20)
        >>> len(parts.train), len(parts.validation), len(parts.test)
        (80, 10, 20)
        """
        sizes = (train, validation, test)
        return SurveyParts(*(self._part(p, n) for p, n in zip(Part, sizes, strict=True)))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        target = self._target(index)
        item: dict[str, Any] = {
            "y": target.y.clone(),
            "params": {name: value.clone() for name, value in target.params.items()},
        }
        if self.with_truth:
            item["x"] = target.truth.x.clone()
        return item

    def truth(self, index: int) -> SurveyTruth:
        """
        The truth of a target, for evaluation.

        :param int index: of the target.
        :return: :class:`SurveyTruth`.
        """
        return self._target(index).truth

    def sequence(self, index: int) -> Sequence:
        """
        A target as an observer's sequence, with the PSF that one is told.

        :param int index: of the target.
        :return: :class:`~deepinv_astro.io.Sequence`.
        """
        target = self._target(index)
        center = (float(self.img_size[0] // 2), float(self.img_size[1] // 2))
        return Sequence(
            y=target.y[None],
            angles=target.truth.angles,
            psf=target.params["filter"],
            star_flux=torch.tensor([target.star_flux]),
            center=center,
            pixel_scale=27.19 * u.mas,
            unit=u.ct,
            target=self.name(index),
            provenance=(f"Simulated: survey {self.seed}, {self.part.value}, target {index}.",),
        )

    def name(self, index: int) -> str:
        """
        Name of a target.

        :param int index: of the target.
        :return: such as ``"train-000003"``.
        """
        return f"{self.part.value}-{index % self.n:06d}"

    def shape(self, index: int) -> tuple[int, int, int]:
        """
        Frames, rows and columns of a target, without simulating it.

        :param int index: of the target.
        :return: ``(T, H, W)``.
        """
        return (self._frames(self._generator(index)), *self.img_size)

    def _part(self, part: Part, n: int) -> SyntheticSurvey:
        """The survey with another part and size."""
        other = object.__new__(type(self))
        other.__dict__ = {**self.__dict__, "part": part, "n": _size(n), "_kept": OrderedDict()}
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}  # workers make their own

    def _generator(self, index: int) -> torch.Generator:
        if not -self.n <= index < self.n:
            raise IndexError(f"target {index} of a survey of {self.n}")
        seed = target_seed(self.seed, self.part, index % self.n)
        return torch.Generator().manual_seed(seed)

    def _frames(self, generator: torch.Generator) -> int:
        """Number of frames: the first draw of each target."""
        low, high = self.frames
        return int(torch.randint(low, high + 1, (), generator=generator))

    def _target(self, index: int) -> _Target:
        generator = self._generator(index)
        key = index % self.n
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        target = self._simulate(generator)
        if self.keep:
            self._kept[key] = target
            while len(self._kept) > self.keep:
                self._kept.popitem(last=False)
        return target

    def _simulate(self, generator: torch.Generator) -> _Target:
        """Draw everything of a target, in an order that keeps the data when only `psf_error` changes."""
        n_frames = self._frames(generator)
        sky = self.population.draw(generator)
        track = self.tracks(n_frames, rng=generator, dtype=torch.float64)
        angles = track.step()["angles"][0]
        gain = GainGenerator(n_frames, self.gain_scatter, rng=generator).step()["gain"][0]
        star = self.halo.draw(n_frames, self.img_size, self.psf_size, generator)
        told = self.psf_error.apply(star.psf, generator)
        halo = gain[:, None, None] * star.frames
        deviation = temporal_deviation(star._replace(frames=halo))
        disk = self._disk(sky, star, deviation)
        planets = tuple(self._planet(p, star, deviation) for p in sky.planets)
        x = disk + _planet_image(planets, self.img_size)
        physics = ADI((1, *self.img_size), angles, filter=star.psf, gain=gain)
        # An empty sky costs nothing.
        scene = physics.A(x[None, None])[0, 0] if bool(x.any()) else torch.zeros_like(halo)
        y = detect(halo + scene, star.detector, generator=generator)
        params = {
            "angles": angles.float(),
            "filter": told[None],
            "center": torch.tensor([n // 2 for n in self.img_size], dtype=torch.float32),
            "gain": gain,
        }
        truth = SurveyTruth(
            x[None], disk[None], planets, sky, star.psf[None], deviation[None], angles
        )
        return _Target(y[None], params, star.detector.star_flux, truth)

    def _disk(self, sky: SkyDraw, star: Star, deviation: Tensor) -> Tensor:
        """Disk in counts per pixel: its best pixel behind the PSF has the signal that was drawn."""
        if sky.disk is None:
            return torch.zeros(self.img_size)
        image = self.population.image(sky.disk, self.img_size).float()
        best = (blur(image[None, None], star.psf)[0, 0] / deviation).max()
        return image * (sky.disk.signal / best)

    def _planet(self, planet: PlanetDraw, star: Star, deviation: Tensor) -> PlanetTruth:
        """A planet as it is in the sky image."""
        separation = planet.separation * field_radius(self.img_size)
        # point_sources needs 8 x 8 pixels inside the image
        separation = min(separation, field_radius(self.img_size) - 5)
        offset = sky_offset(separation, planet.position_angle)
        row, column = (n // 2 + float(d) for n, d in zip(self.img_size, offset, strict=True))
        sigma = deviation[round(row), round(column)]
        flux = planet.signal * float(sigma / star.psf.max())
        return PlanetTruth(
            row, column, separation, planet.position_angle, flux, flux / star.detector.star_flux
        )


def target_seed(seed: int, part: Part | str, index: int) -> int:
    r"""Seed of one target: different for each part and index of a survey.

    .. math::

        \mathrm{mix}(\mathrm{mix}(2^{30} p + i) \oplus h(\mathrm{seed})), \qquad p \in \{0, 1, 2\}

    torch's generator on the CPU uses 32 bits of its seed, so that hashes would collide in a large
    survey. Here :math:`\mathrm{mix}` is a bijection of 32 bits (the finalizer of MurmurHash3), and
    no two targets of a survey share a seed.

    :param int seed: of the survey, not negative.
    :param Part part: of the survey.
    :param int index: of the target, below :math:`2^{30}`.
    :return: integer of 32 bits.
    :raises ValueError: if the index is out of range or the seed negative.

    >>> target_seed(0, "train", 5) == target_seed(0, "test", 5)
    False
    """
    if not 0 <= index < LARGEST_SURVEY:
        raise ValueError(f"index must lie between 0 and {LARGEST_SURVEY - 1}, got {index}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    key = list(Part).index(Part(part)) * LARGEST_SURVEY + index
    return _mix(_mix(key) ^ int(np.random.SeedSequence(seed).generate_state(1)[0]))


def _mix(key: int) -> int:
    """A bijection of 32-bit integers that looks random."""
    key ^= key >> 16
    key = key * 0x85EBCA6B & 0xFFFFFFFF
    key ^= key >> 13
    key = key * 0xC2B2AE35 & 0xFFFFFFFF
    return key ^ key >> 16


def _size(n: int) -> int:
    """Number of targets, checked."""
    if not 1 <= n <= LARGEST_SURVEY:
        raise ValueError(f"a survey has between 1 and {LARGEST_SURVEY} targets, got {n}")
    return int(n)


def _planet_image(planets: tuple[PlanetTruth, ...], img_size: tuple[int, int]) -> Tensor:
    """Image of all planets."""
    if not planets:
        return torch.zeros(img_size)
    columns = [[getattr(p, name) for p in planets] for name in ("row", "column", "flux")]
    rows, cols, fluxes = torch.tensor(columns, dtype=torch.float64)
    return point_sources(img_size, rows, cols, fluxes).float()
