"""The closed forms against fifty digits: see tests/oracles/__init__.py."""

import copy
import itertools
import math
import random

import pytest
import torch
from mpmath import mp
from torch.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    ContinuousBernoulli,
    Dirichlet,
    Distribution,
    Exponential,
    Gamma,
    Geometric,
    Gumbel,
    HalfNormal,
    Independent,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    LogNormal,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Pareto,
    Poisson,
    TransformedDistribution,
    Uniform,
    Weibull,
    Wishart,
)
from torch.distributions import transforms as T  # noqa: N812

from kldiv import HypersphericalUniform, PowerSpherical, kl_divergence
from kldiv.exact.registry import CLOSED_FORMS
from tests.marks import sweep
from tests.oracles import CROSS, FAMILIES, stored, tolerance, true_gradients, true_kl

DTYPES = (torch.float32, torch.float64)
# one of the two is given by what the other's logarithm is
MIXED = [
    *(name for name in FAMILIES if "logits" in name),
    "Independent to DiagonalNormal",
    "DiagonalNormal to Independent",
]


def leaf_of(distribution, tensors):
    """A copy of the distribution, with leaves that want gradients in place of the stored tensors of these names."""
    new = copy.copy(distribution)
    for part in [name for name in ("_categorical", "base_dist", "_dirichlet", "_gamma") if name in new.__dict__]:
        new.__dict__[part] = leaf_of(new.__dict__[part], tensors)
    for name, value in list(new.__dict__.items()):
        if isinstance(value, torch.Tensor) and id(value) in tensors:
            new.__dict__[name] = tensors[id(value)]
    return new


def with_leaves(distribution):
    """(a distribution made of leaves that want gradients, their names, the leaves)."""
    family, parameters = stored(distribution)
    names = [name for name in parameters if name != "total_count"]
    if family in ("Bernoulli", "Binomial", "Categorical", "ContinuousBernoulli", "Geometric", "NegativeBinomial"):
        # not through the constructor, which may normalise once more
        (name,) = names
        leaf = getattr(distribution, name).detach().clone().requires_grad_()
        new = copy.copy(distribution)
        for other in ("logits", "probs"):
            new.__dict__.pop(other, None)
        new.__dict__[name] = new.__dict__["_param"] = leaf
        return new, names, [leaf]
    if family in ("OneHotCategorical", "Multinomial"):
        new = copy.copy(distribution)
        new._categorical, names, leaves = with_leaves(distribution._categorical)
        return new, names, leaves
    leaves = [getattr(distribution, name).detach().clone().requires_grad_() for name in names]
    options = {"event_dim": distribution.event_dim} if family == "DiagonalNormal" else {}
    return type(distribution)(**dict(zip(names, leaves, strict=True)), **options), names, leaves


def as_tensor(values):
    if isinstance(values, list):
        return torch.stack([as_tensor(value) for value in values])
    return torch.tensor(float(values), dtype=torch.float64)


def assert_right(p, q, kind, dtype, allowed=1.0):
    truth, value = true_kl(p, q), kl_divergence(p, q)
    assert value.dtype == dtype
    value = value.item()
    assert value >= 0
    if truth == mp.inf or truth > torch.finfo(dtype).max:
        assert value == math.inf
    elif truth > torch.finfo(dtype).tiny:  # below it the dtype itself has no digits
        assert abs(value - truth) <= allowed * tolerance(kind, dtype, p, q) * truth, (
            stored(p),
            stored(q),
            value,
            truth,
        )


def assert_gradients_right(p, q, rtol):
    of_p, names_p, leaves_p = with_leaves(p)
    of_q, names_q, leaves_q = with_leaves(q)
    value = kl_divergence(of_p, of_q)
    if not value.isfinite():
        return
    truths = true_gradients(p, q)
    gradients = torch.autograd.grad(value, leaves_p + leaves_q, allow_unused=True)
    keys = [("p", name) for name in names_p] + [("q", name) for name in names_q]
    for key, gradient, leaf in zip(keys, gradients, leaves_p + leaves_q, strict=True):
        truth = as_tensor(truths[key])
        scale = truth.abs().max()
        if scale < 1e-30 or not scale.isfinite() or scale > torch.finfo(leaf.dtype).max:
            continue
        gradient = torch.zeros_like(leaf) if gradient is None else gradient
        assert (gradient.double() - truth).abs().max() <= rtol * scale, (key, stored(p), stored(q), gradient, truth)


# Values and gradients over random parameters


@pytest.mark.parametrize("dtype", sweep(DTYPES, [torch.float64]))
@pytest.mark.parametrize("name", sweep(FAMILIES, set(FAMILIES) - {"Kumaraswamy to Beta"}))
def test_against_fifty_digits_however_close_the_two_are(name, dtype):
    rng = random.Random(0)
    draws = 2 if name == "Kumaraswamy to Beta" or FAMILIES[name].kind == "matrix" else 12
    for distance in (1.0, 1e-2, 1e-5):
        # a logarithm rounds off in float64 what the two may differ by
        allowed = max(1.0, 1e-2 / distance) if name in MIXED and dtype == torch.float64 else 1.0
        for _ in range(draws):
            assert_right(*FAMILIES[name].draw(rng, distance, dtype), FAMILIES[name].kind, dtype, allowed)


@pytest.mark.parametrize("dtype", sweep(DTYPES, [torch.float32]))
@pytest.mark.parametrize("types", CROSS, ids=" to ".join)
def test_pairs_of_two_families_against_fifty_digits(types, dtype):
    rng = random.Random(0)
    for _ in range(12):
        assert_right(*CROSS[types].draw(rng, dtype), CROSS[types].kind, dtype)


@pytest.mark.parametrize("distance", sweep([1.0, 1e-3, 1e-5], [1e-3]))
@pytest.mark.parametrize("name", [name for name in FAMILIES if "Kumaraswamy" not in name and "Independent" not in name])
def test_gradients_against_fifty_digits(name, distance):
    rng = random.Random(0)
    for _ in range(1 if FAMILIES[name].kind == "matrix" else 2):
        assert_gradients_right(*FAMILIES[name].draw(rng, distance, torch.float32), rtol=1e-4)


@pytest.mark.parametrize("types", sweep(CROSS, set(CROSS) - {("Uniform", "Beta")}), ids=" to ".join)
def test_gradients_of_two_families_against_fifty_digits(types):
    rng = random.Random(0)
    for _ in range(2):
        assert_gradients_right(*CROSS[types].draw(rng, torch.float32), rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_between_equals(name):
    p, _ = FAMILIES[name].draw(random.Random(1), 0.1, torch.float32)
    if name == "Kumaraswamy to Beta":
        p = Kumaraswamy(torch.tensor(2.5), torch.tensor(1.0))
        assert kl_divergence(p, Beta(torch.tensor(2.5), torch.tensor(1.0))).item() < 1e-28
    else:
        assert kl_divergence(p, p).item() == 0
        assert kl_divergence(p, copy.deepcopy(p)).item() == 0


def test_kumaraswamy_gradients():
    parameters = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.3, 0.4, 2.0, 0.7)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: kl_divergence(Kumaraswamy(a, b), Beta(c, d)), parameters)
    near = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.3, 1.01, 1.31, 1.0)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: kl_divergence(Kumaraswamy(a, b), Beta(c, d)), near)


@pytest.mark.parametrize(
    ("make_p", "make_q", "parameters"),
    [
        (Normal, Normal, (0.1, 1.2, 0.3, 0.8)),
        (Gamma, Gamma, (0.4, 1.2, 30.0, 0.8)),
        (Gamma, Laplace, (2.0, 1.5, 0.7, 0.4)),
        (Gumbel, Gumbel, (0.1, 1.2, 0.3, 0.8)),
        (Gumbel, Laplace, (0.1, 1.2, 0.3, 0.8)),
        (Weibull, Gamma, (0.9, 1.2, 1.1, 0.8)),
        (Gamma, Weibull, (0.9, 1.2, 1.1, 0.8)),
        (Beta, Beta, (0.4, 1.2, 3.0, 0.8)),
        (Laplace, Laplace, (0.1, 1.2, 0.3, 0.8)),
        (Cauchy, Cauchy, (0.1, 1.2, 0.3, 0.8)),
    ],
)
def test_second_derivatives(make_p, make_q, parameters):
    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in parameters]
    assert torch.autograd.gradgradcheck(lambda a, b, c, d: kl_divergence(make_p(a, b), make_q(c, d)), leaves)


def test_second_derivatives_of_full_covariances_where_they_are_equal():
    covariance = torch.eye(3, dtype=torch.float64) + 0.3
    q = MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance)

    def divergence(root):
        matrix = covariance + root + root.mT
        return kl_divergence(MultivariateNormal(q.loc, matrix, validate_args=False), q)

    zero = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(divergence, zero + 0.01)
    assert torch.autograd.gradgradcheck(divergence, zero)


# What torch gets wrong: the values are those of 50 digits


def f32(*values):
    return [torch.tensor(value) for value in values]


TORCH_FAILS = {
    "narrow Normal": (Normal(*f32(0.0, 1e-30)), Normal(*f32(0.0, 1.0))),
    "Normal to a narrow one": (Normal(*f32(0.0, 1.0)), Normal(*f32(0.0, 1e-30))),
    "Normals a little apart": (Normal(*f32(0.0, 1.0)), Normal(*f32(1e-4, 1.0))),
    "Categorical with a logit of -110": (
        Categorical(logits=torch.zeros(2)),
        Categorical(logits=torch.tensor([0, -110.0])),
    ),
    "Categorical of a tiny probability": (
        Categorical(probs=torch.tensor([0.5, 0.5])),
        Categorical(probs=torch.tensor([1, 1e-10])),
    ),
    "saturated Bernoulli": (Bernoulli(logits=torch.tensor(0.0)), Bernoulli(logits=torch.tensor(20.0))),
    "concentrated Gamma": (Gamma(*f32(1e6, 1.0)), Gamma(*f32(1.0001e6, 1.0))),
    "concentrated Beta": (Beta(*f32(1e6, 1e6)), Beta(*f32(1.0001e6, 1e6))),
    "concentrated Dirichlet": (Dirichlet(torch.full((5,), 1e4)), Dirichlet(torch.full((5,), 1.001e4))),
    "Poisson of rate 0": (Poisson(torch.tensor(0.0)), Poisson(torch.tensor(1.0))),
    "certain Binomial": (Binomial(10, torch.tensor(1.0)), Binomial(10, torch.tensor(0.5))),
    "Bernoulli to a rare one": (Bernoulli(torch.tensor(0.5)), Bernoulli(torch.tensor(1e-10))),
    "rare Geometric": (Geometric(torch.tensor(1e-6)), Geometric(torch.tensor(1.001e-6))),
    "ContinuousBernoulli to Uniform": (ContinuousBernoulli(torch.tensor(0.3)), Uniform(*f32(0.0, 1.0))),
    "Uniform to ContinuousBernoulli": (Uniform(*f32(0.0, 1.0)), ContinuousBernoulli(torch.tensor(0.3))),
    "Exponential far apart": (Exponential(torch.tensor(1e30)), Exponential(torch.tensor(1e-30))),
    "Exponential out of range": (Exponential(torch.tensor(1e-30)), Exponential(torch.tensor(1e30))),
    "wide Cauchy": (Cauchy(*f32(0.0, 1e25)), Cauchy(*f32(0.0, 2e25))),
    "LowRankMultivariateNormal of a small diagonal": (
        LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1), torch.full((3,), 1e-6)),
        LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1), torch.full((3,), 1.1e-6)),
    ),
}


@pytest.mark.parametrize("name", TORCH_FAILS)
def test_where_torch_fails(name):
    p, q = TORCH_FAILS[name]
    kind = "matrix" if "LowRank" in name else "special"
    assert_right(p, q, kind, torch.float32, allowed=0.1)
    # of covariances whose condition number is 3e6 for the low-rank pair
    assert_gradients_right(p, q, rtol=1e-3 if "LowRank" in name else 1e-5)
    theirs = torch.distributions.kl_divergence(p, q)
    assert not torch.isclose(theirs, kl_divergence(p, q), rtol=1e-4, atol=0)


def test_equals_where_torch_fails():
    for p in (Cauchy(*f32(0.0, 1e25)), Geometric(torch.tensor(1e-6))):
        assert kl_divergence(p, p).item() == 0
        assert torch.distributions.kl_divergence(p, p).item() != 0


def test_infinite_elements_of_a_broadcast_batch_stay_in_their_places():
    p, q = Bernoulli(torch.tensor([[0.5, 0.0], [1.0, 0.0]])), Bernoulli(torch.tensor([0.0, 0.5]))
    assert kl_divergence(p, q).tolist() == [
        [math.inf, pytest.approx(math.log(2))],
        [math.inf, pytest.approx(math.log(2))],
    ]


def test_half_precision_scales_that_overflow():
    wide = Normal(torch.tensor(0.0).half(), torch.tensor(300.0).half())
    value = kl_divergence(wide, Normal(torch.tensor(0.0).half(), torch.tensor(1.0).half()))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx((300.0**2 - 1) / 2 - math.log(300), rel=1e-6)


def test_gradients_at_logits_of_minus_infinity_and_at_zero_probabilities():
    logits = torch.tensor([[-torch.inf, 0.0, 1.0]], requires_grad=True)
    other = torch.tensor([[0.5, 1.0, 1.0]], requires_grad=True)
    for left, right in ((logits, other), (logits, logits.detach().roll(0))):
        gradient = torch.autograd.grad(kl_divergence(Categorical(logits=left), Categorical(logits=right)).sum(), left)[
            0
        ]
        assert gradient.isfinite().all()
    probs = torch.tensor([0.0, 0.3, 0.7], requires_grad=True)
    value = kl_divergence(Categorical(probs=probs), Categorical(probs=torch.tensor([0.2, 0.3, 0.5])))
    assert torch.autograd.grad(value, probs)[0].isfinite().all()
    rate = torch.tensor([0.0, 1.0], requires_grad=True)
    value = kl_divergence(Poisson(torch.tensor([0.0, 0.0])), Poisson(rate))
    assert value.tolist() == [0.0, 1.0]
    assert torch.autograd.grad(value.sum(), rate)[0].tolist() == [1.0, 1.0]


def test_certain_outcomes():
    certain = torch.tensor([0.0, 1.0, 0.0, 1.0])
    p, q = Bernoulli(certain), Bernoulli(torch.tensor([0.0, 1.0, 1.0, 0.5]))
    assert kl_divergence(p, q).tolist() == pytest.approx([0, 0, math.inf, math.log(2)])
    p, q = (Bernoulli(logits=torch.logit(d.probs)) for d in (p, q))
    assert kl_divergence(p, q).tolist() == pytest.approx([0, 0, math.inf, math.log(2)])
    one_hot = OneHotCategorical(probs=torch.eye(3))
    assert kl_divergence(one_hot, OneHotCategorical(torch.tensor([0.5, 0.5, 0.0]))).tolist() == pytest.approx(
        [math.log(2), math.log(2), math.inf]
    )
    nobody = Binomial(0, torch.tensor(0.3))
    assert kl_divergence(nobody, Binomial(0, torch.tensor(1.0))).item() == 0
    sure = Geometric(torch.tensor(1.0))
    assert kl_divergence(sure, Geometric(torch.tensor(0.25))).item() == pytest.approx(math.log(4))
    assert kl_divergence(Poisson(torch.tensor([0.0, 2.0])), Binomial(3, torch.tensor(0.5))).tolist() == pytest.approx(
        [3 * math.log(2), math.inf]
    )


EXTREMES = {torch.float32: (1e-38, 1e-20, 1.0, 1e20, 3e38), torch.float64: (1e-120, 1e-60, 1.0, 1e60, 1e120)}
POSITIVE = (Exponential, Gamma, InverseGamma, Beta, Weibull, Pareto, HalfNormal, Poisson)
LOCATED = (Normal, Laplace, Gumbel, Cauchy)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "types", [t for t in CLOSED_FORMS if all(kind in POSITIVE + LOCATED for kind in t)], ids=lambda t: str(t)
)
def test_never_nan_and_never_negative_at_the_ends_of_the_range(types, dtype):
    def extreme(kind, shape):
        numbers = EXTREMES[dtype]
        located = [(0.0, 1.0, -numbers[-1])] if kind in LOCATED else []
        several = len(kind.arg_constraints) - len(located)
        values = zip(*itertools.product(*located, *[numbers] * several), strict=True)
        return kind(*(torch.tensor(v, dtype=dtype).reshape(shape) for v in values), validate_args=False)

    value = kl_divergence(extreme(types[0], (-1, 1)), extreme(types[1], (-1,)))
    assert (value >= 0).all()


# Covariances


def test_a_covariance_is_used_as_it_was_given_and_after_it_was_looked_at():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=generator)
    covariance = root @ root.mT + 1e-3 * torch.eye(4)
    p, q = (MultivariateNormal(torch.zeros(4), covariance * scale) for scale in (1.0, 1.0 + 1e-4))
    before = kl_divergence(p, q)
    assert before.item() == pytest.approx(float(true_kl(p, q)), rel=1e-4)
    _ = p.scale_tril, p.precision_matrix, q.precision_matrix
    assert kl_divergence(p, q).item() == before.item()


@pytest.mark.parametrize("name", ["covariance_matrix", "precision_matrix"])
def test_covariances_closer_than_a_cholesky_factor_of_their_ratio_can_tell(name):
    matrix = torch.tensor([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 1.5]], dtype=torch.float64)
    change = torch.tensor([[1.0, 0.5, -0.3], [0.5, -1.0, 0.2], [-0.3, 0.2, 0.7]], dtype=torch.float64)
    mean = torch.zeros(3, dtype=torch.float64)
    p, q = (MultivariateNormal(mean, **{name: matrix + change * step}) for step in (1e-9, 0.0))
    truth = true_kl(p, q)
    assert abs(kl_divergence(p, q).item() - truth) <= 1e-11 * truth


# Transforms, supports and what raises


def test_the_same_injective_transform():
    def flow(loc, scale):
        return TransformedDistribution(Normal(loc, scale), [T.SigmoidTransform(), T.AffineTransform(1.0, 3.0)])

    p, q = flow(torch.zeros(3), 1.0), flow(torch.ones(3), 2.0)
    expected = kl_divergence(Normal(torch.zeros(3), 1.0), Normal(torch.ones(3), 2.0))
    torch.testing.assert_close(kl_divergence(p, q), expected)
    folded = TransformedDistribution(Normal(torch.zeros(3), 1.0), [T.AbsTransform()])
    with pytest.raises(NotImplementedError, match="not both invertible"):
        kl_divergence(folded, folded)
    simplex = [
        TransformedDistribution(Independent(Normal(torch.zeros(4), s), 1), T.StickBreakingTransform())
        for s in (1.0, 2.0)
    ]
    expected = kl_divergence(*(Independent(Normal(torch.zeros(4), s), 1) for s in (1.0, 2.0)))
    torch.testing.assert_close(kl_divergence(*simplex), expected)


def test_categories_and_one_hot_vectors_of_unequal_number():
    with pytest.raises(ValueError, match="3 categories and q 2"):
        kl_divergence(Categorical(torch.ones(3)), Categorical(torch.ones(2)))


def test_a_binomial_of_fewer_trials_has_no_mass_where_p_has():
    p, q = Binomial(torch.tensor([5.0, 5.0]), torch.tensor([0.3, 0.0])), Binomial(4, torch.tensor(0.2))
    assert kl_divergence(p, q).tolist() == pytest.approx([math.inf, -4 * math.log(0.8)])


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (InverseGamma(*f32(3.0, 2.0)), InverseGamma(*f32(2.0, 1.0))),
        (InverseGamma(*f32(3.0, 2.0)), LogNormal(*f32(0.2, 1.0))),
        (LogNormal(*f32(0.1, 0.8)), InverseGamma(*f32(2.0, 1.0))),
        (LogNormal(*f32(0.1, 0.8)), Weibull(*f32(2.0, 1.3))),
        (LogNormal(*f32(0.1, 0.8)), Normal(*f32(1.0, 2.0))),
        (Weibull(*f32(1.2, 1.5)), LogNormal(*f32(0.1, 0.8))),
        (HalfNormal(torch.tensor(0.7)), Weibull(*f32(1.2, 1.5))),
        (Laplace(*f32(0.1, 0.4)), Gumbel(*f32(0.3, 1.0))),
        (Uniform(*f32(0.5, 2.0)), Gamma(*f32(2.0, 1.0))),
    ],
)
def test_what_is_beyond_the_oracle_against_the_integral(p, q):
    assert_right(p, q, "special", torch.float32)


@pytest.mark.parametrize("dim", [2, 3, 20])
@pytest.mark.parametrize("concentration", [0.0, 1e-4, 1.0, 300.0])
def test_power_spherical_to_the_uniform_sphere(dim, concentration):
    loc = torch.nn.functional.one_hot(torch.tensor(0), dim).double()
    kappa = torch.tensor(concentration, dtype=torch.float64, requires_grad=True)
    p, q = PowerSpherical(loc, kappa), HypersphericalUniform(dim, dtype=torch.float64)
    value = kl_divergence(p, q)
    torch.testing.assert_close(value, q.entropy() - p.entropy(), rtol=1e-9, atol=1e-14)
    if concentration:
        assert value.item() == pytest.approx(
            float(
                true_kl(
                    *(
                        Beta(b, torch.tensor(0.5 * (dim - 1)).double())
                        for b in (0.5 * (dim - 1) + kappa.detach(), torch.tensor(0.5 * (dim - 1)).double())
                    )
                )
            ),
            rel=1e-9,
        )
        assert torch.autograd.gradcheck(lambda k: kl_divergence(PowerSpherical(loc, k), q), kappa)
    assert torch.distributions.kl_divergence(p, q).item() == value.item()


def test_invalid_parameters_raise_what_torch_raises():
    with pytest.raises(ValueError, match="Expected parameter"):
        kl_divergence(Gamma(torch.tensor(-1.0), 1.0, validate_args=True), Gamma(1.0, 1.0))


def test_unequal_wisharts_of_another_size():
    p, q = (Wishart(torch.tensor(5.0), torch.eye(d)) for d in (2, 3))
    with pytest.raises(ValueError, match="event shape"):
        kl_divergence(p, q)


def test_distributions_are_left_as_they_are():
    p, q = Bernoulli(torch.tensor([0.3])), Pareto(torch.tensor([1.0]), torch.tensor([2.0]))
    before = [dict(d.__dict__) for d in (p, q)]
    kl_divergence(p, Bernoulli(torch.tensor([0.4])))
    kl_divergence(q, q)
    assert [list(d.__dict__) for d in (p, q)] == [list(b) for b in before]
    assert isinstance(p, Distribution)
