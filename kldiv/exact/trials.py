"""Distributions of Bernoulli trials: Bernoulli, geometric, binomial, negative binomial."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Geometric, NegativeBinomial

from kldiv.distributions import as_logits, given
from kldiv.exact.counts import chance, sum_over_counts, times
from kldiv.exact.registry import check_once, no_form_for_these, register_kl
from kldiv.functional import kl_bernoulli
from kldiv.numerics import expm1mx, kl_term

__all__ = [
    "kl_bernoullis",
    "kl_binomial",
    "kl_geometric",
    "kl_negative_binomial",
    "kl_of_trials",
]


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
    success = chance(p)
    certain_failure = success == 0  # a logit below -745: the number of trials is nearly exponential
    kind_p, logits_p = given(p)
    kind_q, logits_q = given(q)
    rare = expm1mx(as_logits(kind_q, logits_q) - as_logits(kind_p, logits_p))
    return torch.where(certain_failure, rare, kl_of_trials(p, q) / torch.where(certain_failure, 1.0, success))


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
    return times(p.total_count.double(), kl_of_trials(p, q) / chance(p, failure=True))
