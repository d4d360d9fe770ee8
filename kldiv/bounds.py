"""kl_bounds(p, q): lower and upper bounds of the KL divergence where p or q is a mixture."""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
)
from torch.distributions.transforms import Transform
from torch.nn import functional

from kldiv.distributions import (
    check_distributions,
    factorise,
    independent_dims,
    log_weights,
    mean_and_log_var,
    result_dtype,
    take_off,
    widened,
)
from kldiv.exact import covariance, find_closed_form, kl_divergence, kl_transformed, no_form_for_these
from kldiv.numerics import broadcast, check_broadcast, standardise, sum_rightmost

__all__ = [
    "KLBounds",
    "kl_bounds",
]


_Overlap = Callable[[Tensor], tuple[Tensor, Tensor, int]]

_POWERS = (1 / 1024, 1 / 64, 1 / 8, 1 / 2, 1.0, 4.0, 16.0)
"""Where the minimum over s is looked for: the farther apart the components of q, the smaller, and the farther p is
from q, the larger. s = 0 is Gibbs' inequality."""
_MATCHING_STEPS = 4
_NEAREST = 1e9
"""Large against any ratio of divergences that are not equal."""


class KLBounds(NamedTuple):
    """A lower and an upper bound of a KL divergence, in nats."""

    lower: Tensor
    """Never negative."""
    upper: Tensor
    """``inf`` where a component of p has an infinite divergence to every component of q."""


def kl_bounds(p: Distribution, q: Distribution) -> KLBounds:
    r"""Bounds on D_KL(p||q) where p, q or both are mixtures, in nats; differentiable in all parameters.

    With :math:`p = \sum_a \pi_a p_a`, :math:`q = \sum_b \omega_b q_b` and the entropies :math:`H_a` of p's components

    .. math:: L_q = \sum_a \pi_a \ln\sum_b \omega_b e^{-D_{KL}(p_a\|q_b)}
              \;\le\; E_p[\ln q] + \sum_a \pi_a H_a \;\le\;
              \sum_a \pi_a \min_{s \ge 0}\left[s H_a + \ln\sum_b \omega_b \int p_a^s q_b\right] = U_q

    and the same for :math:`E_p[\ln p]`, where also :math:`U_p \le \sum_a \pi_a \ln\sum_c \pi_c \int \sqrt{p_a p_c}`:

    .. math:: \max(0, L_p - U_q) \;\le\; D_{KL}(p\|q) \;\le\; \min\left(U_p - L_q,\;
              \sum_{ab} \phi_{ab} \left[\ln\frac{\phi_{ab}}{\psi_{ab}} + D_{KL}(p_a\|q_b)\right]\right)

    for joint weights whose marginals are :math:`\pi` and :math:`\omega`, found by a few steps from each component's
    nearest. The minimum over s is one over a few values: s = 1 is the product bound, s = 0 Gibbs' inequality. The
    entropies cancel and are never computed.

    The integrals are known for normal components (``Normal`` alone or in ``Independent``, ``DiagonalNormal``,
    ``MultivariateNormal``, ``LowRankMultivariateNormal``). Of other families there are only the divergences between
    components: the bounds hold and are looser, and ``lower`` is mostly 0 unless q is a single component.

    Exact from one component to one, and ``upper`` also between mixtures of the same components and weights, in any
    order. Both are tight where the components of p are far from one another and q is a single component or has the
    same components. Otherwise ``upper`` is mostly the nearer: between mixtures that overlap ``lower`` is often 0, and
    between those far apart it may be half the divergence. :math:`L_p - L_q`, the variational approximation of
    Hershey & Olsen, is a difference of two lower bounds and bounds neither side.

    Args:
        p, q: distributions whose batch shapes broadcast together, of one event shape; at least one a
            ``MixtureSameFamily``. Any other is a single component. In a VAE the posterior comes first. A mixture
            in every dimension by itself, ``Independent(mixture, dims)``, adds its dimensions up.
    Returns: ``KLBounds(lower, upper)``, each of the broadcast batch shape, in the widest dtype of the parameters,
        ``float32`` at least; computed in ``float64``.
    Raises:
        NotImplementedError: a divergence between components has no closed form; the message shows ``estimate_kl``.
        TypeError: p or q is not a distribution.
        ValueError: neither is a mixture; batch shapes that do not broadcast or event shapes that differ.
    Source: Durrieu, Thiran & Kelly 2012, "Lower and upper bounds for approximation of the Kullback-Leibler divergence
        between Gaussian mixture models"; the joint weights: Hershey & Olsen 2007, "Approximating the Kullback Leibler
        divergence between Gaussian mixture models"; the square root: Kolchinsky & Tracey 2017, "Estimating mixture
        entropy with pairwise distances". Other s are Jensen's inequality as well, for
        :math:`\ln q = (1-s)\ln p_a + \ln(q\,p_a^{s-1})`.

    >>> from torch.distributions import Categorical, Normal
    >>> mixture = MixtureSameFamily(Categorical(torch.ones(2)), Normal(torch.tensor([-50.0, 50.0]), 1.0))
    >>> kl_bounds(Normal(50.0, 1.0), mixture)  # the logarithm of 2
    KLBounds(lower=tensor(0.6931), upper=tensor(0.6931))
    """
    check_distributions(
        "Make it one: torch.distributions.MixtureSameFamily(Categorical(logits=logits), components)", p=p, q=q
    )
    shape = check_broadcast(**{"p.batch_shape": p.batch_shape, "q.batch_shape": q.batch_shape})
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"p has the event shape {tuple(p.event_shape)} and q {tuple(q.event_shape)} (batch shapes "
            f"{tuple(p.batch_shape)} and {tuple(q.batch_shape)}): one event must be the same for both"
        )
    dims = min(independent_dims(p), independent_dims(q))
    mixtures: list[Any] = [d for d in (p, q) if isinstance(take_off(d, dims), MixtureSameFamily)]
    if not mixtures:
        raise ValueError(
            f"kl_bounds(p, q) takes at least one MixtureSameFamily, and these are {type(p).__name__} and "
            f"{type(q).__name__}: kldiv.kl_divergence(p, q) is exact where there is a closed form, and "
            "kldiv.estimate_kl(p, q, num_samples=64) an estimate for any two"
        )
    if dims:
        return KLBounds(*(sum_rightmost(bound, dims) for bound in kl_bounds(take_off(p, dims), take_off(q, dims))))

    like = log_weights(mixtures[0].mixture_distribution)
    log_pi, log_omega = (
        log_weights(d.mixture_distribution) if isinstance(d, MixtureSameFamily) else like.new_zeros(1) for d in (p, q)
    )
    components_p, components_q = _components(p), _components(q)
    divergences = _pairwise_kl(components_p, components_q)
    lower_q = upper_q = _log_sum_exp(log_omega[..., None, :] - divergences)
    if log_omega.shape[-1] > 1:
        upper_q = _upper_cross_entropy(log_omega, lower_q, _overlap_of(components_p, components_q))
    lower_p = upper_p = torch.zeros_like(log_pi)
    overlap = None
    if log_pi.shape[-1] > 1:
        overlap = _overlap_of(components_p, components_p)
        lower_p = _log_sum_exp(log_pi[..., None, :] - _pairwise_kl(components_p, components_p))
        upper_p = _upper_cross_entropy(log_pi, lower_p, overlap)
    lower = _expectation(log_pi, lower_p - upper_q)
    upper = _expectation(log_pi, upper_p - lower_q)
    if overlap is not None:
        affinity = _log_sum_exp(log_pi[..., None, :] + _log_affinity(overlap, like))
        upper = torch.minimum(upper, _expectation(log_pi, affinity) + _expectation(log_pi, -lower_q))
    if min(log_pi.shape[-1], log_omega.shape[-1]) > 1:
        upper = torch.minimum(upper, _matched(log_pi, log_omega, divergences))
    lower = lower.clamp(min=0)
    # where both are exact, rounding may put them out of order
    upper = upper + (lower - upper).clamp(min=0).detach().nan_to_num(nan=0.0)
    dtype = result_dtype(p, q)
    return KLBounds(lower.to(dtype).expand(shape), upper.to(dtype).expand(shape))


def _components(distribution: Distribution) -> Distribution:
    """Of batch shape (*batch, K), in ``float64``."""
    if isinstance(distribution, MixtureSameFamily):
        return widened(distribution.component_distribution, torch.float64)
    return widened(_unsqueezed(distribution, len(distribution.batch_shape)), torch.float64)


def _pairwise_kl(p: Distribution, q: Distribution) -> Tensor:
    """D_KL(p_a||q_b), (*batch, K_p, K_q)."""
    try:
        _check_transforms(p, q)
        return kl_divergence(_unsqueezed(p, len(p.batch_shape)), _unsqueezed(q, len(q.batch_shape) - 1))
    except NotImplementedError as error:
        raise NotImplementedError(
            f"kl_bounds needs the divergences between components. {error}. "
            "For the mixtures themselves: kldiv.estimate_kl(p, q, num_samples=64)"
        ) from error


def _check_transforms(p: Any, q: Any) -> None:
    # two mixtures may share their transforms while two components do not
    p, q = (d.base_dist if isinstance(d, Independent) else d for d in (p, q))
    if find_closed_form(type(p), type(q)) is not kl_transformed:
        return
    if any(_is_batched(transform) for transform in (*p.transforms, *q.transforms)):
        raise no_form_for_these(p, q, "components that differ in their transforms")
    _check_transforms(p.base_dist, q.base_dist)


def _is_batched(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim > 0
    if isinstance(value, list):
        return any(_is_batched(part) for part in value)
    return isinstance(value, Transform) and any(_is_batched(part) for part in vars(value).values())


def _unsqueezed(distribution: Distribution, dim: int) -> Distribution:
    """The distribution with another batch dimension, of size 1, before ``dim``."""
    batch = distribution.batch_shape
    changed: dict[str, Any] = {"_batch_shape": torch.Size([*batch[:dim], 1, *batch[dim:]])}
    full = isinstance(distribution, (MultivariateNormal, LowRankMultivariateNormal))
    for name, value in distribution.__dict__.items():
        if isinstance(value, Distribution):
            changed[name] = _unsqueezed(value, dim)
        elif isinstance(value, Tensor) and full:
            # some are kept as they were before broadcasting: their dimensions are counted from the right
            event = 1 if name in ("loc", "cov_diag", "_unbroadcasted_cov_diag") else 2
            place = value.ndim - event - (len(batch) - dim)
            changed[name] = value.unsqueeze(place) if place >= 0 else value
        elif isinstance(value, Tensor) and value.ndim:
            if value.shape[: len(batch)] != batch:
                raise NotImplementedError(f"{type(distribution).__name__} has {name} in another shape than its batch")
            changed[name] = value.unsqueeze(dim)
    new = copy.copy(distribution)
    new.__dict__.update(changed)
    return new


def _upper_cross_entropy(log_weights: Tensor, like: Tensor, overlap: _Overlap | None) -> Tensor:
    r"""Above :math:`E_{p_a}[\ln q] + H_a`, of the shape of ``like``, (*batch, K_p)."""
    if overlap is None:
        return torch.zeros_like(like)

    def product(s: Tensor) -> Tensor:
        log_det, distance, dims = overlap(s)
        return _log_sum_exp(log_weights[..., None, :] + 0.5 * (dims * s - log_det - distance))

    # any s is a bound, so the best is looked for without a graph, which would hold the integrals of each
    with torch.no_grad():
        powers = torch.tensor(_POWERS, dtype=like.dtype, device=like.device)
        best = torch.stack([product(s) for s in powers.unbind()], -1).argmin(-1, keepdim=True)
    return product(powers[best]).clamp(max=0)


def _matched(log_pi: Tensor, log_omega: Tensor, divergences: Tensor) -> Tensor:
    r"""The bound by joint weights, :math:`\phi_{ab}` and :math:`\psi_{ab}`, (*batch,).

    In turn each is the best for the other: :math:`\phi_{ab} \propto_b \psi_{ab} e^{-D_{KL}(p_a\|q_b)}`,
    :math:`\psi_{ab} \propto_a \phi_{ab}`. With the former inserted the bound is
    :math:`\sum_a \pi_a [\ln\pi_a - \ln\sum_b \psi_{ab} e^{-D_{KL}(p_a\|q_b)}]`.
    """
    pi, omega = log_pi[..., :, None], log_omega[..., None, :]

    def exponents(log_share: Tensor) -> Tensor:  # a share: phi_ab over pi_a
        joint = pi + log_share
        return omega + _normalised(joint, -2) - divergences

    def value(log_share: Tensor) -> Tensor:
        return _expectation(log_pi, log_pi - _log_sum_exp(exponents(log_share)))

    with torch.no_grad():
        nearest = _normalised(omega - _NEAREST * divergences, -1)
    # the nearest alone are exact where the mixtures are the same; from half of them the steps are fewer
    log_share = _log_sum_exp(torch.stack([nearest, _normalised(omega - divergences, -1)]), 0)
    for _ in range(_MATCHING_STEPS):
        log_share = _normalised(exponents(log_share), -1)
    return torch.minimum(value(nearest), value(log_share))


def _expectation(log_weights: Tensor, values: Tensor) -> Tensor:
    log_weights, values = broadcast(log_weights, values)
    # what has no weight counts nowhere, infinite or not
    values = values.masked_fill(log_weights == -torch.inf, 0.0)
    infinite = values.isinf()
    total = (torch.exp(log_weights) * values.masked_fill(infinite, 0.0)).sum(-1)
    # beside the graph, where its gradient would be NaN
    return total + values.detach().masked_fill(~infinite, 0.0).sum(-1)


def _normalised(logs: Tensor, dim: int) -> Tensor:
    # where there is no mass there is none to normalise: log_softmax has NaN there
    total = _log_sum_exp(logs, dim).unsqueeze(dim)
    return logs - total.masked_fill(total == -torch.inf, 0.0)


def _log_sum_exp(logs: Tensor, dim: int = -1) -> Tensor:
    # without mass the value is right and the gradient NaN
    empty = (logs == -torch.inf).all(dim)
    return torch.logsumexp(logs.masked_fill(empty.unsqueeze(dim), 0.0), dim).masked_fill(empty, -torch.inf)


# --- overlap: integrals of powers of normal densities, between all components of one mixture and all of another


def _overlap_of(p: Distribution, q: Distribution) -> _Overlap | None:
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


def _log_affinity(overlap: _Overlap, like: Tensor) -> Tensor:
    r""":math:`\ln\int\sqrt{p_a p_c}` for all components of one mixture."""
    log_det, distance, dims = overlap(like.new_ones(()))
    return 0.5 * (dims * math.log(2.0) - 0.5 * (log_det + log_det.mT + distance))
