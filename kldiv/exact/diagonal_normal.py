"""Normal distributions given by log-variances, against each other and against full covariances."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from kldiv.distributions import DiagonalNormal, factorise, log_variance
from kldiv.exact.multivariate_normal import Covariance, covariance, kl_of_covariances
from kldiv.exact.registry import no_form_for_these, register_kl
from kldiv.functional import kl_normal
from kldiv.numerics import sum_rightmost

__all__ = [
    "kl_diagonal_normal_to_normal",
    "kl_diagonal_normals",
    "kl_normal_to_diagonal_normal",
    "kl_with_full_covariance",
]


@register_kl(DiagonalNormal, DiagonalNormal)
def kl_diagonal_normals(p: DiagonalNormal, q: DiagonalNormal) -> Tensor:
    r"""Of normal distributions given by log-variances.

    .. math:: \tfrac12\sum_i\left[\varphi(\lambda_{p,i} - \lambda_{q,i})
              + (\mu_{p,i}-\mu_{q,i})^2 e^{-\lambda_{q,i}}\right], \quad \varphi(u) = e^u - 1 - u

    Source: Kingma & Welling 2014, appendix B.
    """
    return sum_rightmost(kl_normal(p.mean, p.log_var, q.mean, q.log_var), p.event_dim)


@register_kl(DiagonalNormal, Normal)
def kl_diagonal_normal_to_normal(p: DiagonalNormal, q: Normal) -> Tensor:
    r"""Of scalars, one given by its log-variance.

    .. math:: \tfrac12\left[\varphi(\lambda_p - 2\ln\sigma_q) + \left(\tfrac{\mu_p-\mu_q}{\sigma_q}\right)^2\right]

    Source: Kingma & Welling 2014, appendix B.
    """
    return kl_normal(p.mean, p.log_var, q.loc.double(), log_variance(q.scale))


@register_kl(Normal, DiagonalNormal)
def kl_normal_to_diagonal_normal(p: Normal, q: DiagonalNormal) -> Tensor:
    r"""Of scalars, one given by its log-variance.

    .. math:: \tfrac12\left[\varphi(2\ln\sigma_p - \lambda_q) + (\mu_p-\mu_q)^2 e^{-\lambda_q}\right]

    Source: Kingma & Welling 2014, appendix B.
    """
    return kl_normal(p.loc.double(), log_variance(p.scale), q.mean, q.log_var)


@register_kl(Independent, MultivariateNormal)
@register_kl(MultivariateNormal, Independent)
@register_kl(DiagonalNormal, MultivariateNormal)
@register_kl(MultivariateNormal, DiagonalNormal)
@register_kl(Independent, LowRankMultivariateNormal)
@register_kl(LowRankMultivariateNormal, Independent)
@register_kl(DiagonalNormal, LowRankMultivariateNormal)
@register_kl(LowRankMultivariateNormal, DiagonalNormal)
def kl_with_full_covariance(p: Distribution, q: Distribution) -> Tensor:
    r"""Of two normal distributions, independent dimensions being a diagonal Cholesky factor.

    .. math:: \tfrac12\left[\sum_i \varphi(2\ln M_{ii}) + \sum_{i>j} M_{ij}^2
              + \left|L_q^{-1}(\mu_p - \mu_q)\right|^2\right], \quad M = L_q^{-1} L_p

    Source: Kullback 1959, chapter 9.
    """
    (mean_p, covariance_p), (mean_q, covariance_q) = (_moments(d, p, q) for d in (p, q))
    return kl_of_covariances(mean_p, mean_q, covariance_p, covariance_q)


def _moments(distribution: Any, p: Distribution, q: Distribution) -> tuple[Tensor, Covariance]:
    if isinstance(distribution, (MultivariateNormal, LowRankMultivariateNormal)):
        return distribution.loc.double(), covariance(distribution)
    scalars = factorise(distribution)
    if isinstance(scalars, DiagonalNormal):
        return scalars.mean.double(), Covariance("log_var", scalars.log_var.double())
    if isinstance(scalars, Normal):
        return scalars.loc.double(), Covariance("scale_tril", torch.diag_embed(scalars.scale.double()))
    raise no_form_for_these(p, q)
