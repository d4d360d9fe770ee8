"""Posterior and prior together: one precision, one kind of density, matching shapes."""

from typing import Any

import torch
from torch.distributions import Categorical, Distribution, Independent

from kldiv.distributions.parts import factorise, independent_dims, take_off, with_event_dims
from kldiv.distributions.precision import give_exact_logits, in_double, is_ours, widened
from kldiv.numerics import check_broadcast

__all__ = [
    "by_dimension",
    "check_measures",
    "in_wide",
    "matched",
]


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
            give_exact_logits(distribution)
        return p, q
    return (widened(p) if is_ours(p) else p), (widened(q) if is_ours(q) else q)


def by_dimension(p: Distribution, q: Distribution) -> tuple[Distribution, Distribution]:
    """The two with what is independent in both, dimension by dimension, read as batch dimensions."""
    whole_p, whole_q = factorise(p), factorise(q)
    if whole_p is not None and whole_q is not None and whole_p.event_shape == whole_q.event_shape:
        return whole_p, whole_q
    dims = min(independent_dims(p), independent_dims(q))
    return take_off(p, dims), take_off(q, dims)


def check_measures(p: Distribution, q: Distribution) -> None:
    """Raises: ValueError: a discrete and a continuous distribution, or categories of unequal number."""
    kinds = [_kind(distribution) for distribution in (p, q)]
    if None not in kinds and kinds[0] != kinds[1]:
        raise ValueError(
            f"p, {type(p).__name__}, is {kinds[0]} and q, {type(q).__name__}, is {kinds[1]}: their densities are of "
            "two kinds and have no ratio"
        )


def _kind(distribution: Any) -> str | None:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, Categorical):
        return f"of {distribution._num_events} categories"
    try:
        return ("discrete" if distribution.support.is_discrete else "continuous") if is_ours(distribution) else None
    except NotImplementedError:
        return None


def matched(posterior: Distribution, prior: Distribution) -> tuple[Distribution, Distribution]:
    """The two, taken apart into their dimensions where both factorise and else with one event shape.

    Raises: ValueError: a prior larger than the posterior.
    """
    whole_posterior, whole_prior = factorise(posterior), factorise(prior)
    if whole_posterior is not None and whole_prior is not None:
        posterior, prior = whole_posterior, whole_prior
    elif whole_posterior is not None:
        posterior = with_event_dims(whole_posterior, len(prior.event_shape))
    else:
        if whole_prior is not None:  # one normal for all dimensions, say
            shape = check_broadcast(prior=whole_prior.batch_shape, posterior_event=posterior.event_shape)
            prior = whole_prior.expand(shape)
        prior = with_event_dims(prior, len(posterior.event_shape))
    of_posterior, of_prior = (d.batch_shape + d.event_shape for d in (posterior, prior))
    if of_posterior != check_broadcast(posterior=of_posterior, prior=of_prior):
        raise ValueError(
            f"the prior of shape {tuple(of_prior)} must broadcast to the posterior's, {tuple(of_posterior)}, and not "
            "beyond it"
        )
    return posterior, prior
