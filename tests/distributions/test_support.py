import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Beta,
    Exponential,
    Gamma,
    Gumbel,
    HalfNormal,
    Independent,
    Kumaraswamy,
    LogNormal,
    Normal,
    Pareto,
    Poisson,
    TransformedDistribution,
    Uniform,
    VonMises,
    Weibull,
)

from kldiv import DiagonalNormal, MonteCarloKLLoss, estimate_kl
from kldiv.distributions.precision import can_be_copied
from kldiv.distributions.support import has_moving_support
from tests.seeds import seeded


@pytest.mark.parametrize("gradient", ["sticking_the_landing", "adaptive", "score"])
def test_a_support_that_moves_is_refused_where_the_score_is_needed(gradient):
    end = torch.tensor(3.0, requires_grad=True)
    for p in (
        Uniform(0.0, end),
        Pareto(end, 5.0),
        TransformedDistribution(Exponential(torch.tensor(1.0)), AffineTransform(end, 2.0)),
    ):
        with pytest.raises(
            ValueError, match=rf"support of {type(p).__name__} moves.*'{gradient}'.*'pathwise' would do"
        ):
            estimate_kl(p, Exponential(1.0), gradient=gradient)
        with pytest.raises(ValueError, match="moves"):
            MonteCarloKLLoss(4, gradient=gradient)(Independent(p.expand((2, 2)), 1), Exponential(1.0))
        with torch.no_grad():
            estimate_kl(p, Exponential(1.0), gradient=gradient)
    wide = torch.full((20_000,), 3.0, requires_grad=True)
    value = estimate_kl(Uniform(0.0, wide), Exponential(1.0), 8, generator=seeded()).value
    (found,) = torch.autograd.grad(value.sum(), wide)
    assert found.mean().item() == pytest.approx(1 / 2 - 1 / 3, abs=0.01)


def test_supports_that_stay():
    a = torch.tensor([0.7, 1.8], requires_grad=True)
    for p in (
        Normal(a, a), Exponential(a), Gamma(a, a), Beta(a, a), LogNormal(a, a), HalfNormal(a), Gumbel(a, a),
        Weibull(a, a), Kumaraswamy(a, a), VonMises(a, a), Poisson(a), Bernoulli(logits=a), DiagonalNormal(a, a),
    ):  # fmt: skip
        assert not has_moving_support(p, can_be_copied(p))
