"""The log-density of a distribution: -inf off the support, with more digits than torch where torch loses them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Kumaraswamy, MixtureSameFamily, VonMises, Weibull, constraints

from kldiv.distributions.support import Support, declared_support, inside, support_of
from kldiv.numerics import check_broadcast, widen

__all__ = [
    "log_density",
    "log_prob",
]


def log_prob(distribution: Distribution, x: Tensor, known: bool) -> Tensor:
    """ln of the density at x, in ``float32`` at least; ``-inf`` off the support of a known scalar.

    Args:
        known: whether all parts of the distribution are torch's or ours, as :func:`can_be_copied` finds.
    """
    log: Tensor
    if distribution.event_shape or not known or declared_support(distribution) is constraints.real:
        log = distribution.log_prob(x)
    elif distribution.support.is_discrete:  # type: ignore[union-attr]
        on = distribution.support.check(x)  # type: ignore[union-attr]
        log = distribution.log_prob(torch.where(on, x, 0.0)).masked_fill(~on, -torch.inf)
    else:
        support = support_of(distribution)
        zeros = x.new_zeros(check_broadcast(x=x.shape, batch_shape=distribution.batch_shape))
        lower, upper = (end if isinstance(end, Tensor) else zeros.new_tensor(end) for end in support[:2])
        on = (x >= lower) & (x <= upper)
        inner = inside(Support(lower.detach(), upper.detach()), x.detach().expand(zeros.shape), zeros)
        log = log_density(distribution, torch.where(on, x, inner)).masked_fill(~on, -torch.inf)
    (log,) = widen(log)
    return log


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


# families whose density in torch loses digits, underflows, or refuses float64
_LOG_DENSITIES: dict[type, Callable[[Any, Tensor], Tensor]] = {
    Kumaraswamy: _log_density_of_kumaraswamy,
    VonMises: _log_density_of_von_mises,
    Weibull: _log_density_of_weibull,
    # this family is newer than the oldest torch that we support
    getattr(torch.distributions, "GeneralizedPareto", type(None)): _log_density_of_generalized_pareto,
}
