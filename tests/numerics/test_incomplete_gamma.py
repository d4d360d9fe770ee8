import random

import pytest
import torch
from mpmath import mp, mpf

from kldiv.numerics.gamma import exponential_integral, gamma_tail


def f64(value, **options):
    return torch.tensor(value, dtype=torch.float64, **options)


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
