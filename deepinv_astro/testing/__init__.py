r"""The laws of operators, transforms and losses, as assertions for tests.

Each function takes an object that it does not know, and raises an :class:`AssertionError` that
says which law is broken and by how much. Laws alone let swapped axes through: next to them, compare
with a closed form or with an independent program.
"""

from deepinv_astro.testing.losses import (
    assert_loss_double,
    assert_loss_quiet,
    assert_loss_state_restored,
    assert_operator_untouched,
    assert_validation_quiet,
)
from deepinv_astro.testing.operators import (
    assert_adjoint,
    assert_batches_independent,
    assert_dtype_kept,
    assert_flux,
    assert_gradients,
    assert_linear,
    assert_state_restored,
    dense_matrix,
)
from deepinv_astro.testing.risk import assert_unbiased, measurement_risk
from deepinv_astro.testing.transforms import (
    assert_inverse,
    assert_neutral,
    assert_parameters_per_image,
    assert_reproducible,
    assert_transform_adjoint,
)

__all__ = [
    "assert_adjoint",
    "assert_batches_independent",
    "assert_dtype_kept",
    "assert_flux",
    "assert_gradients",
    "assert_inverse",
    "assert_linear",
    "assert_loss_double",
    "assert_loss_quiet",
    "assert_loss_state_restored",
    "assert_neutral",
    "assert_operator_untouched",
    "assert_parameters_per_image",
    "assert_reproducible",
    "assert_state_restored",
    "assert_transform_adjoint",
    "assert_unbiased",
    "assert_validation_quiet",
    "dense_matrix",
    "measurement_risk",
]
