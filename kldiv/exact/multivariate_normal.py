"""Normal distributions with full, low-rank or diagonal covariance, in all directions, and Wishart distributions.

All that a KL needs of two covariances is the lower triangular matrix :math:`F = L_q^{-1} L_p - 1` of their Cholesky
factors. It is formed from the difference of what the distributions were given, so that it keeps its digits where the
two are close.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal, Wishart

from kldiv.distributions import COVARIANCES, given_name
from kldiv.exact.registry import register_kl
from kldiv.numerics import bregman_lgamma, check_broadcast, expm1mx, non_negative

__all__ = [
    "Covariance",
    "covariance",
    "kl_multivariate_normal",
    "kl_of_covariances",
    "kl_of_excess",
    "kl_wishart",
    "whitened_excess",
]


class Covariance(NamedTuple):
    """A covariance as a distribution was given it, in ``float64``, of shape (\\*batch, d, d)."""

    kind: str
    """``"scale_tril"``, ``"covariance_matrix"``, ``"precision_matrix"`` or ``"low_rank"``."""
    given: Tensor
    """The matrix of that name; of a low-rank one the factor, (\\*batch, d, r)."""
    diagonal: Tensor | None = None
    """Of a low-rank one what is added on the diagonal, (\\*batch, d)."""

    @property
    def scale_tril(self) -> Tensor:
        """The lower Cholesky factor of the covariance."""
        if self.kind == "scale_tril":
            return self.given
        if self.kind == "covariance_matrix":
            return _cholesky(self.given)
        if self.kind == "precision_matrix":
            return _inverse_factor(self.given)
        assert self.diagonal is not None
        # the triangle of a QR decomposition loses half as many digits as a Cholesky factor of the sum would
        tall = torch.cat([torch.diag_embed(self.diagonal.sqrt()), self.given.mT], -2)
        triangle: Tensor = torch.linalg.qr(tall).R.mT
        signs = torch.where(triangle.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(triangle.dtype)
        return triangle * signs.detach()[..., None, :]

    @property
    def matrix(self) -> Tensor:
        """The covariance itself."""
        if self.kind == "covariance_matrix":
            return self.given
        if self.diagonal is not None:
            return self.given @ self.given.mT + torch.diag_embed(self.diagonal)
        factor = self.scale_tril
        return factor @ factor.mT


def covariance(distribution: Any) -> Covariance:
    """The covariance of a normal or Wishart distribution, as it was given."""
    if isinstance(distribution, LowRankMultivariateNormal):
        factor, diagonal = distribution._unbroadcasted_cov_factor, distribution._unbroadcasted_cov_diag
        shape = check_broadcast(cov_factor=factor.shape[:-1], cov_diag=diagonal.shape)
        return Covariance("low_rank", factor.expand(*shape, -1).double(), diagonal.expand(shape).double())
    factor = distribution._unbroadcasted_scale_tril
    # where it is not known which was given, the factor is: its condition number is the root of the covariance's
    name = given_name(distribution, COVARIANCES) or "scale_tril"
    if name == "scale_tril":
        return Covariance(name, factor.double().tril())  # what is above the diagonal counts nowhere
    matrix = getattr(distribution, name)
    if not matrix.numel():
        return Covariance("scale_tril", factor.double())
    # one covariance for a whole batch of means is stored as many; the factor tells how many there are
    matrix = matrix[(0,) * (matrix.ndim - factor.ndim)]
    for dim, size in enumerate(factor.shape[:-2]):
        matrix = matrix.narrow(dim, 0, min(size, matrix.shape[dim]))
    return Covariance(name, matrix.double())


def whitened_excess(p: Covariance, q: Covariance) -> tuple[Tensor, Tensor]:
    """The lower triangular F with the KL of p to q, and the scale_tril of q."""
    if p.kind == q.kind == "precision_matrix":
        # the precisions the other way round have the same KL
        factor = _cholesky(p.given)
        return _excess_of_difference(q.given - p.given, factor, _cholesky(q.given)), _inverse_factor(q.given)
    factor_p, factor_q = p.scale_tril, q.scale_tril
    if p.kind == q.kind == "scale_tril":
        return torch.linalg.solve_triangular(factor_q, factor_p - factor_q, upper=False), factor_q
    if p.kind == q.kind == "low_rank" and p.given.shape[-1] == q.given.shape[-1]:
        assert p.diagonal is not None
        assert q.diagonal is not None
        product = (p.given - q.given) @ (0.5 * (p.given + q.given)).mT
        difference = product + product.mT + torch.diag_embed(p.diagonal - q.diagonal)
    else:
        difference = p.matrix - q.matrix
    return _excess_of_difference(difference, factor_q, factor_p), factor_q


def kl_of_excess(excess: Tensor) -> Tensor:
    r"""The KL of centred normals, :math:`\tfrac12[\sum_i \varphi(2\ln(1 + F_{ii})) + \sum_{i>j} F_{ij}^2]`."""
    diagonal = torch.log1p(excess.diagonal(dim1=-2, dim2=-1))
    return 0.5 * (expm1mx(2 * diagonal).sum(-1) + excess.tril(-1).square().sum((-2, -1)))


def kl_of_covariances(mean_difference: Tensor, p: Covariance, q: Covariance) -> Tensor:
    """Of normal distributions, (\\*batch,)."""
    excess, factor = whitened_excess(p, q)
    shape = check_broadcast(loc=mean_difference.shape[:-1], covariance=factor.shape[:-2])
    columns = mean_difference.expand(*shape, -1)[..., None]
    distance: Tensor = torch.linalg.solve_triangular(factor.expand(*shape, -1, -1), columns, upper=False)
    return kl_of_excess(excess) + 0.5 * distance.square().sum((-2, -1))


@register_kl(MultivariateNormal, MultivariateNormal)
@register_kl(MultivariateNormal, LowRankMultivariateNormal)
@register_kl(LowRankMultivariateNormal, MultivariateNormal)
@register_kl(LowRankMultivariateNormal, LowRankMultivariateNormal)
def kl_multivariate_normal(p: Distribution, q: Distribution) -> Tensor:
    r"""Of two normal distributions in d dimensions; d x d matrices are formed for low rank too.

    .. math:: \tfrac12\left[\sum_i \varphi(2\ln(1 + F_{ii})) + \sum_{i>j} F_{ij}^2
              + \left|L_q^{-1}(\mu_p - \mu_q)\right|^2\right], \quad F = L_q^{-1} L_p - 1,
              \quad \varphi(u) = e^u - 1 - u

    with L the Cholesky factors of the covariances. Relative error about 1e-16 times the condition number of q's
    covariance, or of its Cholesky factor if that was given.

    Source: Kullback 1959, chapter 9; the non-negative grouping follows from the triangular F.
    """
    return kl_of_covariances(p.loc.double() - q.loc.double(), covariance(p), covariance(q))  # type: ignore[attr-defined]


@register_kl(Wishart, Wishart)
def kl_wishart(p: Wishart, q: Wishart) -> Tensor:
    r"""Of two Wishart distributions with :math:`\nu` degrees of freedom over d x d matrices.

    .. math:: \tfrac{\nu_p}{2}\left[\sum_i \varphi(2\ln(1 + F_{ii})) + \sum_{i>j} F_{ij}^2\right]
              + (\nu_p - \nu_q)\sum_i\ln(1 + F_{ii})
              + \sum_{i<d} B_{\ln\Gamma}\left(\tfrac{\nu_q - i}{2}, \tfrac{\nu_p - i}{2}\right)

    with :math:`F = L_q^{-1} L_p - 1` of the Cholesky factors of the scale matrices, :math:`\varphi(u) = e^u - 1 - u`
    and :math:`B_{\ln\Gamma}` the Bregman divergence of the log-gamma function.

    Source: Penny 2001, "KL-divergences of normal, gamma, Dirichlet and Wishart densities", regrouped.
    """
    excess, _ = whitened_excess(covariance(p), covariance(q))
    df_p, df_q = p.df.double(), q.df.double()
    difference = (df_q - df_p)[..., None]
    lower = torch.arange(excess.shape[-1], dtype=torch.float64, device=excess.device)
    shapes = bregman_lgamma(0.5 * (df_q[..., None] - lower), 0.5 * (df_p[..., None] - lower), 0.5 * difference)
    logs = torch.log1p(excess.diagonal(dim1=-2, dim2=-1))
    return non_negative(df_p * kl_of_excess(excess) + (shapes - difference * logs).sum(-1))


def _cholesky(matrix: Tensor) -> Tensor:
    # the constructors have checked it; checking again would wait for the device
    factor: Tensor = torch.linalg.cholesky_ex(matrix).L
    return factor


def _inverse_factor(precision: Tensor) -> Tensor:
    # the Cholesky factor of the inverse: that of the matrix in reverse order, inverted and reversed
    reverse = _cholesky(precision.flip(-2, -1)).flip(-2, -1).mT
    identity = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    factor: Tensor = torch.linalg.solve_triangular(reverse, identity.expand_as(precision), upper=False)
    return factor


def _excess_of_difference(difference: Tensor, factor_q: Tensor, factor_p: Tensor) -> Tensor:
    # F from the difference of the matrices where it is small against q, else from that of their Cholesky factors
    apart = torch.linalg.solve_triangular(factor_q, factor_p - factor_q, upper=False)
    half = torch.linalg.solve_triangular(factor_q, difference, upper=False)
    whitened = torch.linalg.solve_triangular(factor_q, half.mT, upper=False)
    whitened = 0.5 * (whitened + whitened.mT)
    near = (whitened.square().sum((-2, -1), keepdim=True) < 0.25).expand(whitened.shape)
    small = torch.where(near, whitened, 0.0)
    identity = torch.eye(small.shape[-1], dtype=small.dtype, device=small.device)
    factor = _cholesky(identity + small)
    # 1 + small has rounded small: one step of Newton's method for (1 + F)(1 + F)^T = 1 + small
    excess = factor - identity
    residual = small - (excess + excess.mT + excess @ excess.mT)
    step = torch.linalg.solve_triangular(factor, residual, upper=False)
    step = torch.linalg.solve_triangular(factor, step.mT, upper=False)
    step = step.tril(-1) + 0.5 * torch.diag_embed(step.diagonal(dim1=-2, dim2=-1))
    return torch.where(near, excess + factor @ step, apart)
