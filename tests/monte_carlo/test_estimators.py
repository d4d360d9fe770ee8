import itertools
import math

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    StudentT,
)

from kldiv import DiagonalNormal, MonteCarloKLLoss, estimate_kl, kl_divergence
from kldiv.monte_carlo.estimators import GRADIENTS, VALUES
from tests.seeds import seeded

SAMPLERS = ("iid", "antithetic", "sobol")
REPLICATES = 3000


def replicated(num_samples, value="k1", gradient="pathwise", sampler="iid", distance=1.0):
    """Independent estimates, one an element of the batch: values, gradients (replicates, parameters) and the truths."""
    torch.manual_seed(0)
    mean_p, log_var_p, mean_q, log_var_q = distance * torch.randn(4, 2, dtype=torch.float64)
    given = (mean_p, log_var_p - 0.5 * distance, mean_q, log_var_q + 0.5 * distance)

    def pair(parameters):
        return DiagonalNormal(*parameters[:2]), DiagonalNormal(*parameters[2:])

    parameters = [t.clone().requires_grad_() for t in given]
    truth = kl_divergence(*pair(parameters))
    true_gradient = torch.cat(torch.autograd.grad(truth, parameters))
    parameters = [t.expand(REPLICATES, 2).clone().requires_grad_() for t in given]
    estimate = estimate_kl(
        *pair(parameters), num_samples, value=value, gradient=gradient, sampler=sampler, generator=seeded()
    )
    gradient = torch.cat(torch.autograd.grad(estimate.value.sum(), parameters), -1)
    return estimate, gradient, truth.detach(), true_gradient


def deviations(estimates, truth):
    """Of the mean from the truth, in standard errors; rounding does not count where there is no spread."""
    error = estimates.std(0) / math.sqrt(len(estimates)) + 1e-12
    return ((estimates.mean(0) - truth) / error).abs().max().item()


# 4.5 standard errors: a false-alarm rate of 7e-6 an entry, with one seed
@pytest.mark.parametrize(("gradient", "sampler"), list(itertools.product(GRADIENTS, SAMPLERS)))
def test_gradients_in_both_are_unbiased(gradient, sampler):
    for num_samples in (8, 24):
        if gradient == "adaptive" and num_samples < 8:
            continue
        _, gradients, _, truth = replicated(num_samples, gradient=gradient, sampler=sampler)
        assert deviations(gradients, truth) < 4.5


@pytest.mark.parametrize(("value", "sampler"), list(itertools.product(VALUES, SAMPLERS)))
def test_values_and_their_gradients(value, sampler):
    # near enough for the variance of k3 to be finite
    estimate, gradients, truth, true_gradient = replicated(16, value, sampler=sampler, distance=0.3)
    assert deviations(gradients, true_gradient) < 4.5
    if value == "k2":
        assert deviations(estimate.value.detach(), truth) > 4.5
    else:
        assert deviations(estimate.value.detach(), truth) < 4.5
    if value in ("k2", "k3"):
        assert (estimate.value >= 0).all()


def test_values_against_their_formulas():
    p, q = Normal(torch.tensor([0.3, 1.0]).double(), 0.8), Normal(0.0, 1.2)
    x = p.rsample((5,))
    log_ratio = p.log_prob(x) - q.log_prob(x)
    expected = {
        "k1": log_ratio,
        "k2": log_ratio**2 / 2,
        "k3": torch.exp(-log_ratio) - 1 + log_ratio,
        "analytic_entropy": -p.entropy() - q.log_prob(x),
    }
    for value, each in expected.items():
        estimate = MonteCarloKLLoss(value=value).per_dimension(p, q, x)
        torch.testing.assert_close(estimate, each.mean(0))


def test_k3_keeps_its_digits_near_p_equal_q():
    p, q = Normal(torch.full((1, 4), 1e-6).double(), 1.0), Normal(torch.zeros(4).double(), 1.0)
    sample = p.sample((100,))
    value = MonteCarloKLLoss(value="k3").per_dimension(p, q, sample)
    log_ratio = 1e-6 * sample - 0.5e-12  # exactly, where the difference of two densities is not
    torch.testing.assert_close(value, (0.5 * log_ratio**2).mean(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("num_samples", [2, 4])
def test_an_antithetic_pair_is_left_out_as_a_whole(num_samples):
    # one pair has no other to take its baseline from; leaving out one draw of two pairs is biased by a third
    if num_samples == 2:
        with pytest.raises(ValueError, match=r"antithetic pairs and needs at least 2.*num_samples=4 would do"):
            replicated(num_samples, gradient="score", sampler="antithetic")
        return
    _, gradients, _, truth = replicated(num_samples, gradient="score", sampler="antithetic")
    assert deviations(gradients, truth) < 4.5


def test_sticking_the_landing_is_exact_at_p_equal_q():
    for distribution in (
        lambda m, v: DiagonalNormal(m, v),
        lambda m, v: StudentT(5.0, m, v.exp()),
        lambda m, v: MultivariateNormal(m, scale_tril=torch.diag_embed(v.exp()) + torch.ones(3, 3).double().tril(-1)),
    ):
        parameters = [torch.randn(7, 3, dtype=torch.float64).requires_grad_() for _ in range(2)]
        q = distribution(*(t.detach() for t in parameters))
        value = estimate_kl(distribution(*parameters), q, 8, gradient="sticking_the_landing").value
        for gradient in torch.autograd.grad(value.sum(), parameters):
            assert gradient.abs().max() < 1e-12


class Uncooperative(Distribution):
    """Of another package: reparametrised, with parameters that nobody can see or detach, and no expand."""

    arg_constraints = {}
    has_rsample = True

    def __init__(self, network, shape=()):
        self.network = network
        super().__init__(torch.Size(shape), torch.Size([2]), validate_args=False)

    def _base(self):
        return Independent(Normal(*self.network), 1)

    def rsample(self, sample_shape=()):
        return self._base().rsample(torch.Size(sample_shape) + self.batch_shape)

    def log_prob(self, value):
        return self._base().log_prob(value)


class OnlySamples(Uncooperative):
    has_rsample = False

    def sample(self, sample_shape=()):
        with torch.no_grad():
            return super().rsample(sample_shape)

    def rsample(self, sample_shape=()):
        raise NotImplementedError


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_distributions_of_other_packages(gradient):
    loc, scale, other = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.5, -1], [0.7, 1.5], 1.1))
    q = Independent(Normal(torch.zeros(2).double(), other.expand(2)), 1)
    truth = torch.autograd.grad(kl_divergence(Independent(Normal(loc, scale), 1), q), (loc, scale, other))
    p = (OnlySamples if gradient == "score" else Uncooperative)((loc, scale))
    value, error = estimate_kl(p, q, 40_000, gradient=gradient, generator=seeded())
    found = torch.autograd.grad(value, (loc, scale, other))
    assert abs(value - kl_divergence(Independent(Normal(loc, scale), 1), q)) < 4 * error
    for estimate, each in zip(found, truth, strict=True):
        torch.testing.assert_close(estimate, each, rtol=0, atol=0.05)  # one draw's spread is below 2


def test_what_cannot_be_right_is_refused():
    rate = torch.zeros(3, requires_grad=True)
    discrete, normal = Bernoulli(logits=rate), Normal(rate, 1.0)
    for gradient in ("pathwise", "sticking_the_landing", "adaptive"):
        with pytest.raises(
            ValueError, match=rf"Bernoulli has no rsample, which gradient='{gradient}'.*'score' would do"
        ):
            estimate_kl(discrete, Bernoulli(0.5), gradient=gradient)
        with torch.no_grad():
            assert estimate_kl(discrete, Bernoulli(0.5), gradient=gradient).value.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"baseline from the other draws and needs at least 2.*num_samples=2 would do"):
        estimate_kl(normal, Normal(0.0, 1.0), 1, gradient="score")
    with pytest.raises(ValueError, match=r"fits its coefficient on the other draws and needs at least 3"):
        estimate_kl(normal, Normal(0.0, 1.0), 2, gradient="adaptive")
    with pytest.raises(ValueError, match=r"antithetic pairs and needs at least 3.*num_samples=6 would do"):
        estimate_kl(normal, Normal(0.0, 1.0), 4, gradient="adaptive", sampler="antithetic")
    for gradient in ("score", "adaptive"):
        with pytest.raises(ValueError, match=r"points of one Sobol scramble are dependent.*would do"):
            MonteCarloKLLoss(64, gradient=gradient, sampler="sobol")
    with pytest.raises(ValueError, match=r"Uncooperative has none. value='k1' would do"):
        estimate_kl(
            Uncooperative((rate[:2], torch.ones(2))), DiagonalNormal(rate[:2], rate[:2]), value="analytic_entropy"
        )


def test_score_of_discrete_distributions():
    logits = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
    truth_of = logits.clone().requires_grad_()
    prior = Categorical(logits=torch.zeros(3).double())
    (truth,) = torch.autograd.grad(kl_divergence(Categorical(logits=truth_of), prior), truth_of)
    for num_samples in (2, 5):
        each = logits.expand(20_000, 3).clone().requires_grad_()
        value = estimate_kl(Categorical(logits=each), prior, num_samples, gradient="score", generator=seeded()).value
        (gradients,) = torch.autograd.grad(value.sum(), each)
        assert deviations(gradients, truth) < 4.5


def test_a_straight_through_sample_is_no_pathwise_gradient():
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


def test_samples_that_are_none():
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
