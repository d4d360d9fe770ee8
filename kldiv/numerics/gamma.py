"""Gamma functions: differences of ln Gamma without cancellation, incomplete gamma, exponential integral."""

import torch
from torch import Tensor

from kldiv.numerics.special import expm1mx, gauss_legendre, kl_term, xmlog1p
from kldiv.numerics.tensors import broadcast

__all__ = [
    "EULER",
    "bregman_lgamma",
    "bregman_stirling_error",
    "digamma_minus_log",
    "exponential_integral",
    "gamma_tail",
    "stirling_error",
    "trigamma",
]


EULER = 0.57721566490153286061
"""The Euler-Mascheroni constant, -digamma(1)."""


def bregman_lgamma(a: Tensor, b: Tensor, difference: Tensor) -> Tensor:
    r"""The Bregman divergence of :math:`\ln\Gamma`, elementwise, of positive numbers. Never negative.

    .. math:: B(a, b) = \ln\Gamma(a) - \ln\Gamma(b) - \psi(b)(a - b)

    The recurrence :math:`\ln\Gamma(x) = \ln\Gamma(x + 1) - \ln x` shifts the arguments to where Stirling's series
    converges. The divergence of each term of the shift and of the series is computed without cancellation.

    Args:
        a, b: positive; shapes that broadcast.
        difference: a - b, which the caller may know better than its rounding.

    >>> bregman_lgamma(*(torch.tensor(v, dtype=torch.float64) for v in (3.0, 2.0, 1.0)))
    tensor(0.2704, dtype=torch.float64)
    """
    shifts = _shifts(a)
    of_shifts = _bregman_minus_log(a[..., None] + shifts, b[..., None] + shifts, difference[..., None]).sum(-1)
    a, b = a + _SHIFT, b + _SHIFT
    return of_shifts + kl_term(a, b, -difference) + _bregman_series(a, b, difference)


def bregman_stirling_error(a: Tensor, b: Tensor, difference: Tensor) -> Tensor:
    r"""The Bregman divergence of :math:`g(x) = \ln\Gamma(x) - x \ln x + x`, elementwise. Never negative.

    It is :func:`bregman_lgamma` less :func:`kl_term` of (a, b), which outgrows it as the arguments grow.

    .. math:: B_g(a, b) = g(a) - g(b) - (\psi(b) - \ln b)(a - b)

    Args:
        a, b: positive; shapes that broadcast.
        difference: a - b, which the caller may know better than its rounding.

    >>> bregman_stirling_error(*(torch.tensor(v, dtype=torch.float64) for v in (3.0, 2.0, 1.0)))
    tensor(0.0540, dtype=torch.float64)
    """
    shifts = _shifts(a)
    of_shifts = _bregman_shift(a[..., None] + shifts, b[..., None] + shifts, difference[..., None]).sum(-1)
    return of_shifts + _bregman_series(a + _SHIFT, b + _SHIFT, difference)


def stirling_error(x: Tensor) -> Tensor:
    r""":math:`g(x) = \ln\Gamma(x) - x \ln x + x` of positive numbers, which is of the size of ln x however large x is.

    >>> stirling_error(torch.tensor([1.0, 1e16], dtype=torch.float64))
    tensor([  1.0000, -17.5017], dtype=torch.float64)
    """
    large = x >= _SHIFT
    inverse = 1 / torch.where(large, x, _SHIFT)
    series = torch.zeros_like(x)
    for coefficient in reversed(_STIRLING):
        series = series * inverse * inverse + coefficient
    few = torch.where(large, 1.0, x)
    return torch.where(
        large,
        _HALF_LOG_2PI + 0.5 * torch.log(inverse) + series * inverse,
        torch.lgamma(few) - few * torch.log(few) + few,
    )


def digamma_minus_log(x: Tensor) -> Tensor:
    r""":math:`\psi(x) - \ln x` of positive numbers, about -1/(2x) for large ones.

    >>> digamma_minus_log(torch.tensor([1.0, 1e16], dtype=torch.float64))
    tensor([-5.7722e-01, -5.0000e-17], dtype=torch.float64)
    """
    large = x >= _SHIFT
    few = torch.where(large, 1.0, x)
    shifted = few[..., None] + _shifts(x)
    y = torch.where(large, x, few + _SHIFT)
    inverse = 1 / y
    series = torch.zeros_like(x)
    for k in range(len(_STIRLING), 0, -1):
        series = (series + (2 * k - 1) * _STIRLING[k - 1]) * inverse * inverse
    remainder = torch.log1p(_SHIFT / few) - (1 / shifted).sum(-1)
    return torch.where(large, 0.0, remainder) - 0.5 * inverse - series


def trigamma(x: Tensor) -> Tensor:
    r""":math:`\psi'(x)` of positive numbers; torch's own is accurate to nine digits.

    >>> trigamma(torch.tensor([1.0], dtype=torch.float64))
    tensor([1.6449], dtype=torch.float64)
    """
    inverse = 1 / (x + _SHIFT)
    series = torch.zeros_like(x)
    for k in range(len(_STIRLING), 0, -1):
        series = (series + 2 * k * (2 * k - 1) * _STIRLING[k - 1]) * inverse * inverse
    return (1 / (x[..., None] + _shifts(x)).square()).sum(-1) + inverse * (1 + 0.5 * inverse + series)


# beyond it seven terms of the series reach the last digit of a float64
_SHIFT = 10
_HALF_LOG_2PI = 0.91893853320467274178

# B_2k / (2k (2k - 1)), the coefficients of x^-1, x^-3, ...
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)


def _shifts(like: Tensor) -> Tensor:
    return torch.arange(_SHIFT, dtype=like.dtype, device=like.device)


def _bregman_series(a: Tensor, b: Tensor, difference: Tensor) -> Tensor:
    # of ln Gamma(x) - x ln x + x = -ln(x)/2 + sum c_m x^-m + a constant, for large arguments:
    # x^-m has u^2 sum_l (m - l) a^-(l+1) b^-(m-1-l), with u = (a - b)/b
    u, inverse_a, inverse_b = difference / b, 1 / a, 1 / b
    complete = torch.ones_like(u * inverse_a)  # sum_l a^-l b^-(m-1-l)
    weighted, power, series = complete, complete, complete * _STIRLING[0]
    for m in range(2, 2 * len(_STIRLING)):
        power = power * inverse_b
        complete = power + inverse_a * complete
        weighted = inverse_b * weighted + complete
        if m % 2:
            series = series + _STIRLING[m // 2] * weighted
    return 0.5 * _bregman_minus_log(a, b, difference) + u * u * inverse_a * series


def _bregman_minus_log(a: Tensor, b: Tensor, difference: Tensor) -> Tensor:
    # x - ln(1 + x) of x = (a - b)/b, which may be rounded to -1
    return kl_term(b, a, difference) / b


def _bregman_shift(a: Tensor, b: Tensor, difference: Tensor) -> Tensor:
    # of g(x) - g(x + 1) = (x + 1) ln(1 + 1/x) - 1
    y = -difference / (a * (b + 1))
    near = y.abs() < 0.5
    v = torch.where(near, y, 0.0)
    close = v * v * a * ((b + 1) / b) - (a + 1) * xmlog1p(v)
    apart = (a + 1) * (torch.log1p(1 / a) - torch.log1p(1 / b)) + torch.where(near, 0.0, difference) / b
    return torch.where(near, close, apart)


def gamma_tail(shape: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""The regularised incomplete gamma function P, differentiable in both arguments, and its density.

    .. math:: P(a, x) = \frac1{\Gamma(a)}\int_0^x t^{a-1}e^{-t}dt
              = P(a + n, x) + \sum_{k<n}\frac{x^{a+k}e^{-x}}{\Gamma(a+k+1)}, \qquad \frac{x^a e^{-x}}{\Gamma(a + 1)}

    Torch's own has no derivative in the shape, and is accurate to ten digits. Here the integral is taken over
    :math:`w = \ln(t/a)`, in which the density is nearly normal, by a Gauss-Legendre rule.

    Args:
        shape, x: positive and non-negative, ``float64``; shapes that broadcast.
    """
    shape, x = broadcast(shape, x)
    some = x > 0
    x = torch.where(some, x, 1.0)
    shifts = torch.arange(_TAIL_SHIFT, dtype=x.dtype, device=x.device)
    shapes = shape[..., None] + shifts
    densities = torch.exp(-kl_term(shapes, x[..., None]) - stirling_error(shapes)) / shapes
    # beyond these bounds less than e^-40 is left
    large = shape + _TAIL_SHIFT
    reach = torch.sqrt(80 / large)
    low = -(reach + 80 / (3 * large))
    high = torch.clamp(torch.log(x) - torch.log(large), max=reach).clamp(min=low)
    nodes, weights = (torch.tensor(values, dtype=x.dtype, device=x.device) for values in (_NODES, _WEIGHTS))
    w = low[..., None] + (high - low)[..., None] * nodes
    mass = (torch.exp(-large[..., None] * expm1mx(w) - stirling_error(large)[..., None]) * weights).sum(-1) * (
        high - low
    )
    return torch.where(some, mass + densities.sum(-1), 0.0), torch.where(some, densities[..., 0], 0.0)


def exponential_integral(y: Tensor) -> Tensor:
    r""":math:`E_1(e^y) = \int_{e^y}^\infty \frac{e^{-t}}t dt`, elementwise, in ``float64``; about -y for negative y.

    >>> exponential_integral(torch.tensor([-100.0, 0.0, 100.0], dtype=torch.float64))
    tensor([99.4228,  0.2194,  0.0000], dtype=torch.float64)
    """
    near = y < 0.6931
    few = torch.exp(torch.where(near, y, 0.0))
    many = torch.exp(torch.where(near, 1.0, y).clamp(max=7.0))
    fraction = torch.zeros_like(y)
    for k in range(_FRACTION_TERMS, 0, -1):
        fraction = k * k / (many + 2 * k + 1 - fraction)
    return torch.where(near, _power_series(few) - EULER - y, torch.exp(-many) / (many + 1 - fraction))


def _power_series(x: Tensor) -> Tensor:
    # Ein(x) = sum of (-1)^(k+1) x^k / (k k!)
    total, power = torch.zeros_like(x), torch.ones_like(x)
    for k in range(1, _SERIES_TERMS + 1):
        power = power * (-x / k)
        total = total - power / k
    return total


_SERIES_TERMS = 28
_FRACTION_TERMS = 40
_TAIL_SHIFT = 20
_NODES, _WEIGHTS = gauss_legendre(64)
