"""Probabilities of 0 and 1 and logits beyond 700: values and gradients of the closed forms."""

import itertools
import math

import pytest
import torch
from mpmath import mp
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Geometric,
    Independent,
    Multinomial,
    NegativeBinomial,
    OneHotCategorical,
    Poisson,
)

from kldiv import ExactKLLoss, kl_divergence
from kldiv.functional import kl_categorical
from tests.marks import slow
from tests.oracles import true_gradients, true_kl

F64 = torch.float64
FAMILIES = {
    "Bernoulli": Bernoulli,
    "Binomial": lambda **k: Binomial(5, **k),
    "Geometric": Geometric,
    "NegativeBinomial": lambda **k: NegativeBinomial(torch.tensor(2.5, dtype=F64), **k),
}
QUICK = (0.0, 30.0, -710.0, -740.0, 800.0)
LOGITS = (
    0.0,
    1e-3,
    30.0,
    -36.5,
    100.0,
    -104.0,
    600.0,
    -600.0,
    -610.0,
    700.0,
    -710.0,
    745.0,
    -740.0,
    800.0,
    -800.0,
    1e4,
)


def assert_right(p, q, leaves, rtol):
    """The value, and the gradients where they are finite: NaN nowhere."""
    value, truth = kl_divergence(p, q), true_kl(p, q)
    if truth > torch.finfo(value.dtype).max:
        assert value.item() == math.inf
        return
    if truth < 1e-100:  # where the oracle of gradients gives 0
        assert 0 <= value.item() < 1e-99
        return
    assert abs(value.item() - truth) <= rtol * truth, (value, truth)
    found = torch.autograd.grad(value, [*leaves.values()], allow_unused=True)
    truths = true_gradients(p, q)
    for key, gradient in zip(leaves, found, strict=True):
        expected = truths[key]
        if abs(expected) > 1e300:  # what it is the sum of overflows
            continue
        gradient = 0.0 if gradient is None else gradient.item()
        assert abs(gradient - expected) <= rtol * max(abs(expected), abs(truth) * mp.mpf("1e-3")), (key, gradient)


def of_logits(family, a, b):
    leaves = {("p", "logits"): torch.tensor(a, dtype=F64), ("q", "logits"): torch.tensor(b, dtype=F64)}
    for leaf in leaves.values():
        leaf.requires_grad_()
    return (*(FAMILIES[family](logits=leaf) for leaf in leaves.values()), leaves)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_at_the_ends(family):
    for a, b in itertools.product(QUICK, repeat=2):
        assert_right(*of_logits(family, a, b), 1e-10)


@slow
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_over_the_whole_range(family):
    for a, b in itertools.product(LOGITS, repeat=2):
        assert_right(*of_logits(family, a, b), 1e-10)


@pytest.mark.parametrize("a", [-1.0, -300.0, -610.0, -650.0, -700.0])
def test_rare_geometrics_a_little_apart(a):
    for step, b in ((1e-3, a), (0.3, a), (5.0, a), (0.0, -3.0)):
        assert_right(*of_logits("Geometric", a, b + step), 1e-9)
    p, q = (Geometric(torch.tensor(value, dtype=F64)) for value in (1e-290, 1.00001e-290))
    assert abs(kl_divergence(p, q).item() / true_kl(p, q) - 1) < 1e-9


def test_the_gradient_of_a_geometric_to_one_of_a_large_logit():
    p, q = (torch.tensor(value, requires_grad=True) for value in (0.0, 800.0))
    value = kl_divergence(Geometric(logits=p), Geometric(logits=q))
    assert value.item() == pytest.approx(800 - 2 * math.log(2))
    to_p, to_q = torch.autograd.grad(value, [p, q])
    assert to_q.item() == pytest.approx(1)
    assert to_p.item() == pytest.approx(-800 + math.log(2))


# A probability that has underflowed


PRIORS = {
    "logits": lambda family: family(logits=torch.tensor([0.5, 0.0, -1.0])),
    "probs": lambda family: family(probs=torch.tensor([0.2, 0.3, 0.5])),
    "of a zero": lambda family: family(probs=torch.tensor([0.0, 0.3, 0.7])),
}


@pytest.mark.parametrize("lowest", [-80.0, -100.0, -104.0, -200.0, -1e30])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("family", [Categorical, OneHotCategorical])
def test_a_softmax_that_underflows(family, prior, lowest):
    x = torch.tensor([lowest, 0.0, 1.0], requires_grad=True)
    y = torch.tensor([lowest, 0.0, 1.0], requires_grad=True)
    q = PRIORS[prior](family)
    value, expected = kl_divergence(family(probs=x.softmax(-1)), q), kl_divergence(family(logits=y), q)
    if prior == "of a zero" and lowest > -104:
        assert value.item() == math.inf
        return
    if prior != "of a zero":
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
        (wanted,) = torch.autograd.grad(expected, y)
        torch.testing.assert_close(torch.autograd.grad(value, x)[0], wanted, rtol=1e-5, atol=1e-6)
    else:
        assert torch.autograd.grad(value, x)[0].isfinite().all()


@pytest.mark.parametrize("family", [Categorical, OneHotCategorical])
def test_a_softmax_that_underflows_without_a_prior(family):
    x = torch.tensor([[-200.0, 0.0, 1.0]], requires_grad=True)
    loss = ExactKLLoss()(family(probs=x.softmax(-1)))
    assert loss.item() == pytest.approx(math.log(3) - 0.5822, abs=1e-4)
    assert torch.autograd.grad(loss, x)[0][0].tolist() == pytest.approx([0.0, -0.1966, 0.1966], abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("x", [-1000.0, -100.0, 100.0, 1000.0])
def test_a_sigmoid_that_saturates(x, dtype):
    raw = torch.tensor([x], dtype=dtype, requires_grad=True)
    prior = torch.tensor([0.5], dtype=dtype, requires_grad=True)
    posterior = Bernoulli(probs=raw.sigmoid())
    for q in (Bernoulli(logits=prior), Bernoulli(probs=prior.sigmoid())):
        value = kl_divergence(posterior, q)
        log_chance = torch.nn.functional.logsigmoid(prior.detach() * math.copysign(1, x))
        assert value.item() == pytest.approx(-log_chance.item())
        to_raw, to_prior = torch.autograd.grad(value.sum(), [raw, prior], retain_graph=True)
        assert abs(to_raw.item()) < 1e-30
        expected = (prior.sigmoid() - float(x > 0)).item()
        assert to_prior.item() == pytest.approx(expected, rel=1e-5)
    for p in (Bernoulli(logits=prior), Bernoulli(probs=prior.sigmoid())):
        value = kl_divergence(p, posterior)
        if posterior.probs.item() in (0.0, 1.0):
            assert value.item() == math.inf
        found = torch.autograd.grad(value.sum(), [raw, prior], retain_graph=True, allow_unused=True)
        assert all(gradient is None or gradient.isfinite().all() for gradient in found)
    wrapped = Independent(Bernoulli(probs=raw.sigmoid()), 1)
    (slope,) = torch.autograd.grad(kl_divergence(wrapped, Independent(Bernoulli(logits=prior), 1)).sum(), raw)
    assert slope.isfinite().all()


def test_no_gradient_is_nan_at_a_certain_outcome():
    def finite(divergence, *leaves):
        found = torch.autograd.grad(divergence.sum(), leaves, allow_unused=True)
        return all(g is None or g.isfinite().all() for g in found)

    certain = torch.tensor([0.0, 1.0], requires_grad=True)
    rate = torch.tensor([2.0, 0.0], requires_grad=True)
    half = torch.tensor([0.5, 0.5])
    for p, q in (
        (Binomial(5, certain), Binomial(5, logits=half)),
        (Binomial(5, certain), Binomial(7, half)),
        (Binomial(5, half), Binomial(5, certain)),
        (Bernoulli(certain), Binomial(3, half)),
        (Bernoulli(certain), Poisson(half)),
        (Bernoulli(certain), Geometric(half)),
        (Bernoulli(certain), NegativeBinomial(3.0, half)),
        (Bernoulli(half), Binomial(3, certain)),
        (Binomial(3, certain), Poisson(half)),
        (Multinomial(3, probs=certain), Multinomial(3, logits=half)),
    ):
        value = kl_divergence(p, q)
        assert not value.isnan().any(), (p, q)
        assert finite(value, certain), (p, q)
    value = kl_divergence(Poisson(rate), Bernoulli(certain))
    assert value.tolist() == [math.inf, math.inf]
    assert finite(value, certain, rate)
    value = kl_divergence(Poisson(torch.zeros(2)), Bernoulli(logits=torch.tensor([800.0, -800.0])))
    assert value.tolist() == pytest.approx([800.0, 0.0])


@pytest.mark.parametrize("mask", [-1e4, -1e9, -1e30, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("rows", [1, 4096])
def test_logits_masked_by_a_large_number(mask, rows):
    # in place of minus infinity, as attention masks have it
    logits = torch.tensor([[mask, 0.0, 1.0, 0.3]]).repeat(rows, 1).requires_grad_()
    prior = torch.tensor([[0.5, 0.0, -1.0, 0.2]]).repeat(rows, 1).requires_grad_()
    exact = logits.detach().masked_fill(logits == mask, -torch.inf).requires_grad_()
    value, expected = kl_categorical(logits, prior), kl_categorical(exact, prior)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    for found, wanted in zip(
        torch.autograd.grad(value.sum(), [logits, prior]),
        torch.autograd.grad(expected.sum(), [exact, prior]),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    both = prior.detach().masked_fill(logits == mask, mask)
    value = kl_categorical(logits, both)
    torch.testing.assert_close(value, kl_categorical(logits[:, 1:], both[:, 1:]), rtol=1e-6, atol=0)
