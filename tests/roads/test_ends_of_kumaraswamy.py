"""Kumaraswamy distributions of very small and very large concentrations, to beta distributions."""

import pytest
import torch
from mpmath import mp, mpf
from torch.distributions import Beta, Kumaraswamy

from kldiv import kl_divergence
from tests.marks import slow


def truth(a, b, alpha, beta):
    """From E ln x in closed form, and E ln((1 - x)/(1 - x^a)), by parts in ln z with x = e^-z, to 25 digits."""
    with mp.workdps(30):
        a, b, alpha, beta = map(mpf, (a, b, alpha, beta))
        log_a = mp.log(a)

        def integrand(log_z):
            z = mp.exp(log_z)
            return (-mp.expm1(-a * z)) ** b * (z / mp.expm1(z) - a * z / mp.expm1(a * z))

        ends = {-80 - max(log_a, 0), -10 - max(log_a, 0), -log_a - 3, -log_a, -log_a + 2, -3, 0, 2, 6 - min(log_a, 0)}
        gap = -mp.quad(integrand, sorted(map(mpf, ends)))
        mean_log = -(mp.digamma(b + 1) + mp.euler) / a
        constant = mp.log(a * b * mp.beta(alpha, beta))
        return constant + (a - alpha) * mean_log + (beta - b) / b - (beta - 1) * gap


def by_density(a, b, alpha, beta):
    """The integral of p ln(p/q), over y = -ln(1 - x^a)."""
    with mp.workdps(30):
        a, b, alpha, beta = map(mpf, (a, b, alpha, beta))
        constant = mp.log(a * b * mp.beta(alpha, beta))

        def integrand(y):
            log_x = mp.log(-mp.expm1(-y)) / a
            log_ratio = constant + (a - alpha) * log_x - (b - 1) * y - (beta - 1) * mp.log(-mp.expm1(log_x))
            return b * mp.exp(-b * y) * log_ratio

        return mp.quad(integrand, [0, mpf("1e-6"), mpf("1e-3"), 0.1, 1, 3, 10, 20, 40, 60])


def distributions(a, b, alpha, beta, dtype=torch.float64):
    leaves = [torch.tensor(value, dtype=dtype, requires_grad=True) for value in (a, b, alpha, beta)]
    return Kumaraswamy(*leaves[:2]), Beta(*leaves[2:]), leaves


FAR = [
    (1e-3, 1e-3, 1.0, 5.0),
    (1.0, 1e-2, 1.0, 5.0),
    (1.0, 1e-3, 2.0, 5.0),
    (1e-3, 1e-2, 1.0, 5.0),
    (1e-6, 1e-4, 1.0, 5.0),
    (1e-30, 1e-2, 1.0, 0.5),
    (0.1, 100.0, 1.0, 30.0),
    (100.0, 100.0, 1.0, 30.0),
    (100.0, 0.99, 3.0, 0.1),
    (2.0, 3.0, 4.0, 5.0),
    (1.3, 0.4, 1.31, 0.41),
    (2.5, 1e-3, 2.5, 1.1e-3),
]


def test_the_integral_by_parts_is_that_of_the_density():
    for parameters in ((0.5, 2.0, 1.2, 5.0), (2.0, 1.5, 3.0, 0.4)):
        assert abs(truth(*parameters) / by_density(*parameters) - 1) < 1e-12
    assert mp.nstr(truth(1e-3, 1e-3, 1, 5), 7) == "4957.684"


@pytest.mark.parametrize("parameters", FAR)
def test_values_at_the_ends(parameters):
    p, q, _ = distributions(*parameters)
    expected = truth(*parameters)
    assert abs(kl_divergence(p, q).item() / expected - 1) < 1e-10
    p, q, leaves = distributions(*parameters, torch.float32)
    value = kl_divergence(p, q)
    assert abs(value.item() / truth(*(leaf.item() for leaf in leaves)) - 1) < 1e-5


@slow
@pytest.mark.parametrize("parameters", FAR)
def test_gradients_at_the_ends(parameters):
    p, q, leaves = distributions(*parameters)
    found = torch.autograd.grad(kl_divergence(p, q), leaves)
    for index, gradient in enumerate(found):
        step = mpf("1e-8") * mpf(parameters[index])
        moved = [truth(*(mpf(v) + sign * step * (i == index) for i, v in enumerate(parameters))) for sign in (1, -1)]
        slope = (moved[0] - moved[1]) / (2 * step)
        relative = slope * mpf(parameters[index])
        assert abs(gradient.item() * parameters[index] - relative) < 1e-8 * (abs(relative) + abs(truth(*parameters)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_nan_at_the_ends_of_the_dtype(dtype):
    limits = torch.finfo(dtype)
    values = torch.tensor([limits.tiny, 1e-20, 1e-3, 1.0, 1e3, 1e20, min(limits.max, 1e200)], dtype=dtype)
    grid = torch.cartesian_prod(values, values, torch.ones(1, dtype=dtype), values)
    value = kl_divergence(Kumaraswamy(*grid[:, :2].unbind(-1)), Beta(*grid[:, 2:].unbind(-1)))
    assert not value.isnan().any()
    assert (value >= 0).all()
