"""Full covariances at the ends of the range: log-variances of p and q up to 1400 apart, values and gradients."""

import contextlib
import functools
import itertools
import math
import random

import pytest
import torch
from mpmath import mp, mpf
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    Wishart,
)

from kldiv import DiagonalNormal, kl_divergence
from tests.exact.test_closed_forms import with_leaves
from tests.marks import sweep
from tests.oracles import closed_form, stored, true_kl
from tests.oracles.gradients import replaced
from tests.oracles.normal_vectors import random_matrix, rotated

F64 = torch.float64
KINDS = ("scale_tril", "covariance_matrix", "precision_matrix", "low_rank", "log_var", "scale")
PAIRS = [pair for pair in itertools.product(KINDS, repeat=2) if not set(pair) <= {"log_var", "scale"}]
# of the log-variances of p and q
APART = (-1400.0, -700.0, -80.0, -50.0, -40.0, -5.0, -1e-6, 1e-3, 30.0, 600.0)


def rows(rng, size, condition):
    """A Cholesky factor of that condition number whose rows have the length 1."""
    variances = torch.tensor([condition ** (-2 * i / max(size - 1, 1)) for i in range(size)], dtype=F64)
    factor = torch.linalg.cholesky(rotated(rng, variances))
    return factor / factor.square().sum(-1, keepdim=True).sqrt()


def normal_of(kind, rng, mean, factor, log_var):
    """A normal vector given in that way, whose dimensions have these log-variances."""
    scale = torch.exp(0.5 * log_var)
    lower = scale[:, None] * factor
    match kind:
        case "log_var":
            return DiagonalNormal(mean, log_var)
        case "scale":
            return Independent(Normal(mean, scale), 1)
        case "scale_tril":
            return MultivariateNormal(mean, scale_tril=lower, validate_args=False)
        case "covariance_matrix":
            return MultivariateNormal(mean, lower @ lower.mT, validate_args=False)
        case "precision_matrix":
            inverse = torch.linalg.solve_triangular(factor, torch.diag(1 / scale), upper=False)
            return MultivariateNormal(mean, precision_matrix=inverse.mT @ inverse, validate_args=False)
    wide = scale[:, None] * random_matrix(rng, len(mean), 1)
    return LowRankMultivariateNormal(mean, wide, scale.square(), validate_args=False)


def draw(rng, kinds, apart, condition):
    """The two; drawn again where rounding has left a matrix that is not positive definite."""
    while True:
        with contextlib.suppress(ValueError, torch.linalg.LinAlgError):
            p, q = drawn(rng, kinds, apart, condition)
            true_kl(p, q)
            return p, q


def drawn(rng, kinds, apart, condition):
    size = rng.randint(1, 3)
    common = [rng.uniform(-4, 4) for _ in range(size)]
    differences = [apart * rng.choice((1.0, 1.0, rng.random())) for _ in range(size)]
    sides = []
    for kind, sign in zip(kinds, (0.5, -0.5), strict=True):
        log_var = torch.tensor([c + sign * d for c, d in zip(common, differences, strict=True)], dtype=F64)
        close = abs(apart) < 1  # in all that they are
        factor = rows(random.Random(0) if close else rng, size, condition)
        mean = random_matrix(rng, size) * torch.exp(torch.tensor(common, dtype=F64) / 2)
        sides.append(normal_of(kind, rng, mean, factor, log_var))
    return sides


def units(distribution, name):
    """What an element is moved by, in terms of the standard deviations of the dimensions it belongs to."""
    if isinstance(distribution, Independent):
        return distribution.base_dist.scale
    if isinstance(distribution, DiagonalNormal):
        return torch.ones_like(distribution.log_var) if name == "log_var" else distribution.stddev
    if isinstance(distribution, LowRankMultivariateNormal):
        scale = distribution.cov_diag.sqrt()
        return {"loc": scale, "cov_factor": scale[:, None], "cov_diag": scale.square()}[name]
    scale = distribution.scale_tril.square().sum(-1).sqrt()
    outer = scale[:, None] * scale
    return {
        "loc": scale,
        "scale_tril": scale[:, None].expand_as(outer),
        "covariance_matrix": outer,
        "precision_matrix": 1 / outer,
    }[name]


def true_slope(p, q, side, name, index, unit):
    """The derivative along one element, times its unit: by a difference at 200 digits."""
    family_p, params_p = stored(p)
    family_q, params_q = stored(q)
    params = params_p if side == "p" else params_q
    with mp.workdps(200):
        step, values = mpf(10) ** -50, []
        for sign in (1, -1):
            centre = functools.reduce(lambda v, i: v[i], index, params[name])
            moved = {**params, name: replaced(params[name], list(index), centre + sign * step * mpf(unit))}
            values.append(
                closed_form(family_p, moved, family_q, params_q)
                if side == "p"
                else closed_form(family_p, params_p, family_q, moved)
            )
        return (values[0] - values[1]) / (2 * step)


def assert_right(p, q, rtol, gradients=True):
    truth = true_kl(p, q)
    of_p, names_p, leaves_p = with_leaves(p) if not isinstance(p, Independent) else independent_leaves(p)
    of_q, names_q, leaves_q = with_leaves(q) if not isinstance(q, Independent) else independent_leaves(q)
    value = kl_divergence(of_p, of_q)
    if truth > torch.finfo(F64).max:
        assert value.item() == math.inf
        return
    assert abs(value.item() - truth) <= rtol * truth, (value, truth, p, q)
    if not gradients:
        return
    found = torch.autograd.grad(value, leaves_p + leaves_q)
    keys = [("p", name) for name in names_p] + [("q", name) for name in names_q]
    errors, largest = [], 0.0
    for (side, name), gradient in zip(keys, found, strict=True):
        unit = units(p if side == "p" else q, name).expand_as(gradient)
        for index in itertools.product(*map(range, gradient.shape)):
            if name == "scale_tril" and index[1] > index[0]:
                continue
            slope = true_slope(p, q, side, name, index, unit[index].item())
            largest = max(largest, float(abs(slope)))
            if abs(slope) / mpf(unit[index].item()) < torch.finfo(F64).max:  # else it has no float64
                errors.append((float(abs(mpf(gradient[index].item()) * mpf(unit[index].item()) - slope)), side, name))
    assert largest > 0
    for error, *where in errors:
        assert error <= rtol * largest, (error, largest, where)


def independent_leaves(distribution):
    base = distribution.base_dist
    leaves = [base.loc.clone().requires_grad_(), base.scale.clone().requires_grad_()]
    return Independent(Normal(*leaves), 1), ["loc", "scale"], leaves


@pytest.mark.parametrize("apart", sweep(APART, (-1400.0, -50.0, -1e-6, 30.0)))
@pytest.mark.parametrize("kinds", PAIRS, ids=" to ".join)
def test_full_covariances_however_far_apart(kinds, apart):
    rng = random.Random(f"{kinds} {apart}")
    # that of a covariance is the square of its factor's, and a Cholesky factor of it has lost as many digits
    squared = {"covariance_matrix", "precision_matrix"} & set(kinds)
    for condition in (1.0, 30.0, 200.0 if squared else 1e4):
        assert_right(*draw(rng, kinds, apart, condition), 1e-9, gradients=False)


@pytest.mark.parametrize("apart", sweep([*APART[:-1], 300.0], (-80.0,)))
@pytest.mark.parametrize("kinds", PAIRS, ids=" to ".join)
def test_gradients_of_full_covariances_however_far_apart(kinds, apart):
    rng = random.Random(f"{kinds} {apart}")
    assert_right(*draw(rng, kinds, apart, 30.0), 1e-9)


@pytest.mark.parametrize(
    ("df_p", "df_q", "scale"), [(5.0, 4.0, 1e-18), (3.5, 40.0, 1e-150), (5.0, 5.0, 1e10), (7.0, 4.0, 1e-300)]
)
def test_a_wishart_of_a_tiny_scale(df_p, df_q, scale):
    eye = torch.eye(3, dtype=F64)
    log_scale = torch.tensor(math.log(scale), dtype=F64, requires_grad=True)
    p, q = (
        Wishart(torch.tensor(df, dtype=F64), scale_tril=factor)
        for df, factor in ((df_p, log_scale.exp() * eye), (df_q, eye))
    )
    value = kl_divergence(p, q)
    assert value.item() == pytest.approx(float(true_kl(p, q)), rel=1e-9)
    assert torch.autograd.grad(value, log_scale)[0].item() == pytest.approx(3 * (df_p * scale**2 - df_q), rel=1e-9)


def test_what_the_field_met():
    zero, eye = torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64)
    standard = MultivariateNormal(zero, eye)
    tiny = torch.full((3,), math.log(1e-18), dtype=F64, requires_grad=True)
    value = kl_divergence(MultivariateNormal(zero, scale_tril=torch.diag_embed(tiny.exp())), standard)
    assert value.item() == pytest.approx(122.8396, abs=1e-4)
    assert torch.autograd.grad(value, tiny)[0].tolist() == pytest.approx([-1.0] * 3)
    for log_var in (-40.0, -50.0, -70.0, -80.0, -1400.0):
        p = MultivariateNormal(zero, scale_tril=math.exp(log_var / 2) * eye)
        assert kl_divergence(p, standard).item() == pytest.approx(-1.5 * (1 + log_var), rel=1e-12)
    normal = DiagonalNormal(zero, torch.full((3,), -80.0, dtype=F64))
    assert kl_divergence(normal, standard).item() == pytest.approx(118.5, rel=1e-12)
    low_rank = LowRankMultivariateNormal(zero, torch.zeros(3, 1, dtype=F64), torch.full((3,), 1.0, dtype=F64))
    assert kl_divergence(normal, low_rank).item() == pytest.approx(118.5, rel=1e-12)
    for dtype, log_var, truth in ((torch.float32, 100.0, 49.5), (F64, 1500.0, 749.5), (torch.float32, 1e30, 5e29)):
        prior = DiagonalNormal(torch.zeros(1, dtype=dtype), torch.full((1,), log_var, dtype=dtype, requires_grad=True))
        value = kl_divergence(MultivariateNormal(prior.mean, torch.eye(1, dtype=dtype)), prior)
        assert value.item() == pytest.approx(truth, rel=1e-6)
        assert torch.autograd.grad(value, prior.log_var)[0].item() == pytest.approx(0.5)
