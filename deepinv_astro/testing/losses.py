r"""The laws of losses: restored from their state, quiet outside of training, precise."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from deepinv.loss import Loss
from deepinv.physics import Physics
from torch import Tensor
from torch.nn import Module

from deepinv_astro.testing.operators import _loose_tensors


class _Evaluation(NamedTuple):
    loss: Tensor
    x_net: Tensor


def assert_loss_state_restored(
    loss: Loss,
    other: Loss,
    physics: Physics,
    model: Module,
    x: Tensor,
    *,
    steps: int = 3,
    seed: int = 0,
) -> None:
    r"""A training that is stopped and resumed goes on as if it had not been stopped.

    ``loss`` sees some training steps; its ``state_dict``, saved and read again, is loaded into
    ``other``; then both give the same value, and the same state after further steps. All tensors
    of a loss must be buffers or parameters.

    :param deepinv.loss.Loss loss: a loss; its state moves.
    :param deepinv.loss.Loss other: one of the same shapes with other values in *every* tensor.
    :param deepinv.physics.Physics physics: the operator, with its noise.
    :param torch.nn.Module model: reconstructor; copies of it are used.
    :param torch.Tensor x: ground truth.
    :param int steps: number of training steps before and after.
    :param int seed: seed of the noise and of the probes.
    :raises AssertionError: if the law is broken, or if both losses are alike from the start.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.loss import SureGaussianLoss
        >>> from deepinv.physics import Denoising, GaussianNoise
        >>> from deepinv_astro.testing import assert_loss_state_restored
        >>> losses = [SureGaussianLoss(s, unsure=True) for s in (0.1, 0.2)]
        >>> physics, model = Denoising(GaussianNoise(0.1)), torch.nn.Identity()
        >>> assert_loss_state_restored(*losses, physics, model, torch.ones(2, 1, 4, 3))
        Traceback (most recent call last):
        ...
        AssertionError: tensors that are neither buffers nor parameters: sigma2
    """
    for one in (loss, other):
        loose = [name for name, _ in _loose_tensors(one)]
        if loose:
            raise AssertionError(f"tensors that are neither buffers nor parameters: {loose[0]}")
    models = [one.adapt_model(copy.deepcopy(model)) for one in (loss, other)]
    _train(loss, physics, models[0], x, steps, seed)
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    alike = [name for name, value in _floats(other.state_dict()).items() if name in state]
    alike = [name for name in alike if torch.equal(other.state_dict()[name], state[name])]
    if alike:
        raise AssertionError(f"both losses have the same {', '.join(alike)}: nothing is tested")
    other.load_state_dict(state)
    values = []
    for one, own in zip((loss, other), models, strict=True):
        with _seeded(seed + 1, one, physics, own), torch.no_grad():
            values.append(_evaluate(one, physics, own, x).loss)
    if not torch.equal(*values):
        raise AssertionError("after load_state_dict the losses differ")
    for one, own in zip((loss, other), models, strict=True):
        _train(one, physics, own, x, steps, seed + 2)
    mine, theirs = _floats(loss.state_dict()), _floats(other.state_dict())
    apart = [name for name, value in mine.items() if not torch.equal(value, theirs[name])]
    if apart:
        raise AssertionError(f"{steps} steps after load_state_dict, {', '.join(apart)} differ")


def assert_loss_quiet(
    loss: Loss, physics: Physics, model: Module, x: Tensor, *, steps: int = 2, seed: int = 0
) -> None:
    r"""A loss changes its state in training mode with gradients, and at no other time.

    It is evaluated with the loss in ``eval`` mode, with the model in ``eval`` mode, and in training
    mode under ``torch.no_grad``, on a reconstruction made in training mode.

    :param deepinv.loss.Loss loss: the loss.
    :param deepinv.physics.Physics physics: the operator, with its noise.
    :param torch.nn.Module model: reconstructor.
    :param torch.Tensor x: ground truth.
    :param int steps: number of evaluations in each mode.
    :param int seed: seed of the noise and of the probes.
    :raises AssertionError: if the state changes, or holds a graph.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.loss import Loss
        >>> from deepinv.physics import Denoising
        >>> from deepinv_astro.testing import assert_loss_quiet
        >>> class Counting(Loss):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_buffer("calls", torch.tensor(0.0))
        ...
        ...     def forward(self, x_net, x, y, physics, model, **kwargs):
        ...         self.calls += 1
        ...         return (x_net - y).square().mean()
        >>> assert_loss_quiet(Counting(), Denoising(), torch.nn.Identity(), torch.ones(1, 1, 2, 3))
        Traceback (most recent call last):
        ...
        AssertionError: with the loss in eval mode, the state calls changes
    """
    model = loss.adapt_model(model)
    modes = (
        ("with the loss in eval mode", False, True, True),
        ("with the model in eval mode", True, False, True),
        ("under no_grad", True, True, False),
    )
    for name, loss_trains, model_trains, gradient in modes:
        loss.train(loss_trains)
        with torch.set_grad_enabled(gradient):
            _assert_still(loss, physics, model, x, steps, seed, name, model_trains)


def assert_validation_quiet(
    loss: Loss, physics: Physics, model: Module, x: Tensor, *, steps: int = 2, seed: int = 0
) -> None:
    r"""A loss does not change its state when it is evaluated and nothing is back-propagated.

    :class:`deepinv.Trainer` with ``compute_eval_losses`` evaluates losses on the validation data in
    training mode and with gradients; only ``backward`` is not called.

    :param deepinv.loss.Loss loss: the loss.
    :param deepinv.physics.Physics physics: the operator, with its noise.
    :param torch.nn.Module model: reconstructor.
    :param torch.Tensor x: ground truth.
    :param int steps: number of evaluations.
    :param int seed: seed of the noise and of the probes.
    :raises AssertionError: if the state changes.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.loss import MCLoss
        >>> from deepinv.physics import Denoising
        >>> from deepinv_astro.testing import assert_validation_quiet
        >>> assert_validation_quiet(
        ...     MCLoss(), Denoising(), torch.nn.Identity(), torch.ones(1, 1, 2, 3)
        ... )
    """
    model = loss.adapt_model(model)
    loss.train()
    _assert_still(loss, physics, model, x, steps, seed, "without backward", model_trains=True)


def assert_operator_untouched(
    loss: Loss, physics: Physics, model: Module, x: Tensor, *, seed: int = 0
) -> None:
    r"""A loss leaves the operator and its noise as they were: the same tensors, of the same values.

    The next loss of a list, and the next reconstruction, meet the operator of the measurements.

    :param deepinv.loss.Loss loss: the loss.
    :param deepinv.physics.Physics physics: the operator, with its noise.
    :param torch.nn.Module model: reconstructor.
    :param torch.Tensor x: ground truth.
    :param int seed: seed of the noise and of the probes.
    :raises AssertionError: if a tensor of the operator is another one, or has changed.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.loss import Loss
        >>> from deepinv.physics import Denoising
        >>> from deepinv_astro.testing import assert_operator_untouched
        >>> class Louder(Loss):
        ...     def forward(self, x_net, x, y, physics, model, **kwargs):
        ...         physics.update(sigma=0.5)
        ...         return (x_net - y).square().mean()
        >>> x = torch.ones(1, 1, 2, 3)
        >>> assert_operator_untouched(Louder(), Denoising(), torch.nn.Identity(), x)
        Traceback (most recent call last):
        ...
        AssertionError: the loss changes noise_model.sigma of the operator
    """
    model = loss.adapt_model(model)
    loss.train()
    before = {name: (value, value.clone()) for name, value in physics.named_buffers()}
    with _seeded(seed, loss, physics, model):
        value = _evaluate(loss, physics, model, x).loss.mean()
        if value.requires_grad:
            value.backward()
    after = dict(physics.named_buffers())
    changed = [name for name in after if name not in before]
    for name, (value, copied) in before.items():
        if after.get(name) is not value or not torch.equal(value, copied):
            changed.append(name)
    if changed:
        raise AssertionError(f"the loss changes {', '.join(changed)} of the operator")


def assert_loss_double(
    loss: Loss,
    physics: Physics,
    model: Module,
    x: Tensor,
    *,
    rtol: float = 1e-5,
    seed: int = 0,
) -> None:
    r"""A loss keeps single and double precision, and is precise in double precision.

    The model :math:`(1+s) f` is differentiated in :math:`s` at 0, in double precision: the gradient
    must agree with a central difference, which a value rounded to single precision on its way
    would spoil.

    :param deepinv.loss.Loss loss: the loss; copies of it are moved.
    :param deepinv.physics.Physics physics: the operator, with its noise; copies of it are moved.
    :param torch.nn.Module model: reconstructor; copies of it are moved.
    :param torch.Tensor x: ground truth.
    :param float rtol: allowed difference of the gradients, relative.
    :param int seed: seed of the noise and of the probes.
    :raises AssertionError: if the law is broken.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.loss import MCLoss
        >>> from deepinv.physics import Denoising
        >>> from deepinv_astro.testing import assert_loss_double
        >>> assert_loss_double(MCLoss(), Denoising(), torch.nn.Softsign(), torch.rand(1, 1, 2, 3))
    """
    for dtype in (torch.float32, torch.float64):
        own, moved = copy.deepcopy(loss).to(dtype), copy.deepcopy(physics).to(dtype)
        scaled = _Scaled(copy.deepcopy(model).to(dtype), torch.zeros((), dtype=dtype))
        adapted = own.adapt_model(scaled).to(dtype)
        own.eval()

        def value(
            s: float,
            own: Loss = own,
            moved: Physics = moved,
            adapted: Module = adapted,
            scaled: _Scaled = scaled,
            dtype: torch.dtype = dtype,
        ) -> Tensor:
            scaled.s = torch.tensor(s, dtype=dtype, device=x.device, requires_grad=True)
            with _seeded(seed, own, moved, adapted):
                return _evaluate(own, moved, adapted, x.to(dtype)).loss

        here = value(0.0)
        if here.dtype != dtype:
            raise AssertionError(f"the loss is {here.dtype} for {dtype}")
        (slope,) = torch.autograd.grad(here.mean(), scaled.s)
    step = 1e-4
    with torch.no_grad():
        difference = float((value(step).mean() - value(-step).mean()) / (2 * step))
    if not slope.abs() > 0:
        raise AssertionError("the loss has no gradient to the reconstruction")
    if not abs(float(slope) - difference) <= rtol * abs(float(slope)):
        raise AssertionError(
            f"in double precision the gradient is {float(slope):.8g} "
            f"and the finite difference {difference:.8g}"
        )


class _Scaled(Module):
    """The reconstructor ``(1 + s) f``."""

    def __init__(self, model: Module, s: Tensor) -> None:
        super().__init__()
        self.model = model
        self.s = s

    def forward(self, y: Tensor, physics: Physics) -> Tensor:
        return (1 + self.s) * _reconstruct(self.model, y, physics)


def _reconstruct(model: Module, y: Tensor, physics: Physics) -> Tensor:
    """Call a reconstructor as Trainer does; a plain layer of torch takes the data alone."""
    parameters = inspect.signature(model.forward).parameters
    if "update_parameters" in parameters:
        out: Tensor = model(y, physics, update_parameters=True)
    elif len(parameters) == 1:
        out = model(y)
    else:
        out = model(y, physics)
    return out


def _evaluate(
    loss: Loss, physics: Physics, model: Module, x: Tensor, model_trains: bool = True
) -> _Evaluation:
    y = physics(x)
    model.train()
    x_net = _reconstruct(model, y, physics)
    model.train(model_trains)
    value = loss(x_net=x_net, x=x, y=y, physics=physics, model=model, epoch=0)
    return _Evaluation(value, x_net)


def _train(loss: Loss, physics: Physics, model: Module, x: Tensor, steps: int, seed: int) -> None:
    """Steps of a training in which only the state of the loss moves."""
    loss.train()
    with _seeded(seed, loss, physics, model), torch.enable_grad():
        for _ in range(steps):
            value = _evaluate(loss, physics, model, x).loss.mean()
            if value.requires_grad:
                value.backward()


def _assert_still(
    loss: Loss,
    physics: Physics,
    model: Module,
    x: Tensor,
    steps: int,
    seed: int,
    when: str,
    model_trains: bool,
) -> None:
    before = copy.deepcopy(_floats(loss.state_dict()))
    with _seeded(seed, loss, physics, model):
        for _ in range(steps):
            _evaluate(loss, physics, model, x, model_trains)
    moved = [k for k, v in _floats(loss.state_dict()).items() if not torch.equal(v, before[k])]
    if moved:
        raise AssertionError(f"{when}, the state {', '.join(moved)} changes")
    graphs = [name for name, value in loss.named_buffers() if value.grad_fn is not None]
    if graphs:
        raise AssertionError(f"{when}, the state {', '.join(graphs)} holds a graph")


def _floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and v.is_floating_point()}


@contextmanager
def _seeded(seed: int, *modules: Module) -> Iterator[None]:
    """Seed the global generator and those of the modules, each by its own number; undo it at the end."""
    found = {
        id(value): value
        for module in modules
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, torch.Generator)
    }
    generators = list(found.values())
    states = [generator.get_state() for generator in generators]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for number, generator in enumerate(generators, 1):
            generator.manual_seed(seed + 7919 * number)
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
