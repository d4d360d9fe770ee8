"""Overlap: integrals of powers of normal densities, between all components of one mixture and all of another."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal
from torch.nn import functional

from kldiv.distributions import factorise, mean_and_log_var
from kldiv.exact import covariance
from kldiv.numerics import standardise

__all__ = [
    "Overlap",
    "log_affinity",
    "overlap_of",
]


Overlap = Callable[[Tensor], tuple[Tensor, Tensor, int]]


def overlap_of(p: Distribution, q: Distribution) -> Overlap | None:
    r"""The parts of integrals of powers of normal components, (*batch, K_p, K_q) each; ``None``: not normal.

    A function of s, which broadcasts with (*batch, K_p, K_q), to :math:`\ln|1 + s \Sigma_a^{-1}\Sigma_b|`,
    :math:`(\mu_a-\mu_b)^T (\Sigma_a/s + \Sigma_b)^{-1} (\mu_a-\mu_b)` and the number of dimensions.
    """
    diagonal_p, diagonal_q = _diagonal(p), _diagonal(q)
    if diagonal_p is not None and diagonal_q is not None:
        (mean_p, log_var_p), (mean_q, log_var_q) = diagonal_p, diagonal_q
        difference = mean_p[..., :, None, :] - mean_q[..., None, :, :]
        log_var_p = log_var_p[..., :, None, :]
        log_ratio = log_var_q[..., None, :, :] - log_var_p

        def diagonal(s: Tensor) -> tuple[Tensor, Tensor, int]:
            log_s = torch.log(s)[..., None]
            log_det = functional.softplus(log_ratio + log_s)
            distance = standardise(difference, log_var_p + (log_det - log_s))
            return log_det.sum(-1), distance.square().sum(-1), difference.shape[-1]

        return diagonal

    factor_p, factor_q = _cholesky_factor(p, diagonal_p), _cholesky_factor(q, diagonal_q)
    if factor_p is None or factor_q is None:
        return None
    (mean_p, tril_p), (mean_q, tril_q) = factor_p, factor_q
    tril_p = tril_p[..., :, None, :, :]
    offset = (mean_p[..., :, None, :] - mean_q[..., None, :, :])[..., None]
    offset = torch.linalg.solve_triangular(tril_p, offset, upper=False)
    ratio = torch.linalg.solve_triangular(tril_p, tril_q[..., None, :, :, :], upper=False)
    ratio = ratio @ ratio.mT
    identity = torch.eye(ratio.shape[-1], dtype=ratio.dtype, device=ratio.device)

    def full(s: Tensor) -> tuple[Tensor, Tensor, int]:
        factor = torch.linalg.cholesky_ex(identity + s[..., None, None] * ratio).L
        log_det = 2 * torch.log(factor.diagonal(dim1=-2, dim2=-1)).sum(-1)
        distance = torch.linalg.solve_triangular(factor, offset, upper=False)
        return log_det, s * distance.square().sum((-2, -1)), ratio.shape[-1]

    return full


def _diagonal(components: Distribution) -> tuple[Tensor, Tensor] | None:
    """Means and log-variances, (*batch, K, D), of independent normals."""
    scalars = factorise(components)
    parameters = None if scalars is None else mean_and_log_var(scalars)
    if parameters is None:
        return None
    mean, log_var = parameters
    shape = (*components.batch_shape, components.event_shape.numel())
    return mean.reshape(shape), log_var.reshape(shape)


def _cholesky_factor(components: Any, diagonal: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    """Means, (*batch, K, D), and Cholesky factors of the covariances, (*batch, K, D, D), of normals."""
    if diagonal is not None:
        return diagonal[0], torch.diag_embed(torch.exp(0.5 * diagonal[1]))
    if not isinstance(components, (MultivariateNormal, LowRankMultivariateNormal)):
        return None
    tril = covariance(components).scale_tril
    return components.loc, tril.expand(*components.batch_shape, *tril.shape[-2:])


def log_affinity(overlap: Overlap, like: Tensor) -> Tensor:
    r""":math:`\ln\int\sqrt{p_a p_c}` for all components of one mixture."""
    log_det, distance, dims = overlap(like.new_ones(()))
    return 0.5 * (dims * math.log(2.0) - 0.5 * (log_det + log_det.mT + distance))
