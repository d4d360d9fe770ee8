import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf
from torch.distributions import (
    AffineTransform,
    Beta,
    Categorical,
    Cauchy,
    Exponential,
    ExpTransform,
    Gamma,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    Independent,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    Normal,
    Pareto,
    PowerTransform,
    RelaxedBernoulli,
    SigmoidTransform,
    StudentT,
    TransformedDistribution,
    Uniform,
    VonMises,
    Weibull,
)

from kldiv import DiagonalNormal, kl_quadrature
from tests.marks import slow
from tests.quadrature.truths import doubles, integral, leaves, log_normal_density, relative_error, true_kl

# Closed forms


AT_DISTANCES = [
    (Beta, (0.1, 0.1)),
    (Beta, (2.5, 300.0)),
    (Cauchy, (1.0, 0.5)),
    (Exponential, (3.0,)),
    (Gamma, (0.05, 1.0)),
    (Gamma, (1e4, 20.0)),
    (Gumbel, (-1.0, 2.0)),
    (HalfNormal, (0.3,)),
    (InverseGamma, (0.3, 2.0)),
    (Laplace, (0.5, 1.5)),
    (LogNormal, (1.0, 3.0)),
    (Normal, (1.0, 0.7)),
    (VonMises, (3.1, 2.0)),
    (VonMises, (-0.5, 400.0)),
    (Weibull, (2.0, 0.6)),
    (Weibull, (0.1, 7.0)),
]


@pytest.mark.parametrize("distance", [1.0, 0.1, 1e-3, 1e-5])
@pytest.mark.parametrize(("family", "parameters"), AT_DISTANCES)
def test_families_against_sixty_digits_however_close(family, parameters, distance):
    p = doubles(*parameters)
    q = [value * (1 + distance * (1 if i else -0.4)) for i, value in enumerate(p)]
    value = kl_quadrature(family(*p), family(*q))
    assert value.dtype == torch.float64
    assert value.shape == ()
    assert relative_error(value, true_kl(family, *p, *q)) < 1e-8


@pytest.mark.parametrize("scale_p", [1e-6, 1e-2, 1.0, 1e6])
@pytest.mark.parametrize("scale_q", [1e-6, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("family", [Normal, Laplace, Cauchy])
def test_scales_from_a_millionth_to_a_million(family, scale_p, scale_q):
    parameters = doubles(0.3 * scale_p, scale_p, -0.7 * scale_q, scale_q)
    value = kl_quadrature(family(*parameters[:2]), family(*parameters[2:]))
    assert relative_error(value, true_kl(family, *parameters)) < 1e-9


@pytest.mark.parametrize(
    "parameters",
    [
        (1e4, 1e-3, 0.0, 1.0),
        (0.0, 1.0, 1e4, 1e-3),
        (1e4, 1e-3, 1e4 + 1e-3, 2e-3),
        (-1e6, 1e-3, 1e6, 10.0),
        (0.0, 1e-3, 1.0, 1e-3),
    ],
)
@pytest.mark.parametrize("family", [Normal, Laplace, Cauchy])
def test_narrow_densities_far_out(family, parameters):
    parameters = doubles(*parameters)
    value = kl_quadrature(family(*parameters[:2]), family(*parameters[2:]))
    assert relative_error(value, true_kl(family, *parameters)) < 1e-6


positive = st.floats(-2, 2).map(lambda x: 10.0**x)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.tuples(positive, positive, positive, positive), st.sampled_from([Beta, Gamma, InverseGamma, Weibull]))
def test_random_parameters_between_a_hundredth_and_a_hundred(parameters, family):
    a, b, c, d = parameters
    if family is Weibull:  # the divergence stays a number, and the tails are not too heavy
        b = max(b, 0.05)
        parameters = a, b, c, min(max(d, 0.05), 20 * b)
    if family is InverseGamma:
        parameters = max(a, 0.1), b, max(c, 0.1), d
    parameters = doubles(*parameters)
    value = kl_quadrature(family(*parameters[:2]), family(*parameters[2:]))
    assert value >= 0
    truth = true_kl(family, *parameters)
    assert abs(value.item() - truth) <= 1e-7 * truth + 1e-16


# Supports


def test_mass_of_q_outside_of_the_support_of_p_counts():
    half = Uniform(*doubles(0.0, 1.0))
    torch.testing.assert_close(kl_quadrature(half, Uniform(*doubles(0.0, 2.0))), torch.tensor(2.0).double().log())
    torch.testing.assert_close(kl_quadrature(half, Uniform(*doubles(-3.0, 7.0))), torch.tensor(10.0).double().log())
    # E_p[x^2] = 2 / rate^2
    p, q = Exponential(*doubles(2.0)), Normal(*doubles(0.0, 3.0))
    truth = math.log(2) - 1 + math.log(3 * math.sqrt(2 * math.pi)) + 0.5 / 18
    assert relative_error(kl_quadrature(p, q), truth) < 1e-12
    # a small support in the tail of q
    p, q = Uniform(*doubles(10.0, 10.5)), Normal(*doubles(0.0, 1.0))
    truth = math.log(2) + 0.5 * math.log(2 * math.pi) + (10.5**3 - 10**3) / 3
    assert relative_error(kl_quadrature(p, q), truth) < 1e-12
    p, q = Pareto(*doubles(2.0, 3.0)), HalfCauchy(*doubles(1.0))
    truth = integral(
        lambda x: mpmath.log(24) - 4 * mpmath.log(x), lambda x: mpmath.log(2 / mpmath.pi / (1 + x**2)), [2, 4, math.inf]
    )
    assert relative_error(kl_quadrature(p, q), truth) < 1e-10
    p, q = Beta(*doubles(0.5, 0.5)), Uniform(*doubles(-1.0, 1.0))
    torch.testing.assert_close(kl_quadrature(p, q), math.log(2) - p.entropy(), rtol=1e-9, atol=0)
    circle = Uniform(*doubles(-math.pi, math.pi))
    torch.testing.assert_close(
        kl_quadrature(circle, VonMises(*doubles(0.3, 2.0))), torch.special.i0(doubles(2.0)[0]).log(), rtol=1e-10, atol=0
    )
    p, q = VonMises(*doubles(3.0, 2.0)), Normal(*doubles(0.0, 1.0))
    truth = integral(
        lambda x: 2 * mpmath.cos(x - 3) - mpmath.log(2 * mpmath.pi * mpmath.besseli(0, 2)),
        log_normal_density(0, 1),
        [-math.pi, -2, 0, 2, math.pi],
    )
    assert relative_error(kl_quadrature(p, q), truth) < 1e-10


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (Uniform(0.0, 2.0), Uniform(0.0, 1.0)),
        (Uniform(0.0, 1.0 + 1e-6), Uniform(0.0, 1.0)),
        (Normal(0.0, 1.0), Exponential(1.0)),
        (Normal(1e3, 1.0), HalfNormal(1.0)),  # its mass below zero is too small for a number
        (Gamma(1.0, 1.0), Beta(1.0, 1.0)),
        (Pareto(1.0, 2.0), Pareto(2.0, 1.0)),
        (Normal(0.0, 1.0), VonMises(0.0, 1.0)),
        (
            Uniform(0.0, 3.0),
            MixtureSameFamily(Categorical(torch.ones(2)), Uniform(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0]))),
        ),
        (Cauchy(0.0, 1.0), Normal(0.0, 1.0)),
        (Cauchy(0.0, 1.0), Laplace(0.0, 1.0)),
        (Cauchy(0.0, 1e-6), Normal(1e3, 1e-3)),
        (StudentT(2.0), Normal(0.0, 1.0)),
        (HalfCauchy(1.0), Gamma(1.0, 1.0)),
        (Gamma(0.9, 1.0), InverseGamma(1.0, 1.0)),
        (
            TransformedDistribution(Gamma(0.5, 1.0), [AffineTransform(5.0, 2.0)]),
            TransformedDistribution(InverseGamma(1.0, 1.0), [AffineTransform(5.0, 2.0)]),
        ),
    ],
)
def test_infinite(p, q):
    assert kl_quadrature(p, q) == math.inf


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (Normal(0.0, 1e-6), Normal(0.0, 1e6)),
        (Normal(0.0, 1.0), Cauchy(0.0, 1.0)),
        (StudentT(3.0), Normal(0.0, 1e-3)),
        (Gamma(1.5, 1.0), InverseGamma(1.0, 1.0)),
        (InverseGamma(3.0, 1.0), Gamma(0.5, 1.0)),
        (LogNormal(0.0, 5.0), HalfCauchy(1.0)),
        (HalfCauchy(1.0), LogNormal(0.0, 1.0)),
        (Cauchy(0.0, 1.0), StudentT(0.1)),
        (Weibull(6.0, 8.5), Weibull(0.45, 0.027)),
        (Weibull(0.1, 0.05), Weibull(1.0, 1.0)),
        (Uniform(0.0, 1.0), Gamma(100.0, 1.0)),
    ],
)
def test_heavy_tails_and_steep_ends_that_stay_finite(p, q):
    assert 0 < kl_quadrature(p, q) < math.inf


def test_an_infinite_pair_leaves_the_gradients_of_the_others():
    scale, high = leaves([1.0, 1.0, 2.0], [1.0, 0.5, 4.0])
    value = kl_quadrature(Uniform(torch.zeros(3).double(), scale), Uniform(torch.zeros(3).double(), high * 1.5))
    torch.testing.assert_close(value, doubles([math.log(1.5), math.inf, math.log(3)])[0])
    value.sum().backward()
    torch.testing.assert_close(scale.grad, doubles([-1.0, 0.0, -0.5])[0])
    torch.testing.assert_close(high.grad, doubles([1.0, 0.0, 0.25])[0])
    loc, scale = leaves([0.0, 0.0], [1.0, 2.0])
    kl_quadrature(Cauchy(loc, scale), Normal(loc, scale)).sum().backward()
    assert (loc.grad == 0).all()
    assert (scale.grad == 0).all()


def test_transforms():
    # the divergence is invariant, whichever way the densities are written
    p, q = Gamma(*doubles(0.3, 1.0)), Weibull(*doubles(1.0, 0.7))
    plain = kl_quadrature(p, q)
    for transforms in (
        [AffineTransform(1.0, -2.0)],
        [PowerTransform(doubles(2.0)[0])],
        [ExpTransform().inv],
        [ExpTransform().inv, SigmoidTransform()],
    ):
        moved = kl_quadrature(TransformedDistribution(p, transforms), TransformedDistribution(q, transforms))
        torch.testing.assert_close(moved, plain, rtol=1e-6, atol=0)
    # torch calls this support real, and the density below 1 is then not zero
    shifted = TransformedDistribution(Exponential(*doubles(2.0)), [AffineTransform(*doubles(1.0, 3.0))])
    second_moment = 1 + 2 * 1.5 + 2 * 1.5**2
    truth = -math.log(1.5) - 1 + 0.5 * math.log(2 * math.pi) + second_moment / 2
    assert relative_error(kl_quadrature(shifted, Normal(*doubles(0.0, 1.0))), truth) < 1e-10
    assert kl_quadrature(Normal(*doubles(0.0, 1.0)), shifted) == math.inf


def test_mixtures_of_moving_supports():
    low, high = doubles([0.0, 2.0], [1.0, 4.0])
    p = MixtureSameFamily(Categorical(*doubles([0.25, 0.75])), Uniform(low, high))
    q = Uniform(*doubles(-1.0, 4.0))
    truth = 0.25 * math.log(0.25 * 5) + 0.75 * math.log(0.375 * 5)
    assert relative_error(kl_quadrature(p, q), truth) < 1e-12
    # below its scale torch's Pareto answers with what is no density
    p = MixtureSameFamily(Categorical(*doubles([0.5, 0.5])), Pareto(*doubles([1.0, 3.0], [2.0, 2.0])))
    both = lambda x: mpf(x) ** -3 * (1 if x < 3 else 10)  # noqa: E731
    log_q = lambda x: mpmath.log(2 / mpmath.pi / (1 + x**2))  # noqa: E731
    truth = integral(lambda x: mpmath.log(both(x)), log_q, [1, 2, 3]) + integral(
        lambda x: mpmath.log(both(x)), log_q, [3, 10, math.inf]
    )
    assert relative_error(kl_quadrature(p, HalfCauchy(*doubles(1.0))), truth) < 1e-9


# Gradients


@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-5])
def test_gradients_against_closed_forms(distance):
    parameters = leaves(0.5, 2.0, 0.5 + distance, 2.0 * (1 + distance))
    kl_quadrature(Normal(*parameters[:2]), Normal(*parameters[2:])).backward()
    with mpmath.workdps(60):
        m, s, mean, scale = (mpf(value.item()) for value in parameters)
        far = (m - mean) / scale**2
        truth = [far, s / scale**2 - 1 / s, -far, (scale**2 - s**2 - (m - mean) ** 2) / scale**3]
    for value, derivative in zip(parameters, truth, strict=True):
        assert relative_error(value.grad, derivative) < 1e-8


@pytest.mark.parametrize(
    ("p", "q", "parameters"),
    [
        (Normal, Normal, ([0.0, 1.0], [1.0, 1e-3], 0.3, 1.0)),
        (Laplace, Laplace, (0.1, 0.1, 0.2, 0.15)),
        (Gamma, Gamma, (0.05, 1.0, 0.1, 2.0)),
        (Beta, Beta, (0.1, 0.1, 0.2, 0.15)),
        (Cauchy, Cauchy, (0.0, 1.0, 2.0, 0.1)),
        (Kumaraswamy, Beta, (0.6, 2.0, 1.0, 0.5)),
        (VonMises, VonMises, (3.0, 1.0, -3.0, 0.5)),
        (Weibull, Gamma, (2.0, 1.0, 1.0, 0.5)),
        (Uniform, Uniform, (0.0, 1.0, -0.5, 2.0)),
        (Uniform, Normal, (0.0, 1.0, 0.0, 2.0)),
        (Pareto, Pareto, (2.0, 1.0, 1.0, 2.0)),
        (Gumbel, Gumbel, (0.0, 1.0, 1.0, 2.0)),
    ],
)
def test_gradcheck(p, q, parameters):
    assert torch.autograd.gradcheck(lambda a, b, c, d: kl_quadrature(p(a, b), q(c, d)), leaves(*parameters))


def test_gradcheck_of_mixtures_and_transforms():
    def of_mixture(logits, mean, scale, other):
        p = MixtureSameFamily(Categorical(logits=logits), Normal(mean, scale))
        return kl_quadrature(p, Normal(other, 3.0))

    assert torch.autograd.gradcheck(of_mixture, leaves([0.3, 0.7], [-1.0, 2.0], [0.3, 0.5], 0.0))

    def of_moving_ends(low, high, mean):  # the second low is the median of the first component
        p = MixtureSameFamily(Categorical(logits=torch.zeros(2).double()), Uniform(low, high))
        return kl_quadrature(p, Normal(mean, 3.0))

    assert torch.autograd.gradcheck(of_moving_ends, leaves([1.0, 1.5], [2.0, 4.0], 0.5))
    assert torch.autograd.gradcheck(of_moving_ends, leaves([1.0, 2.5], [2.0, 4.0], 0.5))  # nothing between 2 and 2.5

    def of_transform(rate, loc, scale, mean):
        return kl_quadrature(
            TransformedDistribution(Exponential(rate), [AffineTransform(loc, scale)]), Normal(mean, 3.0)
        )

    assert torch.autograd.gradcheck(of_transform, leaves(1.0, 1.0, -0.4, 0.5))
    assert torch.autograd.gradgradcheck(of_transform, leaves(1.0, 1.0, -0.4, 0.5))


def test_gradients_where_a_density_overflows_to_zero():
    # (x / scale)^50 is no number where q still has mass, nor is its derivative
    scale, concentration = leaves(1.0, 50.0)
    kl_quadrature(Weibull(scale, concentration), HalfCauchy(*doubles(1.0))).backward()
    assert concentration.grad.isfinite()
    step = 1e-4
    below, above = (
        kl_quadrature(Weibull(*doubles(1.0 + sign * step, 50.0)), HalfCauchy(*doubles(1.0))) for sign in (-1, 1)
    )
    torch.testing.assert_close(scale.grad, (above - below) / (2 * step), rtol=1e-6, atol=0)


def test_float32_gradients():
    mean, scale = torch.tensor([0.1, -2.0], requires_grad=True), torch.tensor([1.0, 0.01], requires_grad=True)
    kl_quadrature(Normal(mean, scale), Normal(0.0, 1.0)).sum().backward()
    assert mean.grad.dtype == torch.float32
    torch.testing.assert_close(mean.grad, mean.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(scale.grad, (scale - 1 / scale).detach(), rtol=1e-6, atol=1e-12)


def test_torch_func():
    def kl(mean, scale):
        return kl_quadrature(Normal(mean, scale, validate_args=False), Normal(0.0, 2.0))

    mean, scale = doubles([0.5, 1.0, -2.0], [1.0, 0.1, 3.0])
    truth = torch.distributions.kl_divergence(Normal(mean, scale), Normal(0.0, 2.0))
    torch.testing.assert_close(torch.func.vmap(kl)(mean, scale), truth)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(kl))(mean, scale), mean / 4)
    value, tangent = torch.func.jvp(kl, (mean, scale), (torch.ones_like(mean), torch.zeros_like(mean)))
    torch.testing.assert_close(value, truth)
    torch.testing.assert_close(tangent, mean / 4)
    hessian = torch.func.hessian(lambda mean: kl(mean, scale).sum())(mean)
    torch.testing.assert_close(hessian, torch.eye(3).double() / 4)


@slow
def test_compiled_equals_eager():
    def kl(concentration, rate):
        return kl_quadrature(Gamma(concentration, rate, validate_args=False), LogNormal(0.0, 1.0, validate_args=False))

    inputs = [leaves([0.5, 2.0], [1.0, 3.0]) for _ in range(2)]
    values = [torch.compile(kl, fullgraph=True, backend="aot_eager")(*inputs[0]), kl(*inputs[1])]
    for value in values:
        value.sum().backward()
    torch.testing.assert_close(*values)
    for compiled, eager in zip(*inputs, strict=True):
        torch.testing.assert_close(compiled.grad, eager.grad)


# Shapes and dtypes


def test_batches_broadcast_and_do_not_mix():
    generator = torch.Generator().manual_seed(0)
    mean = 10 * torch.randn(4, 1, 3, generator=generator, dtype=torch.float64)
    scale = 10 ** torch.randn(5, 1, generator=generator, dtype=torch.float64)
    value = kl_quadrature(Normal(mean, 1.0), Laplace(torch.zeros(5, 1).double(), scale))
    assert value.shape == (4, 5, 3)
    for i, j, k in [(0, 0, 0), (3, 4, 2), (1, 2, 0)]:
        one = kl_quadrature(Normal(mean[i, 0, k], doubles(1.0)[0]), Laplace(doubles(0.0)[0], scale[j, 0]))
        torch.testing.assert_close(value[i, j, k], one, rtol=1e-10, atol=0)
    mixture = MixtureSameFamily(Categorical(logits=torch.zeros(5, 1, 2)), Normal(torch.randn(5, 1, 2), 1.0))
    assert kl_quadrature(mixture, Normal(torch.zeros(3), 1.0)).shape == (5, 3)
    assert kl_quadrature(Normal(torch.zeros(0, 2), 1.0), Normal(0.0, 1.0)).shape == (0, 2)


@pytest.mark.parametrize(
    ("of_p", "of_q", "result"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float16, torch.float64, torch.float64),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_dtypes(of_p, of_q, result):
    p, q = Normal(*(x.to(of_p) for x in doubles(1.0, 1.0))), Normal(*(x.to(of_q) for x in doubles(1.0, 1.0078125)))
    value = kl_quadrature(p, q)
    assert value.dtype == result
    assert relative_error(value, true_kl(Normal, p.loc, p.scale, q.loc, q.scale)) < 1e-7
    assert p.loc.dtype == of_p  # the distributions are left as they are


@pytest.mark.parametrize("family", [Weibull, Beta, Gamma, InverseGamma, VonMises, LogNormal])
def test_float32_parameters_are_read_as_real_numbers(family):
    # 1e-5 apart: what is rounded to float32 on the way is lost
    parameters = [torch.tensor(x) for x in (0.7, 1.3, 0.70001, 1.30001)]
    value = kl_quadrature(family(*parameters[:2]), family(*parameters[2:]))
    assert relative_error(value, true_kl(family, *parameters)) < 1e-6


def test_float32_inside_of_mixtures_and_transforms():
    probs, loc, scale = torch.tensor([0.3, 0.7]), torch.tensor([-0.1, 0.2]), torch.tensor([0.3, 1.7])

    def build(dtype, probs, factor):
        mixture = MixtureSameFamily(Categorical(probs=probs.to(dtype)), Normal(loc.to(dtype), scale.to(dtype)))
        moves = [AffineTransform(loc[0].to(dtype), factor.to(dtype)), SigmoidTransform(), SigmoidTransform().inv]
        return TransformedDistribution(mixture, moves)

    value = kl_quadrature(*(build(torch.float32, probs, torch.tensor(x)) for x in (0.7, 0.70001)))
    normalised = (probs / probs.sum()).double()
    wide = kl_quadrature(*(build(torch.float64, normalised, torch.tensor(x)) for x in (0.7, 0.70001)))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), wide, rtol=1e-6, atol=0)


def test_what_was_rounded_from_the_parameters_is_not_used():
    p = MixtureSameFamily(Categorical(probs=torch.tensor([0.3, 0.7])), Normal(torch.tensor([0.0, 3.0]), 1.0))
    p.mixture_distribution.logits  # noqa: B018  # kept by the distribution, in float32
    wide = MixtureSameFamily(
        Categorical(probs=p.mixture_distribution.probs.double()), Normal(*doubles([0.0, 3.0], [1.0, 1.0]))
    )
    q = Normal(*doubles(0.0, 3.0))
    torch.testing.assert_close(kl_quadrature(p, q), kl_quadrature(wide, q), rtol=1e-13, atol=0)


def test_zero_at_equal_arguments():
    mixture = MixtureSameFamily(Categorical(torch.ones(3)), Normal(torch.tensor([-1.0, 0.0, 5.0]), 0.1))
    for d in (Normal(1.0, 2.0), Beta(0.1, 3.0), Cauchy(0.0, 1.0), Uniform(0.0, 1.0), VonMises(1.0, 3.0), mixture):
        assert kl_quadrature(d, d) == 0
    same = [
        (Exponential(*doubles(2.0)), Gamma(*doubles(1.0, 2.0))),
        (Exponential(*doubles(2.0)), Weibull(*doubles(0.5, 1.0))),
        (Uniform(*doubles(0.0, 1.0)), Beta(*doubles(1.0, 1.0))),
        (Normal(*doubles(1.0, 2.0)), DiagonalNormal(*doubles(1.0, 2 * math.log(2)), event_dim=0)),
        (Cauchy(*doubles(0.0, 1.0)), StudentT(*doubles(1.0))),
    ]
    for p, q in same:
        assert 0 <= kl_quadrature(p, q) < 1e-16


def test_the_global_generator_is_left_as_it_is():
    p, q = RelaxedBernoulli(torch.tensor(0.8), torch.tensor(0.3)), Beta(torch.tensor(0.5), torch.tensor(0.7))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first = kl_quadrature(p, q)  # its center is found by sampling
    assert (torch.rand(3) == expected).all()
    assert kl_quadrature(p, q) == first


def test_one_dimension_by_itself_may_be_wrapped():
    p, q = Normal(torch.tensor([0.0, 1.0]), 1.0), Normal(0.0, 2.0)
    torch.testing.assert_close(kl_quadrature(Independent(p, 0), q), kl_quadrature(p, q))
