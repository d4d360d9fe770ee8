"""Normal distributions given by log-variances, against each other and against full covariances."""

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from kldiv.distributions import DiagonalNormal, factorise, log_variance
from kldiv.exact.multivariate_normal import kl_multivariate_normal
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

    .. math:: \tfrac12\left[\sum_i \varphi(2\ln(1 + F_{ii})) + \sum_{i>j} F_{ij}^2
              + \left|L_q^{-1}(\mu_p - \mu_q)\right|^2\right], \quad F = L_q^{-1} L_p - 1

    Source: Kullback 1959, chapter 9.
    """
    return kl_multivariate_normal(*(_with_full_covariance(d, p, q) for d in (p, q)))


def _with_full_covariance(distribution: Distribution, p: Distribution, q: Distribution) -> Distribution:
    if isinstance(distribution, (MultivariateNormal, LowRankMultivariateNormal)):
        return distribution
    scalars = factorise(distribution)
    if isinstance(scalars, DiagonalNormal):
        mean, scale = scalars.mean, torch.exp(0.5 * scalars.log_var.double())
    elif isinstance(scalars, Normal):
        mean, scale = scalars.loc, scalars.scale.double()
    else:
        raise no_form_for_these(p, q)
    return MultivariateNormal(mean.double(), scale_tril=torch.diag_embed(scale), validate_args=False)
