"""Kumaraswamy distributions, to beta distributions."""

import math

import torch
from torch import Tensor
from torch.distributions import Beta, Kumaraswamy

from kldiv.exact.registry import register_kl
from kldiv.numerics import EULER, digamma_minus_log, expm1mx, polynomial, stirling_error

__all__ = [
    "kl_kumaraswamy_beta",
]


@register_kl(Kumaraswamy, Beta)
def kl_kumaraswamy_beta(p: Kumaraswamy, q: Beta) -> Tensor:
    r"""From E ln x and E ln(1 - x), of which the second is an integral: a trapezoidal rule in ln z for b below 1.

    .. math:: \ln(a b\,B(\alpha, \beta)) + (a - \alpha)\,E\ln x + \tfrac1b - 1
              + (\beta - 1)\left(\tfrac1b - G\right), \quad E\ln x = -\frac{\gamma + \psi(b + 1)}{a}, \quad
              G = -\int_0^\infty (1 - e^{-az})^b\left[\frac1{e^z - 1} - \frac a{e^{az} - 1}\right] dz

    with :math:`G = E\ln\frac{1-x}{1-x^a}`, for larger b by a double exponential rule in F_p(x), as is the integral
    of :math:`\varphi(\ln q/p)` under p, :math:`\varphi(u) = e^u - 1 - u`, where the two are close.

    Source: Nalisnick & Smyth 2017, the series summed; Takahasi & Mori 1974.
    """
    a, b, alpha, beta = (
        value.double() for value in (p.concentration1, p.concentration0, q.concentration1, q.concentration0)
    )
    constant = torch.log(a) + torch.log(b) + _log_beta(alpha, beta)
    apart = constant - (1 - alpha / a) * _digamma_of_successor(b) + (1 - b) / b
    # a rule for u = F_p(x) ends before the mass of v^(1/b) does where b is small
    small = b < 1
    gap = _mean_log_ratio(*(torch.where(small, value, 0.5) for value in (a, b)))
    of_small = apart + (beta - 1) * (1 / b - gap)
    near = small & (of_small < 0.1)
    used = ~small | near
    weights, log_x, log_rest, log_ratio = _nodes(
        torch.where(used, a, 1.0)[..., None], torch.where(used, b, 1.0).clamp(min=1e-300)[..., None]
    )
    apart = torch.where(small, of_small, apart + (beta - 1) * (1 / b - (weights * log_ratio).sum(-1)))
    near = apart < 0.1
    of_q = (alpha - a)[..., None] * log_x + (beta - b)[..., None] * log_rest + (beta - 1)[..., None] * log_ratio
    # an error of the constant counts squared, since p (e^r - 1) integrates to 0
    of_q = torch.where(near[..., None], of_q - constant[..., None], 0.0)
    return torch.where(near, (weights * expm1mx(of_q)).sum(-1), apart)


def _log_beta(x: Tensor, y: Tensor) -> Tensor:
    # ln B(x, y), whose log-gammas overflow where it does not
    logs = x * torch.log1p((y / x).clamp(max=1e300)) + y * torch.log1p((x / y).clamp(max=1e300))
    return stirling_error(x) + stirling_error(y) - stirling_error(x + y) - logs


def _mean_log_ratio(a: Tensor, b: Tensor) -> Tensor:
    # E ln((1 - x)/(1 - x^a)), the integral of (1 - e^-az)^b [h(z) - h(az)] over ln z, with h(z) = z/(e^z - 1)
    log_a = torch.log(a)[..., None]
    shift = log_a.detach()
    low, high = -37 - shift.clamp(min=0), 3.7 - shift.clamp(max=0)
    steps = torch.linspace(0, 1, _STEPS, dtype=torch.float64, device=a.device)
    log_z = low + (high - low) * steps
    of_z, of_az = _h(log_z), _h(log_z + log_a)
    power = torch.exp(b[..., None] * _log_rest(log_z + log_a))
    return -(power * (of_z - of_az)).sum(-1) * ((high - low) / (_STEPS - 1)).squeeze(-1)


def _h(log_z: Tensor) -> Tensor:
    z = torch.exp(log_z.clamp(min=-40.0, max=6.5))
    return z / torch.expm1(z)


def _log_rest(log_z: Tensor) -> Tensor:
    # ln(1 - e^-z)
    small = log_z < -37
    z = torch.exp(torch.where(small, 0.0, log_z).clamp(max=6.5))
    return torch.where(small, log_z, torch.log(-torch.expm1(-z)))


def _nodes(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # of u = F_p(x), which is uniform: weights, ln x, ln(1 - x^a) and ln((1 - x)/(1 - x^a))
    s = torch.linspace(-3.5, 3.5, 141, dtype=torch.float64, device=a.device)
    logit = math.pi * torch.sinh(s)
    log_u, log_v = torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit)
    weights = torch.exp(log_u + log_v) * math.pi * torch.cosh(s) * (7.0 / 140)
    # 1 - x^a = v^(1/b), with v = 1 - u, and x = e^-z
    log_rest = log_v / b
    tail = log_rest < -37
    inner = torch.where(tail, -1.0, log_rest)
    # below it 1 - e^y is -y, and y is never 0 but by rounding
    log_az = torch.where(tail, log_rest, torch.log(-_log1mexp(inner.clamp(max=-1e-300))))
    log_z = log_az - torch.log(a)
    ratio = torch.where(log_z < -37, log_az - log_rest - torch.log(a), _log_rest(log_z) - log_rest)
    return weights, -torch.exp(log_z), log_rest, ratio


def _log1mexp(x: Tensor) -> Tensor:
    # ln(1 - e^x) of negative x
    near = x > -0.6931
    close = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    return torch.where(near, close, torch.log1p(-torch.exp(torch.where(near, -1.0, x))))


def _digamma_of_successor(b: Tensor) -> Tensor:
    # psi(b + 1) + gamma, about zeta(2) b for small b
    small = b < 0.1
    few, many = torch.where(small, b, 0.0), 1 + torch.where(small, 1.0, b)
    series = few * polynomial(few, _ZETA)
    return torch.where(small, series, torch.log(many) + digamma_minus_log(many) + EULER)


_STEPS = 256
_ZETA = (
    1.6449340668482264,
    -1.2020569031595942,
    1.0823232337111381,
    -1.03692775514337,
    1.0173430619844492,
    -1.008349277381923,
    1.0040773561979444,
    -1.0020083928260821,
    1.000994575127818,
    -1.0004941886041194,
    1.000246086553308,
    -1.0001227133475785,
    1.0000612481350588,
    -1.000030588236307,
    1.0000152822594086,
    -1.0000076371976379,
)
"""zeta(2), -zeta(3), zeta(4), ..."""
