"""Every pair of the registry, its parameters swept to the ends of float32 and float64, against fifty digits."""

import itertools
import math
import random
import zlib

import pytest
import torch
from mpmath import mp
from torch import distributions as D  # noqa: N812
from torch.distributions import Independent, Normal

from kldiv import DiagonalNormal, ExactKLLoss, kl_divergence
from kldiv.exact.registry import CLOSED_FORMS
from tests.exact.test_closed_forms import with_leaves
from tests.marks import slow
from tests.oracles import NoClosedFormError, stored, true_gradients, true_kl

REAL = ("loc", "mean", "log_var", "logits", "low", "high")
DEFAULTS = {
    D.Bernoulli: {"logits": 0.4},
    D.Beta: {"concentration1": 1.5, "concentration0": 2.5},
    D.Binomial: {"logits": 0.4},
    D.Cauchy: {"loc": 0.3, "scale": 1.5},
    D.Chi2: {"df": 3.0},
    D.ContinuousBernoulli: {"logits": 0.4},
    D.Exponential: {"rate": 1.5},
    D.Gamma: {"concentration": 2.5, "rate": 1.5},
    D.Geometric: {"logits": 0.4},
    D.Gumbel: {"loc": 0.3, "scale": 1.5},
    D.HalfCauchy: {"scale": 1.5},
    D.HalfNormal: {"scale": 1.5},
    D.InverseGamma: {"concentration": 2.5, "rate": 1.5},
    D.Laplace: {"loc": 0.3, "scale": 1.5},
    D.LogNormal: {"loc": 0.3, "scale": 1.5},
    D.NegativeBinomial: {"logits": 0.4},
    D.Normal: {"loc": 0.3, "scale": 1.5},
    D.Pareto: {"scale": 1.5, "alpha": 2.5},
    D.Poisson: {"rate": 1.5},
    D.Uniform: {"low": 0.25, "high": 0.75},
    D.VonMises: {"loc": 0.3, "concentration": 1.5},
    D.Weibull: {"scale": 1.5, "concentration": 1.2},
    DiagonalNormal: {"mean": 0.3, "log_var": 0.4},
}
PAIRS = [types for types in CLOSED_FORMS if all(kind in DEFAULTS for kind in types)]


def ends(name, dtype):
    limits = torch.finfo(dtype)
    positive = [limits.tiny, math.sqrt(limits.tiny), 1e-3, 1e3, math.sqrt(limits.max), limits.max]
    if name not in REAL:
        return positive
    return [0.0, *positive[2:], *(-value for value in positive[2:])]


def made(kind, parameters, dtype):
    tensors = {name: torch.tensor(value, dtype=dtype) for name, value in parameters.items()}
    if kind is D.Binomial or kind is D.NegativeBinomial:
        tensors["total_count"] = torch.tensor(3.0, dtype=dtype)
    if kind is DiagonalNormal:
        return kind(**tensors, event_dim=0)
    return kind(**tensors, validate_args=False)


def sweeps(types, dtype, several):
    """Pairs with one parameter at an end, or with two."""
    names = [(side, name) for side, kind in enumerate(types) for name in DEFAULTS[kind]]
    for chosen in itertools.combinations(names, several):
        for values in itertools.product(*(ends(name, dtype) for _, name in chosen)):
            sides = [dict(DEFAULTS[kind]) for kind in types]
            for (side, name), value in zip(chosen, values, strict=True):
                sides[side][name] = value
            if any("low" in side and not side["low"] < side["high"] for side in sides):
                continue
            yield tuple(made(kind, side, dtype) for kind, side in zip(types, sides, strict=True))


def assert_right(p, q, dtype):
    """The value against fifty digits where the oracle has them; never NaN, never negative."""
    value = kl_divergence(p, q).item()
    assert value >= 0, (stored(p), stored(q), value)
    try:
        truth = true_kl(p, q)
    except (NoClosedFormError, ArithmeticError, ValueError, NotImplementedError, MemoryError):
        return
    limits = torch.finfo(dtype)
    if mp.isnan(truth):
        return
    if truth > limits.max * (1 - 1e-6):
        assert value > limits.max * (1 - 1e-5), (stored(p), stored(q), value, truth)
    elif truth < 1e3 * limits.tiny:
        assert value < 1e4 * limits.tiny
    else:
        assert abs(value - truth) <= 1e-5 * truth, (stored(p), stored(q), value, mp.nstr(truth, 9))


@pytest.mark.parametrize("types", PAIRS, ids=lambda types: f"{types[0].__name__} to {types[1].__name__}")
def test_one_parameter_at_an_end(types):
    several = list(sweeps(types, torch.float32, 1))
    rng = random.Random(zlib.crc32(str(types).encode()))
    for p, q in rng.sample(several, min(6, len(several))):
        assert_right(p, q, torch.float32)


@slow
@pytest.mark.parametrize("types", PAIRS, ids=lambda types: f"{types[0].__name__} to {types[1].__name__}")
def test_every_parameter_at_every_end(types):
    for p, q in sweeps(types, torch.float32, 1):
        assert_right(p, q, torch.float32)


def test_a_subnormal_scale_keeps_value_and_gradient():
    # a softplus of -90, 8e-40: the gradient is right while its factors are representable
    raw = torch.full((64, 4), -90.0, requires_grad=True)
    scale = torch.nn.functional.softplus(raw)
    q = Normal(torch.zeros(64, 4), scale)
    for posterior in (Independent(q, 1), DiagonalNormal(torch.zeros(64, 4), 2 * scale.log())):
        loss = ExactKLLoss()(posterior)
        assert loss.item() == pytest.approx(4 * 89.5, rel=1e-5)
        (gradient,) = torch.autograd.grad(loss, raw, retain_graph=True)
        torch.testing.assert_close(gradient, torch.full_like(raw, -1 / 64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("types", PAIRS, ids=lambda types: f"{types[0].__name__} to {types[1].__name__}")
def test_no_gradient_is_nan_where_the_value_is_finite(types):
    for p, q in sweeps(types, torch.float32, 1):
        of_p, _, leaves_p = with_leaves(p)
        of_q, _, leaves_q = with_leaves(q)
        value = kl_divergence(of_p, of_q)
        if value.isfinite() and value.requires_grad:
            found = torch.autograd.grad(value, leaves_p + leaves_q, allow_unused=True)
            assert not any(gradient is not None and gradient.isnan() for gradient in found), (stored(p), stored(q))


def test_gradients_in_the_concentration_of_a_gamma_far_from_p():
    for p, rate in (
        (D.Gamma(2.5, 1e-19), 1.5),
        (D.Exponential(1.5), 1e19),
        (D.HalfNormal(1e19), 1.5),
        (D.LogNormal(0.3, 1.5), 1e19),
    ):
        concentration = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
        q = D.Gamma(concentration, torch.tensor(rate, dtype=torch.float64))
        found = torch.autograd.grad(kl_divergence(p, q), concentration)[0].item()
        truth = true_gradients(p, D.Gamma(q.concentration.detach(), q.rate))["q", "concentration"]
        assert found == pytest.approx(float(truth), rel=1e-9)


def test_two_parameters_at_an_end():
    narrow = kl_divergence(D.LogNormal(-1e19, 1000.0), Normal(0.3, 1.5))
    assert narrow.item() == pytest.approx(1e19, rel=1e-5)
    far = torch.tensor(1e30)
    assert kl_divergence(D.Gumbel(far, 1.5), Normal(far, 1.5)).item() == pytest.approx(0.33077886, rel=1e-6)
