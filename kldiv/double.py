"""Distributions as samples are drawn of them: in ``float64``, with densities that are 0 off the support."""

from collections.abc import Hashable
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    OneHotCategoricalStraightThrough,
    constraints,
)

from kldiv.copies import in_double, is_computed_late, is_ours
from kldiv.densities import Support, inside, log_density, support_of
from kldiv.distributions import widened
from kldiv.functional import check_broadcast
from kldiv.gumbel_softmax import GumbelSoftmax
from kldiv.special import widen


def in_wide(p: Distribution, q: Distribution) -> tuple[Distribution, Distribution]:
    """Both in ``float64`` and without validation, where both are ours; else what is ours in ``float32`` at least.

    A sample rounded to ``float32`` is another one than was meant where a posterior is narrow, and leaves its support at
    the ends.
    """
    if is_ours(p) and is_ours(q):
        if torch.compiler.is_compiling():
            return widened(p, torch.float64), widened(q, torch.float64)
        p, q = in_double(p, []), in_double(q, [])
        for distribution in (p, q):
            _give_exact_logits(distribution)
        return p, q
    return (widened(p) if is_ours(p) else p), (widened(q) if is_ours(q) else q)


def log_prob(distribution: Distribution, x: Tensor) -> Tensor:
    """ln of the density at x, in ``float32`` at least; ``-inf`` off the support of a scalar that is ours."""
    log: Tensor
    if distribution.event_shape or not is_ours(distribution) or _support(distribution) is constraints.real:
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


def has_pathwise_gradient(p: Distribution) -> bool:
    """Whether gradients go through samples. A relaxed or straight-through ``rsample`` is no sample of p, and biased."""
    if not p.has_rsample or isinstance(p, GumbelSoftmax):
        return False
    base = getattr(p, "base_dist", None)
    return not isinstance(p, OneHotCategoricalStraightThrough) and (base is None or has_pathwise_gradient(base))


def has_moving_support(p: Distribution) -> bool:
    """Whether the support depends on parameters that want a gradient: then the score's mean is not zero."""
    while isinstance(p, Independent):
        p = p.base_dist
    ends: list[Any] = []
    if not p.event_shape and is_ours(p):
        support = _support(p)
        if support is not None and not support.is_discrete:
            found = support_of(p)
            ends = [found.lower, found.upper, *found.inner]
    elif (support := _support(p)) is not None:
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        ends = list(vars(support).values())
    return any(isinstance(end, Tensor) and end.requires_grad for end in ends)


def materialise(distribution: Any) -> None:
    """Computes what torch computes when it is first asked for: a checkpoint must find the same twice."""
    for value in list(vars(distribution).values()):
        if isinstance(value, Distribution):
            materialise(value)
    for name in ("logits", "probs"):
        if is_computed_late(cast(Hashable, type(distribution)), name):
            getattr(distribution, name)


def _support(distribution: Distribution) -> Any:
    try:
        return distribution.support
    except NotImplementedError:
        return None


def _give_exact_logits(distribution: Any) -> None:
    # torch's logarithm of a probability of 0 is that of the smallest number
    for value in vars(distribution).values():
        if isinstance(value, Distribution):
            _give_exact_logits(value)
    probs = vars(distribution).get("_param")
    if probs is None or probs is not vars(distribution).get("probs"):
        return
    if isinstance(distribution, torch.distributions.Categorical):
        zero = probs == 0
        distribution.logits = torch.log(torch.where(zero, 1.0, probs)).masked_fill(zero, -torch.inf)
    elif isinstance(distribution, torch.distributions.Bernoulli):
        inner = torch.where((probs > 0) & (probs < 1), probs, 0.5)
        logits = torch.log(inner) - torch.log1p(-inner)
        # finite, for the difference of infinities in its density would be NaN; beyond what any result holds
        distribution.logits = logits.masked_fill(probs <= 0, -1e300).masked_fill(probs >= 1, 1e300)
