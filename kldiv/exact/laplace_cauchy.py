"""Laplace and Cauchy distributions."""

import torch
from torch import Tensor
from torch.distributions import Cauchy, HalfCauchy, Laplace

from kldiv.exact.registry import register_kl
from kldiv.numerics import expm1mx, log_ratio

__all__ = [
    "kl_cauchy",
    "kl_half_cauchy",
    "kl_laplace",
]


@register_kl(Laplace, Laplace)
def kl_laplace(p: Laplace, q: Laplace) -> Tensor:
    r"""Of two Laplace distributions.

    .. math:: \varphi(\ln r) + r\,\varphi(-t), \quad r = \tfrac{b_p}{b_q}, \quad t = \tfrac{|\mu_p - \mu_q|}{b_p},
              \quad \varphi(u) = e^u - 1 - u

    Source: Gil, Alajaji & Linder 2013, regrouped.
    """
    scale_p, scale_q = p.scale.double(), q.scale.double()
    distance = (p.loc.double() - q.loc.double()).abs()
    t = distance / scale_p
    # far apart r (e^-t - 1 + t) is |mu_p - mu_q| / b_q but for r, which alone may overflow
    close = scale_p / scale_q * expm1mx(-t.clamp(max=1.0))
    apart = distance / scale_q + scale_p / scale_q * torch.expm1(-t)
    scales = expm1mx(log_ratio(scale_p, scale_q))
    return scales + torch.where(t < 1, close, apart).masked_fill(scales.isinf(), 0)


@register_kl(Cauchy, Cauchy)
def kl_cauchy(p: Cauchy, q: Cauchy) -> Tensor:
    r"""Of two Cauchy distributions; the same either way.

    .. math:: \ln\left(1 + \frac{(\gamma_p - \gamma_q)^2 + (x_p - x_q)^2}{4\gamma_p\gamma_q}\right)

    Source: Chyzak & Nielsen 2019, theorem 1.
    """
    return _kl_cauchy(p.loc.double() - q.loc.double(), p.scale.double(), q.scale.double())


@register_kl(HalfCauchy, HalfCauchy)
def kl_half_cauchy(p: HalfCauchy, q: HalfCauchy) -> Tensor:
    r"""Of the centred Cauchy distributions: the sign is a fair coin for both.

    .. math:: \ln\left(1 + \frac{(\gamma_p - \gamma_q)^2}{4\gamma_p\gamma_q}\right)

    Source: Chyzak & Nielsen 2019, theorem 1.
    """
    scale_p, scale_q = p.scale.double(), q.scale.double()
    return _kl_cauchy(torch.zeros_like(scale_p), scale_p, scale_q)


def _kl_cauchy(distance: Tensor, scale_p: Tensor, scale_q: Tensor) -> Tensor:
    roots = 2 * torch.sqrt(scale_p) * torch.sqrt(scale_q)
    across, along = (scale_p - scale_q) / roots, distance / roots
    square = across * across + along * along
    large = square > 1e30
    # where the squares overflow, 1 is lost against them
    across, along = (torch.where(large, part.abs(), 1.0) for part in (across, along))
    longer, shorter = torch.maximum(across, along), torch.minimum(across, along)
    ratio = shorter / longer
    apart = 2 * torch.log(longer) + torch.log1p(ratio * ratio)
    return torch.where(large, apart, torch.log1p(torch.where(large, 0.0, square)))
