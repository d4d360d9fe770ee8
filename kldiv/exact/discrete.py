"""Distributions over a countable set: Bernoulli and what counts its trials, categorical, Poisson."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Distribution,
    Geometric,
    Multinomial,
    NegativeBinomial,
    OneHotCategorical,
    Poisson,
)

from kldiv.distributions import as_logits, given
from kldiv.exact.registry import check_once, no_form_for_these, register_kl
from kldiv.functional import kl_bernoulli, kl_categorical
from kldiv.numerics import expm1mx, kl_term
from kldiv.tables import relative_entropy

__all__ = [
    "chance",
    "kl_bernoulli_poisson",
    "kl_bernoullis",
    "kl_binomial",
    "kl_categoricals",
    "kl_geometric",
    "kl_multinomial",
    "kl_negative_binomial",
    "kl_of_finite_counts",
    "kl_of_trials",
    "kl_poisson",
    "kl_poisson_to_finite",
    "log_mass",
    "times",
]


def kl_of_trials(p: Any, q: Any) -> Tensor:
    """The KL of a single trial, of whatever has ``probs`` or ``logits``, in ``float64``."""
    (kind_p, value_p), (kind_q, value_q) = given(p), given(q)
    if kind_p == kind_q == "probs":
        excess = value_q - value_p
        return kl_term(value_p, value_q, excess) + kl_term(1 - value_p, 1 - value_q, -excess)
    return kl_bernoulli(as_logits(kind_p, value_p), as_logits(kind_q, value_q))


def chance(distribution: Any, failure: bool = False) -> Tensor:
    """The probability of success of a trial, or of failure, in ``float64``."""
    kind, value = given(distribution)
    if kind == "logits":
        return torch.sigmoid(-value if failure else value)
    return 1 - value if failure else value


@register_kl(Bernoulli, Bernoulli)
def kl_bernoullis(p: Bernoulli, q: Bernoulli) -> Tensor:
    r"""Of two Bernoulli distributions, from logits or from probabilities, as they were given.

    .. math:: p\ln\frac{p}{q} + (1-p)\ln\frac{1-p}{1-q}

    Source: Kullback & Leibler 1951.
    """
    return kl_of_trials(p, q)


@register_kl(Geometric, Geometric)
def kl_geometric(p: Geometric, q: Geometric) -> Tensor:
    r"""As many Bernoulli trials as are made on average.

    .. math:: \frac1p \left[p\ln\frac{p}{q} + (1-p)\ln\frac{1-p}{1-q}\right]

    Source: the chain rule, Kullback 1959, theorem 2.1.
    """
    success = chance(p)
    certain_failure = success == 0  # of a logit below -745: then the number of trials is all but exponential
    kind_p, logits_p = given(p)
    kind_q, logits_q = given(q)
    rare = expm1mx(as_logits(kind_q, logits_q) - as_logits(kind_p, logits_p))
    return torch.where(certain_failure, rare, kl_of_trials(p, q) / torch.where(certain_failure, 1.0, success))


@register_kl(Binomial, Binomial)
def kl_binomial(p: Binomial, q: Binomial) -> Tensor:
    r"""Of as many Bernoulli trials each; an exact sum over outcomes where q has more, infinite where it has fewer.

    .. math:: n\left[p\ln\frac{p}{q} + (1-p)\ln\frac{1-p}{1-q}\right]

    Source: the chain rule, Kullback 1959, theorem 2.1.
    """
    count_p, count_q = p.total_count.double(), q.total_count.double()
    # where no success is possible, a larger count of p's changes nothing
    fewer = (count_q < count_p) & (chance(p) > 0)
    value = times(torch.where(chance(p) > 0, count_p, count_q), kl_of_trials(p, q))
    if check_once(p, q) and bool((count_p < count_q).any()):
        value = torch.where(count_p < count_q, _sum_over_counts(p, q), value)
    return value.masked_fill(fewer, torch.inf)


@register_kl(NegativeBinomial, NegativeBinomial)
def kl_negative_binomial(p: NegativeBinomial, q: NegativeBinomial) -> Tensor:
    r"""As many Bernoulli trials as are made on average until the same number of failures.

    .. math:: \frac{r}{1-p} \left[p\ln\frac{p}{q} + (1-p)\ln\frac{1-p}{1-q}\right]

    For equal counts r alone, which is checked once, unless ``validate_args`` is False.

    Source: the chain rule, Kullback 1959, theorem 2.1.
    """
    if check_once(p, q) and bool((p.total_count != q.total_count).any()):
        raise no_form_for_these(p, q, "unequal total_count")
    return times(p.total_count.double(), kl_of_trials(p, q) / chance(p, failure=True))


@register_kl(Poisson, Poisson)
def kl_poisson(p: Poisson, q: Poisson) -> Tensor:
    r"""Of two Poisson distributions.

    .. math:: \lambda_p\ln\frac{\lambda_p}{\lambda_q} - \lambda_p + \lambda_q

    Source: Kullback 1959, chapter 7.
    """
    return kl_term(p.rate.double(), q.rate.double())


@register_kl(Bernoulli, Poisson)
def kl_bernoulli_poisson(p: Bernoulli, q: Poisson) -> Tensor:
    r"""Of the two outcomes that a Bernoulli distribution has.

    .. math:: \left[p\ln\frac{p}{\lambda} - p + \lambda\right] + \left[(1-p)\ln(1-p) + p\right]

    Source: the sum over the support, Kullback & Leibler 1951.
    """
    success, failure = chance(p), chance(p, failure=True)
    return kl_term(success, q.rate.double()) + kl_term(failure, torch.ones_like(failure), success)


@register_kl(Poisson, Bernoulli)
@register_kl(Poisson, Binomial)
def kl_poisson_to_finite(p: Poisson, q: Distribution) -> Tensor:
    r"""Infinite, as any count is possible; of a rate of 0 that of no success at all.

    .. math:: \infty, \quad\text{and}\quad -n\ln(1 - q) \quad\text{where}\ \lambda = 0

    Source: Kullback & Leibler 1951.
    """
    trials = q.total_count.double() if isinstance(q, Binomial) else torch.ones((), dtype=torch.float64)
    none = times(trials.to(p.rate.device), -torch.log(chance(q, failure=True)))
    return torch.where(p.rate > 0, torch.inf, none)


@register_kl(Bernoulli, Binomial)
@register_kl(Bernoulli, Geometric)
@register_kl(Bernoulli, NegativeBinomial)
@register_kl(Binomial, Bernoulli)
@register_kl(Binomial, Geometric)
@register_kl(Binomial, NegativeBinomial)
@register_kl(Binomial, Poisson)
def kl_of_finite_counts(p: Distribution, q: Distribution) -> Tensor:
    r"""The sum over the counts that p can give.

    .. math:: \sum_k p(k)\ln\frac{p(k)}{q(k)}

    Source: Kullback & Leibler 1951.
    """
    return _sum_over_counts(p, q)


@register_kl(Categorical, Categorical)
@register_kl(OneHotCategorical, OneHotCategorical)
@register_kl(Categorical, OneHotCategorical)
@register_kl(OneHotCategorical, Categorical)
def kl_categoricals(p: Distribution, q: Distribution) -> Tensor:
    r"""Of two tables of probabilities, from logits or from probabilities, as they were given.

    .. math:: \sum_k p_k \ln\frac{p_k}{q_k}

    Source: Kullback & Leibler 1951.
    """
    return _kl_categories(p, q)


@register_kl(Multinomial, Multinomial)
def kl_multinomial(p: Multinomial, q: Multinomial) -> Tensor:
    r"""Of as many categorical trials; infinite between unequal counts.

    .. math:: n \sum_k p_k \ln\frac{p_k}{q_k}

    Source: the chain rule, Kullback 1959, theorem 2.1.
    """
    value = _kl_categories(p, q)
    if p.total_count != q.total_count:
        return torch.full_like(value, torch.inf)
    return value * p.total_count if p.total_count else torch.zeros_like(value)


def times(count: Tensor, value: Tensor) -> Tensor:
    """count * value, and 0 where the count is 0, be the value infinite."""
    none = count == 0
    return torch.where(none, 0.0, count * torch.where(none, 0.0, value))


def _kl_categories(p: Any, q: Any) -> Tensor:
    (kind_p, value_p), (kind_q, value_q) = (given(d) for d in (p, q))
    if value_p.shape[-1] != value_q.shape[-1]:
        raise ValueError(f"p has {value_p.shape[-1]} categories and q {value_q.shape[-1]}: they must be the same")
    if kind_p == kind_q == "probs":
        return relative_entropy(value_p, value_q, validate=False)
    logits_p, logits_q = (
        value if kind == "logits" else torch.log(value) for kind, value in ((kind_p, value_p), (kind_q, value_q))
    )
    return kl_categorical(logits_p, logits_q)


def _sum_over_counts(p: Distribution, q: Distribution) -> Tensor:
    largest = int(p.total_count.max()) if isinstance(p, Binomial) and p.total_count.numel() else 1
    device = given(p)[1].device
    counts = torch.arange(largest + 1, dtype=torch.float64, device=device)
    log_p, log_q = log_mass(p, counts), log_mass(q, counts)
    possible = log_p > -torch.inf
    impossible = possible & (log_q == -torch.inf)
    ratio = torch.where(possible & ~impossible, log_p, 0.0) - torch.where(possible & ~impossible, log_q, 0.0)
    mass = torch.where(possible, torch.exp(torch.where(possible, log_p, 0.0)), 0.0)
    value = (mass * ratio).sum(-1).clamp(min=0)
    return value.masked_fill(impossible.any(-1), torch.inf)


def log_mass(distribution: Any, counts: Tensor) -> Tensor:
    """ln of the probability of counts, along a new last dimension, ``-inf`` where they are impossible."""
    if isinstance(distribution, Poisson):
        rate = distribution.rate.double()[..., None]
        return torch.xlogy(counts, rate) - rate - torch.lgamma(counts + 1)
    kind, value = given(distribution)
    value = value[..., None]
    if kind == "logits":
        success, failure = torch.nn.functional.logsigmoid(value), torch.nn.functional.logsigmoid(-value)
    else:
        success, failure = torch.log(value), torch.log1p(-value)
    if isinstance(distribution, Geometric):
        return success + _power(counts, failure)
    if isinstance(distribution, NegativeBinomial):
        total = distribution.total_count.double()[..., None]
        ways = torch.lgamma(total + counts) - torch.lgamma(total) - torch.lgamma(counts + 1)
        return torch.where(counts == 0, 0.0, ways) + _power(total, failure) + _power(counts, success)
    total = (
        distribution.total_count.double()[..., None] if isinstance(distribution, Binomial) else torch.ones_like(value)
    )
    left = (total - counts).clamp(min=0)
    ways = torch.lgamma(total + 1) - torch.lgamma(counts + 1) - torch.lgamma(left + 1)
    mass = ways + _power(counts, success) + _power(left, failure)
    return mass.masked_fill(counts > total, -torch.inf)


def _power(count: Tensor, log: Tensor) -> Tensor:
    # count * log, 0 where the count is 0 and the logarithm -inf
    return torch.where(count == 0, 0.0, count * torch.where(count == 0, 0.0, log))
