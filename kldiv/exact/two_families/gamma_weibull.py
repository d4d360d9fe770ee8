"""Gamma to Weibull and Weibull to gamma, regrouped near the exponential distribution that is both."""

import torch
from torch import Tensor
from torch.distributions import Gamma, Weibull

from kldiv.exact.gamma import gamma_parameters
from kldiv.exact.registry import register_kl
from kldiv.exact.two_families.half_line import OfGamma, OfWeibull
from kldiv.exact.two_families.to_family import kl_to_gamma, kl_to_weibull
from kldiv.numerics import bregman_lgamma, digamma_minus_log, expm1mx, non_negative, xmlog1p

__all__ = [
    "kl_gamma_weibull",
    "kl_weibull_gamma",
]


@register_kl(Weibull, Gamma)
def kl_weibull_gamma(p: Weibull, q: Gamma) -> Tensor:
    r"""As to any gamma distribution; regrouped where that is close to exponential, as the Weibull one may be.

    .. math:: \varphi(v) + \alpha B(\tfrac1k, 1) + B(\alpha, 1) - (\alpha - 1)(v + \ln k),
              \quad v = \ln\left(\beta\lambda\,\Gamma(1 + \tfrac1k)\right)

    with B the Bregman divergence of the log-gamma function.

    Source: Bauckhage 2013, "Computing the Kullback-Leibler divergence between two generalized gamma distributions".
    """
    of_p, (alpha, beta) = OfWeibull(p), gamma_parameters(q)
    near, c = (alpha - 1).abs() < 0.5, alpha - 1
    v = torch.log(beta) + of_p.log_power(torch.ones((), dtype=alpha.dtype, device=alpha.device))
    k, one = of_p.concentration, torch.ones((), dtype=alpha.dtype, device=alpha.device)
    of_shapes = alpha * bregman_lgamma(1 / k, one, (1 - k) / k) + bregman_lgamma(alpha, one, c)
    close = expm1mx(v) + of_shapes - c * (v + torch.log(k))
    return non_negative(torch.where(near, close, kl_to_gamma(of_p, q)))


@register_kl(Gamma, Weibull)
def kl_gamma_weibull(p: Gamma, q: Weibull) -> Tensor:
    r"""As to any Weibull distribution; regrouped where both may be close to an exponential one.

    .. math:: \varphi(w) + B(\alpha + k, \alpha + 1) + B(1, \alpha) - h(\alpha - 1) + h(k - 1)
              - \frac{(k-1)(\alpha-1)}{\alpha}, \quad w = \ln\frac{E x^k}{\lambda^k}, \quad h(x) = x - \ln(1 + x)

    with B the Bregman divergence of the log-gamma function.

    Source: Bauckhage 2013, "Computing the Kullback-Leibler divergence between two generalized gamma distributions".
    """
    of_p, scale, k = OfGamma(p), q.scale.double(), q.concentration.double()
    alpha, one = of_p.concentration, torch.ones((), dtype=k.dtype, device=k.device)
    near = ((alpha - 1).abs() < 0.5) & ((k - 1).abs() < 0.5)
    c, x = (torch.where(near, value - 1, 0.0) for value in (alpha, k))
    a = 1 + c
    of_power = bregman_lgamma(a + 1 + x, a + 1, x)
    digamma = digamma_minus_log(a + 1) + torch.log1p(c + 1)
    w = of_power + digamma * x + torch.log1p(c) - k * torch.log(of_p.rate * scale)
    close = expm1mx(torch.where(near, w, 0.0)) + of_power + bregman_lgamma(one, a, -c)
    close = close - xmlog1p(c) + xmlog1p(x) - x * c / a
    return non_negative(torch.where(near, close, kl_to_weibull(of_p, q)))
