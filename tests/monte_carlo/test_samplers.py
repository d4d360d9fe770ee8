import math

import pytest
import scipy.stats
import torch
from torch.distributions import (
    AffineTransform,
    Beta,
    Categorical,
    Cauchy,
    Distribution,
    Exponential,
    Gamma,
    Gumbel,
    HalfNormal,
    Independent,
    Kumaraswamy,
    Laplace,
    LogNormal,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Pareto,
    StudentT,
    TransformedDistribution,
    Uniform,
    Weibull,
)

from kldiv import DiagonalNormal, MonteCarloKLLoss, estimate_kl
from kldiv.monte_carlo.samplers import Draws, GivenDraws, noise_map
from tests.marks import sweep
from tests.seeds import seeded

two = torch.tensor([0.7, 1.8], dtype=torch.float64)
SCALARS = {
    "normal": (Normal(two, two), scipy.stats.norm, lambda k: (two[k], two[k])),
    "laplace": (Laplace(two, two), scipy.stats.laplace, lambda k: (two[k], two[k])),
    "exponential": (Exponential(two), scipy.stats.expon, lambda k: (0, 1 / two[k])),
    "uniform": (Uniform(two - 1, two), scipy.stats.uniform, lambda k: (two[k] - 1, 1)),
    "cauchy": (Cauchy(two, two), scipy.stats.cauchy, lambda k: (two[k], two[k])),
    "half-normal": (HalfNormal(two), scipy.stats.halfnorm, lambda k: (0, two[k])),
    "log-normal": (LogNormal(two, two), scipy.stats.lognorm, lambda k: (two[k], 0, math.exp(two[k]))),
    "gumbel": (Gumbel(two, two), scipy.stats.gumbel_r, lambda k: (two[k], two[k])),
    "weibull": (Weibull(two, two), scipy.stats.weibull_min, lambda k: (two[k], 0, two[k])),
    "pareto": (Pareto(two, two), scipy.stats.pareto, lambda k: (two[k], 0, two[k])),
    "kumaraswamy": (
        Kumaraswamy(two, two),
        lambda a, b: type("K", (), {"cdf": staticmethod(lambda x: 1 - (1 - x ** a.item()) ** b.item())}),
        lambda k: (two[k], two[k]),
    ),
    "affine": (
        TransformedDistribution(Normal(two, 1.0), AffineTransform(1.0, 3.0)),
        scipy.stats.norm,
        lambda k: (1 + 3 * two[k], 3),
    ),
}


@pytest.mark.parametrize("sampler", ["antithetic", "sobol"])
@pytest.mark.parametrize("name", SCALARS)
def test_marginals_are_those_of_the_distribution(name, sampler):
    """Kolmogorov's distance of 4000 draws from SciPy's distribution function; for Sobol points it is that of a grid."""
    distribution, family, arguments = SCALARS[name]
    torch.manual_seed(0)
    draws = Draws(distribution, torch.Size([2]), 4000, sampler)()
    assert draws.shape == ((2000, 2, 2) if sampler == "antithetic" else (8, 500, 2))
    for k in range(2):
        frozen = family(*(float(a) if not torch.is_tensor(a) else a.double() for a in arguments(k)))
        x = draws[..., k].reshape(-1).sort().values.numpy()
        uniform = torch.as_tensor(frozen.cdf(x))
        grid = (torch.arange(4000) + 0.5) / 4000
        # antithetic: at twice the 1e-6 quantile of Kolmogorov's distribution for 2000 pairs
        assert (uniform - grid).abs().max() < (0.06 if sampler == "antithetic" else 2e-3)


def test_antithetic_pairs_mirror_each_other():
    torch.manual_seed(0)
    pairs = Draws(Normal(torch.ones(3), 2.0), torch.Size([3]), 20, "antithetic")()
    torch.testing.assert_close(pairs.sum(1), torch.full((10, 3), 2.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(HalfNormal(1.0).cdf(Draws(HalfNormal(1.0), torch.Size([1]), 8, "antithetic")()).sum(1),
                               torch.ones(4, 1))  # fmt: skip


@pytest.mark.parametrize("sampler", ["iid", "antithetic", "sobol"])
def test_covariances_and_gradients(sampler):
    torch.manual_seed(0)
    covariance = torch.tensor([[2.0, 0.8, 0.3], [0.8, 1.0, 0.1], [0.3, 0.1, 0.5]], dtype=torch.float64)
    loc = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    factor, diagonal = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0.5, 0.2, 1.0], dtype=torch.float64)
    for distribution in (
        MultivariateNormal(loc, covariance),
        LowRankMultivariateNormal(loc, factor, diagonal),
        DiagonalNormal(loc, diagonal.log()),
        Independent(Normal(loc, diagonal.sqrt()), 1),
    ):
        expected = getattr(distribution, "covariance_matrix", torch.diag(diagonal))
        draws = Draws(distribution, torch.Size([4]), 16384, sampler)().flatten(0, 1)
        assert draws.shape == (16384, 4, 3)
        for k in range(4):
            torch.testing.assert_close(draws[:, k].mean(0), loc, atol=0.06, rtol=0)
            torch.testing.assert_close(draws[:, k].T.cov(), expected, atol=0.15, rtol=0)
        if sampler != "sobol":  # there it is the errors that are independent
            assert torch.corrcoef(draws[:, :, 0].T).fill_diagonal_(0).abs().max() < 0.06
    loc, log_scale = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    u = torch.rand(5, 4, dtype=torch.float64)
    sample = {
        "normal": lambda a, b: noise_map(Normal(a, b.exp())).sample(u),
        "weibull": lambda a, b: noise_map(Weibull(b.exp(), a.exp())).sample(u),
    }
    for each in sample.values():
        assert torch.autograd.gradcheck(each, (loc, log_scale))


def test_errors_of_the_examples_are_independent():
    """The batch mean of 64 examples: a net shared by all would make its error worse than iid's."""
    posterior = DiagonalNormal(torch.ones(64, 8), torch.full((64, 8), -1.0))
    torch.manual_seed(0)
    values = torch.stack([MonteCarloKLLoss(16, sampler="sobol", reduction="none")(posterior) for _ in range(200)])
    of_one, of_mean = values.var(0).mean(), values.mean(1).var()
    assert 0.7 < 64 * of_mean / of_one < 1.4


# KL 0.02 and KL 20
REGIMES = {"near": (0.03, 0.03, 0.0), "vae": (1.2, 0.5, -1.5)}


def variances(estimate, regime, calls, replicates):
    """Of value and gradient, of the KL of 16 dimensions against the standard normal."""
    mean_spread, spread, log_var = REGIMES[regime]
    generator = seeded(5)
    mean = mean_spread * torch.randn(16, generator=generator, dtype=torch.float64)
    log_var = log_var + spread * torch.randn(16, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    values, gradients = [], []
    for _ in range(calls):
        parameters = [t.expand(replicates, 16).clone().requires_grad_() for t in (mean, log_var)]
        value = estimate(DiagonalNormal(*parameters))
        gradients.append(torch.cat(torch.autograd.grad(value.sum(), parameters), -1))
        values.append(value.detach())
    return torch.cat(values).var(), torch.cat(gradients).var(0).sum()


@pytest.mark.parametrize("regime", sweep(REGIMES, ["vae"]))
def test_sobol_against_iid(regime):
    """The variance as a part of iid's at equal samples. Measured in value and gradient, near / vae:

    one scramble of 64 points .035, .021 / .040, .012; eight of 64 in all .24, .16 / .26, .10; eight of 1024 in all
    .016, .010 / .022, .005 (``python -m benchmarks.estimators``).
    """
    prior = DiagonalNormal(torch.zeros(16).double(), torch.zeros(16).double())
    for estimate, of_value, of_gradient, calls in (
        (lambda s: lambda p: MonteCarloKLLoss(64, sampler=s, reduction="none")(p, prior), 0.08, 0.06, 10),
        (lambda s: lambda p: estimate_kl(p, prior, 64, sampler=s).value, 0.3, 0.19, 20),
        (lambda s: lambda p: estimate_kl(p, prior, 1024, sampler=s).value, 0.03, 0.013, 10),
    ):
        iid, sobol = (variances(estimate(sampler), regime, calls, 40) for sampler in ("iid", "sobol"))
        assert sobol[0] < of_value * iid[0]
        assert sobol[1] < of_gradient * iid[1]


def test_sobol_points_fill_the_dimensions_of_an_event_together():
    # against a mixture the dimensions count together: what depends on pairs of them falls faster than 1/S too
    torch.manual_seed(0)
    component = Independent(Normal(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), 0.7), 1)
    prior = MixtureSameFamily(Categorical(torch.ones(2)), component)
    posterior = DiagonalNormal(torch.zeros(2000, 2), torch.zeros(2000, 2))
    with torch.no_grad():
        iid, sobol = (
            MonteCarloKLLoss(64, sampler=sampler, reduction="none")(posterior, prior).var()
            for sampler in ("iid", "sobol")
        )
    assert sobol < 0.12 * iid


class TestBroadcasting:
    class NoExpand(Normal):
        def expand(self, *arguments, **options):
            raise NotImplementedError

    @pytest.mark.parametrize("own", [(), (1,), (3,), (1, 3), (4, 1), (1, 1), (4, 3)])
    def test_every_element_of_the_batch_has_draws_of_its_own(self, own):
        torch.manual_seed(0)
        loc = torch.arange(math.prod(own), dtype=torch.float32).reshape(own) * 100
        draws = Draws(self.NoExpand(loc, 1.0), torch.Size([4, 3]), 50, "iid")()
        assert draws.shape == (50, 1, 4, 3)
        noise = (draws - loc)[:, 0]
        assert noise.abs().max() < 6
        assert torch.corrcoef(noise.flatten(1).T).fill_diagonal_(0).abs().max() < 0.7
        assert noise[0].unique().numel() == 12

    def test_events_and_empty_batches(self):
        p = DiagonalNormal(torch.zeros(1, 2), torch.zeros(1, 2))
        assert Draws(p, torch.Size([5]), 6, "iid")().shape == (6, 1, 5, 2)
        assert Draws(p, torch.Size([5]), 16, "sobol")().shape == (8, 2, 5, 2)
        for sampler in ("iid", "antithetic", "sobol"):
            assert Draws(p, torch.Size([0]), 16, sampler)().numel() == 0


def test_a_chunk_of_a_net_is_the_same_net():
    torch.manual_seed(0)
    draws = Draws(DiagonalNormal(torch.zeros(3, 2), torch.zeros(3, 2)), torch.Size([3]), 64, "sobol")
    assert draws.length == 8
    torch.testing.assert_close(torch.cat([draws(0, 3), draws(3, 8)], 1), draws())


def test_given_draws_are_units():
    draws = GivenDraws(Normal(torch.zeros(3), 1.0), torch.arange(12.0).reshape(2, 2, 3))
    assert draws.units == 4
    assert draws(1, 2).tolist() == [[[3.0, 4.0, 5.0]]]


def test_what_has_no_map_from_noise_is_refused():
    class Own(Normal):
        def rsample(self, sample_shape=()):
            return super().rsample(sample_shape) + 1

    for distribution in (
        Gamma(two, two),
        Beta(two, two),
        StudentT(two),
        Own(two, two),
        Independent(Gamma(two, two), 1),
    ):
        assert isinstance(distribution, Distribution)
        for sampler in ("antithetic", "sobol"):
            with pytest.raises(ValueError, match=r"map from uniform noise.*icdf.*sampler='iid' would do"):
                estimate_kl(distribution, distribution, 8, sampler=sampler)
    normal = Normal(two, two)
    with pytest.raises(ValueError, match=r"num_samples=5 with sampler='antithetic': pairs are drawn.*even"):
        estimate_kl(normal, normal, 5, sampler="antithetic")
    with pytest.raises(ValueError, match=r"num_samples=12 with sampler='sobol'.*multiple of 8"):
        estimate_kl(normal, normal, 12, sampler="sobol")
    wide = MultivariateNormal(torch.zeros(21202), scale_tril=torch.eye(1).expand(21202, 21202), validate_args=False)
    with pytest.raises(ValueError, match=r"21202 dimensions, and Sobol points at most 21201"):
        Draws(wide, torch.Size(), 8, "sobol")


def test_seeding_for_a_generator_leaves_the_queue_for_other_devices():
    torch.manual_seed(0)
    queued = list(torch.cuda._lazy_seed_tracker.get_calls())
    estimate_kl(Normal(torch.zeros(2), 1.0), Normal(0.0, 1.0), generator=seeded())
    assert list(torch.cuda._lazy_seed_tracker.get_calls()) == queued
