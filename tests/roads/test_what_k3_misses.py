"""k3 has the mean of the divergence less the mass of q where p has none: it is added, or k3 is refused."""

import math

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    ContinuousBernoulli,
    Dirichlet,
    Exponential,
    ExpTransform,
    Gamma,
    Geometric,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    Independent,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Pareto,
    Poisson,
    StudentT,
    TransformedDistribution,
    Uniform,
    Weibull,
)

from kldiv import DiagonalNormal, MonteCarloKLLoss, estimate_kl, kl_divergence

N = 2000


def full(value):
    return torch.full((N,), value, dtype=torch.float64)


CONTINUOUS = [
    (HalfNormal(full(1.0)), Normal(0.0, 1.0)),
    (HalfNormal(full(1.0)), Normal(0.3, 2.0)),
    (HalfNormal(full(1.0)), Laplace(-0.5, 1.5)),
    (Exponential(full(1.0)), Normal(0.0, 2.0)),
    (Exponential(full(1.0)), Gumbel(0.0, 2.0)),
    (Exponential(full(1.0)), Exponential(0.9)),
    (Uniform(full(0.0), 1.0), Normal(0.0, 1.0)),
    (Uniform(full(0.0), 1.0), Uniform(-1.0, 3.0)),
    (Uniform(full(-1.0), 1.0), Laplace(0.0, 1.0)),
    (Uniform(full(0.5), 1.0), Exponential(1.0)),
    (Uniform(full(1.0), 2.0), LogNormal(0.0, 1.0)),
    (Uniform(full(1.0), 2.0), Gamma(2.0, 1.0)),
    (Beta(full(2.0), 2.0), Uniform(-1.0, 1.0)),
    (Beta(full(2.0), 3.0), HalfNormal(1.0)),
    (Pareto(full(1.0), 3.0), Exponential(1.0)),
    (ContinuousBernoulli(full(0.3)), Exponential(1.0)),
    (Normal(full(0.5), 1.0), Normal(0.0, 1.0)),
    (Gamma(full(2.0), 1.0), Exponential(1.0)),
]
DISCRETE = [
    (Bernoulli(full(0.3)), Poisson(torch.tensor(0.7).double())),
    (Bernoulli(full(1.0)), Bernoulli(torch.tensor(0.4).double())),
    (Binomial(4, full(0.5)), Poisson(torch.tensor(2.0).double())),
    (Poisson(full(2.0)), Geometric(torch.tensor(0.3).double())),
    (Categorical(torch.tensor([0.0, 0.4, 0.6]).double().expand(N, 3)), Categorical(torch.ones(3).double())),
    (OneHotCategorical(torch.tensor([0.0, 0.4, 0.6]).double().expand(N, 3)), OneHotCategorical(torch.ones(3).double())),
]


@pytest.mark.parametrize(("p", "q"), [*CONTINUOUS, *DISCRETE], ids=lambda d: type(d).__name__)
def test_the_mean_of_k3_is_the_divergence(p, q):
    """Against the closed form, or k1 where there is none, within 5 of its standard errors."""
    torch.manual_seed(0)
    value = estimate_kl(p, q, 64, value="k3").value
    spread = value.std() / N**0.5
    try:
        truth = kl_divergence(p, q)[0]
    except NotImplementedError:
        of_k1 = estimate_kl(p, q, 64).value
        truth, spread = of_k1.mean(), torch.hypot(spread, of_k1.std() / N**0.5)
    assert abs(value.mean() - truth) < 5 * spread + 1e-9
    assert (value >= 0).all()
    by_term = MonteCarloKLLoss(64, value="k3", gradient="score")(p, q)
    assert abs(by_term - truth) < 6 * spread + 1e-9


def test_half_a_normal():
    value = estimate_kl(HalfNormal(torch.tensor(1.0)), Normal(0.0, 1.0), 20_000, value="k3").value
    assert value.item() == pytest.approx(math.log(2), abs=1e-6)


def test_dimensions_and_events():
    p = Independent(HalfNormal(torch.ones(4, 3)), 1)
    for q in (Independent(Normal(torch.zeros(3), 1.0), 1), DiagonalNormal(torch.zeros(3), torch.zeros(3))):
        assert estimate_kl(p, q, value="k3").value.tolist() == pytest.approx([3 * math.log(2)] * 4, rel=1e-5)
        value = MonteCarloKLLoss(2, value="k3").per_dimension(p, q)
        torch.testing.assert_close(value, torch.full((4, 3), math.log(2)))
    # as one event: 1 - 1/8 of the prior's mass is elsewhere
    joint = TransformedDistribution(DiagonalNormal(torch.zeros(4, 3), torch.zeros(4, 3)), [ExpTransform()])
    q = DiagonalNormal(torch.zeros(3), torch.zeros(3))
    k1, error = estimate_kl(joint, q, 4000)
    k3, other = estimate_kl(joint, q, 4000, value="k3")
    assert ((k1 - k3).abs() < 5 * torch.hypot(error, other)).all()


def test_it_is_refused_where_the_mass_is_not_known():
    two = torch.full((4, 2), 2.0)
    for p, q in (
        (HalfNormal(two), StudentT(3.0)),
        (Independent(Weibull(two, 1.0), 1), MultivariateNormal(torch.zeros(2), torch.eye(2))),
        (Independent(HalfCauchy(two), 1), MultivariateNormal(torch.zeros(2), torch.eye(2))),
    ):
        for call in (estimate_kl, MonteCarloKLLoss(4)):
            call(p, q)
        with pytest.raises(ValueError, match=rf"'k3' misses the mass of {type(q).__name__}.*value='k1' would do"):
            MonteCarloKLLoss(4, value="k3")(p, q)
    for p, q in ((Dirichlet(two), Dirichlet(two)), (StudentT(two), Cauchy(0.0, 1.0)), (Beta(two, two), Beta(two, 1.0))):
        assert MonteCarloKLLoss(4, value="k3")(p, q).isfinite()
