"""Primitives without cancellation, from which the closed forms are built."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kldiv.numerics.tensors import broadcast

__all__ = [
    "LOG2_E",
    "bregman",
    "exact_difference",
    "expm1mx",
    "gauss_legendre",
    "kl_term",
    "log_ratio",
    "non_negative",
    "polynomial",
    "standardise",
    "xmlog1p",
]


LOG2_E = 1 / math.log(2)
"""Bits in a nat. Logarithms are in bits where many exponentials are taken: a power of 2 takes less time."""

_LARGE = 1e30
"""x - ln(1 + x) and e^u - 1 - u of a number beyond it have lost all of the smaller terms."""

# As many terms as the dtype can tell apart at an argument of 0.5 in size
_EXPONENTIAL = {
    torch.float32: tuple(1 / math.factorial(k) for k in range(2, 11)),
    torch.float64: tuple(1 / math.factorial(k) for k in range(2, 17)),
}
_ATANH = {
    torch.float32: tuple(1 / (2 * k + 1) for k in range(1, 8)),
    torch.float64: tuple(1 / (2 * k + 1) for k in range(1, 17)),
}

# Of (e^r - 1 - r)/r^2 for |r| at most (ln 2)/2: the least relative error, 4e-9, with 1/2 at 0
_MINIMAX = (
    0.5,
    0.1666666652952208,
    0.04166651248473055,
    0.008333367206669669,
    0.0013930403983637622,
    0.000198518859772867,
)
_INFINITE = 89.0
"""Above this e^u is infinite in ``float32``."""
_LN_2 = 355 / 512
"""The leading bits of ln 2, so few that their products with n are exact."""


def polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    r""":math:`c_0 + c_1 x + c_2 x^2 + \dots`, elementwise, by Horner's scheme.

    >>> polynomial(torch.tensor(2.0), (1.0, 0.5, 0.25))
    tensor(3.)
    """
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def expm1mx(u: Tensor) -> Tensor:
    r"""exp(u) - 1 - u, elementwise, to the last digits for small u too. Never negative.

    .. math:: e^u - 1 - u = u^2 \sum_{k \ge 0} \frac{u^k}{(k + 2)!}

    Args:
        u: floating point, any shape. ``float32`` or wider: widen half precision first.
    Returns: the shape and dtype of ``u``; ``inf`` at both infinities.

    >>> expm1mx(torch.tensor([0.0, 1e-10, 1.0]))
    tensor([0.0000e+00, 5.0000e-21, 7.1828e-01])
    """
    if torch.compiler.is_compiling() and u.dtype == torch.float32:
        compiled: Tensor = _Expm1mx.apply(u)
        return compiled
    near = u.abs() < 0.5
    # the branch that is not taken sees a harmless argument, so that its gradient is finite too
    v = torch.where(near, u, 0.0)
    series = polynomial(v, _EXPONENTIAL[u.dtype])
    # the clamp keeps inf - inf away. Where it acts, expm1 is infinite already
    return torch.where(near, v * v * series, torch.expm1(u) - u.clamp(max=_LARGE))


class _Expm1mx(Function):
    r"""The same for compilers, in ``float32``: arithmetic alone, which they fuse, where an exponential is a call.

    .. math:: u = n \ln 2 + r, \quad w = e^r - 1 - r: \qquad e^u - 1 - u = 2^n w + \left(2^n r + 2^n - 1 - u\right)

    Near 0, where n is 0, the bracket is exactly 0. n is piecewise constant, so the derivatives of these operations are
    right too.
    """

    @staticmethod
    def forward(u: Tensor) -> Tensor:
        u = u.clamp(max=_INFINITE)
        half_power, r, w = _reduce(u)
        return 2 * (half_power * w + ((half_power * r + (half_power - 0.5)) - 0.5 * u))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        half_power, r, w = _reduce(u.clamp(max=_INFINITE))
        return (2 * upstream) * (half_power * (w + r) + (half_power - 0.5))


def _reduce(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """2^(n - 1), r and e^r - 1 - r of u = n ln 2 + r, in ``float32``. Not 2^n, because 2^128 is infinite."""
    u = u.clamp(min=-87.0)
    n = torch.round(u * LOG2_E)
    # the bits of a float32 with this exponent, computed in floating point: shifting integers takes longer
    half_power = (n * 2.0**23 + 126 * 2.0**23).to(torch.int32).view(torch.float32)
    r = (u - n * _LN_2) - n * (math.log(2) - _LN_2)
    series = polynomial(r, _MINIMAX)
    return half_power, r, r * r * series


def xmlog1p(x: Tensor) -> Tensor:
    r"""x - ln(1 + x), elementwise, to the last digits for small x too. Never negative.

    .. math:: x - \ln(1 + x) = s\left(x - 2 \sum_{k \ge 1} \frac{s^{2k}}{2k + 1}\right), \qquad s = \frac{x}{2 + x}

    Args:
        x: floating point, at least -1, any shape. ``float32`` or wider.
    Returns: the shape and dtype of ``x``; ``inf`` at -1 and at infinity.

    >>> xmlog1p(torch.tensor([0.0, 1e-10, 1.0]))
    tensor([0.0000e+00, 5.0000e-21, 3.0685e-01])
    """
    near = x.abs() < 0.5
    v = torch.where(near, x, 0.0)
    s = v / (2 + v)
    square = s * s
    series = square * polynomial(square, _ATANH[x.dtype])
    # the clamp keeps inf - inf away. Where it acts, the logarithm is lost beside x
    far = x - torch.log1p(torch.where(near, 1.0, x).clamp(max=_LARGE))
    return torch.where(near, s * (v - 2 * series), far)


def log_ratio(x: Tensor, y: Tensor, difference: Tensor | None = None) -> Tensor:
    """ln(x / y) of non-negative numbers, to the last digits where the two are close, without over- or underflow.

    Args:
        x, y: shapes that broadcast, of one floating dtype.
        difference: x - y, where it is known better than its rounding.
    Returns: the broadcast shape; ``-inf`` where x alone is 0, ``inf`` where y alone is.

    >>> log_ratio(torch.tensor(1e-30), torch.tensor(1e30))
    tensor(-138.1551)
    """
    difference = x - y if difference is None else difference
    near = difference.abs() < 0.5 * y
    excess = torch.where(near, difference, 0.0) / torch.where(near, y, 1.0)
    logs = torch.log(torch.where(near, 1.0, x)) - torch.log(torch.where(near, 1.0, y))
    return torch.where(near, torch.log1p(excess), logs)


def kl_term(p: Tensor, q: Tensor, excess: Tensor | None = None) -> Tensor:
    r"""p ln(p/q) - p + q of non-negative numbers: what one outcome of a table adds to its KL. Never negative.

    .. math:: p \left(x - \ln(1 + x)\right), \qquad x = \frac{q - p}{p}

    Over two tables that sum to one, the differences q - p add up to 0, and so the terms to the sum of p ln(p/q).

    Args:
        p, q: shapes that broadcast, of one floating dtype.
        excess: q - p, where it is known better than its rounding.
    Returns: the broadcast shape; q where p is 0, ``inf`` where q alone is.

    >>> kl_term(torch.tensor([0.0, 0.5, 0.5]), torch.tensor([0.25, 0.0, 0.5]))
    tensor([0.2500,    inf, 0.0000])
    """
    excess = q - p if excess is None else excess
    p, q, excess = broadcast(p, q, excess)
    near = excess.abs() < 0.5 * p
    x = torch.where(near, excess, 0.0) / torch.where(near, p, 1.0)
    close = p * xmlog1p(x)
    # the branch that is not taken sees p = q = 1: no logarithm of 0 is ever taken
    held = ~near & (p > 0) & (q > 0)
    logs = torch.log(torch.where(held, p, 1.0)) - torch.log(torch.where(held, q, 1.0))
    apart = excess + torch.where(held, p * logs, 0.0)
    return torch.where(near, close, apart).masked_fill((q == 0) & (p > 0), torch.inf)


def bregman(
    a: Tensor,
    b: Tensor,
    difference: Tensor,
    function: Callable[[Tensor], Tensor],
    first: Callable[[Tensor], Tensor],
    second: Callable[[Tensor], Tensor],
) -> Tensor:
    r"""f(a) - f(b) - f'(b)(a - b), elementwise, of a smooth convex f, to the last digits where the two are close.

    There it is :math:`(a-b)^2\int_0^1 (1-t)\,f''(b + t(a-b))\,dt`, by a Gauss-Legendre rule: never negative.

    Args:
        a, b: of one floating dtype; shapes that broadcast.
        difference: a - b, which the caller may know better than its rounding.
        function, first, second: f and its derivatives, whose singularities lie no nearer to the real line than about 2.
    """
    a, b, difference = broadcast(a, b, difference)
    near = difference.abs() < 1 + 0.25 * b.abs()
    step = torch.where(near, difference, 0.0)
    nodes, weights = (torch.tensor(values, dtype=a.dtype, device=a.device) for values in (_NODES, _WEIGHTS))
    curvature = second(b[..., None] + step[..., None] * nodes)
    close = step * step * (curvature * ((1 - nodes) * weights)).sum(-1)
    return torch.where(near, close, function(a) - function(b) - first(b) * torch.where(near, 0.0, difference))


def non_negative(value: Tensor) -> Tensor:
    """The value, and 0 where rounding has made it negative. The gradient is left as it is."""
    return value + (value.clamp(min=0) - value).detach().nan_to_num(nan=0.0, posinf=0.0)


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
    # in two halves. Beyond the clamp any difference but 0 gives inf anyway, and 0 stays 0
    half = torch.exp((-0.25 * log_var).clamp(max=80.0 if log_var.dtype == torch.float32 else 700.0))
    return (difference * half) * half


def gauss_legendre(count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes and weights of the Gauss-Legendre rule on [0, 1].

    Source: Golub & Welsch 1969: the nodes are eigenvalues of the Jacobi matrix.
    """
    k = torch.arange(1, count, dtype=torch.float64, device="cpu")
    beta = k / torch.sqrt(4 * k * k - 1)
    values, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return tuple((0.5 * (values + 1)).tolist()), tuple(vectors[0].square().tolist())


_NODES, _WEIGHTS = gauss_legendre(12)
