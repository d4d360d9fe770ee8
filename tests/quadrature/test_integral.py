import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf
from torch import nn
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Beta,
    Categorical,
    Cauchy,
    Chi2,
    ContinuousBernoulli,
    Distribution,
    Exponential,
    ExpTransform,
    FisherSnedecor,
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
    MultivariateNormal,
    Normal,
    Pareto,
    Poisson,
    PowerTransform,
    RelaxedBernoulli,
    SigmoidTransform,
    StudentT,
    TransformedDistribution,
    Uniform,
    VonMises,
    Weibull,
    constraints,
)

from kldiv import DiagonalNormal, kl_quadrature
from kldiv.quadrature.integral import QuadratureError
from tests.marks import slow, sweep


def doubles(*values):
    return [torch.as_tensor(value, dtype=torch.float64) for value in values]


def leaves(*values):
    return [value.clone().requires_grad_() for value in doubles(*values)]


def relative_error(value, truth):
    return abs(value.item() - truth) / abs(truth)


# -- closed forms, of the parameters as mpmath numbers -----------------------------------------------------------------


def true_kl_normal(m, s, mean, scale):
    ratio = (s / scale) ** 2
    return (ratio - 1 - mpmath.log(ratio) + ((m - mean) / scale) ** 2) / 2


def true_kl_laplace(m, b, loc, scale):
    distance = abs(m - loc)
    return mpmath.log(scale / b) + distance / scale + b / scale * mpmath.exp(-distance / b) - 1


def true_kl_cauchy(m, s, loc, scale):
    return mpmath.log(((s + scale) ** 2 + (m - loc) ** 2) / (4 * s * scale))


def true_kl_gumbel(m, b, loc, scale):
    power = mpmath.exp((loc - m) / scale) * mpmath.gamma(b / scale + 1)
    return mpmath.log(scale / b) + mpmath.euler * (b / scale - 1) + power - 1 + (m - loc) / scale


def true_kl_gamma(a, r, shape, rate):
    logs = mpmath.loggamma(shape) - mpmath.loggamma(a) + shape * mpmath.log(r / rate)
    return (a - shape) * mpmath.digamma(a) + logs + a * (rate - r) / r


def true_kl_beta(a, b, shape1, shape0):
    log_beta = sum(map(mpmath.loggamma, (shape1, shape0, a + b))) - sum(map(mpmath.loggamma, (a, b, shape1 + shape0)))
    digammas = (a - shape1) * mpmath.digamma(a) + (b - shape0) * mpmath.digamma(b)
    return log_beta + digammas + (shape1 - a + shape0 - b) * mpmath.digamma(a + b)


def true_kl_weibull(s, k, scale, shape):
    logs = mpmath.log(k / s**k) - mpmath.log(shape / scale**shape) + (k - shape) * (mpmath.log(s) - mpmath.euler / k)
    return logs + (s / scale) ** shape * mpmath.gamma(shape / k + 1) - 1


def true_kl_von_mises(m, k, loc, kappa):
    resultant = mpmath.besseli(1, k) / mpmath.besseli(0, k)
    logs = mpmath.log(mpmath.besseli(0, kappa) / mpmath.besseli(0, k))
    return logs + resultant * (k - kappa * mpmath.cos(m - loc))


def true_kl_exponential(r, rate):
    return mpmath.log(r / rate) + rate / r - 1


def true_kl_half_normal(s, scale):
    return true_kl_normal(0, s, 0, scale)


TRUE_KL = {
    Beta: true_kl_beta,
    Cauchy: true_kl_cauchy,
    Exponential: true_kl_exponential,
    Gamma: true_kl_gamma,
    Gumbel: true_kl_gumbel,
    HalfNormal: true_kl_half_normal,
    InverseGamma: true_kl_gamma,
    Laplace: true_kl_laplace,
    LogNormal: true_kl_normal,
    Normal: true_kl_normal,
    VonMises: true_kl_von_mises,
    Weibull: true_kl_weibull,
}


def true_kl(family, *parameters):
    with mpmath.workdps(60):
        return TRUE_KL[family](*(mpf(float(value)) for value in parameters))


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


# -- what has no closed form: mpmath's own quadrature ------------------------------------------------------------------


def integral(log_p, log_q, points):
    """D_KL(p||q) of two densities given by mpmath functions, at 30 digits, on intervals between the points."""
    with mpmath.workdps(30):

        def integrand(x):
            log = log_p(x)
            return mpmath.exp(log) * (log - log_q(x))

        return mpmath.quad(integrand, [mpf(x) if math.isfinite(x) else mpmath.inf * x for x in points], maxdegree=10)


def log_student_t(df, loc, scale):
    constant = mpmath.loggamma((df + 1) / 2) - mpmath.loggamma(df / 2) - mpmath.log(df * mpmath.pi) / 2
    return lambda x: constant - mpmath.log(scale) - (df + 1) / 2 * mpmath.log1p(((x - loc) / scale) ** 2 / df)


def log_normal_density(mean, scale):
    return lambda x: -(((x - mean) / scale) ** 2) / 2 - mpmath.log(scale * mpmath.sqrt(2 * mpmath.pi))


def log_mixture(weights, logs):
    return lambda x: mpmath.log(sum(w * mpmath.exp(log(x)) for w, log in zip(weights, logs, strict=True)))


def true_kl_of_kumaraswamy(a, b, log_q):
    """In v, uniform under p, with x^a = 1 - v^(1/b): what is singular at the ends is but a logarithm there."""

    def integrand(v):
        log_x = mpmath.log(-mpmath.expm1(mpmath.log(v) / b)) / a if v > 0.5 else mpmath.log1p(-(v ** (1 / b))) / a
        log_complement = mpmath.log(-mpmath.expm1(log_x))
        log_p = mpmath.log(a * b) + (a - 1) * log_x + (1 - 1 / b) * mpmath.log(v)
        return log_p - log_q(log_x, log_complement)

    with mpmath.workdps(50):
        return mpmath.quad(integrand, [0, 0.5, 1])


def log_fisher(d1, d2):
    log_beta = mpmath.loggamma(d1 / 2) + mpmath.loggamma(d2 / 2) - mpmath.loggamma((d1 + d2) / 2)
    constant = d1 / 2 * mpmath.log(d1 / d2) - log_beta
    return lambda x: constant + (d1 / 2 - 1) * mpmath.log(x) - (d1 + d2) / 2 * mpmath.log1p(d1 * x / d2)


def log_gamma_density(a, r):
    return lambda x: a * mpmath.log(r) - mpmath.loggamma(a) + (a - 1) * mpmath.log(x) - r * x


def log_weibull(scale, k):
    return lambda x: mpmath.log(k / scale) + (k - 1) * mpmath.log(x / scale) - (x / scale) ** k


def test_students_t_with_one_degree_of_freedom_is_cauchy():
    parameters = doubles(0.5, 2.0, -3.0, 0.1)
    p, q = StudentT(doubles(1.0)[0], *parameters[:2]), StudentT(doubles(1.0)[0], *parameters[2:])
    assert relative_error(kl_quadrature(p, q), true_kl(Cauchy, *parameters)) < 1e-10


def test_students_t_and_normal():
    p, q = StudentT(*doubles(2.5, 1.0, 2.0)), Normal(*doubles(0.0, 3.0))
    # E_p[(x - 0)^2] = 1 + 4 * 2.5 / 0.5
    truth = -p.entropy() + math.log(3 * math.sqrt(2 * math.pi)) + (1 + 4 * 2.5 / 0.5) / 18
    torch.testing.assert_close(kl_quadrature(p, q), truth, rtol=1e-9, atol=0)
    truth = integral(log_normal_density(0, 3), log_student_t(mpf(2.5), 1, 2), [-math.inf, 0, 1, math.inf])
    assert relative_error(kl_quadrature(q, p), truth) < 1e-10


@pytest.mark.parametrize("narrow", sweep([1.0, 1e-2, 1e-5], [1.0]))
def test_mixtures_of_normals(narrow):
    means, scales, weights = [-5.0, 1.0, 40.0], [1.0, narrow, 3.0], [0.5, 0.2, 0.3]
    p = MixtureSameFamily(Categorical(*doubles(weights)), Normal(*doubles(means, scales)))
    q = MixtureSameFamily(Categorical(*doubles([0.25, 0.75])), Normal(*doubles([0.0, 30.0], [4.0, 20.0])))
    log_p = log_mixture(weights, [log_normal_density(mpf(m), mpf(s)) for m, s in zip(means, scales, strict=True)])
    log_q = log_mixture([0.25, 0.75], [log_normal_density(0, 4), log_normal_density(30, 20)])
    points = [-40, -5, *(1 + k * narrow for k in (-30, -10, -3, 0, 3, 10, 30)), 40, 80]
    assert relative_error(kl_quadrature(p, q), integral(log_p, log_q, sorted(points))) < 1e-9
    points = [-math.inf, *sorted(points), math.inf]
    assert relative_error(kl_quadrature(q, p), integral(log_q, log_p, points)) < 1e-9


def test_a_component_too_small_and_narrow_to_be_met_by_chance():
    weights, means, scales = [0.999, 0.001], [0.0, 3.21], [1.0, 1e-9]
    p = MixtureSameFamily(Categorical(*doubles(weights)), Normal(*doubles(means, scales)))
    log_p = log_mixture(weights, [log_normal_density(mpf(m), mpf(s)) for m, s in zip(means, scales, strict=True)])
    points = [-40, -3, 0, *(3.21 + k * 1e-9 for k in (-1000, -30, -10, -3, 0, 3, 10, 30, 1000)), 40]
    truth = integral(log_p, log_normal_density(0, 1), points)
    assert relative_error(kl_quadrature(p, Normal(*doubles(0.0, 1.0))), truth) < 1e-7


@pytest.mark.parametrize(
    ("p", "q"), [((0.3, 0.2), (0.5, 0.1)), ((2.0, 3.0), (1.5, 0.2)), ((0.1, 5.0), (0.10001, 5.0001)), ((5, 40), (2, 3))]
)
def test_kumaraswamy(p, q):
    a, b, shape1, shape0 = map(mpf, (*p, *q))
    log_beta = mpmath.loggamma(shape1) + mpmath.loggamma(shape0) - mpmath.loggamma(shape1 + shape0)

    def log_kumaraswamy(log_x, log_complement):
        power = mpmath.log(-mpmath.expm1(shape1 * log_x))
        return mpmath.log(shape1 * shape0) + (shape1 - 1) * log_x + (shape0 - 1) * power

    def log_beta_density(log_x, log_complement):
        return (shape1 - 1) * log_x + (shape0 - 1) * log_complement - log_beta

    truth = true_kl_of_kumaraswamy(a, b, log_kumaraswamy)
    assert relative_error(kl_quadrature(Kumaraswamy(*doubles(*p)), Kumaraswamy(*doubles(*q))), truth) < 1e-8
    truth = true_kl_of_kumaraswamy(a, b, log_beta_density)
    assert relative_error(kl_quadrature(Kumaraswamy(*doubles(*p)), Beta(*doubles(*q))), truth) < 1e-8


def test_pairs_of_two_families_on_the_half_line():
    log_g, log_w = log_gamma_density(mpf(0.25), 2), log_weibull(mpf(0.5), mpf(1.5))
    gamma, weibull = Gamma(*doubles(0.25, 2.0)), Weibull(*doubles(0.5, 1.5))
    points = [0, 1e-20, 1e-10, 1e-5, 0.1, 1, 3, 30, 100]
    assert relative_error(kl_quadrature(gamma, weibull), integral(log_g, log_w, points)) < 1e-10
    assert relative_error(kl_quadrature(weibull, gamma), integral(log_w, log_g, points)) < 1e-10
    chi2, same = Chi2(*doubles(0.5)), Gamma(*doubles(0.25, 0.5))
    torch.testing.assert_close(kl_quadrature(chi2, weibull), kl_quadrature(same, weibull), rtol=1e-12, atol=0)
    fisher, log_f = FisherSnedecor(*doubles(3.0, 5.0)), log_fisher(mpf(3), mpf(5))
    truth = integral(log_f, log_gamma_density(mpf(0.25), 2), [*points, 1000, math.inf])
    assert relative_error(kl_quadrature(fisher, gamma), truth) < 1e-10
    assert relative_error(kl_quadrature(gamma, fisher), integral(log_g, log_f, points)) < 1e-10


def test_continuous_and_relaxed_bernoulli():
    p, q = ContinuousBernoulli(*doubles(0.2)), ContinuousBernoulli(*doubles(0.9))
    truth = torch.distributions.kl_divergence(p, q)
    torch.testing.assert_close(kl_quadrature(p, q), truth, rtol=1e-10, atol=0)
    # the logit of a relaxed Bernoulli is logistic, of location 0 and scale 1 / temperature here
    temperature = mpf(0.1)

    def log_logistic(x):
        return mpmath.log(temperature) - temperature * x - 2 * mpmath.log1p(mpmath.exp(-temperature * x))

    def log_other(x):
        return mpmath.log(mpf(0.5)) - (x / 2 - 1) - 2 * mpmath.log1p(mpmath.exp(-(x / 2 - 1)))

    truth = integral(log_logistic, log_other, [-800, -50, 0, 50, 800])
    p = RelaxedBernoulli(doubles(0.1)[0], logits=doubles(0.0)[0])
    q = RelaxedBernoulli(doubles(0.5)[0], logits=doubles(1.0)[0])
    assert relative_error(kl_quadrature(p, q), truth) < 1e-9


# -- supports ----------------------------------------------------------------------------------------------------------


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


# -- gradients ---------------------------------------------------------------------------------------------------------


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


# -- shapes and dtypes -------------------------------------------------------------------------------------------------


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


# -- densities of one's own, and failure -------------------------------------------------------------------------------


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
    with pytest.raises(TypeError, match=f"q is a {type(given).__name__}.*Normal"):
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
