"""Von Mises distributions."""

import math
from fractions import Fraction

import torch
from torch import Tensor
from torch.distributions import VonMises

from kldiv.exact.registry import register_kl
from kldiv.numerics import bregman

__all__ = [
    "kl_von_mises",
]


@register_kl(VonMises, VonMises)
def kl_von_mises(p: VonMises, q: VonMises) -> Tensor:
    r"""Of two von Mises distributions.

    .. math:: B_f(\kappa_q, \kappa_p) + 2 A(\kappa_p)\,\kappa_q \sin^2\tfrac{\mu_p - \mu_q}{2}, \quad f = \ln I_0,
              \quad A = \frac{I_1}{I_0}

    with :math:`I` the modified Bessel functions and :math:`B_f` the Bregman divergence.

    Source: Mardia & Jupp 2000, section 3.5.4, as an exponential family (Wainwright & Jordan 2008, section 5.2.2).
    """
    kappa_p, kappa_q = p.concentration.double(), q.concentration.double()
    # of ln I0(kappa) - kappa: a linear term does not change a Bregman divergence
    shapes = bregman(kappa_q, kappa_p, kappa_q - kappa_p, _log_i0e, _log_i0e_first, _log_i0_second)
    half_p, half_q = 0.5 * p.loc.double(), 0.5 * q.loc.double()
    # a location beyond many turns takes the digits of the other
    many = (half_p.abs() > 1e6) | (half_q.abs() > 1e6)
    crossed = torch.sin(half_p) * torch.cos(half_q) - torch.cos(half_p) * torch.sin(half_q)
    half_sine = torch.where(many, crossed, torch.sin(half_p - half_q))
    return shapes + 2 * (1 + _log_i0e_first(kappa_p)) * kappa_q * half_sine * half_sine


def _log_i0e(kappa: Tensor) -> Tensor:
    # ln I0(kappa) - kappa
    large, few, inverse = _split(kappa)
    tail = 0.5 * torch.log(inverse / (2 * math.pi)) + _inverse_series(inverse, _LOG_I0)
    return torch.where(large, tail, torch.log(torch.special.i0e(few)))


def _log_i0e_first(kappa: Tensor) -> Tensor:
    # I1/I0 - 1
    large, few, inverse = _split(kappa)
    powers = [-m * c for m, c in enumerate(_LOG_I0, start=1)]
    tail = -0.5 * inverse + inverse * _inverse_series(inverse, powers)
    return torch.where(large, tail, torch.special.i1e(few) / torch.special.i0e(few) - 1)


def _log_i0_second(kappa: Tensor) -> Tensor:
    # 1 - A/kappa - A^2, with A = I1/I0
    large, few, inverse = _split(kappa)
    powers = [m * (m + 1) * c for m, c in enumerate(_LOG_I0, start=1)]
    tail = inverse * inverse * (0.5 + _inverse_series(inverse, powers))
    ratio = torch.special.i1e(few) / torch.special.i0e(few)
    return torch.where(large, tail, 1 - ratio / few - ratio * ratio)


def _split(kappa: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # where the asymptotic series holds to the last digit; the argument elsewhere; the reciprocal there
    large = kappa > 30
    return large, torch.where(large, 1.0, kappa), 1 / torch.where(large, kappa, 30.0)


def _inverse_series(inverse: Tensor, coefficients: list[float]) -> Tensor:
    series = torch.zeros_like(inverse)
    for coefficient in reversed(coefficients):
        series = (series + coefficient) * inverse
    return series


def _log_i0_coefficients(count: int) -> list[float]:
    # of ln(e^-kappa sqrt(2 pi kappa) I0(kappa)) in 1/kappa: the logarithm of the series with ((2k-1)!!)^2 / (k! 8^k)
    of_i0 = [Fraction(1)]
    for k in range(1, count + 1):
        of_i0.append(of_i0[-1] * Fraction((2 * k - 1) ** 2, 8 * k))
    logs = [Fraction(0)]
    for n in range(1, count + 1):
        convolved = sum((k * logs[k] * of_i0[n - k] for k in range(1, n)), Fraction(0))
        logs.append(of_i0[n] - convolved / n)
    return [float(c) for c in logs[1:]]


_LOG_I0 = _log_i0_coefficients(16)
