"""What is drawn and measured in float64, where float32 would leave the support or miss the noise."""

import math

import pytest
import torch
import zuko
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Gamma,
    Independent,
    Kumaraswamy,
    Laplace,
    LogNormal,
    LowRankMultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    Uniform,
    Weibull,
)

from kldiv import DiagonalNormal, DiagonalNormalMixture, estimate_kl, kl_divergence
from kldiv.distributions.precision import can_be_copied
from tests.seeds import seeded


def covers(p, q, num_samples=256, **options):
    value, error = estimate_kl(p, q, num_samples, generator=seeded(), **options)
    return ((value - kl_divergence(p, q)).abs() <= 5 * error + 1e-6).all().item()


def full(value, size=200):
    return torch.full((size,), value)


@pytest.mark.parametrize("sampler", ["iid", "antithetic", "sobol"])
def test_samples_stay_inside_of_their_support(sampler):
    # in float32 a sample rounds up to the end, where the density is none
    p = Uniform(full(1e4), full(1e4 + 1))
    assert estimate_kl(p, Normal(1e4, 1.0), 64, sampler=sampler).value.isfinite().all()
    p = Kumaraswamy(full(2.0), full(0.5))
    assert estimate_kl(p, Beta(1.0, 1.0), 64, sampler=sampler).value.isfinite().all()
    assert covers(LogNormal(full(0.0), 30.0), LogNormal(0.0, 36.0), sampler=sampler)


def test_small_concentrations():
    assert covers(Beta(full(0.1), 0.1), Beta(0.5, 0.5), 4096)


def test_narrow_posteriors_far_from_zero():
    for mean, log_var in ((1e4, -14.0), (1.0, -32.0), (1.0, -40.0)):
        p, q = (DiagonalNormal(torch.full((4, 8), mean), torch.full((4, 8), log_var + k)) for k in (0, 1))
        assert covers(p, q, 2048)


def test_standard_errors_of_huge_divergences():
    p, q = DiagonalNormal(torch.zeros(2, 3), torch.full((2, 3), 30.0)), DiagonalNormal(torch.zeros(3), torch.zeros(3))
    assert covers(p, q, 64)
    assert estimate_kl(p, q).standard_error.isfinite().all()


@pytest.mark.parametrize("chunk_size", [None, 16])
@pytest.mark.parametrize(
    ("p", "q"),
    [
        (Normal(0.0, 1.0), Uniform(0.0, 1.0)),
        (Normal(0.0, 1.0), Gamma(2.0, 1.0)),
        (Laplace(0.0, 1.0), LogNormal(0.0, 1.0)),
        (Categorical(torch.tensor([0.5, 0.5])), Categorical(torch.tensor([1.0, 0.0]))),
        (OneHotCategorical(torch.tensor([0.5, 0.5])), OneHotCategorical(torch.tensor([1.0, 0.0]))),
        (Bernoulli(torch.tensor(0.5)), Bernoulli(torch.tensor(1.0))),
        (Poisson(torch.tensor(2.0)), Bernoulli(torch.tensor(0.5))),
    ],
    ids=lambda distribution: type(distribution).__name__,
)
def test_infinite_where_q_has_no_mass(p, q, chunk_size):
    for value in ("k1", "k2"):
        estimate = estimate_kl(p, q, 64, value=value, chunk_size=chunk_size, generator=seeded())
        assert estimate.value.item() == estimate.standard_error.item() == math.inf


def test_gradients_of_other_elements_stay_finite_beside_an_infinite_one():
    loc = torch.tensor([0.3, 0.5], requires_grad=True)
    width = torch.tensor([1.0, 1e-3])
    p, q = Uniform(loc - width, loc + width), Uniform(torch.tensor(-1.0), torch.tensor([0.4, 1.0]))
    value = estimate_kl(p, q, generator=seeded()).value
    assert value.isinf().tolist() == [True, False]
    (gradient,) = torch.autograd.grad(value.sum(), loc)
    assert not gradient.isnan().any()


def test_tiny_and_zero_probabilities():
    p = Bernoulli(full(0.5))
    assert covers(p, Bernoulli(torch.tensor(1e-20)))
    probs = torch.tensor([0.0, 0.3, 0.7]).expand(200, 3).clone().requires_grad_()
    p, q = Categorical(probs), Categorical(torch.tensor([0.2, 0.3, 0.5]))
    value = estimate_kl(p, q, 512, gradient="score", generator=seeded()).value
    assert ((value - kl_divergence(p, q)).abs() < 0.1).all()
    (gradient,) = torch.autograd.grad(value.sum(), probs)
    assert gradient.isfinite().all()


def test_autocast_does_not_reach_covariances():
    p, q = (
        LowRankMultivariateNormal(torch.full((50, 3), 5.0), torch.full((3, 1), f), torch.full((3,), d))
        for f, d in ((0.1, 1e-4), (0.12, 1.3e-4))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert covers(p, q)


class TestOtherPackages:
    def test_flows_in_half_precision(self):
        torch.manual_seed(0)
        posterior = zuko.flows.MAF(3, 4, transforms=1, hidden_features=[8]).bfloat16()
        prior = zuko.flows.MAF(3, transforms=1, hidden_features=[8]).bfloat16()
        p = posterior(torch.randn(2, 4).bfloat16())
        assert not can_be_copied(p)
        for value in ("k1", "k3"):
            estimate = estimate_kl(p, prior(), value=value)
            assert estimate.value.dtype == estimate.standard_error.dtype == torch.float32
            assert estimate.value.isfinite().all()

    def test_what_can_be_copied(self):
        components = DiagonalNormal(torch.zeros(2, 3), torch.zeros(2, 3))
        assert can_be_copied(Independent(Weibull(torch.ones(3), 1.0), 1))
        assert can_be_copied(DiagonalNormalMixture(Categorical(torch.ones(2)), components))

        class Mine(Normal):
            pass

        assert can_be_copied(Independent(Mine(torch.zeros(3), 1.0), 1))
