"""kl_divergence(p, q): finds the closed form for two distributions, ours or torch's."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Distribution,
    Geometric,
    Independent,
    MixtureSameFamily,
    NegativeBinomial,
    Normal,
    Poisson,
    TransformedDistribution,
)
from torch.distributions import kl as torch_kl

from kldiv.distributions import (
    DiagonalNormal,
    check_distributions,
    independent_dims,
    result_dtype,
    take_off,
    widened,
)
from kldiv.exact.categorical import kl_categoricals
from kldiv.exact.registry import ClosedForm, check_once, find_closed_form, no_form_for_these, register_kl
from kldiv.numerics import check_broadcast, sum_rightmost

__all__ = [
    "kl_divergence",
    "kl_independent",
    "kl_transformed",
]


_COUNTS = (Bernoulli, Binomial, Geometric, NegativeBinomial, Poisson)
_OF_UNEQUAL_EVENTS = (kl_categoricals,)
"""Forms between events of unequal shapes: a category and a one-hot vector."""


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    r"""D_KL(p||q), exactly, in nats: the expectation of ln p - ln q under the first argument.

    The truth is that of the parameters on the objects, read as real numbers and used as they were given: logits,
    probabilities, log-variances, covariances. Computed in ``float64``, never negative and never NaN; ``inf`` where q
    has no mass and p has some. Relative errors are those of the result's dtype, and below 1e-12 in ``float64`` (1e-10
    where special functions are needed), however close the two are. Only where one is given by what the other's
    logarithm is (probabilities and logits, standard deviations and log-variances) a logarithm has to be rounded, which
    costs 1e-16 over the relative distance of the two.

    Args:
        p, q: distributions whose batch shapes broadcast together, of one event shape. In a VAE the posterior comes
            first and the prior second.
    Returns: the broadcast batch shape, in the widest dtype of the parameters, ``float32`` at least.
    Raises:
        NotImplementedError: no closed form is known for the two types, or for these parameters of theirs; the message
            names both types and a call that works. Some forms hold for some parameters only (equal counts, equal
            transforms): these are compared, which waits for the device, unless either has ``validate_args=False``.
        TypeError: p or q is not a distribution.
        ValueError: batch shapes that do not broadcast or event shapes that differ; the message holds both.

    >>> import torch
    >>> kl_divergence(Normal(torch.tensor([0.0, 1e-4]), 1.0), Normal(0.0, 1.0))
    tensor([0.0000e+00, 5.0000e-09])
    """
    check_distributions(
        "For tensors write kldiv.functional.kl_normal, kl_bernoulli or kl_categorical, for tables of probabilities "
        "kldiv.tables.relative_entropy, or wrap them: kldiv.DiagonalNormal(mean, log_var)",
        p=p,
        q=q,
    )
    batch_shape = check_broadcast(**{"p.batch_shape": p.batch_shape, "q.batch_shape": q.batch_shape})
    closed_form = find_closed_form(type(p), type(q))
    if p.event_shape != q.event_shape and closed_form not in _OF_UNEQUAL_EVENTS:
        raise ValueError(
            f"p has the event shape {tuple(p.event_shape)} and q {tuple(q.event_shape)} (batch shapes "
            f"{tuple(p.batch_shape)} and {tuple(q.batch_shape)}): one event must be the same for both. "
            "torch.distributions.Independent(distribution, dims) makes trailing batch dimensions part of the event"
        )
    dtype = result_dtype(p, q)
    if closed_form is None:
        # a scalar DiagonalNormal has every closed form that Normal has
        closed_form = find_closed_form(*(Normal if _is_scalar_normal(d) else type(d) for d in (p, q)))
        if closed_form is None:
            raise NotImplementedError(_no_closed_form(p, q))
        p, q = (_with_scale(d) if _is_scalar_normal(d) else d for d in (p, q))
    ours = closed_form.__module__.startswith("kldiv.")
    if closed_form.__module__ == torch_kl.__name__:
        # torch's closed forms compute in the dtype they are given, and some forget to broadcast
        parts = (widened(p, torch.float64), widened(q, torch.float64))
        value = _call(closed_form, *(d if d.batch_shape == batch_shape else d.expand(batch_shape) for d in parts))
        ours = True
    else:
        value = _call(closed_form, p, q)
    if ours:
        value = value.to(dtype)
    return value if value.shape == batch_shape else value.expand(batch_shape)


def _is_scalar_normal(distribution: Distribution) -> bool:
    return type(distribution) is DiagonalNormal and not distribution.event_shape


def _with_scale(distribution: Any) -> Normal:
    scale = torch.exp(0.5 * distribution.log_var.double())
    return Normal(distribution.mean.double(), scale, validate_args=False)


def _call(closed_form: ClosedForm, p: Distribution, q: Distribution) -> Tensor:
    try:
        return closed_form(p, q)
    except NotImplementedError as error:  # some pairs have a form for some parameters only
        reason = f"{error}. " if str(error) else ""
        raise NotImplementedError(reason + _no_closed_form(p, q)) from error


def _no_closed_form(p: Distribution, q: Distribution) -> str:
    types = f"{type(p).__name__}, {type(q).__name__}"
    if isinstance(p, _COUNTS) and isinstance(q, _COUNTS):
        otherwise = "Sum it, kldiv.kl_summation(p, q), or register"
    elif _is_continuous_scalar(p) and _is_continuous_scalar(q):
        otherwise = "Integrate it, kldiv.kl_quadrature(p, q), or register"
    elif isinstance(p, MixtureSameFamily) or isinstance(q, MixtureSameFamily):
        otherwise = "Estimate it, kldiv.estimate_kl(p, q, num_samples=64), bound it, kldiv.kl_bounds(p, q), or register"
    else:
        otherwise = "Estimate it, kldiv.estimate_kl(p, q, num_samples=64), or register"
    return (
        f"No closed form of D_KL({type(p).__name__} || {type(q).__name__}) is known. {otherwise} one: "
        f"@kldiv.register_kl({types})"
    )


def _is_continuous_scalar(distribution: Distribution) -> bool:
    support = getattr(type(distribution), "support", None)
    if distribution.event_shape or support is None:
        return False
    try:
        return not distribution.support.is_discrete  # type: ignore[union-attr]
    except NotImplementedError:
        return False


@register_kl(Independent, Independent)
@register_kl(DiagonalNormal, Independent)
@register_kl(Independent, DiagonalNormal)
def kl_independent(p: Any, q: Any) -> Tensor:
    r"""The sum over dimensions that are independent under both.

    .. math:: \sum_i D_{KL}(p_i\|q_i)

    Source: additivity, Kullback 1959, theorem 2.1.
    """
    dims = min(independent_dims(p), independent_dims(q))
    wrapped_in_vain = any(isinstance(d, Independent) and not d.reinterpreted_batch_ndims for d in (p, q))
    if dims == 0 and not wrapped_in_vain:
        raise no_form_for_these(p, q)
    return sum_rightmost(kl_divergence(take_off(p, dims), take_off(q, dims)), dims)


@register_kl(TransformedDistribution, TransformedDistribution)
def kl_transformed(p: TransformedDistribution, q: TransformedDistribution) -> Tensor:
    r"""Of the base distributions, where both go through the same invertible transforms.

    .. math:: D_{KL}(p\|q) = D_{KL}(p_0\|q_0)

    The transforms are compared, unless ``validate_args`` is False. Then transforms of one type are trusted to be equal,
    except where they hold parameters of a family, as those of the Kumaraswamy distribution do.

    Source: invariance, Kullback & Leibler 1951, theorem 4.1.
    """
    same = len(p.transforms) == len(q.transforms)
    of_families = type(p) is not TransformedDistribution or type(q) is not TransformedDistribution
    for left, right in zip(p.transforms, q.transforms, strict=False):
        if not (left.bijective and right.bijective):
            raise no_form_for_these(p, q, f"{left} and {right}, which are not both invertible")
        if left is not right:
            holds_parameters = any(isinstance(value, Tensor) for value in left.__dict__.values())
            trusted = type(left) is type(right) and not (of_families and holds_parameters)
            same = same and (left == right if check_once(p, q) else trusted)
    if not same:
        raise no_form_for_these(p, q, "unequal transforms")
    dims = len(p.event_shape) - len(p.base_dist.event_shape)
    return sum_rightmost(kl_divergence(p.base_dist, q.base_dist), dims)
