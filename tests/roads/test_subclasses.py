"""A subclass of a known family is of its kin, as long as it holds tensors and known distributions alone."""

import pytest
import torch
import zuko
from torch import nn
from torch.distributions import (
    Beta,
    Categorical,
    Distribution,
    Gamma,
    HalfNormal,
    Independent,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    SigmoidTransform,
    TransformedDistribution,
)

from kldiv import BalancedKLLoss, DiagonalNormal, ExactKLLoss, MonteCarloKLLoss, PowerSpherical, estimate_kl
from kldiv import kl_divergence as kl
from kldiv.distributions import Pair, can_be_copied, detached, widened

ONES = torch.ones(4, 3)


def of_kin(family):
    """A subclass that changes nothing."""
    return type(f"My{family.__name__}", (family,), {})


PAIRS = {
    "Normal": lambda m: (of_kin(Normal)(m, 1.0), Normal(0.0, 2.0)),
    "Laplace": lambda m: (of_kin(Laplace)(m, 1.0), Laplace(0.0, 2.0)),
    "Gamma": lambda m: (of_kin(Gamma)(m.exp(), 1.0), Gamma(2.0, 1.0)),
    "Beta": lambda m: (of_kin(Beta)(m.exp(), 2.0), Beta(2.0, 1.0)),
    "LogNormal": lambda m: (of_kin(LogNormal)(m, 1.0), LogNormal(0.0, 2.0)),
    "HalfNormal": lambda m: (of_kin(HalfNormal)(m.exp()), HalfNormal(2.0)),
    "DiagonalNormal": lambda m: (of_kin(DiagonalNormal)(m, 0 * m), DiagonalNormal(ONES[0], ONES[0])),
    "MultivariateNormal": lambda m: (
        of_kin(MultivariateNormal)(m, torch.eye(3)), MultivariateNormal(torch.zeros(3), 2 * torch.eye(3))
    ),
    "Independent": lambda m: (Independent(of_kin(Normal)(m, 1.0), 1), Independent(Normal(0 * ONES[0], 2.0), 1)),
    "OneHotCategorical": lambda m: (of_kin(OneHotCategorical)(logits=m), OneHotCategorical(logits=0 * m)),
    "Categorical": lambda m: (of_kin(Categorical)(logits=m), Categorical(logits=0 * m)),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_kin_is_copied_detached_and_widened(name, dtype):
    mean = torch.randn(4, 3).to(dtype).requires_grad_()
    p, q = PAIRS[name](mean)
    assert can_be_copied(p)
    assert type(widened(p, torch.float64)) is type(p) is type(detached(p))
    pair = Pair.of(p, q)
    assert pair.p_can_be_copied
    assert pair.parameters
    if dtype != torch.bfloat16:
        plain = ExactKLLoss()(p, q)
        balanced = BalancedKLLoss(0.3)(p, q)
        torch.testing.assert_close(balanced, plain)
        (whole,), (part,) = (torch.autograd.grad(v, mean, retain_graph=True) for v in (plain, balanced))
        torch.testing.assert_close(part, 0.7 * whole)
    gradient = "pathwise" if p.has_rsample else "score"
    value, error = estimate_kl(p, q, 2000, gradient=gradient)
    truth = kl(p, q)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert ((value - truth).abs() < 6 * error + (0.05 if dtype == torch.bfloat16 else 1e-3) * (1 + truth)).all()


class Mixed(OneHotCategorical):
    """With 1 % of uniform in its probabilities, as in DreamerV3."""

    def __init__(self, logits, uniform=0.01):
        self.uniform = uniform
        probs = (1 - uniform) * logits.softmax(-1) + uniform / logits.shape[-1]
        super().__init__(logits=probs.log())


class Floored(OneHotCategorical):
    """The same by a property."""

    @property
    def logits(self):
        probs = self._categorical.logits.softmax(-1)
        return (0.99 * probs + 0.01 / probs.shape[-1]).log()

    def log_prob(self, value):
        return (value * self.logits).sum(-1)


def test_uniform_in_the_logits():
    mean = torch.tensor([[-200.0, 0.0, 1.0]]).repeat(4, 1).requires_grad_()
    p, q = Mixed(mean), Mixed(torch.zeros(3))
    probs = (0.99 * mean.detach().double().softmax(-1) + 0.01 / 3)[0]
    truth = (probs * (probs * 3).log()).sum()
    for term in (ExactKLLoss(), BalancedKLLoss()):
        assert term(p, q).item() == pytest.approx(truth.item(), rel=1e-5)
        assert torch.autograd.grad(term(p, q), mean, retain_graph=True)[0].isfinite().all()
    assert MonteCarloKLLoss(20_000, gradient="score")(p, q).item() == pytest.approx(truth.item(), rel=0.05)
    assert can_be_copied(Floored(logits=mean))
    # its own density counts
    p, x = Floored(logits=mean), torch.eye(3)[:1].expand(4, 3)
    torch.testing.assert_close(Pair.of(p, q).log_p(x.double()).float(), p.log_prob(x))


class Learned(Normal):
    def __init__(self, network, x):
        super().__init__(network(x), 1.0)
        self.network = network


class Holds(Normal):
    def __init__(self, loc, what):
        super().__init__(loc, 1.0)
        self.what = what


class Bare(Distribution):
    pass


def test_what_is_no_kin():
    network = nn.Linear(3, 3)
    flow = zuko.flows.MAF(3, transforms=1, hidden_features=(4,))()
    for p in (
        Learned(network, ONES),
        Holds(ONES, flow),
        Holds(ONES, [flow]),
        Holds(ONES, lambda x: x),
        Holds(ONES, {"a": ONES}),
        Independent(Learned(network, ONES), 1),
        Bare(torch.Size([4]), torch.Size(), validate_args=False),
    ):
        assert not can_be_copied(p)
        with pytest.raises(TypeError, match=r"another package.*cannot be detached"):
            detached(p)
    for what in (ONES, 1.0, "name", None, [ONES, 2], torch.Size([2]), Normal(ONES, 1.0), SigmoidTransform()):
        assert can_be_copied(Holds(ONES, what))
    assert can_be_copied(MixtureSameFamily(Categorical(ONES), of_kin(Normal)(ONES, 1.0)))
    assert can_be_copied(PowerSpherical(torch.eye(3), torch.ones(3)))
    assert can_be_copied(TransformedDistribution(Normal(ONES, 1.0), [of_kin(SigmoidTransform)()]))


def test_two_kinds_are_named_as_such():
    logits = torch.zeros(3, 5)
    one_hot, relaxed = OneHotCategorical(logits=logits), RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits)
    for p, q in ((one_hot, relaxed), (relaxed, one_hot), (Categorical(logits=logits), relaxed)):
        for call in (MonteCarloKLLoss(2, gradient="score"), estimate_kl, ExactKLLoss()):
            with pytest.raises(ValueError, match="two kinds"):
                call(p, q)
