"""Monte Carlo through maps that saturate: samples are compared before the transforms that posterior and prior share."""

import math
import warnings

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    ExpTransform,
    Independent,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    SigmoidTransform,
    StickBreakingTransform,
    TanhTransform,
    Transform,
    TransformedDistribution,
    constraints,
    kl_divergence,
)
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.distributions.transforms import ComposeTransform, IndependentTransform, SoftplusTransform

from kldiv import MonteCarloKLLoss, estimate_kl
from kldiv.distributions import Pair
from kldiv.monte_carlo import before_transforms
from tests.marks import sweep

MAPS = {
    "tanh": lambda: [TanhTransform()],
    "sigmoid": lambda: [SigmoidTransform()],
    "exp": lambda: [ExpTransform()],
    "softplus": lambda: [SoftplusTransform()],
    "scaled tanh": lambda: [TanhTransform(), AffineTransform(0.0, 2.0)],
    "composed": lambda: [ComposeTransform([AffineTransform(0.0, 1.0), SigmoidTransform()])],
}
FAMILIES = {"Normal": Normal, "Laplace": Laplace}


def through(base, transforms, event=False):
    return TransformedDistribution(Independent(base, 1) if event else base, transforms)


@pytest.mark.parametrize("name", sweep(MAPS, ["tanh", "exp"]))
@pytest.mark.parametrize("family", sweep(FAMILIES, ["Normal"]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("event", [False, True], ids=["scalars", "events"])
def test_the_divergence_is_that_before_the_map(name, family, dtype, event):
    """However far out, drawn by us or given in the posterior's own dtype: the standard error is 4 % of the value."""
    # exp is infinite in float32 above 88, and what the decoder consumed is then no number either
    for mean in (0.5, 3.0, 8.0, 20.0, 60.0):
        loc = torch.full((800, 3), mean, dtype=dtype, requires_grad=True)
        one = torch.ones((), dtype=dtype)
        base, other = FAMILIES[family](loc, one), FAMILIES[family](0 * one, one.expand(3))
        truth = kl_divergence(base, other).detach().sum(1)
        p, q = through(base, MAPS[name](), event), through(other, MAPS[name](), event)
        for sample in (None, p.rsample(), p.rsample((2,))):
            value = MonteCarloKLLoss(reduction="none")(p, q, sample)
            assert value.dtype == dtype
            assert ((value.mean() - truth.mean()).abs() < 5 * value.std() / 800**0.5 + 2e-3 * truth.mean()).item()
            (found,) = torch.autograd.grad(value.sum(), loc)
            (wanted,) = torch.autograd.grad(kl_divergence(base, other).sum(), loc)
            assert (found - wanted).mean().abs() < 5 * found.std() / 2400**0.5 + 2e-3 * wanted.abs().mean()
        estimate = estimate_kl(p, q, 256)
        by_example = estimate.value.sum(-1) if not event else estimate.value
        assert by_example.mean().item() == pytest.approx(truth.mean().item(), rel=0.02)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_relaxed_distributions_at_any_temperature(temperature, dtype):
    """At one temperature the divergence of two relaxed distributions does not depend on it: their logarithm is affine.

    In the logarithm, and scaled by the temperature, the samples are logits plus noise. The oracle is the quadrature of
    two logistic densities; for categories the estimate at a temperature of 1.
    """
    logits = torch.tensor([-3.0, -1.0, 1.0, 2.0], dtype=dtype).repeat(2000, 1).requires_grad_()
    t = torch.tensor(temperature, dtype=dtype)
    u = torch.linspace(-60, 60, 200_001, dtype=torch.float64)[:, None]
    log_density = [-(u - m) - 2 * torch.nn.functional.softplus(-(u - m)) for m in (logits[0].detach().double(), 0.0)]
    truth = (log_density[0].exp() * (log_density[0] - log_density[1])).sum(0) * (u[1] - u[0])
    for kind in (RelaxedBernoulli, LogitRelaxedBernoulli):
        p, q = kind(t, logits=logits), kind(t, logits=torch.zeros((), dtype=dtype))
        for sample in (None, p.rsample(), p.rsample((3,))):
            value = MonteCarloKLLoss(3).per_dimension(p, q, sample)
            assert ((value.mean(0) - truth).abs() < 6 * value.std(0) / 2000**0.5).all()
            (gradient,) = torch.autograd.grad(value.sum(), logits, retain_graph=True)
            assert gradient.isfinite().all()
    one = torch.ones((), dtype=dtype)
    zeros = torch.zeros(4, dtype=dtype)
    p, q = RelaxedOneHotCategorical(t, logits=logits), RelaxedOneHotCategorical(t, logits=zeros)
    expected = estimate_kl(
        RelaxedOneHotCategorical(one, logits=logits[0].double()), RelaxedOneHotCategorical(one, logits=zeros.double()),
        100_000,
    ).value  # fmt: skip
    for sample in (None, p.rsample(), p.rsample((3,))):
        value = MonteCarloKLLoss(3, reduction="none")(p, q, sample)
        assert abs(value.mean() - expected) < 6 * value.std() / 2000**0.5 + 0.02
        (gradient,) = torch.autograd.grad(value.sum(), logits, retain_graph=True)
        assert gradient.isfinite().all()


def test_relaxed_bernoullis_are_reparametrised_though_torch_does_not_say_so():
    """The derivative of the mean in the logits, at T = 0.5: by autograd, and by finite differences with one noise."""
    t, logits = torch.tensor(0.5, dtype=torch.float64), torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def mean(logits):
        torch.manual_seed(3)
        return LogitRelaxedBernoulli(t, logits=logits).rsample((100,)).mean()

    (gradient,) = torch.autograd.grad(mean(logits), logits)
    difference = (mean(logits.detach() + 1e-4) - mean(logits.detach() - 1e-4)) / 2e-4
    assert gradient.item() == pytest.approx(2.0) == difference.item()
    for kind in (RelaxedBernoulli, LogitRelaxedBernoulli):
        for wrapped in (lambda p: p, lambda p: Independent(p, 1)):
            p, q = (wrapped(kind(t, logits=each)) for each in (logits.expand(4, 1), torch.zeros(1).double()))
            MonteCarloKLLoss(4)(p, q).backward()
    assert logits.grad.isfinite().all()


def test_lognormals_beyond_the_numbers():
    p, q = LogNormal(torch.full((1000, 1), 1000.0, requires_grad=True), 1.0), LogNormal(0.0, 1.0)
    assert estimate_kl(p, q).value.mean().item() == pytest.approx(5e5, rel=1e-3)
    for sample in (None, p.rsample()):
        value = MonteCarloKLLoss()(p, q, sample)
        assert value.item() == pytest.approx(5e5, rel=1e-2)
        assert torch.autograd.grad(value, p.base_dist.loc)[0].isfinite().all()


def test_a_sample_that_can_be_taken_back_is_the_one_that_counts():
    loc = torch.randn(64, 3, dtype=torch.float64)
    for event in (False, True):
        p, q = (through(Normal(m, 1.0), [TanhTransform()], event) for m in (loc, torch.zeros(3).double()))
        sample = p.rsample((2,))
        by_hand = p.log_prob(sample) - q.log_prob(sample)
        by_hand = (by_hand if event else by_hand.sum(-1)).mean(0)
        torch.testing.assert_close(MonteCarloKLLoss(reduction="none")(p, q, sample), by_hand)


def test_transforms_that_remember_give_back_what_they_were_given():
    """So that the value belongs to the decoder's own sample, wherever the map has saturated."""
    loc = torch.full((50, 2), 30.0)
    shared = [TanhTransform(cache_size=1)]
    p, q = through(Normal(loc, 1.0), shared), through(Normal(torch.zeros(2), 1.0), [TanhTransform()])
    sample = p.rsample()
    noise = shared[0].inv(sample)
    truth = (Normal(loc, 1.0).log_prob(noise) - Normal(0.0, 1.0).log_prob(noise)).sum(1)
    torch.testing.assert_close(MonteCarloKLLoss(reduction="none")(p, q, sample), truth)


class Planar(Transform):
    """A flow whose inverse is only remembered."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, u, w):
        super().__init__(cache_size=1)
        self.u, self.w = u, w

    def _call(self, x):
        return x + self.u * torch.tanh(x @ self.w)[..., None]

    def _inverse(self, y):
        raise KeyError("not remembered")

    def log_abs_det_jacobian(self, x, y):
        return torch.log1p((1 - torch.tanh(x @ self.w).square()) * (self.w @ self.u)).expand(x.shape[:-1])


def test_a_shared_flow_whose_inverse_is_only_remembered():
    flow = Planar(torch.tensor([0.3, 0.2]), torch.tensor([0.5, -0.4]))
    loc = torch.ones(100, 2, requires_grad=True)
    p, q = through(Normal(loc, 1.0), [flow], True), through(Normal(torch.zeros(2), 1.0), [flow], True)
    for sample in (None, p.rsample()):
        value = MonteCarloKLLoss(reduction="none")(p, q, sample)
        assert abs(value.mean() - 1.0) < 5 * value.std() / 10


def test_the_shape_of_the_event_stays():
    """A map that joins dimensions leaves one KL for all of them, by invariance that of the bases."""
    base = MultivariateNormal(torch.ones(200, 2), torch.eye(2))
    standard = MultivariateNormal(torch.zeros(2), torch.eye(2))
    for transforms in (lambda: [StickBreakingTransform()], lambda: [IndependentTransform(ExpTransform(), 1)]):
        p, q = TransformedDistribution(base, transforms()), TransformedDistribution(standard, transforms())
        for sample in (None, p.sample()):
            value = MonteCarloKLLoss(8)(p, q, sample) if sample is None else MonteCarloKLLoss()(p, q, sample)
            assert value.item() == pytest.approx(1.0, abs=0.5)
        assert MonteCarloKLLoss().unreduced(p, q).shape == (200,)
        with pytest.raises(ValueError, match="per_example"):
            MonteCarloKLLoss().per_dimension(p, q)


def test_what_counts_as_the_same_transform():
    learned = torch.tensor(2.0, requires_grad=True)
    two, n = torch.tensor(2.0), Normal(torch.zeros(3), 1.0)
    for left, right, same in (
        ([TanhTransform()], [TanhTransform()], 1),
        ([TanhTransform()], [SigmoidTransform()], 0),
        ([SigmoidTransform().inv], [SigmoidTransform().inv], 1),
        ([AffineTransform(0.0, 2.0)], [AffineTransform(0.0, 2.0)], 1),
        ([AffineTransform(0.0, two)], [AffineTransform(0.0, two.clone())], 1),
        ([AffineTransform(0.0, 2.0)], [AffineTransform(0.0, 3.0)], 0),
        ([AffineTransform(0.0, learned)], [AffineTransform(0.0, learned)], 1),
        # equal now, but each has a gradient of its own
        ([AffineTransform(0.0, learned)], [AffineTransform(0.0, learned.detach().requires_grad_())], 0),
        ([AffineTransform(0.0, 2.0), TanhTransform()], [TanhTransform()], 1),
        ([ComposeTransform([ExpTransform(), AffineTransform(0.0, 1.0)])], [ExpTransform(), AffineTransform(0, 1)], 2),
        ([torch.distributions.AbsTransform()], [torch.distributions.AbsTransform()], 0),
    ):
        pair = Pair.of(through(n, left), through(n, right)).before_shared_transforms()
        assert pair.transforms_left == same, (left, right)
    pair = Pair.of(through(LogNormal(n.loc, 1.0), [TanhTransform()]), through(LogNormal(0.0, 1.0), [TanhTransform()]))
    assert type(pair.before_shared_transforms().p) is Normal


def test_a_nan_in_a_sample_is_not_replaced():
    p, q = LogNormal(torch.zeros(4, 2), 1.0), LogNormal(0.0, 1.0)
    pair = Pair.of(p, q).matched().before_shared_transforms()
    assert before_transforms(pair, p, torch.full((4, 2), math.nan)).isnan().all()


@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
def test_compiled_whole_it_is_the_same_mean(given):
    mean = torch.full((400, 3), 20.0, requires_grad=True)

    def loss(mean):
        p, q = (
            TransformedDistribution(Normal(m, 1.0, validate_args=False), [SigmoidTransform()], validate_args=False)
            for m in (mean, torch.zeros(3))
        )
        return MonteCarloKLLoss()(p, q, p.rsample() if given else None)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        value = torch.compile(loss, fullgraph=True, backend="aot_eager")(mean)
    assert value.item() == pytest.approx(600.0, rel=0.02)
    (gradient,) = torch.autograd.grad(value, mean)
    assert 400 * gradient.mean().item() == pytest.approx(20.0, rel=0.02)
