"""Distributions of counts: Poisson, and sums over the outcomes of finite ones."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Distribution, Geometric, NegativeBinomial, Poisson

from kldiv.distributions import given, log_chance
from kldiv.exact.registry import register_kl
from kldiv.numerics import kl_term

__all__ = [
    "chance",
    "kl_bernoulli_poisson",
    "kl_of_finite_counts",
    "kl_poisson",
    "kl_poisson_to_finite",
    "log_mass",
    "sum_over_counts",
    "times",
]


@register_kl(Poisson, Poisson)
def kl_poisson(p: Poisson, q: Poisson) -> Tensor:
    r"""Of two Poisson distributions.

    .. math:: \lambda_p\ln\frac{\lambda_p}{\lambda_q} - \lambda_p + \lambda_q

    Source: Kullback 1959, chapter 7.
    """
    return kl_term(p.rate.double(), q.rate.double())


@register_kl(Bernoulli, Poisson)
def kl_bernoulli_poisson(p: Bernoulli, q: Poisson) -> Tensor:
    r"""The sum over the two outcomes of a Bernoulli distribution.

    .. math:: \left[p\ln\frac{p}{\lambda} - p + \lambda\right] + \left[(1-p)\ln(1-p) + p\right]

    Source: the sum over the support, Kullback & Leibler 1951.
    """
    success, failure = chance(p), chance(p, failure=True)
    return kl_term(success, q.rate.double()) + kl_term(failure, torch.ones_like(failure), success)


@register_kl(Poisson, Bernoulli)
@register_kl(Poisson, Binomial)
def kl_poisson_to_finite(p: Poisson, q: Distribution) -> Tensor:
    r"""Infinite, since p gives any count; where its rate is 0, that of the outcome without success.

    .. math:: \infty, \quad\text{and}\quad -n\ln(1 - q) \quad\text{where}\ \lambda = 0

    Source: Kullback & Leibler 1951.
    """
    trials = q.total_count.double() if isinstance(q, Binomial) else torch.ones((), dtype=torch.float64)
    kind, value = given(q)
    failure = torch.nn.functional.logsigmoid(-value) if kind == "logits" else _log1m(value)
    return torch.where(p.rate > 0, torch.inf, times(trials.to(p.rate.device), -failure))


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
    return sum_over_counts(p, q)


def chance(distribution: Any, failure: bool = False) -> Tensor:
    """The probability of success of a trial, or of failure, in ``float64``."""
    kind, value = given(distribution)
    if kind == "logits":
        return torch.sigmoid(-value if failure else value)
    return 1 - value if failure else value


def times(count: Tensor, value: Tensor) -> Tensor:
    """count * value; 0 where the count is 0, even if the value is infinite."""
    none = count == 0
    return torch.where(none, 0.0, count * torch.where(none, 0.0, value))


def sum_over_counts(p: Distribution, q: Distribution) -> Tensor:
    """The KL as a sum over the counts that a Bernoulli or binomial p can give. Waits for the largest of them."""
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
        success, failure = log_chance(value), _log1m(value)
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


def _log1m(probs: Tensor) -> Tensor:
    # ln(1 - probs), with a gradient of 0 where it is minus infinity
    certain = probs >= 1
    return torch.log1p(-torch.where(certain, 0.0, probs)).masked_fill(certain, -torch.inf)


def _power(count: Tensor, log: Tensor) -> Tensor:
    # count * log, 0 where the count is 0 and the logarithm -inf
    return torch.where(count == 0, 0.0, count * torch.where(count == 0, 0.0, log))
