"""Distributions on the sphere."""

import torch
from torch import Tensor

from kldiv.distributions import HypersphericalUniform, PowerSpherical
from kldiv.exact.dirichlet import kl_dirichlet_concentrations
from kldiv.exact.registry import register_kl
from kldiv.numerics import check_broadcast

__all__ = [
    "kl_power_spherical_to_uniform",
    "kl_uniform_spheres",
]


@register_kl(HypersphericalUniform, HypersphericalUniform)
def kl_uniform_spheres(p: HypersphericalUniform, q: HypersphericalUniform) -> Tensor:
    r"""Zero: there is one uniform distribution on a sphere.

    .. math:: 0

    Source: Kullback & Leibler 1951.
    """
    shape = check_broadcast(p=p.batch_shape, q=q.batch_shape)
    return torch.zeros(shape, dtype=torch.float64, device=p.mean.device)


@register_kl(PowerSpherical, HypersphericalUniform)
def kl_power_spherical_to_uniform(p: PowerSpherical, q: HypersphericalUniform) -> Tensor:
    r"""Of the beta distributions of (1 + m.x)/2; all else is uniform in both.

    .. math:: D_{KL}\left(\mathrm{Beta}(b + \kappa, b) \,\|\, \mathrm{Beta}(b, b)\right), \quad b = \tfrac{d-1}2

    Source: De Cao & Aziz 2020.
    """
    kappa = p.concentration.double()
    half = torch.full_like(kappa, 0.5 * (p.event_shape[-1] - 1))
    excess = torch.stack([-kappa, torch.zeros_like(kappa)], -1)
    return kl_dirichlet_concentrations(torch.stack([half + kappa, half], -1), torch.stack([half, half], -1), excess)
