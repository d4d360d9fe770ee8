"""Normal distributions with full, low-rank or diagonal covariance, in all directions, and Wishart distributions.

All that a KL needs of two covariances is the lower triangular matrix :math:`L_q^{-1} L_p` of their Cholesky factors.
Where the two are close it is formed from the difference of what the distributions were given, and keeps its digits.
Its diagonal, of which a logarithm is taken, is kept as that logarithm: where the two are far apart it underflows.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal, Wishart

from kldiv.distributions import COVARIANCES, given_name
from kldiv.exact.registry import register_kl
from kldiv.numerics import bregman_lgamma, check_broadcast, expm1mx, log_ratio, non_negative, standardise

__all__ = [
    "Covariance",
    "Ratio",
    "covariance",
    "kl_multivariate_normal",
    "kl_of_covariances",
    "kl_of_ratio",
    "kl_wishart",
    "ratio_of_factors",
]


_TINY, _HUGE = 1e-280, 1e280
"""Variances between these leave room for their differences and products."""


class Covariance(NamedTuple):
    """A covariance as a distribution was given it, in ``float64``, of shape (\\*batch, d, d)."""

    kind: str
    """``"scale_tril"``, ``"covariance_matrix"``, ``"precision_matrix"``, ``"low_rank"`` or ``"log_var"``."""
    given: Tensor
    """The matrix of that name; of a low-rank one the factor, (\\*batch, d, r); log-variances are (\\*batch, d)."""
    diagonal: Tensor | None = None
    """Of a low-rank one what is added on the diagonal, (\\*batch, d)."""

    @property
    def scale_tril(self) -> Tensor:
        """The lower Cholesky factor of the covariance. Log-variances have none: theirs may over- or underflow."""
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
        """The covariance itself; where it is out of range, anything."""
        if self.kind == "covariance_matrix":
            return self.given
        if self.kind == "log_var":
            return torch.diag_embed(torch.exp(self.given.clamp(min=-700.0, max=700.0)))
        if self.diagonal is not None:
            return self.given @ self.given.mT + torch.diag_embed(self.diagonal)
        factor = self.scale_tril
        return factor @ factor.mT


class Ratio(NamedTuple):
    """The lower triangular M = L_q^-1 L_p of two Cholesky factors, on which their KL depends, in ``float64``."""

    below: Tensor
    """M below the diagonal; the rest is 0. (\\*batch, d, d)"""
    logs: Tensor
    """ln of the diagonal of M, (\\*batch, d)."""


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


def ratio_of_factors(p: Covariance, q: Covariance) -> tuple[Ratio, Tensor | None]:
    """What the KL of p to q depends on, and the scale_tril of q; ``None`` where q has log-variances."""
    if p.kind == q.kind == "precision_matrix":
        # the precisions the other way round have the same KL
        factor = _cholesky(p.given)
        apart = _of_factors(_cholesky(q.given), factor)
        return _near(apart, q.given - p.given, factor, _in_range(p.given, q.given)), _inverse_factor(q.given)
    factor_p, factor_q = (None if side.kind == "log_var" else side.scale_tril for side in (p, q))
    if factor_q is None:
        assert factor_p is not None
        apart = _to_log_variances(factor_p, q.given)
    elif factor_p is None:
        apart = _from_log_variances(p.given, factor_q)
    else:
        apart = _of_factors(factor_p, factor_q)
    if p.kind == q.kind == "scale_tril" or {p.kind, q.kind} == {"scale_tril", "log_var"}:
        return apart, factor_q
    matrix_p, matrix_q = p.matrix, q.matrix
    if p.kind == q.kind == "low_rank" and p.given.shape[-1] == q.given.shape[-1]:
        assert p.diagonal is not None
        assert q.diagonal is not None
        product = (p.given - q.given) @ (0.5 * (p.given + q.given)).mT
        difference = product + product.mT + torch.diag_embed(p.diagonal - q.diagonal)
    else:
        difference = matrix_p - matrix_q
    scale_q = torch.diag_embed(torch.exp(0.5 * q.given.clamp(min=-700.0, max=700.0))) if factor_q is None else factor_q
    return _near(apart, difference, scale_q, _in_range(matrix_p, matrix_q)), factor_q


def kl_of_ratio(ratio: Ratio) -> Tensor:
    r"""The KL of centred normals, :math:`\tfrac12[\sum_i \varphi(2\ln M_{ii}) + \sum_{i>j} M_{ij}^2]`."""
    return 0.5 * (expm1mx(2 * ratio.logs).sum(-1) + ratio.below.square().sum((-2, -1)))


def kl_of_covariances(mean_p: Tensor, mean_q: Tensor, p: Covariance, q: Covariance) -> Tensor:
    """Of normal distributions, (\\*batch,)."""
    ratio, factor = ratio_of_factors(p, q)
    half = 0.5 * mean_p - 0.5 * mean_q  # the whole difference may overflow
    if factor is None:
        distance = standardise(half, q.given)
    else:
        shape = check_broadcast(loc=half.shape[:-1], covariance=factor.shape[:-2])
        columns = half.expand(*shape, -1)[..., None]
        distance = torch.linalg.solve_triangular(factor.expand(*shape, -1, -1), columns, upper=False).squeeze(-1)
    return kl_of_ratio(ratio) + 2 * distance.square().sum(-1)


@register_kl(MultivariateNormal, MultivariateNormal)
@register_kl(MultivariateNormal, LowRankMultivariateNormal)
@register_kl(LowRankMultivariateNormal, MultivariateNormal)
@register_kl(LowRankMultivariateNormal, LowRankMultivariateNormal)
def kl_multivariate_normal(p: Distribution, q: Distribution) -> Tensor:
    r"""Of two normal distributions in d dimensions; d x d matrices are formed for low rank too.

    .. math:: \tfrac12\left[\sum_i \varphi(2\ln M_{ii}) + \sum_{i>j} M_{ij}^2
              + \left|L_q^{-1}(\mu_p - \mu_q)\right|^2\right], \quad M = L_q^{-1} L_p,
              \quad \varphi(u) = e^u - 1 - u

    with L the Cholesky factors of the covariances. Relative error about 1e-16 times the condition number of q's
    covariance, or of its Cholesky factor if that was given, once rows are scaled.

    Source: Kullback 1959, chapter 9; the non-negative grouping follows from the triangular M.
    """
    return kl_of_covariances(p.loc.double(), q.loc.double(), covariance(p), covariance(q))  # type: ignore[attr-defined]


@register_kl(Wishart, Wishart)
def kl_wishart(p: Wishart, q: Wishart) -> Tensor:
    r"""Of two Wishart distributions with :math:`\nu` degrees of freedom over d x d matrices.

    .. math:: \tfrac{\nu_p}{2}\left[\sum_i \varphi(2\ln M_{ii}) + \sum_{i>j} M_{ij}^2\right]
              + (\nu_p - \nu_q)\sum_i\ln M_{ii}
              + \sum_{i<d} B_{\ln\Gamma}\left(\tfrac{\nu_q - i}{2}, \tfrac{\nu_p - i}{2}\right)

    with :math:`M = L_q^{-1} L_p` of the Cholesky factors of the scale matrices, :math:`\varphi(u) = e^u - 1 - u`
    and :math:`B_{\ln\Gamma}` the Bregman divergence of the log-gamma function.

    Source: Penny 2001, "KL-divergences of normal, gamma, Dirichlet and Wishart densities", regrouped.
    """
    ratio, _ = ratio_of_factors(covariance(p), covariance(q))
    df_p, df_q = p.df.double(), q.df.double()
    difference = (df_q - df_p)[..., None]
    lower = torch.arange(ratio.logs.shape[-1], dtype=torch.float64, device=ratio.logs.device)
    shapes = bregman_lgamma(0.5 * (df_q[..., None] - lower), 0.5 * (df_p[..., None] - lower), 0.5 * difference)
    return non_negative(df_p * kl_of_ratio(ratio) + (shapes - difference * ratio.logs).sum(-1))


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


def _of_factors(factor_p: Tensor, factor_q: Tensor) -> Ratio:
    # a column of M - 1 from the difference of the factors where they are close, one of M from p's where they are not:
    # either way it is M below the diagonal
    diagonal_p, diagonal_q = (factor.diagonal(dim1=-2, dim2=-1) for factor in (factor_p, factor_q))
    difference = factor_p - factor_q
    excess = difference.diagonal(dim1=-2, dim2=-1)
    close = (excess.abs() < 0.5 * diagonal_q)[..., None, :]
    columns = torch.where(close, difference, factor_p)
    below = torch.linalg.solve_triangular(factor_q, columns, upper=False).tril(-1)
    return Ratio(below, log_ratio(diagonal_p, diagonal_q, excess))


def _to_log_variances(factor_p: Tensor, log_var: Tensor) -> Ratio:
    rows = standardise(factor_p.tril(), log_var[..., None])
    logs = torch.log(factor_p.diagonal(dim1=-2, dim2=-1)) - 0.5 * log_var
    return Ratio(rows.tril(-1), _close_logs(rows.diagonal(dim1=-2, dim2=-1), logs))


def _from_log_variances(log_var: Tensor, factor_q: Tensor) -> Ratio:
    identity = torch.eye(factor_q.shape[-1], dtype=factor_q.dtype, device=factor_q.device).expand_as(factor_q)
    inverse = torch.linalg.solve_triangular(factor_q, identity, upper=False)
    columns = standardise(inverse, -log_var[..., None, :])
    logs = 0.5 * log_var - torch.log(factor_q.diagonal(dim1=-2, dim2=-1))
    return Ratio(columns.tril(-1), _close_logs(columns.diagonal(dim1=-2, dim2=-1), logs))


def _close_logs(ratio: Tensor, logs: Tensor) -> Tensor:
    # the difference of two logarithms has the rounding of both, their ratio that of one number near 1
    near = (ratio - 1).abs() < 0.5
    return torch.where(near, torch.log1p(torch.where(near, ratio - 1, 0.0)), logs)


def _in_range(*matrices: Tensor) -> Tensor:
    # (*batch, 1, 1): whether all variances leave room for their differences
    bounds = [matrix.detach().diagonal(dim1=-2, dim2=-1) for matrix in matrices]
    inside = [((diagonal > _TINY) & (diagonal < _HUGE)).all(-1) for diagonal in bounds]
    return (inside[0] & inside[1])[..., None, None]


def _near(apart: Ratio, difference: Tensor, factor_q: Tensor, in_range: Tensor) -> Ratio:
    # M from the difference of the matrices where it is small against q
    identity = torch.eye(difference.shape[-1], dtype=difference.dtype, device=difference.device)
    square = apart.below.detach().square().sum((-2, -1)) + torch.expm1(apart.logs.detach()).square().sum(-1)
    near = (square < 0.04)[..., None, None] & in_range
    # where it is not, the branch that is not taken sees no difference
    half = torch.linalg.solve_triangular(factor_q, torch.where(near, difference, 0.0), upper=False)
    whitened = torch.linalg.solve_triangular(factor_q, half.mT, upper=False)
    small = 0.5 * (whitened + whitened.mT)
    factor = _cholesky(identity + small)
    # 1 + small has rounded small: one step of Newton's method for (1 + F)(1 + F)^T = 1 + small
    excess = factor - identity
    residual = small - (excess + excess.mT + excess @ excess.mT)
    step = torch.linalg.solve_triangular(factor, residual, upper=False)
    step = torch.linalg.solve_triangular(factor, step.mT, upper=False)
    step = step.tril(-1) + 0.5 * torch.diag_embed(step.diagonal(dim1=-2, dim2=-1))
    refined = excess + factor @ step
    logs = torch.log1p(refined.diagonal(dim1=-2, dim2=-1))
    return Ratio(torch.where(near, refined.tril(-1), apart.below), torch.where(near[..., 0], logs, apart.logs))
