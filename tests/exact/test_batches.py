"""The closed forms of batches: shapes that broadcast, empty ones, and half precision."""

import itertools
import random

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    ContinuousBernoulli,
    Gamma,
    Gumbel,
    HalfNormal,
    Laplace,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    Poisson,
    Uniform,
    Weibull,
)

from kldiv import kl_divergence
from kldiv.exact.registry import CLOSED_FORMS
from kldiv.exact.two_families import infinite
from tests.oracles import CROSS, FAMILIES, stored


def batched(draws, *shape):
    """One distribution of that batch shape of as many unbatched ones."""
    values = {name: [getattr(d, name) for d in draws] for name in stored(draws[0])[1]}
    parameters = {}
    for name, several in values.items():
        if isinstance(several[0], int):  # a Multinomial's total_count
            parameters[name] = several[0]
        else:
            parameters[name] = torch.stack(several).reshape(*shape, *several[0].shape)
    return type(draws[0])(**parameters)


def alike(distribution):
    """What distributions must have in common to be stacked."""
    parameters = stored(distribution)[1]
    return str([(name, getattr(getattr(distribution, name), "shape", ())) for name in parameters])


# pairs of which any two have one shape, and equal counts where those must be equal
BATCHED = [
    name
    for name in FAMILIES
    if not any(
        part in name for part in ("Normal to", "Independent", "Wishart", "more trials", "Multinomial", "Negative")
    )
]


@pytest.mark.parametrize("name", [*BATCHED, *CROSS], ids=str)
def test_broadcasts_as_its_elements_would(name):
    rng = random.Random(5)
    pair, distance = (FAMILIES[name], (0.5,)) if isinstance(name, str) else (CROSS[name], ())
    groups = {}
    while not any(len(group) == 5 for group in groups.values()):
        p, q = pair.draw(rng, *distance, torch.float32)
        groups.setdefault(alike(p) + alike(q), []).append((p, q))
    chosen = next(group for group in groups.values() if len(group) == 5)
    left, right = [p for p, _ in chosen[:2]], [q for _, q in chosen[2:]]
    value = kl_divergence(batched(left, 2, 1), batched(right, 3))
    assert value.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        torch.testing.assert_close(value[i, j], kl_divergence(left[i], right[j]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("types", [t for t, form in CLOSED_FORMS.items() if form is infinite], ids=str)
def test_infinite_pairs_have_the_broadcast_shape(types):
    def make(kind, *shape):
        if kind is Uniform:
            return Uniform(torch.zeros(shape), torch.ones(shape))
        return kind(
            *(torch.ones(shape) for _ in kind.arg_constraints if kind is not ContinuousBernoulli or _ == "probs")
        )

    p, q = (make(kind, *shape) for kind, shape in zip(types, ((2, 1), (3,)), strict=True))
    value = kl_divergence(p, q)
    assert value.shape == (2, 3)
    assert value.dtype == torch.float32
    assert (value == torch.inf).all()


def test_full_covariances_broadcast():
    rng = random.Random(0)
    factor = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    covariance = factor @ factor.mT + torch.eye(4)
    p = MultivariateNormal(torch.randn(2, 4), torch.eye(4) * rng.uniform(0.5, 2))
    for q in (
        MultivariateNormal(torch.zeros(4), covariance),
        MultivariateNormal(torch.zeros(4), precision_matrix=covariance),
        LowRankMultivariateNormal(torch.zeros(4), torch.randn(3, 1, 4, 2), torch.ones(4)),
    ):
        value = kl_divergence(p, q)
        assert value.shape == (3, 2)
        for i, j in itertools.product(range(3), range(2)):
            one = {"loc": q.loc[0, 0], "covariance_matrix": q.covariance_matrix[i, 0]}
            if "precision_matrix" in q.__dict__:
                one = {"loc": q.loc[0, 0], "precision_matrix": q.precision_matrix[i, 0]}
            alone = kl_divergence(MultivariateNormal(p.loc[j], p.covariance_matrix[j]), MultivariateNormal(**one))
            torch.testing.assert_close(value[i, j], alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Normal, (0.3, 1.2)),
        (Gamma, (2.0, 1.5)),
        (Beta, (2.0, 0.7)),
        (Laplace, (0.3, 1.2)),
        (Gumbel, (0.3, 1.2)),
        (Bernoulli, (0.3,)),
        (Poisson, (0.3,)),
        (HalfNormal, (0.3,)),
        (Weibull, (0.3, 1.2)),
    ],
)
def test_half_precision_is_that_of_its_float32_numbers(kind, values, dtype):
    p, q = ([torch.tensor(v * factor).to(dtype) for v in values] for factor in (1.0, 1.1))
    value = kl_divergence(kind(*p), kind(*q))
    assert value.dtype == torch.float32
    wide = kl_divergence(kind(*(v.float() for v in p)), kind(*(v.float() for v in q)))
    torch.testing.assert_close(value, wide, rtol=1e-6, atol=0)


def test_empty_batches():
    assert kl_divergence(Gamma(torch.ones(0), torch.ones(0)), Gamma(torch.ones(0), 1.0)).shape == (0,)
    empty = MultivariateNormal(torch.zeros(0, 2), torch.eye(2), validate_args=False)
    assert kl_divergence(empty, MultivariateNormal(torch.zeros(2), torch.eye(2))).shape == (0,)
    assert kl_divergence(Binomial(torch.ones(0), torch.ones(0)), Binomial(torch.ones(0), torch.ones(0))).shape == (0,)
