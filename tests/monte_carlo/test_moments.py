import math

import pytest
import scipy.stats
import torch
from torch.distributions import Categorical, Independent, Laplace, MixtureSameFamily, Normal, Uniform

from kldiv import DiagonalNormal, estimate_kl, kl_divergence
from kldiv.monte_carlo.samplers import SAMPLERS
from tests.marks import sweep
from tests.seeds import seeded


def replicates_of(sampler, num_samples):
    return {"iid": num_samples, "antithetic": num_samples // 2, "sobol": 8}[sampler]


class TestStandardErrors:
    """A 95 % interval by Student's t covers the truth 90 to 99 times in 100, and the error is that of the mean."""

    @pytest.mark.parametrize("sampler", SAMPLERS)
    @pytest.mark.parametrize("value", sweep(["k1", "k3", "analytic_entropy"], ["k1", "analytic_entropy"]))
    def test_of_gaussians(self, value, sampler):
        draws, num_samples = 600 if value == "k3" else 2000, 64
        for dims in (1, 2, 16) if value != "k3" else (64,):
            torch.manual_seed(dims)
            spread = 0.05 if value == "k3" else 0.7
            mean, log_var = spread * torch.randn(2, dims, dtype=torch.float64)
            p = DiagonalNormal(mean.expand(draws, dims), (log_var - (0 if value == "k3" else 1)).expand(draws, dims))
            q = DiagonalNormal(torch.zeros(dims).double(), torch.zeros(dims).double())
            truth = kl_divergence(p, q)
            estimate, error = estimate_kl(p, q, num_samples, value=value, sampler=sampler, generator=seeded())
            quantile = scipy.stats.t.ppf(0.975, replicates_of(sampler, num_samples) - 1)
            covered = ((estimate - truth).abs() < quantile * error).double().mean()
            assert 0.9 < covered < 0.99
            if value != "k3":
                assert error.square().mean().sqrt() / estimate.std() == pytest.approx(1, abs=0.1 if dims > 2 else 0.25)

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_of_skewed_pairs(self, sampler):
        draws = 2000
        for p, q in (
            (Normal(torch.ones(draws).double(), 2.0), Laplace(0.0, 0.2)),
            (Uniform(torch.zeros(draws).double(), 3.0), Normal(0.0, 1.0)),
        ):
            value, error = estimate_kl(p, q, 64, sampler=sampler, generator=seeded())
            quantile = scipy.stats.t.ppf(0.975, replicates_of(sampler, 64) - 1)
            covered = ((value - kl_divergence(p, q)).abs() < quantile * error).double().mean()
            assert 0.9 < covered < 0.99

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_of_k3_where_samples_of_p_do_not_see_its_tails(self, sampler):
        """By their spread alone 65 to 85 in 100. Heavy tails make honest intervals cover more than they say."""
        draws = 1000
        joint = DiagonalNormal(torch.full((draws, 4), 0.5).double(), torch.full((draws, 4), math.log(0.9)).double())
        cases = [
            (Normal(torch.full((draws,), mean).double(), math.sqrt(variance)), Normal(0.0, 1.0))
            for mean, variance in ((0.0, 0.9), (0.3, 0.81), (1.0, 0.64), (0.0, 0.55), (1.0, 1.0))
        ]
        # one component twice: what does not factorise
        both = MixtureSameFamily(Categorical(torch.ones(2).double()), DiagonalNormal(*torch.zeros(2, 2, 4).double()))
        for p, q in (*cases, (joint, both)):
            truth = kl_divergence(p, DiagonalNormal(*torch.zeros(2, 4).double()) if q is both else q)
            value, error = estimate_kl(p, q, 64, value="k3", sampler=sampler, generator=seeded())
            quantile = scipy.stats.t.ppf(0.975, replicates_of(sampler, 64) - 1)
            assert ((value - truth).abs() < quantile * error).double().mean() > 0.9
        chunked = estimate_kl(
            *cases[0], 64, value="k3", sampler=sampler, generator=seeded(), chunk_size=16
        ).standard_error
        whole = estimate_kl(*cases[0], 64, value="k3", sampler=sampler, generator=seeded()).standard_error
        assert chunked.median() == pytest.approx(whole.median().item(), rel=0.2)

    def test_of_k3_without_samples_of_q(self):
        class OnlyDensity(Normal):
            def sample(self, sample_shape=()):
                raise NotImplementedError

        p, q = Normal(torch.zeros(3), 0.9), OnlyDensity(0.0, 1.0)
        assert estimate_kl(p, q, value="k3").standard_error.isfinite().all()

    def test_is_the_spread_of_the_units_enlarged_by_their_skewness(self):
        p, q = Normal(torch.zeros(3).double(), 1.0), Normal(torch.zeros(3).double(), 0.5)
        torch.manual_seed(0)
        values = (p.log_prob(x := p.sample((50,))) - q.log_prob(x)).numpy()
        torch.manual_seed(0)
        error = estimate_kl(p, q, 50).standard_error
        expected = scipy.stats.sem(values) * (1 + scipy.stats.skew(values) ** 2 / 50)
        torch.testing.assert_close(error, torch.as_tensor(expected))

    def test_every_element_of_the_batch_by_itself(self):
        p, q = Normal(torch.tensor([0.0, 1.0]), 1.0), Laplace(torch.tensor([[0.0], [0.5], [2.0]]), 0.7)
        values, errors = zip(*(estimate_kl(p, q, 64, generator=seeded(seed)) for seed in range(300)), strict=True)
        values, errors = torch.stack(values), torch.stack(errors)
        assert values.shape == errors.shape == (300, 3, 2)
        assert ((values.mean(0) - kl_divergence(p, q)).abs() < 4 * values.std(0) / math.sqrt(300)).all()
        assert torch.corrcoef(values.flatten(1).T).fill_diagonal_(0).abs().max() < 0.3

    def test_dimensions_are_summed_draw_by_draw(self):
        p, q = DiagonalNormal(torch.ones(3, 4), torch.zeros(3, 4)), Independent(Laplace(torch.zeros(4), 1.0), 1)
        value, error = estimate_kl(p, q, 32, generator=seeded())
        flat = estimate_kl(Normal(torch.ones(3, 4), 1.0), Laplace(torch.zeros(4), 1.0), 32, generator=seeded())
        torch.testing.assert_close(value, flat.value.sum(-1))
        assert (error < flat.standard_error.sum(-1)).all()
        assert (error > flat.standard_error.max(-1).values).all()

    def test_one_unit_has_no_error(self):
        for num_samples, sampler in ((1, "iid"), (2, "antithetic")):
            value, error = estimate_kl(Normal(torch.zeros(2), 1.0), Normal(0.0, 2.0), num_samples, sampler=sampler)
            assert value.isfinite().all()
            assert error.tolist() == [math.inf] * 2

    def test_infinite_divergences(self):
        width = torch.tensor([0.5, 2.0], requires_grad=True)
        value, error = estimate_kl(Uniform(torch.zeros(2), width), Uniform(0.0, 1.0, validate_args=False), 64)
        assert value.isfinite().tolist() == error.isfinite().tolist() == [True, False]
        assert value[1] == math.inf
