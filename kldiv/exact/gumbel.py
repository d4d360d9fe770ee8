"""Gumbel distributions, and Weibull distributions, whose -ln x has a Gumbel distribution."""

import torch
from torch import Tensor
from torch.distributions import Distribution, Exponential, Gumbel, Weibull

from kldiv.exact.registry import register_kl
from kldiv.numerics import EULER, bregman_lgamma, expm1mx, log_ratio, xmlog1p

__all__ = [
    "kl_gumbel",
    "kl_weibull",
    "weibull_parameters",
]


@register_kl(Gumbel, Gumbel)
def kl_gumbel(p: Gumbel, q: Gumbel) -> Tensor:
    r"""Of two Gumbel distributions.

    .. math:: \varphi(u) + B_{\ln\Gamma}(r, 1), \quad r = \tfrac{s_p}{s_q}, \quad
              u = \tfrac{\mu_q - \mu_p}{s_q} + \ln\Gamma(1 + r), \quad \varphi(u) = e^u - 1 - u

    with :math:`B_{\ln\Gamma}` the Bregman divergence of the log-gamma function.

    Source: Bauckhage 2013, "Computing the Kullback-Leibler divergence between two generalized gamma distributions" and
    Gil, Alajaji & Linder 2013, regrouped.
    """
    scale_p, scale_q = p.scale.double(), q.scale.double()
    return _kl_gumbel((q.loc.double() - p.loc.double()) / scale_q, (scale_p - scale_q) / scale_q, scale_p / scale_q)


@register_kl(Weibull, Weibull)
@register_kl(Weibull, Exponential)
@register_kl(Exponential, Weibull)
def kl_weibull(p: Distribution, q: Distribution) -> Tensor:
    r"""Of the Gumbel distributions of -ln x, with :math:`\mu = -\ln\lambda` and :math:`s = 1/k`.

    .. math:: \varphi(u) + B_{\ln\Gamma}(r, 1), \quad r = \tfrac{k_q}{k_p}, \quad
              u = k_q\ln\tfrac{\lambda_p}{\lambda_q} + \ln\Gamma(1 + r), \quad \varphi(u) = e^u - 1 - u

    An exponential distribution of rate :math:`\beta` is a Weibull distribution of scale :math:`1/\beta` and k = 1.

    Source: Bauckhage 2013, "Computing the Kullback-Leibler divergence between two Weibull distributions".
    """
    (scales, concentration_p), (scales_q, concentration_q) = weibull_parameters(p), weibull_parameters(q)
    # ln of scale_p / scale_q, without a rounded reciprocal of a rate
    log_scales = log_ratio(scales[0] * scales_q[1], scales_q[0] * scales[1])
    excess = (concentration_q - concentration_p) / concentration_p
    return _kl_gumbel(concentration_q * log_scales, excess, concentration_q / concentration_p)


def weibull_parameters(distribution: Distribution) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The scale as numerator and denominator, and the concentration, in ``float64``."""
    if isinstance(distribution, Exponential):
        rate = distribution.rate.double()
        return (torch.ones_like(rate), rate), torch.ones_like(rate)
    assert isinstance(distribution, Weibull)
    scale = distribution.scale.double()
    return (scale, torch.ones_like(scale)), distribution.concentration.double()


def _kl_gumbel(shift: Tensor, excess: Tensor, ratio: Tensor) -> Tensor:
    # ln Gamma(1 + r) = B(1 + r, 2) + (1 - gamma)(r - 1), and B(r, 1) = B(1 + r, 2) + (r - 1) - ln r
    of_shift = bregman_lgamma(1 + ratio, torch.full_like(ratio, 2.0), excess)
    u = shift + (1 - EULER) * excess + of_shift
    near = ratio > 0.5
    minus_log = torch.where(near, xmlog1p(torch.where(near, excess, 0.0)), excess - torch.log(ratio))
    return expm1mx(u) + of_shift + minus_log
