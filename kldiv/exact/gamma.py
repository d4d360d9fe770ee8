"""Gamma distributions, and the exponential, chi-squared and inverse gamma ones that derive from them."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Exponential, Gamma, InverseGamma

from kldiv.exact.registry import register_kl
from kldiv.numerics import bregman_stirling_error, expm1mx, log_ratio

__all__ = [
    "gamma_parameters",
    "kl_exponential",
    "kl_gamma",
]


def gamma_parameters(distribution: Any) -> tuple[Tensor, Tensor]:
    """Concentration and rate, in ``float64``; of an inverse gamma distribution those of the reciprocal."""
    if isinstance(distribution, InverseGamma):
        distribution = distribution.base_dist
    rate = distribution.rate.double()
    if isinstance(distribution, Exponential):
        return torch.ones_like(rate), rate
    return distribution.concentration.double(), rate


@register_kl(Exponential, Exponential)
def kl_exponential(p: Exponential, q: Exponential) -> Tensor:
    r"""Of two exponential distributions.

    .. math:: \varphi\left(\ln\tfrac{\lambda_q}{\lambda_p}\right), \quad \varphi(u) = e^u - 1 - u

    Source: Gil, Alajaji & Linder 2013.
    """
    return expm1mx(log_ratio(q.rate.double(), p.rate.double()))


@register_kl(Gamma, Gamma)
@register_kl(Gamma, Exponential)
@register_kl(Exponential, Gamma)
@register_kl(InverseGamma, InverseGamma)
def kl_gamma(p: Distribution, q: Distribution) -> Tensor:
    r"""Of two gamma distributions: an exponential one has concentration 1; for inverse ones, those of the reciprocals.

    .. math:: \alpha_q\,\varphi\left(\ln\tfrac{m_p}{m_q}\right) + B_g(\alpha_q, \alpha_p),
              \quad m = \tfrac{\alpha}{\beta}, \quad \varphi(u) = e^u - 1 - u, \quad g(x) = \ln\Gamma(x) - x\ln x + x

    with :math:`B_g` the Bregman divergence of g. The first term compares the means, the second the shapes.

    Source: Gil, Alajaji & Linder 2013, regrouped.
    """
    concentration_p, rate_p = gamma_parameters(p)
    concentration_q, rate_q = gamma_parameters(q)
    means = log_ratio(concentration_p, concentration_q) - log_ratio(rate_p, rate_q)
    shapes = bregman_stirling_error(concentration_q, concentration_p, concentration_q - concentration_p)
    # alpha_q e^means does not depend on alpha_q: far apart its two derivatives would cancel
    far = means > 1
    log_moment = torch.log(concentration_p) + torch.log(rate_q) - torch.log(rate_p)
    moment = torch.exp(torch.where(far, log_moment, 0.0)) - concentration_q * (1 + means)
    return torch.where(far, moment, concentration_q * expm1mx(torch.where(far, 0.0, means))) + shapes
