"""Tables of probabilities, and distributions of counts: closed forms and sums over the counts."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

from mpmath import mp, mpf

from tests.oracles.parameters import Parameters


class Table(NamedTuple):
    """Probabilities and their logarithms."""

    probs: list[mpf]
    logs: list[mpf]


def binary(p: Parameters) -> Table:
    """The two outcomes 1 and 0 of probs or logits."""
    if "logits" in p:
        odds, inverse = mp.exp(p["logits"]), mp.exp(-p["logits"])
        return Table([1 / (1 + inverse), 1 / (1 + odds)], [-mp.log1p(inverse), -mp.log1p(odds)])
    probs = p["probs"]
    return Table([probs, 1 - probs], [log(probs), mp.log1p(-probs) if probs < 1 else -mp.inf])


def categories(p: Parameters) -> Table:
    """Normalised: logits are real numbers, probs are divided by their sum."""
    if "probs" in p:
        total = mp.fsum(p["probs"])
        return Table([v / total for v in p["probs"]], [log(v / total) for v in p["probs"]])
    rest = sorted(p["logits"])
    top = rest.pop()
    log_total = top + mp.log1p(mp.fsum(mp.exp(v - top) for v in rest))
    logs = [v - log_total for v in p["logits"]]
    return Table([mp.exp(v) for v in logs], logs)


def kl_table(p: Table, q: Table) -> mpf:
    if len(p.probs) != len(q.probs):
        raise ValueError(f"{len(p.probs)} and {len(q.probs)} categories")
    if any(u > 0 and v == -mp.inf for u, v in zip(p.probs, q.logs, strict=True)):
        return mp.inf
    return mp.fsum(u * (a - b) for u, a, b in zip(p.probs, p.logs, q.logs, strict=True) if u > 0)


def log(x: mpf) -> mpf:
    return mp.log(x) if x > 0 else -mp.inf


def kl_bernoulli(p: Parameters, q: Parameters) -> mpf:
    return kl_table(binary(p), binary(q))


def kl_categorical(p: Parameters, q: Parameters) -> mpf:
    return kl_table(categories(p), categories(q))


def kl_multinomial(p: Parameters, q: Parameters) -> mpf:
    n = p["total_count"]
    if n != q["total_count"]:
        return mp.inf  # outcomes of n draws sum to n
    return n * kl_categorical(p, q) if n else mpf(0)


def kl_binomial(p: Parameters, q: Parameters) -> mpf:
    n = p["total_count"]
    if n != q["total_count"]:
        return kl_sum("Binomial", p, "Binomial", q)
    return n * kl_bernoulli(p, q) if n else mpf(0)


def kl_geometric(p: Parameters, q: Parameters) -> mpf:
    return kl_bernoulli(p, q) / binary(p).probs[0]  # one Bernoulli for each of 1 / p trials


def kl_negative_binomial(p: Parameters, q: Parameters) -> mpf:
    r = p["total_count"]
    if r != q["total_count"]:
        return kl_sum("NegativeBinomial", p, "NegativeBinomial", q)
    return r * kl_bernoulli(p, q) / binary(p).probs[1] if r else mpf(0)


def kl_poisson(p: Parameters, q: Parameters) -> mpf:
    if p["rate"] == 0:
        return q["rate"]
    if q["rate"] == 0:
        return mp.inf
    return p["rate"] * mp.log(p["rate"] / q["rate"]) - p["rate"] + q["rate"]


@functools.lru_cache(maxsize=200_000)
def log_gamma(x: mpf, precision: int) -> mpf:
    return mp.loggamma(x)


def log_factorial(k: int) -> mpf:
    return log_gamma(mpf(k + 1), mp.prec)


def times(count: mpf, logarithm: mpf) -> mpf:
    return count * logarithm if count else mpf(0)  # 0 ln 0 = 0


def log_pmf_binomial(p: Parameters, k: int) -> mpf:
    n = int(p.get("total_count", 1))
    if k > n:
        return -mp.inf
    yes, no = binary(p).logs
    return log_factorial(n) - log_factorial(k) - log_factorial(n - k) + times(mpf(k), yes) + times(mpf(n - k), no)


def log_pmf_negative_binomial(p: Parameters, k: int) -> mpf:
    r = p["total_count"]
    if r == 0:
        return mpf(0) if k == 0 else -mp.inf
    yes, no = binary(p).logs
    ways = log_gamma(r + k, mp.prec) - log_gamma(r, mp.prec) - log_factorial(k)
    return ways + times(mpf(k), yes) + times(r, no)


LOG_PMF: dict[str, Callable[[Parameters, int], mpf]] = {
    "Bernoulli": log_pmf_binomial,
    "Binomial": log_pmf_binomial,
    "Geometric": lambda p, k: binary(p).logs[0] + times(mpf(k), binary(p).logs[1]),
    "NegativeBinomial": log_pmf_negative_binomial,
    "Poisson": lambda p, k: times(mpf(k), log(p["rate"])) - p["rate"] - log_factorial(k),
}


def mean_count(family: str, p: Parameters) -> mpf:
    if family == "Poisson":
        return p["rate"]
    yes, no = binary(p).probs
    if family == "Geometric":
        return no / yes
    if family == "NegativeBinomial":
        return p["total_count"] * yes / no
    return p.get("total_count", 1) * yes


def kl_sum(family_p: str, p: Parameters, family_q: str, q: Parameters) -> mpf:
    """The divergence of counts, term by term."""
    mean = mean_count(family_p, p)
    if mean > 10**5:
        raise NotImplementedError(f"{family_p} to {family_q} is a sum over {mp.nstr(mean, 3)} terms: too many")
    last = int(p.get("total_count", 1)) if family_p in ("Bernoulli", "Binomial") else None
    total = mpf(0)
    for k in itertools.count():
        log_p = LOG_PMF[family_p](p, k)
        if log_p > -mp.inf:
            log_q = LOG_PMF[family_q](q, k)
            if log_q == -mp.inf:
                return mp.inf
            term = mp.exp(log_p) * (log_p - log_q)
            total += term
        else:
            term = mpf(0)
        if k == last or (last is None and k > mean and abs(term) < mp.eps * mp.eps * abs(total)):
            return total
        if last is None and log_p == -mp.inf and k > mean:  # a point mass
            return total
    raise AssertionError("endless")
