"""Densities off the support are 0, in any dimension: the divergence is infinite there, and never NaN."""

import math

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Beta,
    Categorical,
    Dirichlet,
    Exponential,
    ExpTransform,
    Gamma,
    HalfNormal,
    Independent,
    LogNormal,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Pareto,
    PowerTransform,
    SigmoidTransform,
    StickBreakingTransform,
    TanhTransform,
    TransformedDistribution,
    Uniform,
    Weibull,
)
from torch.distributions.transforms import SoftplusTransform

from kldiv import DiagonalNormal, ELBOLoss, GaussianNLL, MonteCarloKLLoss, estimate_kl, kl_divergence
from kldiv.distributions import Pair
from tests.marks import sweep

BASES = {
    "Independent": lambda n: Independent(Normal(torch.zeros(n), 1.0), 1),
    "DiagonalNormal": lambda n: DiagonalNormal(torch.zeros(n), torch.zeros(n)),
    "MultivariateNormal": lambda n: MultivariateNormal(torch.zeros(n), torch.eye(n)),
}
TRANSFORMS = {
    "sigmoid": lambda: [SigmoidTransform()],
    "exp": lambda: [ExpTransform()],
    "tanh": lambda: [TanhTransform()],
    "softplus": lambda: [SoftplusTransform()],
    "shifted": lambda: [ExpTransform(), AffineTransform(1.0, 2.0)],
    "power": lambda: [ExpTransform(), PowerTransform(torch.tensor(2.0))],
    "stick breaking": lambda: [StickBreakingTransform()],
}
POSTERIORS = {
    "DiagonalNormal": lambda m: DiagonalNormal(m, torch.zeros_like(m)),
    "Independent": lambda m: Independent(Normal(m, 1.0), 1),
    "MultivariateNormal": lambda m: MultivariateNormal(m, torch.eye(m.shape[-1], dtype=m.dtype)),
    "LowRank": lambda m: LowRankMultivariateNormal(m, torch.ones_like(m)[..., None], torch.ones_like(m)),
}


def never_nan(p, q, parameter, value_is, samples=(None, (3,))):
    for value in ("k1", "k2", "k3"):
        estimate = estimate_kl(p, q, 16, value=value)
        assert value_is(estimate.value).all()
        assert not estimate.standard_error.isnan().any()
    for shape in samples:
        value = MonteCarloKLLoss()(p, q, None if shape is None else p.rsample(shape))
        assert value_is(value)
        (gradient,) = torch.autograd.grad(value, parameter)
        assert not gradient.isnan().any()


@pytest.mark.parametrize("transforms", sweep(TRANSFORMS, ["sigmoid", "exp", "tanh"]))
@pytest.mark.parametrize("base", sweep(BASES, ["Independent", "MultivariateNormal"]))
@pytest.mark.parametrize("posterior", sweep(POSTERIORS, ["DiagonalNormal", "MultivariateNormal"]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normals_to_what_a_transform_leaves_no_room_for(posterior, base, transforms, dtype):
    """Near 0.5, too, where most samples, or all, are on the support: a normal has mass everywhere."""
    of = TRANSFORMS[transforms]()
    n = 3 if transforms == "stick breaking" else 2
    q = TransformedDistribution(BASES[base](n - (transforms == "stick breaking")), of)
    mean = torch.zeros(5, n, dtype=dtype, requires_grad=True)
    never_nan(POSTERIORS[posterior](mean), q, mean, torch.isinf)


@pytest.mark.parametrize("far", [0.0, 60.0])
def test_where_the_supports_tell_no_sample_has_to(far):
    mean = torch.full((4, 2), far, requires_grad=True)
    for q in (
        Exponential(1.0), Gamma(2.0, 1.0), HalfNormal(100.0), LogNormal(0.0, 1.0), Weibull(1.0, 2.0), Pareto(1.0, 2.0),
        Beta(2.0, 2.0), Uniform(-1.0, 1.0), Uniform(-100.0, 100.0),
    ):  # fmt: skip
        never_nan(Normal(mean, 0.1), q, mean, torch.isinf)
        never_nan(DiagonalNormal(mean, torch.zeros(4, 2)), Independent(q.expand((2,)), 1), mean, torch.isinf)
    width = torch.tensor([0.5, 1.0, 1.5, 3.0], requires_grad=True)
    value = estimate_kl(Uniform(-width, width), Uniform(-1.0, 1.0), 1).value
    assert value.isinf().tolist() == [False, False, True, True]
    # the same ends, computed in other ways
    third = torch.tensor(1.0).double() / 3
    same = TransformedDistribution(Uniform(torch.zeros(4).double(), 1.0), [AffineTransform(0.1, third)])
    value = estimate_kl(same, Uniform(0.1 + 0 * third, 0.1 + third), 64).value
    assert value.abs().max() < 1e-6


def test_on_the_support_it_is_the_divergence():
    """Against the closed form, or the integral of the bases: what is on the support is left as it is."""
    a = torch.rand(400, 3, dtype=torch.float64) + 1.5
    loc = torch.zeros(400, 3, dtype=torch.float64)
    log_normal = LogNormal(loc, 0.7)
    for p, q, truth in (
        (Gamma(a, 1.0), Exponential(torch.ones(3).double()), None),
        (Beta(a, 2.0), Uniform(torch.zeros(3).double(), 1.0), None),
        (HalfNormal(a), Normal(torch.zeros(3).double(), 1.0), None),
        # q goes through Exp as one event, p does not go through the same
        (Independent(log_normal, 1), TransformedDistribution(BASES["DiagonalNormal"](3), [ExpTransform()]), 0.0),
    ):
        if truth is None:
            truth = kl_divergence(p, q).sum(-1)
        else:
            truth = kl_divergence(Normal(loc, 0.7), Normal(0.0 * loc, 1.0)).sum(-1)
        value, error = estimate_kl(p, q, 512)
        value, error = (value.sum(-1), error.norm(dim=-1)) if value.ndim > 1 else (value, error)
        assert ((value - truth).abs() < 6 * error + 1e-6).all()


def test_simplexes():
    p = Dirichlet(torch.full((100, 4), 2.0, requires_grad=True))
    q = TransformedDistribution(Independent(Normal(torch.zeros(3), 1.0), 1), [StickBreakingTransform()])
    for sample in (None, p.rsample((3,))):  # which float32 rounds to sums that are not quite 1
        assert MonteCarloKLLoss()(p, q, sample).isfinite()
        assert MonteCarloKLLoss()(q.expand((100,)), Dirichlet(torch.ones(4))).isfinite()
    wide = Dirichlet(torch.full((8, 1000), 5.0))
    assert MonteCarloKLLoss()(wide, Dirichlet(torch.ones(1000)), wide.rsample()).isfinite()


def test_mixtures_of_events():
    components = TransformedDistribution(Independent(Normal(torch.zeros(3, 2), 1.0), 1), [ExpTransform()])
    q = MixtureSameFamily(Categorical(torch.ones(3)), components)
    mean = torch.zeros(4, 2, requires_grad=True)
    value = estimate_kl(DiagonalNormal(mean, torch.zeros(4, 2)), q, 64).value
    assert value.isinf().all()
    p = Independent(LogNormal(mean, 1.0), 1)
    assert estimate_kl(p, q, 64).value.abs().max() < 1e-5


class TestNaN:
    def test_the_error_names_what_is_nan(self):
        mean = torch.tensor([[0.0], [math.nan]])
        p, q = (Normal(m, 1.0, validate_args=False) for m in (torch.zeros(2, 1), mean))
        for call in (estimate_kl, MonteCarloKLLoss(), MonteCarloKLLoss().per_example, MonteCarloKLLoss().per_dimension):
            with pytest.raises(ValueError, match=r"Normal, the second .* is NaN for .* parameters hold NaN: loc"):
                call(p, q)
            with pytest.raises(ValueError, match=r"Normal, the first .* is NaN for"):
                call(q, p)
        with pytest.raises(ValueError, match="sample holds NaN, at 1 of 2"):
            MonteCarloKLLoss()(p, p.expand((2, 1)), torch.tensor([[0.0], [math.nan]]))
        with pytest.raises(ValueError, match="NaN"):
            estimate_kl(p, q, 64, chunk_size=8)

    def test_a_density_of_ones_own(self):
        class Odd(Normal):
            def log_prob(self, value):
                return super().log_prob(value).log()

        with pytest.raises(ValueError, match=r"Odd, the second .* look at the distribution's log_prob"):
            MonteCarloKLLoss()(Normal(torch.zeros(4, 2), 1.0), Odd(torch.zeros(2), 10.0))

    def test_a_sample_at_the_end_of_both_supports(self):
        p, q = Beta(torch.full((3, 1), 0.5), 0.5), Beta(0.4, 0.4)
        with pytest.raises(ValueError, match=r"both infinite \(inf\) for 3 of 3 samples.*Draw it in float64"):
            MonteCarloKLLoss()(p, q, torch.ones(3, 1))

    def test_in_a_bound_a_mask_may_still_hide_it(self):
        mean = torch.tensor([[0.0, math.nan]])
        q, p = (Normal(m, 1.0, validate_args=False) for m in (mean, torch.zeros(2)))
        elbo = ELBOLoss(GaussianNLL(), MonteCarloKLLoss())
        terms = elbo(torch.zeros(1, 3), torch.zeros(1, 3), q, p, latent_mask=torch.tensor([[1, 0]]))
        assert terms.kl.isfinite()


class Wrong(Normal):
    """Its batch shape is (N, D), and its density is that of the event (D,)."""

    def log_prob(self, value):
        return super().log_prob(value).sum(-1)


def test_a_density_of_another_shape_raises_and_names_both():
    p, q = Wrong(torch.zeros(64, 5), 1.0), MultivariateNormal(torch.zeros(5), torch.eye(5))
    for call in (
        lambda: MonteCarloKLLoss()(p, q),
        lambda: MonteCarloKLLoss()(p, q, p.rsample()),
        lambda: estimate_kl(p, Normal(0.0, 1.0)),
        lambda: MonteCarloKLLoss()(DiagonalNormal(torch.zeros(64, 5), torch.zeros(64, 5)), p),
    ):
        with pytest.raises(ValueError, match=r"Wrong.log_prob gives the shape \([^)]*64[^)]*\) .* must be \([^)]*5\)"):
            call()
    sample = torch.zeros(3, 64, 5)
    for good in (
        q,
        DiagonalNormal(torch.zeros(5), torch.zeros(5)),
        Normal(torch.zeros(64, 1), 1.0),
        Dirichlet(torch.ones(64, 5)),
    ):
        Pair.of(good, good).log_p(sample)


@pytest.mark.parametrize("value", ["k1", "k3"])
def test_no_value_is_read_on_an_accelerator(value):
    """Tensors without values: whatever reads one raises."""
    with torch.device("meta"):
        mean, ones = torch.zeros(4, 3, requires_grad=True), torch.ones(4, 3)
        normal, standard = Normal(mean, ones, validate_args=False), Normal(ones[0], ones[0], validate_args=False)

        def through(base, *transforms):
            return TransformedDistribution(base, list(transforms), validate_args=False)

        scale = torch.ones(3)
        pairs = [
            (through(normal, TanhTransform()), through(standard, TanhTransform())),
            (through(normal, ExpTransform(), AffineTransform(0.0, scale)), through(standard, ExpTransform())),
            (through(normal, AffineTransform(0.0, scale)), through(standard, AffineTransform(0.0, scale.clone()))),
            (normal, Uniform(-ones, ones, validate_args=False)),
            (Uniform(-ones, ones, validate_args=False), standard),
            (Uniform(-ones, ones, validate_args=False), Uniform(-ones, ones, validate_args=False)),
            (HalfNormal(ones + mean, validate_args=False), standard),
            (Independent(normal, 1), through(Independent(standard, 1), SigmoidTransform())),
        ]
    for p, q in pairs:
        for sample in (None, p.rsample()):
            loss = MonteCarloKLLoss(2, value=value)(p, q, sample)
            assert loss.device.type == "meta"
