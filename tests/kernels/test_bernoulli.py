import math

import pytest
import torch

from kldiv import BernoulliNLL
from kldiv.kernels import bernoulli as kernel
from kldiv.kernels import memory
from kldiv.kernels.bernoulli import _formula, bernoulli_nll, bernoulli_nll_per_example


@pytest.fixture(params=[1, 20, 2**17], ids=["row by row", "blocks", "at once"], autouse=True)
def elements(request, monkeypatch):
    monkeypatch.setattr(kernel, "_BLOCK", request.param)


def batch(scale, shape=(5, 3, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(shape, generator=generator)
    target = torch.rand(shape, generator=generator)
    target = torch.where(target < 0.3, 0.0, torch.where(target > 0.7, 1.0, target))
    return logits.requires_grad_(), target.requires_grad_()


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("shape", [(5, 3, 4), (1, 1), (0, 4), (3, 0)])
def test_against_the_plain_formula_in_double_precision(scale, shape):
    given = batch(scale, shape)
    wide = [t.detach().double().requires_grad_() for t in given]
    found, expected = bernoulli_nll_per_example(*given), _formula(*wide).flatten(1).sum(1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    upstream = torch.linspace(-1, 2, shape[0])
    of_logits, of_target = torch.autograd.grad(found, given, upstream)
    truth = torch.autograd.grad(expected, wide, upstream.double())
    # (1 - t) s(l) - t s(-l) is a difference: of its terms, which are below 1, the error is 1e-7
    torch.testing.assert_close(of_logits.double(), truth[0], rtol=1e-6, atol=2e-7)
    certain = (given[1] == 0) | (given[1] == 1)
    torch.testing.assert_close(of_logits[certain].double(), truth[0][certain], rtol=1e-6, atol=1e-37)
    torch.testing.assert_close(of_target.double(), truth[1], rtol=1e-6, atol=0)


def test_the_edges_of_the_domain():
    logits = torch.tensor([[0.0, 85.0, -85.0, 90.0, -90.0, 3e38, -3e38, -math.inf]]).T.requires_grad_()
    for value in (0.0, 1.0):
        target = torch.full_like(logits, value)
        found, plain = BernoulliNLL("none")(logits, target), _formula(logits.double(), target.double())[:, 0]
        assert "_BernoulliNLL" in str(found.grad_fn)
        is_nothing = plain < 3e-39
        assert (found[is_nothing] == 0).all()
        kept = plain.isfinite() & ~is_nothing
        torch.testing.assert_close(found[kept].double(), plain[kept], rtol=1e-6, atol=1e-44)
        assert found[:-1].isfinite().all()
    assert BernoulliNLL("sum")(torch.full((1, 1), math.nan), torch.ones(1, 1)).isnan()


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_gradients_where_the_logit_is_zero(zero):
    target = torch.arange(256)[:, None] / 255
    logits = torch.full_like(target, zero).requires_grad_()
    (gradient,) = torch.autograd.grad(bernoulli_nll_per_example(logits, target).sum(), logits)
    torch.testing.assert_close(gradient, 0.5 - target, rtol=1e-7, atol=0)


def test_the_term_is_the_same_wherever_it_is_computed():
    logits, target = (t.detach() for t in batch(2.0))
    term = BernoulliNLL()
    truth = term(logits.double(), target.double()).float()
    values = [term(logits, target), term(logits, target, mask=torch.ones(5, 1, 1)), term(logits.mT, target.mT)]
    values += [torch.func.vmap(lambda x, t: term(x[None], t[None]))(logits, target).mean()]
    values += [_formula(logits, target).sum() / 5, BernoulliNLL("none")(logits, target).mean()]
    for value in values:
        torch.testing.assert_close(value, truth)
    gradient = torch.func.grad(term)(logits, target)
    torch.testing.assert_close(gradient, torch.autograd.functional.jacobian(lambda x: term(x, target), logits))
    _, tangent = torch.func.jvp(lambda x: term(x, target), (logits,), (torch.ones_like(logits),))
    torch.testing.assert_close(tangent, gradient.sum())


def test_compiled_it_is_the_same(elements):
    logits, target = (t.detach().double() for t in batch(3.0))
    logits[0] = 0.0
    truth = _formula

    def compiled(f, *given):
        torch._dynamo.reset()
        return torch.compile(f, backend="aot_eager", fullgraph=True)(*given)

    for scale in (1.0, 100.0):
        given = (scale * logits).requires_grad_(), target.clone().requires_grad_()
        found, expected = compiled(bernoulli_nll, *given), truth(*given)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        gradients = [torch.autograd.grad(v.square().sum(), given) for v in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)

    def inner(f):
        return lambda x: torch.func.grad(lambda y: f(y, target).sum())(x)

    def tangents(f):
        return lambda x: torch.func.jvp(inner(f), (x,), (torch.ones_like(x),))[1]

    torch.testing.assert_close(compiled(inner(bernoulli_nll), logits), inner(truth)(logits))
    # but at 0, where compilers differentiate the formula and not what we say of it
    torch.testing.assert_close(compiled(tangents(bernoulli_nll), logits)[1:], tangents(truth)(logits)[1:])
    torch.testing.assert_close(compiled(torch.func.vmap(bernoulli_nll), logits, target), truth(logits, target))


@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)])
def test_twice_differentiable_and_a_graph_that_is_kept(wanted):
    given = [t.detach().double().flatten(1) for t in batch(1.0)]
    leaves = [given[k].requires_grad_() for k in wanted]
    values = [kernel._BernoulliNLL.apply(*given), _formula(*given).sum(1)]
    for _ in range(2):
        firsts = [torch.autograd.grad(v.square().sum(), leaves, create_graph=True) for v in values]
        torch.testing.assert_close(*firsts)
    seconds = [torch.autograd.grad(sum(g.square().sum() for g in first), leaves) for first in firsts]
    torch.testing.assert_close(*seconds)


def test_memory_that_is_used_again_is_not_seen_outside():
    first, second = batch(1.0), batch(1.0, (2, 6), seed=1)
    one = bernoulli_nll_per_example(*first)
    expected = one.clone(), [g.clone() for g in torch.autograd.grad(one.sum(), first, retain_graph=True)]
    gradients = torch.autograd.grad(one.sum(), first, retain_graph=True)
    torch.autograd.grad(bernoulli_nll_per_example(*second).sum(), second)
    torch.testing.assert_close((one, list(gradients)), expected, rtol=0, atol=0)


def test_training_after_a_validation_in_inference_mode(monkeypatch):
    monkeypatch.setattr(memory, "_reused", memory._Reused())
    with torch.inference_mode():
        BernoulliNLL()(torch.randn(400, 50), torch.rand(400, 50))
    logits, target = batch(1.0, (3, 30))
    torch.autograd.grad(BernoulliNLL()(logits, target), logits)
