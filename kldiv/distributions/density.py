"""The log-density of a distribution: -inf off the support, with more digits than torch where torch loses them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    Kumaraswamy,
    MixtureSameFamily,
    TransformedDistribution,
    VonMises,
    Weibull,
    constraints,
)
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.nn import functional

from kldiv.distributions.support import (
    Support,
    declared_support,
    has_density_everywhere,
    inside,
    is_elementwise,
    support_of,
)
from kldiv.numerics import check_broadcast, sum_rightmost, widen

__all__ = [
    "log_density",
    "log_prob",
]


def log_prob(distribution: Distribution, x: Tensor, known: bool) -> Tensor:
    """ln of the density at x, in ``float32`` at least; ``-inf`` off the support of a known distribution.

    Args:
        known: whether all parts of the distribution are torch's or ours, as :func:`can_be_copied` finds.
    Raises: ValueError: a density of another shape than that of the samples and the batch.
    """
    log = _of_known(distribution, x) if known else distribution.log_prob(x)
    if log.shape != x.shape[: x.ndim - len(distribution.event_shape)]:
        _check_shape(distribution, x, log)
    (log,) = widen(log)
    return log


def _check_shape(distribution: Any, x: Tensor, log: Tensor) -> None:
    batch = distribution.batch_shape
    wanted = check_broadcast(samples=x.shape[: x.ndim - len(distribution.event_shape)], batch=batch)
    if log.shape == wanted:
        return
    if isinstance(distribution, Independent):  # which only sums what its base gives
        _check_shape(distribution.base_dist, x, distribution.base_dist.log_prob(x))
    raise ValueError(
        f"{type(distribution).__name__}.log_prob gives the shape {tuple(log.shape)} for a sample of shape "
        f"{tuple(x.shape)}, and of batch shape {tuple(batch)} and event shape {tuple(distribution.event_shape)} it "
        f"must be {tuple(wanted)}. What it sums over belongs to the event shape: "
        "super().__init__(batch_shape=..., event_shape=...)"
    )


def _of_known(distribution: Any, x: Tensor) -> Tensor:
    """ln p(x), ``-inf`` off the support; points there are replaced, so that gradients stay finite."""
    if has_density_everywhere(distribution):
        return _LOG_DENSITIES.get(type(distribution), _own)(distribution, x)
    kind = type(distribution)
    if not distribution.event_shape:
        if distribution.support.is_discrete:
            on = distribution.support.check(x)
            log = distribution.log_prob(torch.where(on, x, 0.0))
            return log.masked_fill(~on, -torch.inf)  # type: ignore[no-any-return]
        on, inner = _of_interval(distribution, x)
        return log_density(distribution, inner).masked_fill(~on, -torch.inf)
    if kind.log_prob is Independent.log_prob:
        return sum_rightmost(_of_known(distribution.base_dist, x), distribution.reinterpreted_batch_ndims)
    events = len(distribution.event_shape)
    if kind.log_prob is MixtureSameFamily.log_prob:
        of_components = _of_known(distribution.component_distribution, x.unsqueeze(-1 - events))
        return torch.logsumexp(of_components + torch.log_softmax(distribution.mixture_distribution.logits, -1), -1)
    support = declared_support(distribution)
    if kind.log_prob is TransformedDistribution.log_prob and is_elementwise(distribution):
        on, inner = _of_interval(distribution, x)
        whole = on.flatten(-events).all(-1)
    elif support is constraints.simplex:
        # torch's tolerance of 1e-6 is less than float32 rounds a sum by
        whole = (x >= 0).all(-1) & ((x.sum(-1) - 1).abs() < 1e-4)
        inner = torch.where(whole[..., None], x, 1 / x.shape[-1])
    else:
        return _own(distribution, x)
    return _own(distribution, inner).masked_fill(~whole, -torch.inf)


def _own(distribution: Distribution, x: Tensor) -> Tensor:
    log: Tensor = distribution.log_prob(x)
    return log


def _of_interval(distribution: Distribution, x: Tensor) -> tuple[Tensor, Tensor]:
    """Where each number lies on the support, and x with an inner point in place of all others."""
    whole = distribution.batch_shape + distribution.event_shape
    support = support_of(distribution)
    zeros = x.new_zeros(check_broadcast(x=x.shape, distribution=whole))
    lower, upper = (end if isinstance(end, Tensor) else zeros.new_tensor(end) for end in support[:2])
    on = (x >= lower) & (x <= upper)
    inner = inside(Support(lower.detach(), upper.detach()), x.detach().expand(zeros.shape), zeros)
    return on, torch.where(on, x, inner)


def log_density(distribution: Any, x: Tensor) -> Tensor:
    """ln p(x) inside the support."""
    if type(distribution) in _LOG_DENSITIES:
        return _LOG_DENSITIES[type(distribution)](distribution, x)
    log: Tensor
    if type(distribution).log_prob is MixtureSameFamily.log_prob:
        component, x = distribution.component_distribution, x[..., None]
        lower, upper, _ = support_of(component)
        if isinstance(lower, Tensor) or isinstance(upper, Tensor):
            # outside its support torch may give a component some density all the same
            on = (x > lower) & (x < upper)
            zeros = x.new_zeros(component.batch_shape)
            inner = inside(Support(lower, upper), zeros, zeros)
            log = torch.where(on, log_density(component, torch.where(on, x, inner)), -math.inf)
        else:
            log = log_density(component, x)
        return torch.logsumexp(log + torch.log_softmax(distribution.mixture_distribution.logits, -1), -1)
    log = distribution.log_prob(x)
    return log


def _log_density_of_kumaraswamy(distribution: Kumaraswamy, x: Tensor) -> Tensor:
    a, b, log = distribution.concentration1, distribution.concentration0, x.log()
    return a.log() + b.log() + (a - 1) * log + (b - 1) * (-torch.expm1(a * log)).log()


def _log_density_of_von_mises(distribution: VonMises, x: Tensor) -> Tensor:
    half, kappa = torch.sin(0.5 * (x - distribution.loc)), distribution.concentration
    return -2 * kappa * half * half - torch.log(2 * math.pi * torch.special.i0e(kappa))


def _log_density_of_weibull(distribution: Weibull, x: Tensor) -> Tensor:
    scale, k = distribution.scale, distribution.concentration
    log = (x / scale).log()
    return (k / scale).log() + (k - 1) * log - torch.exp(k * log)


def _log_density_of_generalized_pareto(distribution: Any, x: Tensor) -> Tensor:
    scale: Tensor = distribution.scale
    concentration: Tensor = distribution.concentration
    z = (x - distribution.loc) / scale
    straight = concentration.abs() < 1e-15
    c = torch.where(straight, 1.0, concentration)
    return -scale.log() - (1 + concentration) * torch.where(straight, z, torch.log1p(c * z) / c)


def _log_density_of_relaxed_bernoulli_logit(distribution: LogitRelaxedBernoulli, x: Tensor) -> Tensor:
    difference = distribution.logits - x * distribution.temperature
    return distribution.temperature.log() + difference - 2 * functional.softplus(difference)


# families whose density in torch loses digits, underflows, or refuses float64
_LOG_DENSITIES: dict[type, Callable[[Any, Tensor], Tensor]] = {
    LogitRelaxedBernoulli: _log_density_of_relaxed_bernoulli_logit,
    Kumaraswamy: _log_density_of_kumaraswamy,
    VonMises: _log_density_of_von_mises,
    Weibull: _log_density_of_weibull,
    # this family is newer than the oldest torch that we support
    getattr(torch.distributions, "GeneralizedPareto", type(None)): _log_density_of_generalized_pareto,
}
