import random

import pytest
import torch
from mpmath import mp, mpf

from kldiv.numerics.gamma import bregman_lgamma, bregman_stirling_error, digamma_minus_log, stirling_error, trigamma


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


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
