r"""Angular differential imaging: a sky that turns under a fixed instrument."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from enum import Enum
from typing import Any

import torch
from deepinv.physics import LinearPhysics
from deepinv.utils.mixins import TimeMixin
from torch import Tensor

from deepinv_astro.physics.functional.frames import FrameModel, Geometry, frame_otf, map_on_sky
from deepinv_astro.physics.functional.rotation import Interpolation


class TransmissionOrder(str, Enum):
    """Where the coronagraph's transmission acts, relative to the convolution with the PSF."""

    AFTER_PSF = "after_psf"
    BEFORE_PSF = "before_psf"


_PARAMETERS = ("angles", "center", "filter", "transmission", "gain", "smear")


class ADI(TimeMixin, LinearPhysics):
    r"""Angular differential imaging of a sky that turns about a star.

    Frame :math:`t` of the sequence is

    .. math::

        y_t = g_t\, V\, \Gamma H_t Q_t\, x \qquad\text{or}\qquad y_t = g_t\, V\, H_t \Gamma Q_t\, x,

    with :math:`Q_t` the rotation of the sky by minus the derotation angle :math:`\theta_t` about
    the star, :math:`H_t` the convolution with the off-axis PSF, :math:`\Gamma` the transmission of
    the coronagraph, :math:`V` the crop to the detector, and :math:`g_t` the gain of the frame
    (transmission after the PSF, or before it as in REXPACO).

    As rotation commutes with a convolution whose kernel is counter-rotated,
    :math:`H_t Q_t = Q_t H_t^{(\theta_t)}`, the image is blurred first (exactly, in Fourier space)
    and the band-limited result is resampled once for each frame.
    The adjoint is the exact transpose.

    All parameters are buffers: pass them to the constructor, to :meth:`A`, :meth:`A_adjoint`, or
    to ``update``. Each may have a leading batch axis ``b`` that divides the batch of images ``B``;
    image ``n`` uses the parameters ``n mod b``. Gradients flow to the image and to every parameter.

    :param tuple img_size: sky image ``(C, H, W)``.
    :param torch.Tensor angles: derotation angles in degrees, ``(T,)`` or ``(b, T)``.
    :param torch.Tensor filter: PSF stamp(s) with the star at ``(k // 2, k // 2)``: ``(k, k)``,
        ``(c, k, k)``, ``(b, c, k, k)`` or ``(b, c, t, k, k)`` with ``c`` 1 or ``C`` and ``t`` 1 or
        ``T``; unit sum keeps fluxes. ``None`` for no blur.
    :param torch.Tensor, tuple center: row and column of the star on the detector: ``(2,)``, ``(b,
        2)`` or ``(b, T, 2)``. Default ``(h // 2, w // 2)``.
    :param torch.Tensor transmission: :math:`\Gamma` on the detector, ``(h, w)`` or ``(b, h, w)``.
    :param torch.Tensor gain: :math:`g_t`, ``(T,)`` or ``(b, T)``.
    :param tuple detector_size: rows and columns ``(h, w)`` of a frame. Default ``(H, W)``.
    :param tuple sky_center: row and column of the star on the sky image. Default ``(H // 2, W //
        2)``.
    :param TransmissionOrder transmission_order: ``"after_psf"`` or ``"before_psf"``. In the second
        case
        :math:`\Gamma Q_t x` is computed as :math:`Q_t (\Gamma^{(t)} x)`, with the map read
        (linearly) where the sky
        pixels fall on the detector.
    :param torch.Tensor smear: rotation in degrees during each exposure, ``(T,)`` or ``(b, T)``;
        the frame is the mean of ``smear_steps`` turned skies, by the midpoint rule.
    :param int smear_steps: number of those.
    :param Interpolation interpolation: ``"spline"`` (fast; flux of a point source within 0.1 % for
        a FWHM of 3.9 pixels or more) or ``"shear"`` (Fourier, the reference, some 50 times slower).
    :param int max_bytes: memory that the operator may keep for itself and use for one chunk of
        frames. Sequences that fit are processed at once from tables computed at the first call;
        others frame by frame, tables made anew.
    :param torch.device, str device: device of the buffers.
    :param torch.dtype dtype: precision of the buffers and of the images.
    :param kwargs: given to :class:`deepinv.physics.LinearPhysics`, e.g. ``noise_model``.
    :raises ValueError: if a shape does not fit; the message says which and what is expected.

    |sep|

    :Examples:

        A planet to the North of the star, seen in three frames:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> physics = ADI(img_size=(1, 9, 7), angles=torch.tensor([0.0, 90.0, 180.0]))
        >>> x = torch.zeros(1, 1, 9, 7)
        >>> x[0, 0, 6, 3] = 1.0
        >>> y = physics.A(x)
        >>> y.shape
        torch.Size([1, 1, 3, 9, 7])
        >>> [divmod(int(frame.argmax()), 7) for frame in y[0, 0]]
        [(6, 3), (4, 5), (2, 3)]
    """

    def __init__(
        self,
        img_size: tuple[int, int, int],
        angles: Tensor,
        filter: Tensor | None = None,
        center: Tensor | tuple[float, float] | None = None,
        transmission: Tensor | None = None,
        gain: Tensor | None = None,
        *,
        detector_size: tuple[int, int] | None = None,
        sky_center: tuple[float, float] | None = None,
        transmission_order: TransmissionOrder | str = TransmissionOrder.AFTER_PSF,
        smear: Tensor | None = None,
        smear_steps: int = 5,
        interpolation: Interpolation | str = Interpolation.SPLINE,
        max_bytes: int = 1 << 30,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ):
        super().__init__(img_size=img_size, **kwargs)
        _, height, width = self.img_size = _sizes("img_size", img_size, 3)
        self.detector_size = _sizes("detector_size", detector_size or (height, width), 2)
        self.transmission_order = TransmissionOrder(transmission_order)
        self.interpolation = Interpolation(interpolation)
        (self.smear_steps,) = _sizes("smear_steps", (smear_steps,), 1)
        self.max_bytes = max_bytes
        h, w = self.detector_size
        if center is None:
            center = (h // 2, w // 2)
        if sky_center is None:
            sky_center = (height // 2, width // 2)
        star = torch.as_tensor(sky_center, dtype=dtype).clone()
        if star.shape != (2,) or not torch.isfinite(star).all():
            raise ValueError(f"sky_center must be a finite (row, column), got {sky_center}")
        self.register_buffer("sky_center", star)
        for name in _PARAMETERS:
            self.register_buffer(name, None)
        given = (angles, center, filter, transmission, gain, smear)
        for name, value in zip(_PARAMETERS, given, strict=True):
            if value is not None:
                setattr(self, name, self._shaped(name, torch.as_tensor(value)))
        self._check_parameters(self._given())
        self._tables: tuple[list[Any], dict[int, list[FrameModel]]] | None = None
        self.to(device)

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        r"""Sequence of a sky image, without noise.

        :param torch.Tensor x: sky ``(B, C, H, W)``.
        :param kwargs: new parameters, as in the constructor: ``angles``, ``filter``, ``center``,
            ``transmission``, ``gain``, ``smear``.
        :return: (:class:`torch.Tensor`) sequence ``(B, C, T, h, w)``.
        :raises ValueError: if the shape of ``x`` or of a parameter does not fit.
        """
        self.update_parameters(**kwargs)
        if x.ndim != 4 or tuple(x.shape[1:]) != self.img_size:
            raise ValueError(
                f"x must be of shape (B, C, H, W) = (B, {_listed(self.img_size)}), got {tuple(x.shape)}"
            )
        self._check_dtype("x", x)
        chunks: list[list[Tensor]] = [[] for _ in x]
        for row, images in self._rows(len(x)).items():
            for model in self._models(row):
                for n in images:
                    chunks[n].append(model.forward(x[n]))
        shape = (self.img_size[0], self.frames, *self.detector_size)
        frames = [torch.cat(parts, 1) for parts in chunks]
        return torch.stack(frames) if frames else x.new_zeros(0, *shape)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        r"""Transpose of :meth:`A`.

        :param torch.Tensor y: sequence ``(B, C, T, h, w)``.
        :param kwargs: new parameters, as in :meth:`A`.
        :return: (:class:`torch.Tensor`) sky ``(B, C, H, W)``.
        :raises ValueError: if the shape of ``y`` or of a parameter does not fit.
        """
        self.update_parameters(**kwargs)
        expected = (self.img_size[0], self.frames, *self.detector_size)
        if y.ndim != 5 or tuple(y.shape[1:]) != expected:
            raise ValueError(
                f"y must be of shape (B, C, T, h, w) = (B, {_listed(expected)}), got {tuple(y.shape)}"
            )
        self._check_dtype("y", y)
        sky: list[Tensor] = [y.new_zeros(self.img_size) for _ in y]
        for row, sequences in self._rows(len(y)).items():
            for model, chunk in zip(self._models(row), self._chunks(), strict=True):
                for n in sequences:
                    sky[n] = sky[n] + model.adjoint(y[n, :, chunk])
        return torch.stack(sky) if sky else y.new_zeros(0, *self.img_size)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return int(self.angles.shape[1])

    def update_parameters(self, **kwargs: Any) -> None:
        r"""Change parameters of the operator.

        :param kwargs: tensors named as in the constructor; others are left to the noise model.
        :raises ValueError: if a shape does not fit.
        """
        named = {name: kwargs[name] for name in _PARAMETERS if kwargs.get(name) is not None}
        if named:
            shaped = {name: self._shaped(name, value) for name, value in named.items()}
            self._check_parameters({**self._given(), **shaped})
            super().update_parameters(**shaped)

    def variant(self, **parameters: Tensor) -> ADI:
        r"""Copy of the operator with other parameters.

        :param parameters: tensors named as in the constructor.
        :return: (:class:`ADI`) the copy; nothing is shared with the original.
        """
        other: ADI = copy.deepcopy(self)
        other.update_parameters(**parameters)
        return other

    def sample(self, n: int) -> ADI:
        r"""Copy of the operator with the parameters of image ``n`` of a batch.

        :param int n: index of the image.
        :return: (:class:`ADI`) the copy, whose parameters have a batch of one.
        """
        return self.variant(
            **{k: v[n % len(v)][None] for k in _PARAMETERS if (v := getattr(self, k)) is not None}
        )

    def channel(self, c: int) -> ADI:
        r"""Copy of the operator for one wavelength.

        :param int c: index of the channel.
        :return: (:class:`ADI`) the copy, for images ``(B, 1, H, W)``.
        """
        own = {}
        if self.filter is not None and self.filter.shape[1] > 1:
            own["filter"] = self.filter[:, c : c + 1]
        other: ADI = copy.deepcopy(self)
        other.img_size = (1, *self.img_size[1:])
        other.update_parameters(**own)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": None}  # tables are remade, never copied or saved

    def _shaped(self, name: str, value: Tensor) -> Tensor:
        """Parameter with all its axes: (b, T), (b, 1 or T, 2), (b, h, w) or (b, c, 1 or T, k, k)."""
        value = torch.as_tensor(value).to(self.sky_center)
        shape = tuple(value.shape)
        if name in ("angles", "gain", "smear"):
            axes, wanted = {1: (1, *shape), 2: shape}, "(T,) or (b, T)"
        elif name == "center":
            axes, wanted = (
                {1: (1, 1, *shape), 2: (shape[0], 1, 2), 3: shape},
                "(2,), (b, 2) or (b, T, 2)",
            )
        elif name == "transmission":
            axes, wanted = {2: (1, *shape), 3: shape}, f"(b, {_listed(self.detector_size)})"
        else:
            axes = {
                2: (1, 1, 1, *shape),
                3: (1, shape[0], 1, *shape[1:]),
                4: (*shape[:2], 1, *shape[2:]),
                5: shape,
            }
            wanted = "(k, k), (c, k, k), (b, c, k, k) or (b, c, t, k, k)"
        full = axes.get(value.ndim, ())
        wrong = not full or 0 in shape
        wrong = wrong or (name == "center" and shape[-1] != 2)
        wrong = wrong or (name == "transmission" and shape[-2:] != tuple(self.detector_size))
        if wrong:
            raise ValueError(f"{name} must be of shape {wanted}, got {shape}")
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} must be finite, got NaN or infinite values")
        # a copy: what load_state_dict writes into it is ours, and is not bound to inference mode
        if value.is_inference():
            with torch.inference_mode(False), torch.no_grad():
                return value.clone().reshape(full)
        return value.clone(memory_format=torch.contiguous_format).reshape(full)

    def _check_dtype(self, name: str, value: Tensor) -> None:
        if value.dtype != self.sky_center.dtype:
            raise ValueError(
                f"{name} is {value.dtype}, the operator {self.sky_center.dtype}: "
                f"use {name}.to(physics.angles) or physics.to({value.dtype})"
            )

    def _check_parameters(self, given: dict[str, Tensor]) -> None:
        """Raise if the parameters disagree on the number of frames, of channels, or of batches."""
        frames, channels = given["angles"].shape[1], self.img_size[0]
        axes = {"gain": 1, "smear": 1, "center": 1, "filter": 2}
        for name, axis in axes.items():
            value = given.get(name)
            allowed = (frames,) if axis == 1 and name != "center" else (1, frames)
            if value is not None and value.shape[axis] not in allowed:
                raise ValueError(
                    f"{name} is given for {value.shape[axis]} frames, but there are {frames} angles"
                )
        psf = given.get("filter")
        if psf is not None and psf.shape[1] not in (1, channels):
            raise ValueError(f"filter has {psf.shape[1]} channels, the image has {channels}")
        batches = {len(value) for value in given.values()} - {1}
        if len(batches) > 1:
            raise ValueError(f"parameters must share one batch size, got {sorted(batches)}")

    def _given(self) -> dict[str, Tensor]:
        return {k: v for k in _PARAMETERS if (v := getattr(self, k)) is not None}

    def _parameters_given(self) -> list[Tensor]:
        return list(self._given().values())

    def _rows(self, batch: int) -> dict[int, list[int]]:
        """Which images of a batch use the parameters of each batch index."""
        given = max(len(value) for value in self._given().values())
        if batch % given:
            raise ValueError(
                f"a batch of {batch} cannot use parameters in a batch of {given}: "
                "their number must divide the number of images"
            )
        return {row: list(range(row, batch, given)) for row in range(min(given, batch))}

    def _geometry(self) -> Geometry:
        stamp = (1, 1) if self.filter is None else (self.filter.shape[-2], self.filter.shape[-1])
        return Geometry(self.img_size[1:], stamp, self.detector_size, self.interpolation)

    def _frame_bytes(self) -> tuple[int, int]:
        """Bytes per frame of the transfer functions, and of the tables of the interpolation."""
        rows, columns = self._geometry().grid
        item = self.sky_center.element_size()
        steps = 1 if self.smear is None else self.smear_steps
        channels = 1 if self.filter is None else self.filter.shape[1]
        h, w = self.detector_size
        return steps * channels * rows * (columns // 2 + 1) * 2 * item, steps * 32 * h * w * (
            4 + item
        )

    def _chunks(self) -> list[slice]:
        """Frames that are processed together."""
        otf, table = self._frame_bytes()
        at_once = max(1, min(self.frames, self.max_bytes // (otf + table)))
        return [slice(t, min(t + at_once, self.frames)) for t in range(0, self.frames, at_once)]

    def _models(self, row: int) -> Iterable[FrameModel]:
        """Models of the chunks of frames, with the parameters of one batch index; kept if they fit in memory."""
        used = [self.sky_center, *self._parameters_given()]
        otf, table = self._frame_bytes()
        frames = self.frames * max(len(value) for value in self._parameters_given())
        gradient = torch.is_grad_enabled() and any(value.requires_grad for value in used)
        untracked = any(value.is_inference() for value in used)  # moved in inference mode
        if gradient or untracked or otf * frames > self.max_bytes:
            return (self._model(row, chunk, keep=False) for chunk in self._chunks())
        options = (self.interpolation, self.transmission_order, self.smear_steps, self.max_bytes)
        state = [(value, value._version) for value in used] + [(o, 0) for o in options]
        if self._tables is None or not _same(self._tables[0], state):
            self._tables = (state, {})
        kept = self._tables[1]
        if row not in kept:
            keep = (otf + table) * frames <= self.max_bytes
            with torch.inference_mode(False), torch.no_grad():
                kept[row] = [self._model(row, chunk, keep) for chunk in self._chunks()]
        return kept[row]

    def _model(self, row: int, chunk: slice, keep: bool) -> FrameModel:
        """The linear map of some frames, with the parameters of one batch index."""
        geometry = self._geometry()

        chosen: list[Any] = [
            None if value is None else value[row % len(value)]
            for value in (getattr(self, name) for name in _PARAMETERS)
        ]
        angles, center, psf, transmission, gain, smear = chosen
        steps = 1 if smear is None else self.smear_steps
        angles = angles[chunk].repeat_interleave(steps)
        if smear is not None:
            within = (torch.arange(steps).to(angles) + 0.5) / steps - 0.5
            angles = angles + (smear[chunk, None] * within).flatten()
        center = center.expand(self.frames, 2)[chunk].repeat_interleave(steps, 0)
        if psf is not None and psf.shape[1] > 1:
            psf = psf[:, chunk].repeat_interleave(steps, 1)
        otf = frame_otf(psf, angles, geometry, self.sky_center)
        before = None
        if transmission is not None and self.transmission_order is TransmissionOrder.BEFORE_PSF:
            before = map_on_sky(transmission, angles, center, self.sky_center, geometry.sky)
            transmission = None
        weight = None if gain is None else gain[chunk, None, None]
        if transmission is not None:
            weight = transmission if weight is None else weight * transmission
        return FrameModel(
            geometry, angles, center, self.sky_center, otf, before, weight, steps, keep
        )


def _sizes(name: str, value: Any, number: int) -> tuple[Any, ...]:
    """Positive integers, as many as wanted."""
    sizes = tuple(value)
    if len(sizes) != number or not all(isinstance(s, int) and s > 0 for s in sizes):
        raise ValueError(f"{name} must be {number} positive integers, got {value}")
    return sizes


def _same(old: list[tuple[Any, int]], new: list[tuple[Any, int]]) -> bool:
    return len(old) == len(new) and all(
        a is b and m == n for (a, m), (b, n) in zip(old, new, strict=True)
    )


def _listed(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes))
