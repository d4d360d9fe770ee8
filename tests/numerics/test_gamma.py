import random

import pytest
import torch
from mpmath import mp, mpf

from kldiv.numerics.gamma import (
    bregman_lgamma,
    bregman_stirling_error,
    digamma_minus_log,
    exponential_integral,
    gamma_tail,
    stirling_error,
    trigamma,
)


def f64(value, **options):
    return torch.tensor(value, dtype=torch.float64, **options)


def truth_of_bregman(a, b, without_stirling):
    with mp.workdps(80):
        a, b = mpf(a), mpf(b)
        value = mp.loggamma(a) - mp.loggamma(b) - mp.digamma(b) * (a - b)
        return value - (a * mp.log(a / b) - a + b) if without_stirling else value


@pytest.mark.parametrize("distance", [None, 1.0, 1e-1, 1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("without_stirling", [False, True])
def test_bregman_divergences_over_the_whole_range(without_stirling, distance):
    rng = random.Random(0)
    function = bregman_stirling_error if without_stirling else bregman_lgamma
    for _ in range(150):
        b = 10 ** rng.uniform(-6, 10)
        a = 10 ** rng.uniform(-6, 10) if distance is None else b * (1 + distance * rng.uniform(-0.99, 1))
        truth = truth_of_bregman(a, b, without_stirling)
        value = function(f64(a), f64(b), f64(a) - f64(b)).item()
        # the logarithms of far apart arguments lose a digit, the difference of Stirling's terms none
        assert abs(value - truth) <= 3e-14 * truth, (a, b, value, truth)


def test_bregman_divergences_take_a_better_known_difference():
    b, difference = f64(5e7), f64(1e-3)
    with mp.workdps(80):
        exact = mpf("1e-3") * (mpf(difference.item()) / mpf("1e-3"))
        truth = mp.loggamma(b.item() + exact) - mp.loggamma(mpf(b.item())) - mp.digamma(mpf(b.item())) * exact
    assert bregman_lgamma(b + difference, b, difference).item() == pytest.approx(float(truth), rel=1e-7)


@pytest.mark.parametrize(
    ("function", "truth"),
    [
        (stirling_error, lambda x: mp.loggamma(x) - x * mp.log(x) + x),
        (digamma_minus_log, lambda x: mp.digamma(x) - mp.log(x)),
        (trigamma, lambda x: mp.zeta(2, x)),
    ],
)
def test_what_stirling_leaves(function, truth):
    rng = random.Random(0)
    for _ in range(300):
        x = 10 ** rng.uniform(-6, 14)
        with mp.workdps(50):
            exact = truth(mpf(x))
        tolerance = 3e-14 * max(abs(exact), mpf("0.1") if function is stirling_error else mpf(0))
        assert abs(function(f64(x)).item() - exact) <= tolerance, x


@pytest.mark.parametrize("function", [stirling_error, digamma_minus_log, trigamma])
def test_derivatives(function):
    x = torch.tensor([0.01, 0.7, 9.9, 10.1, 300.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, x)


@pytest.mark.parametrize("function", [bregman_lgamma, bregman_stirling_error])
def test_derivatives_of_bregman_divergences(function):
    a = torch.tensor([0.01, 0.7, 9.9, 300.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.02, 0.7001, 30.0, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: function(a, b, a - b), (a, b))
    assert torch.autograd.gradgradcheck(lambda a, b: function(a, b, a - b), (a, b))


# The incomplete gamma function


def lower(shape, x):
    return mp.gammainc(shape, 0, x, regularized=True)


def test_the_incomplete_gamma_function_and_its_density():
    rng = random.Random(0)
    for _ in range(150):
        shape = 10 ** rng.uniform(-2, 5)
        x = shape * 10 ** rng.uniform(-2, 0.7) if shape < 1 else shape + rng.uniform(-5, 5) * shape**0.5
        if x <= 0:
            continue
        below, density = gamma_tail(f64(shape), f64(x))
        with mp.workdps(40):
            a, y = mpf(shape), mpf(x)
            exact = y**a * mp.exp(-y) / mp.gamma(a + 1)
            assert abs(density.item() - exact) <= 1e-10 * exact, (shape, x)
            assert abs(below.item() - lower(a, y)) <= 1e-12, (shape, x)


def test_its_derivative_in_the_shape():
    rng = random.Random(0)
    for _ in range(30):
        shape = 10 ** rng.uniform(-2, 3)
        x = shape * rng.uniform(0.5, 2)
        leaf = f64(shape, requires_grad=True)
        (gradient,) = torch.autograd.grad(gamma_tail(leaf, f64(x))[0], leaf)
        with mp.workdps(60):
            step = mpf(shape) * mpf("1e-20")
            truth = (lower(mpf(shape) + step, mpf(x)) - lower(mpf(shape) - step, mpf(x))) / (2 * step)
        assert abs(gradient.item() - truth) <= 1e-9 * max(abs(truth), mpf("1e-3")), (shape, x)


def test_the_incomplete_gamma_function_at_its_ends():
    shape = f64([0.5, 30.0, 0.5, 1e8], requires_grad=True)
    x = f64([0.0, 0.0, 1e4, 1e12], requires_grad=True)
    below, density = gamma_tail(shape, x)
    assert below.tolist() == pytest.approx([0, 0, 1, 1], abs=1e-14)
    assert density.tolist() == [0, 0, 0, 0]
    gradients = torch.autograd.grad((below + density).sum(), (shape, x))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_second_derivatives_of_the_incomplete_gamma_function():
    arguments = f64([0.3, 2.0, 40.0], requires_grad=True), f64([0.5, 1.5, 42.0], requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda a, x: gamma_tail(a, x)[0], arguments)


def test_the_exponential_integral_over_the_whole_range():
    for y in torch.linspace(-60, 6, 400, dtype=torch.float64):
        with mp.workdps(40):
            truth = mp.e1(mp.exp(mpf(y.item())))
        assert abs(exponential_integral(y).item() - truth) <= 1e-13 * truth, y
    assert exponential_integral(f64([-1e300, 50.0])).tolist() == [1e300, 0.0]
    assert torch.autograd.gradcheck(exponential_integral, f64([-5.0, 0.0, 0.69, 0.7, 2.0], requires_grad=True))
