"""Uniform and Pareto distributions, whose supports depend on their parameters."""

import torch
from torch import Tensor
from torch.distributions import Pareto, Uniform

from kldiv.exact.registry import register_kl
from kldiv.exact.two_families import OfUniform
from kldiv.numerics import expm1mx, log_ratio

__all__ = [
    "kl_pareto",
    "kl_uniform",
    "kl_uniform_pareto",
]


@register_kl(Uniform, Uniform)
def kl_uniform(p: Uniform, q: Uniform) -> Tensor:
    r"""Of two uniform distributions, infinite where p's interval is not within q's.

    .. math:: \ln\frac{b_q - a_q}{b_p - a_p}

    Source: Gil, Alajaji & Linder 2013.
    """
    low_p, high_p, low_q, high_q = (bound.double() for bound in (p.low, p.high, q.low, q.high))
    below, above = low_p - low_q, high_q - high_p
    value = log_ratio(high_q - low_q, high_p - low_p, below + above)
    return value.masked_fill((below < 0) | (above < 0), torch.inf)


@register_kl(Pareto, Pareto)
def kl_pareto(p: Pareto, q: Pareto) -> Tensor:
    r"""Of the exponential distributions of ln x that start at ln m, infinite where p's start comes first.

    .. math:: \varphi\left(\ln\tfrac{\alpha_q}{\alpha_p}\right) + \alpha_q\ln\tfrac{m_p}{m_q},
              \quad \varphi(u) = e^u - 1 - u

    Source: Gil, Alajaji & Linder 2013, regrouped.
    """
    scale_p, scale_q, alpha_p, alpha_q = (value.double() for value in (p.scale, q.scale, p.alpha, q.alpha))
    value = expm1mx(log_ratio(alpha_q, alpha_p)) + alpha_q * log_ratio(scale_p, scale_q)
    return value.masked_fill(scale_p < scale_q, torch.inf)


@register_kl(Uniform, Pareto)
def kl_uniform_pareto(p: Uniform, q: Pareto) -> Tensor:
    r"""From E ln x, infinite where p's interval starts before m.

    .. math:: E\ln p_y - \ln\alpha + \alpha(E\ln x - \ln m), \quad y = \ln x

    Source: Kullback & Leibler 1951.
    """
    scale, alpha = q.scale.double(), q.alpha.double()
    of_p = OfUniform(p)
    value = of_p.log_negative_entropy() - torch.log(alpha) + alpha * (of_p.log_mean() - torch.log(scale))
    return value.masked_fill(of_p.low < scale, torch.inf)
