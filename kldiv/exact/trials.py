"""Distributions of Bernoulli trials: Bernoulli, geometric, binomial, negative binomial."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Geometric, NegativeBinomial

from kldiv.distributions import as_logits, given
from kldiv.exact.counts import chance, sum_over_counts, times
from kldiv.exact.registry import check_once, no_form_for_these, register_kl
from kldiv.functional import kl_bernoulli
from kldiv.numerics import broadcast, expm1mx, kl_term, log_ratio

__all__ = [
    "kl_bernoullis",
    "kl_binomial",
    "kl_geometric",
    "kl_negative_binomial",
    "kl_of_trials",
]


_RARE = 1e-260
"""A chance below it is e^a, of a logit a, to the last digit."""


def kl_of_trials(p: Any, q: Any) -> Tensor:
    """The KL of one trial, in ``float64``, of families that have ``logits`` and ``probs``."""
    (kind_p, value_p), (kind_q, value_q) = given(p), given(q)
    if kind_p == kind_q == "probs":
        excess = value_q - value_p
        return kl_term(value_p, value_q, excess) + kl_term(1 - value_p, 1 - value_q, -excess)
    return kl_bernoulli(as_logits(kind_p, value_p), as_logits(kind_q, value_q))


@register_kl(Bernoulli, Bernoulli)
def kl_bernoullis(p: Bernoulli, q: Bernoulli) -> Tensor:
    r"""Of two Bernoulli distributions, from logits or from probabilities, as they were given.

    .. math:: p\ln\frac{p}{q} + (1-p)\ln\frac{1-p}{1-q}

    Source: Kullback & Leibler 1951.
    """
    return kl_of_trials(p, q)


@register_kl(Geometric, Geometric)
def kl_geometric(p: Geometric, q: Geometric) -> Tensor:
    r"""That of one Bernoulli trial, times the expected number of trials.

    .. math:: \frac1p \left[p\ln\frac{p}{q} + (1-p)\ln\frac{1-p}{1-q}\right]

    Source: the chain rule, Kullback 1959, theorem 2.1.
    """
    return _kl_until(p, q)


@register_kl(Binomial, Binomial)
def kl_binomial(p: Binomial, q: Binomial) -> Tensor:
    r"""That of one trial, times their number; a sum over outcomes where q has more trials, infinite where it has fewer.

    .. math:: n\left[p\ln\frac{p}{q} + (1-p)\ln\frac{1-p}{1-q}\right]

    Source: the chain rule, Kullback 1959, theorem 2.1.
    """
    count_p, count_q = p.total_count.double(), q.total_count.double()
    # where no success is possible, a larger count of p's changes nothing
    fewer = (count_q < count_p) & (chance(p) > 0)
    value = times(torch.where(chance(p) > 0, count_p, count_q), kl_of_trials(p, q))
    if check_once(p, q) and bool((count_p < count_q).any()):
        value = torch.where(count_p < count_q, sum_over_counts(p, q), value)
    return value.masked_fill(fewer, torch.inf)


@register_kl(NegativeBinomial, NegativeBinomial)
def kl_negative_binomial(p: NegativeBinomial, q: NegativeBinomial) -> Tensor:
    r"""That of one Bernoulli trial, times the expected number of trials until the r-th failure.

    .. math:: \frac{r}{1-p} \left[p\ln\frac{p}{q} + (1-p)\ln\frac{1-p}{1-q}\right]

    For equal counts r only. They are compared, unless ``validate_args`` is False.

    Source: the chain rule, Kullback 1959, theorem 2.1.
    """
    if check_once(p, q) and bool((p.total_count != q.total_count).any()):
        raise no_form_for_these(p, q, "unequal total_count")
    return times(p.total_count.double(), _kl_until(p, q, failure=True))


def _kl_until(p: Any, q: Any, failure: bool = False) -> Tensor:
    """The KL of all trials until the first success, or failure: that of one trial over the chance of it."""
    (kind_p, value_p), (kind_q, value_q) = given(p), given(q)
    success = chance(p, failure)
    rare = success < _RARE  # it and the KL of one trial lose their digits, and underflow
    trials = kl_of_trials(p, q) / torch.where(rare, 1.0, success)
    sign = -1.0 if failure else 1.0
    a, b = (sign * as_logits(kind, value) for kind, value in ((kind_p, value_p), (kind_q, value_q)))
    a, b, rare = broadcast(a, b, rare)
    # the branch that is not taken sees a = b = -1
    a, b = torch.where(rare, a, -1.0), torch.where(rare, b, -1.0)
    certain = a == -torch.inf
    a = a.masked_fill(certain, -1.0)
    delta = b - a
    if kind_p == kind_q == "probs" and not failure:
        delta = torch.where(rare, log_ratio(value_q, value_p), 0.0)
    # 1/p is e^-a, and -ln(1 - q) is softplus(b), which is e^b where b is as small
    few = b < -36
    softplus = torch.nn.functional.softplus(b.masked_fill(few, 0.0))
    log_softplus = torch.where(few, b, torch.log(softplus))
    close = delta.abs() < 1
    far = expm1mx(torch.where(close, 0.0, log_softplus - a)) + torch.where(few, 0.0, log_softplus - b + softplus)
    value = torch.where(close, expm1mx(torch.where(close, delta, 0.0)), far)
    value = value.masked_fill(certain & rare, torch.inf)
    return torch.where(rare, value, trials)
