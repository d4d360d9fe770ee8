"""Dirichlet and beta distributions."""

import torch
from torch import Tensor
from torch.distributions import Beta, Dirichlet

from kldiv.exact.registry import register_kl
from kldiv.numerics import bregman_stirling_error, broadcast, kl_term, non_negative

__all__ = [
    "beta_concentrations",
    "kl_beta",
    "kl_dirichlet",
    "kl_dirichlet_concentrations",
]


def kl_dirichlet_concentrations(p: Tensor, q: Tensor, excess: Tensor | None = None) -> Tensor:
    r"""Of two Dirichlet distributions, from concentrations in ``float64`` along the last dimension.

    .. math:: \sum_k \left[\beta_k\,\varphi(d_k) + B_g(\beta_k, \alpha_k)\right] - B_g(\beta_0, \alpha_0), \quad
              d_k = \ln\tfrac{\alpha_k}{\beta_k} - \ln\tfrac{\alpha_0}{\beta_0}

    Args:
        p, q: :math:`\alpha, \beta`, of shapes that broadcast.
        excess: q - p, where the caller knows it to more digits than the difference has.
    """
    excess = q - p if excess is None else excess
    p, q, excess = broadcast(p, q, excess)
    total_p, total_q, total_excess = (part.sum(-1, keepdim=True) for part in (p, q, excess))
    # the part that Stirling's x ln x gives is q's total concentration times a categorical KL of the means
    mean_p = p * (total_q / total_p)
    # mean_p - q in terms of what p and q differ by, where that is not all of p
    alike = (excess.abs() < 0.5 * p) & (total_excess.abs() < 0.5 * total_p)
    means = kl_term(q, mean_p, torch.where(alike, (p * total_excess - total_p * excess) / total_p, mean_p - q))
    shapes = bregman_stirling_error(q, p, excess)
    of_total = bregman_stirling_error(total_q, total_p, total_excess)
    return non_negative((means + shapes).sum(-1) - of_total.squeeze(-1))


@register_kl(Dirichlet, Dirichlet)
def kl_dirichlet(p: Dirichlet, q: Dirichlet) -> Tensor:
    r"""Of two Dirichlet distributions.

    .. math:: \sum_k \left[\beta_k\,\varphi(d_k) + B_g(\beta_k, \alpha_k)\right] - B_g(\beta_0, \alpha_0), \quad
              d_k = \ln\tfrac{\alpha_k}{\beta_k} - \ln\tfrac{\alpha_0}{\beta_0}, \quad g(x) = \ln\Gamma(x) - x\ln x + x

    with :math:`\alpha_0, \beta_0` the sums, :math:`\varphi(u) = e^u - 1 - u` and :math:`B_g` the Bregman divergence.

    Source: Penny 2001, "KL-divergences of normal, gamma, Dirichlet and Wishart densities", regrouped.
    """
    return kl_dirichlet_concentrations(p.concentration.double(), q.concentration.double())


@register_kl(Beta, Beta)
def kl_beta(p: Beta, q: Beta) -> Tensor:
    r"""Of the Dirichlet distributions of the two shares x and 1 - x.

    .. math:: \sum_{k=1}^2 \left[\beta_k\,\varphi(d_k) + B_g(\beta_k, \alpha_k)\right] - B_g(\beta_0, \alpha_0)

    Source: Penny 2001.
    """
    return kl_dirichlet_concentrations(beta_concentrations(p), beta_concentrations(q))


def beta_concentrations(distribution: Beta) -> Tensor:
    """Both concentrations along a new last dimension, in ``float64``."""
    return torch.stack([distribution.concentration1.double(), distribution.concentration0.double()], -1)
