"""Normal, log-normal and half-normal distributions, given by scales."""

import torch
from torch import Tensor
from torch.distributions import HalfNormal, LogNormal, Normal

from kldiv.exact.registry import register_kl
from kldiv.numerics import expm1mx, log_ratio

__all__ = [
    "kl_half_normals",
    "kl_log_normals",
    "kl_normal_normal",
    "kl_normal_scales",
]


def kl_normal_scales(mean_difference: Tensor, scale_p: Tensor, scale_q: Tensor) -> Tensor:
    """In ``float64``: a logarithm in float32 would round off the digits in which two close scales differ."""
    distance = mean_difference / scale_q
    return 0.5 * (expm1mx(2 * log_ratio(scale_p, scale_q)) + distance * distance)


@register_kl(Normal, Normal)
def kl_normal_normal(p: Normal, q: Normal) -> Tensor:
    r"""Of two normal distributions.

    .. math:: \tfrac12\left[\varphi\left(2\ln\tfrac{\sigma_p}{\sigma_q}\right)
              + \left(\tfrac{\mu_p - \mu_q}{\sigma_q}\right)^2\right], \quad \varphi(u) = e^u - 1 - u

    Source: Kingma & Welling 2014, appendix B.
    """
    return kl_normal_scales(p.loc.double() - q.loc.double(), p.scale.double(), q.scale.double())


@register_kl(LogNormal, LogNormal)
def kl_log_normals(p: LogNormal, q: LogNormal) -> Tensor:
    r"""Of the normal distributions of the logarithm.

    .. math:: \tfrac12\left[\varphi\left(2\ln\tfrac{\sigma_p}{\sigma_q}\right)
              + \left(\tfrac{\mu_p - \mu_q}{\sigma_q}\right)^2\right], \quad \varphi(u) = e^u - 1 - u

    Source: a shared invertible map leaves a KL divergence as it is (Kullback & Leibler 1951, theorem 4.1).
    """
    return kl_normal_scales(p.loc.double() - q.loc.double(), p.scale.double(), q.scale.double())


@register_kl(HalfNormal, HalfNormal)
def kl_half_normals(p: HalfNormal, q: HalfNormal) -> Tensor:
    r"""Of the centred normal distributions: the sign is a fair coin for both.

    .. math:: \tfrac12\,\varphi\left(2\ln\tfrac{\sigma_p}{\sigma_q}\right), \quad \varphi(u) = e^u - 1 - u

    Source: Gil, Alajaji & Linder 2013.
    """
    scale_p, scale_q = p.scale.double(), q.scale.double()
    return kl_normal_scales(torch.zeros_like(scale_p), scale_p, scale_q)
