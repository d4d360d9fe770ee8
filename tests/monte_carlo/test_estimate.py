import math
import weakref

import pytest
import scipy.stats
import torch
import zuko
from torch.autograd.graph import saved_tensors_hooks
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    Laplace,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
)
from torch.utils._python_dispatch import TorchDispatchMode

from kldiv import DiagonalNormal, MonteCarloKLLoss, estimate_kl, kl_divergence
from kldiv.monte_carlo.estimators import GRADIENTS
from kldiv.monte_carlo.samplers import SAMPLERS
from tests.marks import sweep
from tests.monte_carlo.test_moments import replicates_of
from tests.seeds import seeded


def mixture(components, dims, dtype=torch.float64):
    generator = seeded(9)
    means = torch.randn(components, dims, generator=generator, dtype=dtype)
    return MixtureSameFamily(Categorical(torch.ones(components, dtype=dtype)), Independent(Normal(means, 1.0), 1))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_generator_reproduces_and_leaves_the_global_state_alone(sampler):
    p, q = Normal(torch.zeros(4), 1.0), Normal(torch.ones(4), 2.0)
    before = torch.get_rng_state()
    first, again = (estimate_kl(p, q, sampler=sampler, generator=seeded(3)).value for _ in range(2))
    assert (first == again).all()
    assert (torch.get_rng_state() == before).all()
    generator = seeded(3)
    estimate_kl(p, q, sampler=sampler, generator=generator)
    assert (estimate_kl(p, q, sampler=sampler, generator=generator).value != first).all()
    torch.manual_seed(0)
    first = estimate_kl(p, q, sampler=sampler).value
    torch.manual_seed(0)
    assert (estimate_kl(p, q, sampler=sampler).value == first).all()


class TestChunks:
    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                    self.size = max(self.size, tensor.numel())
            return result

    @pytest.mark.parametrize("gradient", sweep(GRADIENTS, ["pathwise", "score"]))
    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_memory_does_not_grow_with_the_samples(self, sampler, gradient):
        mean = torch.zeros(10, 4, requires_grad=True)
        prior = mixture(3, 4, torch.float32)
        kept = []

        class Kept:
            def __init__(self, tensor):
                self.tensor = tensor.detach()  # an output would hold the graph that holds it
                kept.append(weakref.ref(self))

        chunk_size, num_samples = 64, 1024
        with self.Largest() as largest:
            with saved_tensors_hooks(Kept, lambda kept: kept.tensor):
                p = DiagonalNormal(mean, mean)
                estimate = estimate_kl(p, prior, num_samples, sampler=sampler, gradient=gradient, chunk_size=chunk_size)
            alive = sum(ref().tensor.numel() for ref in kept if ref() is not None)
            assert alive < num_samples * mean.numel() / 4
            estimate.value.sum().backward()
        assert largest.size <= chunk_size * mean.numel() * 3
        assert mean.grad.isfinite().all()

    @pytest.mark.parametrize("sampler", SAMPLERS)
    @pytest.mark.parametrize("gradient", GRADIENTS)
    def test_chunks_estimate_the_same(self, sampler, gradient):
        mean, other = (torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
        p, q = DiagonalNormal(mean.expand(300, 2), torch.full((2,), -1.0)), DiagonalNormal(other + 0.5, torch.zeros(2))
        value, error = estimate_kl(
            p, q, 48, gradient=gradient, sampler=sampler, generator=seeded(), chunk_size=16 if sampler == "sobol" else 7
        )
        truth = kl_divergence(p, q).detach()
        quantile = scipy.stats.t.ppf(0.975, replicates_of(sampler, 48) - 1)
        assert 0.9 < ((value - truth).abs() < quantile * error).double().mean() < 0.99
        found = torch.autograd.grad(value.mean(), (mean, other))
        truth = torch.autograd.grad(kl_divergence(p, q).mean(), (mean, other))
        torch.testing.assert_close(found, truth, rtol=0, atol=0.05)  # 300 x 48 draws of a spread below 1

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_the_gradient_is_that_of_the_draws_that_made_the_value(self, sampler):
        """With noise drawn anew in the backward pass the two would not belong together.

        With x = m + z at m = 0 the log-ratio to N(2, 1) is 2 - 2 z, and its derivative in m is z - 2.
        """
        mean = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        for generator in (None, seeded()):
            value = estimate_kl(
                Normal(mean, 1.0), Normal(2.0, 1.0), 56, sampler=sampler, generator=generator, chunk_size=16
            ).value
            torch.randn(7)
            (gradient,) = torch.autograd.grad(value.sum(), mean)
            torch.testing.assert_close(value.detach(), -2 - 2 * gradient)

    def test_automatic_chunks(self, monkeypatch):
        monkeypatch.setattr("kldiv.monte_carlo.estimate._CHUNK_ELEMENTS", 1000)
        p = DiagonalNormal(torch.zeros(10, 5), torch.zeros(10, 5))
        with self.Largest() as largest:
            estimate_kl(p, mixture(1, 5, torch.float32), 1000)
        assert largest.size == 1000
        with pytest.raises(ValueError, match="chunk_size=0"):
            estimate_kl(p, p, chunk_size=0)


class TestFlows:
    """zuko's normalising flows: distributions of another package, whose parameters are in networks."""

    @pytest.fixture
    def flows(self):
        torch.manual_seed(0)
        conditional = zuko.flows.MAF(2, context=3, transforms=1, hidden_features=(8,))
        prior = zuko.flows.NSF(2, transforms=1, hidden_features=(8,))
        return conditional.double(), prior.double()

    def truth(self, p, q, batch):
        """By the trapezoidal rule on a plane."""
        axis = torch.linspace(-8, 8, 161, dtype=torch.float64)
        plane = torch.cartesian_prod(axis, axis)[:, None].expand(-1, batch, 2)
        log_p, log_q = p.log_prob(plane), q.log_prob(plane)
        return (log_p.exp() * (log_p - log_q)).sum(0) * (axis[1] - axis[0]) ** 2

    @pytest.mark.parametrize("gradient", GRADIENTS)
    def test_posterior_and_prior(self, flows, gradient):
        conditional, prior = flows
        p, q = conditional(torch.randn(2, 3).double()), prior()
        parameters = [*conditional.parameters(), *prior.parameters()]
        truth = self.truth(p, q, 2)
        # along random directions: the entry of a single parameter may be rare and large
        directions = torch.randn(8, sum(t.numel() for t in parameters), generator=seeded(), dtype=torch.float64)

        def along(value):
            found = torch.autograd.grad(value.sum(), parameters, allow_unused=True, materialize_grads=True)
            return directions @ torch.cat([g.flatten() for g in found])

        expected = along(truth)
        gradients = []
        for seed in range(9):
            value, error = estimate_kl(p, q, 32, gradient=gradient, generator=seeded(seed))
            assert ((value - truth).abs() < 6 * error).all()
            gradients.append(along(value))
        gradients = torch.stack(gradients)
        # Student's t of 8 degrees of freedom: beyond 8 once in 20,000
        assert ((gradients.mean(0) - expected).abs() < 8 * gradients.std(0) / 3).all()

    def test_with_distributions_of_torch(self, flows):
        conditional, prior = flows
        normal = DiagonalNormal(torch.zeros(2, 2).double(), torch.zeros(2, 2).double())
        flow = conditional(torch.ones(2, 3).double())
        for p, q in ((normal, prior()), (flow, normal), (flow, mixture(3, 2))):
            value, error = estimate_kl(p, q, 2000, generator=seeded())
            assert ((value - self.truth(p, q, 2)).abs() < 4.5 * error).all()
            loss = MonteCarloKLLoss(2000, gradient="sticking_the_landing", reduction="none")(p, q)
            assert ((loss - self.truth(p, q, 2)).abs() < 9 * error).all()
        with pytest.raises(ValueError, match="NormalizingFlow does not say what its support is"):
            MonteCarloKLLoss()(flow)
        with pytest.raises(ValueError, match=r"NormalizingFlow is not known.*'iid' would do"):
            estimate_kl(flow, normal, sampler="sobol")


class TestPairs:
    def test_what_has_no_closed_form(self):
        value, error = estimate_kl(DiagonalNormal(torch.zeros(4, 2), torch.zeros(4, 2)), mixture(3, 2, torch.float32))
        assert value.shape == error.shape == (4,)

    def test_discrete_posteriors(self):
        rate = torch.tensor(2.0, requires_grad=True)
        with pytest.raises(ValueError, match=r"Poisson has no rsample.*no_grad"):
            estimate_kl(Poisson(rate), Poisson(3.0))
        (to_q,) = torch.autograd.grad(estimate_kl(Poisson(1.0), Poisson(rate), 5000, generator=seeded()).value, rate)
        assert to_q.item() == pytest.approx(1 - 1 / 2, abs=0.05)
        value, _ = estimate_kl(Poisson(rate), Poisson(3.0), 5000, gradient="score", generator=seeded())
        assert torch.autograd.grad(value, rate)[0].item() == pytest.approx(math.log(2 / 3), abs=0.05)

    @pytest.mark.parametrize("event", [0, 1, 2])
    def test_any_reading_of_the_dimensions(self, event):
        loc = torch.randn(3, 4, 2)
        p, q = DiagonalNormal(loc, loc / 4, event), Independent(Normal(torch.zeros(4, 2), 1.0), event)
        value, error = estimate_kl(p, q, 512, sampler="sobol", generator=seeded())
        assert value.shape == kl_divergence(p, q).shape
        assert ((value - kl_divergence(p, q)).abs() < 8 * error + 1e-4).all()

    def test_groups_of_full_covariance(self):
        p = Independent(MultivariateNormal(torch.ones(5, 3, 2), torch.eye(2)), 1)
        q = Independent(MultivariateNormal(torch.zeros(3, 2), torch.eye(2)), 1)
        value, error = estimate_kl(p, q, 4096, generator=seeded())
        assert ((value - 3).abs() < 4.5 * error).all()

    def test_one_hot_categories(self):
        p = OneHotCategorical(logits=torch.randn(6, 3))
        q = OneHotCategorical(logits=torch.zeros(3))
        value, error = estimate_kl(p, q, 4096, generator=seeded())
        assert ((value - kl_divergence(p, q)).abs() < 4.5 * error).all()

    def test_empty_batches(self):
        for sampler in SAMPLERS:
            p = DiagonalNormal(torch.zeros(0, 2, requires_grad=True), torch.zeros(0, 2))
            value, error = estimate_kl(p, Independent(Laplace(torch.zeros(2), 1.0), 1), 16, sampler=sampler)
            assert value.shape == error.shape == (0,)
            value = MonteCarloKLLoss(16, sampler=sampler)(p)
            assert value.item() == 0
            value.backward()

    def test_half_precision_samples_in_float32(self):
        p = Normal(torch.zeros(3).half(), torch.ones(3).half())
        for sampler in SAMPLERS:
            value, error = estimate_kl(p, p, sampler=sampler)
            assert value.tolist() == error.tolist() == [0, 0, 0]
            assert value.dtype == torch.float32

    def test_double_samples_stay_double(self):
        for sampler in SAMPLERS:
            assert estimate_kl(
                Laplace(torch.zeros(2).double(), 1.0), Normal(0.0, 1.0), sampler=sampler
            ).value.dtype == (torch.float64)


def test_bad_arguments():
    normal = Normal(torch.zeros(2), 1.0)
    for options in ({"value": "k4"}, {"gradient": "none"}, {"sampler": "halton"}, {"num_samples": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            estimate_kl(normal, normal, **options)
    with pytest.raises(TypeError, match="q is a Tensor"):
        estimate_kl(normal, torch.zeros(2))
    with pytest.raises(ValueError, match="event shape"):
        estimate_kl(normal, Independent(normal, 1))
    with pytest.raises(ValueError, match=r"p.batch_shape \(2,\), q.batch_shape \(3,\)"):
        estimate_kl(normal, Normal(torch.zeros(3), 1.0))


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
