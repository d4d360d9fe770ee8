"""Pairs without a closed form, against mpmath's own quadrature."""

import math

import mpmath
import pytest
import torch
from mpmath import mpf
from torch.distributions import (
    Beta,
    Categorical,
    Cauchy,
    Chi2,
    ContinuousBernoulli,
    FisherSnedecor,
    Gamma,
    Kumaraswamy,
    MixtureSameFamily,
    Normal,
    RelaxedBernoulli,
    StudentT,
    Weibull,
)

from kldiv import kl_quadrature
from tests.marks import sweep
from tests.quadrature.truths import (
    doubles,
    integral,
    log_fisher,
    log_gamma_density,
    log_mixture,
    log_normal_density,
    log_student_t,
    log_weibull,
    relative_error,
    true_kl,
    true_kl_of_kumaraswamy,
)


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
