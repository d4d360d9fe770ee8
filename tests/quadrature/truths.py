"""True divergences on a line: the oracles' of a family, and mpmath's integral of two densities given as functions."""

import math

import mpmath
import torch
from mpmath import mpf

from tests import oracles


def doubles(*values):
    return [torch.as_tensor(value, dtype=torch.float64) for value in values]


def leaves(*values):
    return [value.clone().requires_grad_() for value in doubles(*values)]


def relative_error(value, truth):
    return abs(value.item() - truth) / abs(truth)


def true_kl(family, *parameters):
    """To fifty digits, of two distributions of one family: the parameters of p, and then those of q."""
    parameters = doubles(*parameters)
    half = len(parameters) // 2
    return oracles.true_kl(family(*parameters[:half]), family(*parameters[half:]))


def integral(log_p, log_q, points):
    """D_KL(p||q) of two densities given by mpmath functions, at 30 digits, on intervals between the points."""
    with mpmath.workdps(30):

        def integrand(x):
            log = log_p(x)
            return mpmath.exp(log) * (log - log_q(x))

        return mpmath.quad(integrand, [mpf(x) if math.isfinite(x) else mpmath.inf * x for x in points], maxdegree=10)


# Logarithms of densities, as functions of mpmath numbers


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
