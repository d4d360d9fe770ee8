"""Distributions of counts whose successive probabilities have a simple ratio: the Panjer class.

.. math:: \\frac{f(k+1)}{f(k)} = \\frac{A(k)}{k+1}, \\qquad A = \\lambda,\\ (r + k)\\,\\pi,\\ (n - k)\\,\\frac{s}{1-s}

for Poisson, negative binomial and binomial distributions. A geometric distribution is a negative binomial one, and a
Bernoulli distribution a binomial one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Geometric, NegativeBinomial, Poisson
from torch.nn.functional import logsigmoid

from kldiv.distributions import given
from kldiv.numerics import kl_term, log_ratio, stirling_error

__all__ = [
    "COUNTS",
    "Counts",
    "counts_of",
    "ratio_of_factors",
]

COUNTS = (Poisson, NegativeBinomial, Geometric, Binomial, Bernoulli)


class Counts(NamedTuple):
    """Distributions of one family, as a column (B, 1) in ``float64``: a row of counts goes with each."""

    sign: int
    """Of k in A: 0 for Poisson, 1 for negative binomial, -1 for binomial distributions."""
    size: Tensor
    """r or n; 1 for Poisson distributions."""
    chance: Tensor
    """lambda, pi or s."""
    rest: Tensor
    """1 - pi or 1 - s, to its own digits; 1 for Poisson distributions."""
    logits: Tensor | None
    """ln(pi / (1 - pi)), where the distribution was given that."""

    def mean(self) -> Tensor:
        """Infinite where no failure is possible."""
        return self.chance if self.sign == 0 else self.size * self.chance / (self.rest if self.sign > 0 else 1.0)

    def last(self) -> Tensor:
        """The largest count with a positive probability."""
        if self.sign < 0:
            return torch.where(self.chance > 0, self.size, 0.0)
        return torch.where((self.chance > 0) & (self.size > 0), torch.inf, 0.0)

    def log_factor(self, k: Tensor) -> Tensor:
        """ln A(k)."""
        if self.sign == 0:
            return torch.log(self.chance).expand(k.shape)
        odds = self.chance if self.sign > 0 else self.chance / self.rest
        return torch.log(odds) + torch.log(self.size + self.sign * k)

    def log_mass(self, k: Tensor) -> Tensor:
        """ln f(k), in terms that cancel nothing. ``-inf`` beyond :meth:`last`."""
        possible = (k > 0) & (k <= self.last())
        one = torch.where(possible, k, 1.0)
        if self.sign == 0:
            none, some = -self.chance, -kl_term(one, self.chance)
        elif self.sign > 0:
            size = torch.where(self.size > 0, self.size, 1.0)
            trials = size + one
            none = torch.where(self.size > 0, self.size * torch.log(self.rest), 0.0)
            some = stirling_error(trials) - stirling_error(size)
            some = some - kl_term(size, trials * self.rest) - kl_term(one, trials * self.chance)
        else:
            none = torch.where(self.size > 0, self.size * torch.log(self.rest), 0.0)
            failures = torch.where(possible & (k < self.size), self.size - k, 1.0)
            size = torch.where(self.size > 0, self.size, 1.0)
            some = stirling_error(size) + torch.log(size) - stirling_error(failures) - torch.log(failures)
            some = some - kl_term(failures, size * self.rest) - kl_term(one, size * self.chance)
        some = some - stirling_error(one) - torch.log(one)
        if self.sign < 0:
            some = torch.where(k == self.size, self.size * torch.log(self.chance), some)
        return torch.where(k == 0, none, torch.where(possible, some, -torch.inf))

    def take(self, index: Tensor) -> "Counts":
        """Some of them."""
        logits = None if self.logits is None else self.logits[index]
        return Counts(self.sign, self.size[index], self.chance[index], self.rest[index], logits)


def counts_of(distribution: Any, shape: torch.Size) -> Counts:
    """The distribution as one of the class, expanded to ``shape``."""

    def column(value: Tensor) -> Tensor:
        return value.double().expand(shape).reshape(-1, 1)

    if isinstance(distribution, Poisson):
        rate = column(distribution.rate)
        return Counts(0, torch.ones_like(rate), rate, torch.ones_like(rate), None)
    name, value = given(distribution)
    value = column(value)
    chance, rest = (torch.sigmoid(value), torch.sigmoid(-value)) if name == "logits" else (value, 1 - value)
    logits = value if name == "logits" else None
    if isinstance(distribution, Geometric):  # which counts the failures before the first success
        return Counts(1, torch.ones_like(chance), rest, chance, None if logits is None else -logits)
    if isinstance(distribution, NegativeBinomial):
        return Counts(1, column(distribution.total_count), chance, rest, logits)
    size = column(distribution.total_count) if isinstance(distribution, Binomial) else torch.ones_like(chance)
    return Counts(-1, size, chance, rest, logits)


def ratio_of_factors(p: Counts, q: Counts, k: Tensor) -> Tensor:
    """ln(A_q(k) / A_p(k)), to the last digits where the two are close."""
    ratio = _ratio_of_chances(p, q)
    if p.sign and q.sign:
        sizes_p, sizes_q = p.size + p.sign * k, q.size + q.sign * k
        difference = (q.size - p.size) + (q.sign - p.sign) * k
        return ratio + log_ratio(sizes_q, sizes_p, difference)
    for counts, sign in ((p, -1.0), (q, 1.0)):
        if counts.sign:
            ratio = ratio + sign * torch.log(counts.size + counts.sign * k)
    return ratio.expand(k.shape)


def _ratio_of_chances(p: Counts, q: Counts) -> Tensor:
    if p.sign == q.sign and p.logits is not None and q.logits is not None:
        step = q.logits - p.logits
        if p.sign < 0:  # of the odds
            return step
        near = step.abs() < 1
        close = -torch.log1p(p.rest * torch.expm1(torch.where(near, -step, 0.0)))
        return torch.where(near, close, logsigmoid(q.logits) - logsigmoid(p.logits))
    ratio = log_ratio(q.chance, p.chance)
    if p.sign < 0 and q.sign < 0:
        return ratio - log_ratio(q.rest, p.rest, p.chance - q.chance)
    for counts, sign in ((p, 1.0), (q, -1.0)):
        if counts.sign < 0:
            ratio = ratio + sign * torch.log(counts.rest)
    return ratio
