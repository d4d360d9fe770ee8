"""The closed forms under torch.func and torch.compile, and without a wait for the device."""

import math
import random

import pytest
import torch
from torch.distributions import Gamma, Laplace, Multinomial, NegativeBinomial, TransformedDistribution
from torch.distributions import transforms as T  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from kldiv import kl_divergence
from tests.marks import slow, sweep
from tests.oracles import CROSS, FAMILIES, stored

COUNTED_BY_VALUE = ("Binomial, more trials", ("Binomial", "Poisson"))
CHECKED_BY_TORCH = ("ContinuousBernoulli", "Wishart")  # whose constructors look at values, whatever validate_args says


class NoSynchronisation(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.name() not in ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*FAMILIES, *CROSS], ids=str)
def test_nothing_waits_for_the_device(name):
    if name in COUNTED_BY_VALUE:
        pytest.skip("the sum over a binomial's counts is as long as the largest count")
    rng = random.Random(2)
    p, q = (
        FAMILIES[name].draw(rng, 0.5, torch.float32) if isinstance(name, str) else CROSS[name].draw(rng, torch.float32)
    )
    p._validate_args = q._validate_args = False
    with NoSynchronisation():
        kl_divergence(p, q)


def as_function(p, q):
    """The divergence as a function of the parameters' tensors, and those."""

    def parts(d):
        values = {name: getattr(d, name) for name in stored(d)[1]}
        counts = {name: value for name, value in values.items() if name == "total_count"}
        return {name: value.detach() for name, value in values.items() if name not in counts}, counts

    (of_p, counts_p), (of_q, counts_q) = parts(p), parts(q)

    def divergence(*tensors):
        left = dict(zip(of_p, tensors[: len(of_p)], strict=True))
        right = dict(zip(of_q, tensors[len(of_p) :], strict=True))
        left, right = (
            type(p)(**left, **counts_p, validate_args=False),
            type(q)(**right, **counts_q, validate_args=False),
        )
        return kl_divergence(left, right)

    return divergence, [*of_p.values(), *of_q.values()]


TRANSFORMED = [
    name
    for name in [*FAMILIES, *CROSS]
    if not any(part in str(name) for part in ("Independent", "DiagonalNormal", "logits", *CHECKED_BY_TORCH))
    and name not in COUNTED_BY_VALUE
]


@pytest.mark.parametrize("name", sweep(TRANSFORMED, TRANSFORMED[::3]), ids=str)
def test_function_transforms(name):
    rng = random.Random(3)
    p, q = (
        FAMILIES[name].draw(rng, 0.5, torch.float64) if isinstance(name, str) else CROSS[name].draw(rng, torch.float64)
    )
    divergence, tensors = as_function(p, q)
    several = torch.func.vmap(divergence)(*(torch.stack([t, t]) for t in tensors))
    torch.testing.assert_close(several[1], divergence(*tensors), rtol=1e-10, atol=0)
    ones = tuple(torch.ones_like(t) for t in tensors)
    _, forward = torch.func.jvp(divergence, tuple(tensors), ones)
    backward = torch.func.jacrev(divergence, argnums=tuple(range(len(tensors))))(*tensors)
    largest = sum(part.abs().sum() for part in backward)
    torch.testing.assert_close(
        forward, sum(part.sum() for part in backward), rtol=0, atol=1e-9 * largest.item() + 1e-300
    )
    assert torch.func.hessian(divergence)(*tensors).isfinite().all()


COMPILED = [name for number, name in enumerate(TRANSFORMED) if number % 4 == 0]


COMPILED_QUICKLY = ["Bernoulli", "InverseGamma", "MultivariateNormal to MultivariateNormal", ("Laplace", "Normal")]


@pytest.mark.parametrize("name", sweep(COMPILED, COMPILED_QUICKLY), ids=str)
def test_compiles_as_one_graph_from_a_cold_start(name):
    rng = random.Random(3)
    p, q = (
        FAMILIES[name].draw(rng, 0.5, torch.float32) if isinstance(name, str) else CROSS[name].draw(rng, torch.float32)
    )
    divergence, tensors = as_function(p, q)
    leaves = [t.clone().requires_grad_() for t in tensors]
    torch._dynamo.reset()
    value = torch.compile(divergence, fullgraph=True, backend="aot_eager")(*leaves)
    eager = divergence(*leaves)
    torch.testing.assert_close(value, eager, rtol=1e-6, atol=0)
    for ours, theirs in zip(*(torch.autograd.grad(v, leaves, allow_unused=True) for v in (value, eager)), strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * theirs.abs().max().item())


@slow
def test_compiles_distributions_that_are_given_to_it():
    pytest.importorskip("torch._inductor")
    torch._dynamo.reset()
    compiled = torch.compile(kl_divergence, fullgraph=True)
    p, q = (Laplace(torch.rand(5) + 0.5, torch.rand(5) + 0.5) for _ in range(2))
    torch.testing.assert_close(compiled(p, q), kl_divergence(p, q), rtol=1e-6, atol=0)


def test_pairs_that_exist_for_some_values_only_are_checked_unless_validation_is_off():
    probs = torch.tensor([0.3, 0.4])
    p, q = NegativeBinomial(torch.tensor([2.0, 3.0]), probs), NegativeBinomial(2.0, probs)
    with pytest.raises(NotImplementedError, match="unequal total_count"):
        kl_divergence(p, q)
    p, q = (NegativeBinomial(2.0, value, validate_args=False) for value in (probs, probs.flip(0)))
    with NoSynchronisation():
        kl_divergence(p, q)
    wide, narrow = (
        TransformedDistribution(Gamma(2.0, 1.0), [T.AffineTransform(0.0, torch.tensor(s))]) for s in (1.0, 2.0)
    )
    with pytest.raises(NotImplementedError, match="unequal transforms"):
        kl_divergence(wide, narrow)
    assert kl_divergence(Multinomial(3, probs / probs.sum()), Multinomial(4, probs / probs.sum())).item() == math.inf
