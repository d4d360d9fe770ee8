"""kl_summation against mpmath's sums and the closed forms."""

import itertools

import pytest
import torch
from mpmath import mp, mpf
from torch.distributions import Bernoulli, Binomial, Gamma, Geometric, Independent, NegativeBinomial, Poisson

from kldiv import kl_divergence, kl_quadrature, kl_summation
from tests.marks import slow

F64 = torch.float64


def tensor(x):
    return torch.tensor(x, dtype=F64)


def log_mass(d, k):
    """ln f(k) to the digits of mpmath."""
    k = mpf(k)
    if isinstance(d, Poisson):
        rate = mpf(d.rate.item())
        return k * mp.log(rate) - rate - mp.loggamma(k + 1)
    s = mpf(d.probs.item())
    if isinstance(d, Geometric):
        return k * mp.log1p(-s) + mp.log(s)
    if isinstance(d, NegativeBinomial):
        r = mpf(d.total_count.item())
        return mp.loggamma(r + k) - mp.loggamma(r) - mp.loggamma(k + 1) + r * mp.log1p(-s) + k * mp.log(s)
    n = mpf(d.total_count.item()) if isinstance(d, Binomial) else mpf(1)
    if k > n:
        return -mp.inf
    ways = mp.loggamma(n + 1) - mp.loggamma(k + 1) - mp.loggamma(n - k + 1)
    return ways + k * mp.log(s) + (n - k) * mp.log1p(-s)


def true_kl(p, q):
    """The sum over all counts that have a mass of 1e-43 and more under p."""
    if isinstance(q, (Binomial, Bernoulli)) and not isinstance(p, (Binomial, Bernoulli)):
        return mp.inf  # any count is possible under p
    with mp.workdps(60):
        total, k, mean = mpf(0), 0, p.mean.item()
        while True:
            log_p = log_mass(p, k)
            if log_p == -mp.inf or (k > mean and log_p < -100):
                return total
            log_q = log_mass(q, k)
            if log_q == -mp.inf:
                return mp.inf
            total += mp.exp(log_p) * (log_p - log_q)
            k += 1


COUNTS = {
    "Poisson": Poisson(tensor(3.0)),
    "small Poisson": Poisson(tensor(1e-6)),
    "large Poisson": Poisson(tensor(400.0)),
    "NegativeBinomial": NegativeBinomial(tensor(2.5), tensor(0.4)),
    "below one failure": NegativeBinomial(tensor(0.05), tensor(0.7)),
    "Geometric": Geometric(tensor(0.3)),
    "long Geometric": Geometric(tensor(0.01)),
    "Binomial": Binomial(tensor(10.0), tensor(0.3)),
    "large Binomial": Binomial(tensor(300.0), tensor(0.6)),
    "Bernoulli": Bernoulli(tensor(0.2)),
    "rare Bernoulli": Bernoulli(tensor(1e-6)),
}


@pytest.mark.parametrize(("p", "q"), list(itertools.product(COUNTS, COUNTS)))
def test_against_the_sum_in_fifty_digits(p, q):
    found, true = kl_summation(COUNTS[p], COUNTS[q]).item(), true_kl(COUNTS[p], COUNTS[q])
    if p == q:
        assert found == 0
    elif true == mp.inf:
        assert found == float("inf")
    else:
        assert abs(found - true) <= 1e-12 * true


@pytest.mark.parametrize("distance", [1e-1, 1e-4, 1e-7, 1e-10])
def test_close_ones_keep_their_digits(distance):
    p = NegativeBinomial(tensor(2.5), tensor(0.4))
    for q in (
        NegativeBinomial(tensor(2.5 * (1 + distance)), tensor(0.4)),
        NegativeBinomial(tensor(2.5), tensor(0.4 * (1 + distance))),
    ):
        assert abs(kl_summation(p, q).item() - true_kl(p, q)) <= 1e-10 * true_kl(p, q)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (Poisson(tensor([0.5, 40.0, 1e5])), Poisson(tensor([0.7, 30.0, 1.001e5]))),
        (Geometric(tensor([1e-4, 0.9])), Geometric(tensor([2e-4, 0.2]))),
        (Geometric(logits=tensor([-3.0, 2.0])), Geometric(logits=tensor([-2.0, 2.0 + 1e-6]))),
        (Binomial(tensor(50.0), tensor([0.1, 0.9])), Binomial(tensor(50.0), tensor([0.11, 0.2]))),
        (Bernoulli(logits=tensor([-40.0, 0.0])), Bernoulli(logits=tensor([-30.0, 1e-5]))),
        (NegativeBinomial(tensor(3.0), tensor([0.1, 0.99])), NegativeBinomial(tensor(3.0), tensor([0.2, 0.98]))),
    ],
)
def test_where_there_is_a_closed_form(p, q):
    parameters = [next(vars(d)[name] for name in ("rate", "logits", "probs") if name in vars(d)) for d in (p, q)]
    for parameter in parameters:
        parameter.requires_grad_(True)
    exact, found = kl_divergence(p, q), kl_summation(p, q)
    torch.testing.assert_close(found, exact, rtol=1e-11, atol=0)
    for mine, theirs in zip(*(torch.autograd.grad(value.sum(), parameters) for value in (found, exact)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-300)
    for parameter in parameters:
        parameter.requires_grad_(False)


def test_gradients_by_finite_differences():
    r, logits, rate = (tensor(x).requires_grad_(True) for x in (1.7, -0.3, 2.2))

    def both_ways(r, logits, rate):
        nb, poisson = NegativeBinomial(r, logits=logits, validate_args=False), Poisson(rate, validate_args=False)
        return kl_summation(nb, poisson) + kl_summation(poisson, nb)

    assert torch.autograd.gradcheck(both_ways, (r, logits, rate))


@pytest.mark.parametrize(
    ("p", "q", "kl"),
    [
        (Poisson(0.0), Poisson(1.0), 1.0),
        (Poisson(1.0), Poisson(0.0), float("inf")),
        (Bernoulli(1.0), Binomial(3, torch.tensor(0.5)), 0.98082925),
        (Bernoulli(0.0), Geometric(0.25), 1.38629436),
        (Binomial(3, torch.tensor(1.0)), Binomial(3, torch.tensor(1.0)), 0.0),
        (Binomial(3, torch.tensor(0.5)), Binomial(3, torch.tensor(1.0)), float("inf")),
        (Poisson(1.0), Binomial(100, torch.tensor(0.5)), float("inf")),
        (Binomial(5, torch.tensor(0.5)), Binomial(4, torch.tensor(0.5)), float("inf")),
        (Binomial(0, torch.tensor(0.5)), Poisson(2.0), 2.0),
    ],
)
def test_certain_and_impossible_counts(p, q, kl):
    torch.testing.assert_close(kl_summation(p, q), torch.tensor(kl))


def test_shapes_and_dtypes():
    p, q = Poisson(torch.rand(4, 1) * 5), Geometric(torch.rand(3))
    assert kl_summation(p, q).shape == (4, 3)
    assert kl_summation(p, q).dtype == torch.float32
    assert kl_summation(Poisson(torch.zeros(0)), Geometric(0.5)).shape == (0,)


def test_what_it_does_not_take():
    with pytest.raises(ValueError, match="p is a Gamma"):
        kl_summation(Gamma(1.0, 1.0), Poisson(1.0))
    with pytest.raises(ValueError, match="pass the base_dist"):
        kl_summation(Poisson(1.0), Independent(Poisson(torch.ones(3)), 1))
    with pytest.raises(TypeError, match="q is a Tensor"):
        kl_summation(Poisson(1.0), torch.ones(3))
    with pytest.raises(ValueError, match="estimate_kl"):
        kl_summation(Geometric(tensor(1e-8)), NegativeBinomial(tensor(2.0), tensor(0.5)))
    with pytest.raises(ValueError, match="kl_summation"):
        kl_quadrature(Poisson(1.0), Geometric(0.5))
    with pytest.raises(NotImplementedError, match=r"kl_summation\(p, q\)"):
        kl_divergence(Poisson(1.0), Geometric(0.5))


@slow
def test_a_million_terms():
    p, q = Geometric(tensor(1e-5)), NegativeBinomial(tensor(1.5), tensor(1 - 1e-5))
    k = torch.arange(0, 6_000_000, dtype=F64)
    log_p, log_q = p.log_prob(k), q.log_prob(k)
    torch.testing.assert_close(kl_summation(p, q), (log_p.exp() * (log_p - log_q)).sum(), rtol=1e-8, atol=0)
