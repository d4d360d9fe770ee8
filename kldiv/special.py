"""Primitives without cancellation, from which the closed forms are built."""

import torch
from torch import Tensor


def expm1mx(u: Tensor) -> Tensor:
    r"""exp(u) - 1 - u, elementwise, to the last digits for small u too. Never negative.

    .. math:: e^u - 1 - u = u^2 \sum_{k \ge 0} \frac{u^k}{(k + 2)!}

    Args:
        u: floating point, any shape. ``float32`` or wider: half precision is for the caller to widen.
    Returns: the shape and dtype of ``u``; ``inf`` at both infinities.

    >>> expm1mx(torch.tensor([0.0, 1e-10, 1.0]))
    tensor([0.0000e+00, 5.0000e-21, 7.1828e-01])
    """
    near = u.abs() < 0.5
    # the branch that is not taken sees a harmless argument, so that its gradient is finite too
    v = torch.where(near, u, 0.0)
    series = torch.full_like(v, _SERIES[u.dtype][-1])
    for coefficient in reversed(_SERIES[u.dtype][:-1]):
        series = series * v + coefficient
    # the clamp keeps inf - inf away; where it acts, expm1 is infinite already
    return torch.where(near, v * v * series, torch.expm1(u) - u.clamp(max=1e30))


def exact_difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded difference of two tensors and the error of that rounding: a - b = difference + error.

    Exact while nothing overflows. The error carries no gradient: the difference has all of it.

    Args:
        a, b: shapes that broadcast, of one floating dtype.
    Returns: ``(difference, error)``, each of the broadcast shape; the error is 0 where the difference is not finite.
    Source: Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B.

    >>> exact_difference(torch.tensor(1.0), torch.tensor(-1e-10))
    (tensor(1.), tensor(1.0000e-10))
    """
    difference = a - b
    with torch.no_grad():
        b_used = a - difference
        error = (a - (difference + b_used)) + (b_used - b)
        error = torch.nan_to_num(error, nan=0.0, posinf=0.0, neginf=0.0)
    return difference, error


def standardise(difference: Tensor, log_var: Tensor) -> Tensor:
    r"""difference / standard deviation, :math:`d\, e^{-\lambda/2}`, which neither over- nor underflows on the way.

    Args:
        difference, log_var: shapes that broadcast, of one floating dtype.
    Returns: the broadcast shape; 0 where the difference is 0, whatever the log-variance.

    >>> standardise(torch.tensor(1e-30), torch.tensor(-180.0))
    tensor(1.2204e+09)
    """
    # in two halves; beyond the clamp any difference but 0 gives inf all the same, and 0 stays 0
    half = torch.exp((-0.25 * log_var).clamp(max=80.0 if log_var.dtype == torch.float32 else 700.0))
    return (difference * half) * half


def widen(*values: Tensor | float) -> tuple[Tensor, ...]:
    """The values in the one dtype in which to compute with them: the widest of the tensors', ``float32`` at least.

    Args:
        values: tensors, at least one; numbers among them become tensors beside it, in that dtype.

    >>> [v.dtype for v in widen(torch.ones(2, dtype=torch.float16), 0.5)]
    [torch.float32, torch.float32]
    """
    tensors = [value for value in values if isinstance(value, Tensor)]
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(
        value.to(dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=tensors[0].device)
        for value in values
    )


def _taylor(terms: int) -> tuple[float, ...]:
    coefficients, factorial = [], 1.0
    for k in range(2, terms + 2):
        factorial *= k
        coefficients.append(1.0 / factorial)
    return tuple(coefficients)


# as many terms as the dtype can tell apart at |u| = 0.5
_SERIES = {torch.float32: _taylor(9), torch.float64: _taylor(15)}
