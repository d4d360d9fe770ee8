"""Kumaraswamy distributions, to beta distributions."""

import math

import torch
from torch import Tensor
from torch.distributions import Beta, Kumaraswamy

from kldiv.exact.registry import register_kl
from kldiv.numerics import expm1mx

__all__ = [
    "kl_kumaraswamy_beta",
]


@register_kl(Kumaraswamy, Beta)
def kl_kumaraswamy_beta(p: Kumaraswamy, q: Beta) -> Tensor:
    r"""The expectation over u = F_p(x), which is uniform, by a double exponential rule of 141 nodes.

    .. math:: \int_0^1 \varphi\left(\ln\tfrac{q}{p}(u)\right) du, \quad \varphi(u) = e^u - 1 - u

    and, where the two are far apart, of ln(p/q) itself. The closed form is an infinite series, slow for small b.

    Source: Nalisnick & Smyth 2017; the rule: Takahasi & Mori 1974.
    """
    a, b, alpha, beta = (
        value.double()[..., None] for value in (p.concentration1, p.concentration0, q.concentration1, q.concentration0)
    )
    s = torch.linspace(-3.5, 3.5, 141, dtype=torch.float64, device=a.device)
    logit = math.pi * torch.sinh(s)
    log_u, log_v = torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit)
    weights = torch.exp(log_u + log_v) * math.pi * torch.cosh(s) * (7.0 / 140)
    # 1 - x^a = v^(1/b), with v = 1 - u
    log_rest = log_v / b
    log_x = _log1mexp(log_rest) / a
    log_beta = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    constant = -log_beta - torch.log(a) - torch.log(b)
    # an error of the constant counts squared, since p (e^r - 1) integrates to 0
    log_ratio = (alpha - a) * log_x + ((beta - 1) * _log1mexp(log_x) - (b - 1) * log_rest) + constant
    apart = -(weights * log_ratio).sum(-1)
    near = apart < 0.1
    close = (weights * expm1mx(torch.where(near[..., None], log_ratio, 0.0))).sum(-1)
    return torch.where(near, close, apart)


def _log1mexp(x: Tensor) -> Tensor:
    # ln(1 - e^x) of negative x; below the clamp 1 - e^x is -x, and x is never 0 but by rounding
    x = x.clamp(max=-1e-300)
    near = x > -0.6931
    close = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    return torch.where(near, close, torch.log1p(-torch.exp(torch.where(near, -1.0, x))))
