"""Densities of which nothing is known, and what cannot be integrated: it raises, and no wrong number is given."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Poisson,
    StudentT,
    constraints,
)

from kldiv import DiagonalNormal, kl_quadrature
from kldiv.quadrature.integral import QuadratureError
from tests.quadrature.truths import doubles, relative_error, true_kl


class Density(Distribution):
    """A density of which nothing is known but what is given."""

    arg_constraints = {}
    support = constraints.real

    def __init__(self, log_prob, sample=None):
        super().__init__(validate_args=False)
        self.given = log_prob, sample

    def log_prob(self, value):
        return self.given[0](value)

    def sample(self, sample_shape=()):
        if self.given[1] is None:
            raise NotImplementedError
        return self.given[1](sample_shape)


def spiked(width):
    """Half of a standard normal and half of one at 3.21: not called a mixture."""
    return MixtureSameFamily(Categorical(torch.ones(2).double()), Normal(*doubles([0.0, 3.21], [1.0, width])))


def test_nothing_but_a_density_is_needed():
    normal = Normal(*doubles(0.3, 2.0))
    value = kl_quadrature(Density(normal.log_prob), Normal(*doubles(0.0, 1.0)))
    assert relative_error(value, true_kl(Normal, 0.3, 2.0, 0.0, 1.0)) < 1e-9


def test_draws_show_where_the_mass_is():
    p, q = spiked(1e-8), Normal(*doubles(0.0, 1.0))
    expected = kl_quadrature(p, q)
    torch.testing.assert_close(kl_quadrature(Density(p.log_prob, p.sample), q), expected, rtol=1e-8, atol=0)


def test_a_spike_that_is_not_found_raises():
    p, q = spiked(1e-8), Normal(*doubles(0.0, 1.0))
    with pytest.raises(QuadratureError, match=r"p integrates to 0\.5.*MonteCarloKLLoss"):
        kl_quadrature(Density(p.log_prob), q)
    with pytest.raises(ArithmeticError, match=r"q to 0\.5"):
        kl_quadrature(q, Density(p.log_prob))


def test_rules_that_disagree_raise():
    # p is one, and q is p but for ripples that no rule here can follow
    def log_ripples(x):
        return -0.5 * x * x - 0.5 * math.log(2 * math.pi) + torch.log1p(0.5 * torch.sin(1e5 * x))

    with pytest.raises(QuadratureError, match=r"15 points a panel gives \S+ and that of 7 \S+"):
        kl_quadrature(Normal(*doubles(0.0, 1.0)), Density(log_ripples))


def test_tails_beyond_the_numbers_raise():
    # E_p[x^2] is finite, but a part of it lies beyond 1e150
    with pytest.raises(QuadratureError, match=r"with 3\.\d+ beyond"):
        kl_quadrature(StudentT(*doubles(2.01)), Normal(*doubles(0.0, 1.0)))


def test_densities_that_are_none_raise():
    normal = Normal(*doubles(0.0, 1.0))
    with pytest.raises(QuadratureError, match=r"p integrates to 1\.0001"):
        kl_quadrature(Density(lambda x: normal.log_prob(x) + 1e-4), normal)
    nan = Normal(torch.tensor([0.0, math.nan]), 1.0, validate_args=False)
    with pytest.raises(QuadratureError, match=r"1 of 2 pairs, the first of batch index \(1,\)"):
        kl_quadrature(nan, normal)


@pytest.mark.parametrize("given", [torch.zeros(3), nn.Linear(1, 1), 0.5])
def test_what_is_no_distribution_raises(given):
    help_given = "a module: call it" if isinstance(given, nn.Module) else "Normal"
    with pytest.raises(TypeError, match=f"q is a {type(given).__name__}.*{help_given}"):
        kl_quadrature(Normal(0.0, 1.0), given)


@pytest.mark.parametrize(
    "given",
    [
        Poisson(1.0),
        Bernoulli(0.5),
        Categorical(torch.ones(3)),
        MixtureSameFamily(Categorical(torch.ones(2)), Poisson(torch.ones(2))),
    ],
)
def test_discrete_distributions_raise(given):
    with pytest.raises(ValueError, match=f"p is a discrete {type(given).__name__}.*kl_divergence"):
        kl_quadrature(given, Normal(0.0, 1.0))


@pytest.mark.parametrize(
    "given",
    [
        DiagonalNormal(torch.zeros(2, 3), torch.zeros(2, 3)),
        Independent(Normal(torch.zeros(2, 3), 1.0), 1),
        MultivariateNormal(torch.zeros(3), torch.eye(3)),
    ],
)
def test_more_than_one_dimension_raises(given):
    with pytest.raises(ValueError, match=r"event shape \(3,\).*event_dim=0"):
        kl_quadrature(given, given)


def test_shapes_that_do_not_broadcast_raise():
    with pytest.raises(ValueError, match=r"p.batch_shape \(2,\), q.batch_shape \(3,\)"):
        kl_quadrature(Normal(torch.zeros(2), 1.0), Normal(torch.zeros(3), 1.0))
