"""What is drawn and measured in float64, where float32 would leave the support or miss the noise."""

import math

import pytest
import torch
import zuko
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Beta,
    Categorical,
    Exponential,
    Gamma,
    Gumbel,
    HalfNormal,
    Independent,
    Kumaraswamy,
    Laplace,
    LogNormal,
    LowRankMultivariateNormal,
    Normal,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    Pareto,
    Poisson,
    TransformedDistribution,
    Uniform,
    VonMises,
    Weibull,
)

from kldiv import DiagonalNormal, DiagonalNormalMixture, MonteCarloKLLoss, estimate_kl, kl_divergence
from kldiv.distributions.density import log_prob
from kldiv.distributions.precision import can_be_copied
from kldiv.distributions.support import has_moving_support


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


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
    p, q = Normal(loc, torch.tensor([1.0, 1e-3])), Uniform(torch.tensor(-1.0), torch.tensor([0.4, 1.0]))
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


class TestChoices:
    @pytest.mark.parametrize("gradient", ["sticking_the_landing", "adaptive", "score"])
    def test_a_support_that_moves_is_refused_where_the_score_is_needed(self, gradient):
        end = torch.tensor(3.0, requires_grad=True)
        for p in (
            Uniform(0.0, end),
            Pareto(end, 5.0),
            TransformedDistribution(Exponential(torch.tensor(1.0)), AffineTransform(end, 2.0)),
        ):
            with pytest.raises(
                ValueError, match=rf"support of {type(p).__name__} moves.*'{gradient}'.*'pathwise' would do"
            ):
                estimate_kl(p, Exponential(1.0), gradient=gradient)
            with pytest.raises(ValueError, match="moves"):
                MonteCarloKLLoss(4, gradient=gradient)(Independent(p.expand((2, 2)), 1), Exponential(1.0))
            with torch.no_grad():
                estimate_kl(p, Exponential(1.0), gradient=gradient)
        wide = torch.full((20_000,), 3.0, requires_grad=True)
        value = estimate_kl(Uniform(0.0, wide), Exponential(1.0), 8, generator=seeded()).value
        (found,) = torch.autograd.grad(value.sum(), wide)
        assert found.mean().item() == pytest.approx(1 / 2 - 1 / 3, abs=0.01)

    def test_supports_that_stay(self):
        a = torch.tensor([0.7, 1.8], requires_grad=True)
        for p in (
            Normal(a, a), Exponential(a), Gamma(a, a), Beta(a, a), LogNormal(a, a), HalfNormal(a), Gumbel(a, a),
            Weibull(a, a), Kumaraswamy(a, a), VonMises(a, a), Poisson(a), Bernoulli(logits=a), DiagonalNormal(a, a),
        ):  # fmt: skip
            assert not has_moving_support(p, can_be_copied(p))

    def test_a_straight_through_sample_is_no_pathwise_gradient(self):
        logits = torch.tensor([1.0, 0.0, -1.0]).repeat(5000, 1).requires_grad_()
        p, q = OneHotCategoricalStraightThrough(logits=logits), OneHotCategorical(logits=torch.tensor([-1.0, 0.0, 1.0]))
        for gradient in ("pathwise", "sticking_the_landing", "adaptive"):
            with pytest.raises(ValueError, match=r"straight-through.*'score' would do"):
                estimate_kl(p, q, gradient=gradient)
            with pytest.raises(ValueError, match="straight-through"):
                MonteCarloKLLoss(gradient=gradient)(p, q, sample=p.rsample((4,)))
        (found,) = torch.autograd.grad(estimate_kl(p, q, 16, gradient="score").value.sum(), logits)
        (truth,) = torch.autograd.grad(kl_divergence(OneHotCategorical(logits=logits), q).sum(), logits)
        torch.testing.assert_close(found.mean(0), truth[0], rtol=0, atol=0.03)

    def test_two_kinds_of_density(self):
        categories = Categorical(logits=torch.zeros(4, 2))
        for term in (estimate_kl, MonteCarloKLLoss()):
            with pytest.raises(ValueError, match=r"of 2 categories and q, Normal, is continuous"):
                term(categories, Normal(0.0, 1.0))
            with pytest.raises(ValueError, match=r"of 2 categories and q, Categorical, is of 4 categories"):
                term(categories, Categorical(logits=torch.zeros(4)))
            with pytest.raises(ValueError, match=r"Poisson, is discrete and q, Gamma, is continuous"):
                term(Poisson(torch.ones(4)), Gamma(1.0, 1.0))

    def test_samples_that_are_none(self):
        p = DiagonalNormal(torch.zeros(3, 2), torch.zeros(3, 2))
        with pytest.raises(ValueError, match="sample has 0 draws"):
            MonteCarloKLLoss()(p, sample=p.rsample((0,)))
        with pytest.raises(TypeError, match="sample is a float"):
            MonteCarloKLLoss()(p, sample=1.0)
        with pytest.raises(ValueError, match=r"num_samples=2\.5"):
            MonteCarloKLLoss(2.5)
        probabilities = Categorical(logits=torch.zeros(4, 2))
        with pytest.raises(ValueError, match=r"A sample of shape \(2, ...\) would do$"):
            MonteCarloKLLoss(2, gradient="score")(probabilities, sample=probabilities.sample())


class TestChunksAndEmptyBatches:
    @pytest.mark.parametrize("family", [Categorical, lambda probs: Independent(Bernoulli(probs), 1)])
    def test_what_torch_computes_late(self, family):
        probs = torch.full((4, 3), 1 / 3, requires_grad=True)
        prior = family(torch.tensor([0.2, 0.3, 0.5]))
        estimate_kl(family(probs), prior, 64, gradient="score", chunk_size=16).value.sum().backward()
        assert probs.grad.isfinite().all()

    def test_empty_batches(self):
        p = DiagonalNormal(torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 3))
        for gradient in ("pathwise", "sticking_the_landing", "adaptive", "score"):
            for sample in (None, p.rsample((5,))):
                assert MonteCarloKLLoss(5, gradient=gradient)(p, sample=sample).item() == 0
            assert estimate_kl(p, DiagonalNormal(torch.zeros(3), torch.zeros(3)), gradient=gradient).value.shape == (0,)
        assert MonteCarloKLLoss()(p, sample=p.rsample()).item() == 0

    def test_function_transforms_where_chunks_would_be(self, monkeypatch):
        monkeypatch.setattr("kldiv.monte_carlo.estimate._CHUNK_ELEMENTS", 8)
        term = MonteCarloKLLoss(64)

        def loss(mean):
            return term(DiagonalNormal(mean, torch.zeros(4, 3)))

        gradient = torch.func.grad(loss)(torch.ones(4, 3))
        torch.testing.assert_close(gradient, torch.full((4, 3), 0.25), rtol=0, atol=0.15)

    def test_a_given_sample_draws_nothing(self, monkeypatch):
        monkeypatch.setattr("kldiv.monte_carlo.estimate._CHUNK_ELEMENTS", 8)
        p = DiagonalNormal(torch.zeros(4, 3), torch.zeros(4, 3))
        sample, before = p.rsample((64,)), torch.get_rng_state()
        MonteCarloKLLoss()(p, sample=sample)
        assert (torch.get_rng_state() == before).all()


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

        assert not can_be_copied(Independent(Mine(torch.zeros(3), 1.0), 1))


def test_densities_off_the_support_are_zero_and_their_gradients_none():
    x = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    for q in (Beta(2.0, 2.0, validate_args=False), TransformedDistribution(Beta(2.0, 2.0), [], validate_args=False)):
        log = log_prob(q, x, can_be_copied(q))
        assert log.isfinite().tolist() == [False, True, False]
        (gradient,) = torch.autograd.grad(log[1], x)
        assert gradient.isfinite().all()


def test_seeding_for_a_generator_leaves_the_queue_for_other_devices():
    torch.manual_seed(0)
    queued = list(torch.cuda._lazy_seed_tracker.get_calls())
    estimate_kl(Normal(torch.zeros(2), 1.0), Normal(0.0, 1.0), generator=seeded())
    assert list(torch.cuda._lazy_seed_tracker.get_calls()) == queued
