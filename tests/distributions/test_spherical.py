import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch.distributions import Distribution
from torch.nn.functional import normalize

from kldiv import HypersphericalUniform, PowerSpherical
from kldiv.distributions.spherical import sphere
from tests.marks import sweep


@pytest.fixture(autouse=True)
def _validation(monkeypatch):
    # as it is by default; torch.compile, in another test, switches it off for the whole process
    monkeypatch.setattr(Distribution, "_validate_args", True)


def unit_vectors(*shape, seed=0, dtype=torch.float64):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def log_normaliser(dim, concentration):
    # the ratio to the half chord (1 + mu.x)/2 to the power kappa
    k, b = mpmath.mpf(concentration), mpmath.mpf(dim - 1) / 2
    return mpmath.loggamma(2 * b + k) - mpmath.loggamma(b + k) - b * mpmath.log(4 * mpmath.pi)


@mpmath.workdps(50)
def log_prob_by_mpmath(loc, concentration, value):
    # of the directions of the stored vectors
    mu, x = ([mpmath.mpf(c) for c in vector.tolist()] for vector in (loc, value))
    k = mpmath.mpf(concentration)
    cosine = mpmath.fdot(mu, x) / mpmath.sqrt(mpmath.fdot(mu, mu) * mpmath.fdot(x, x))
    return float(k * mpmath.log((1 + cosine) / 2) + log_normaliser(len(mu), k))


@mpmath.workdps(50)
def entropy_by_mpmath(dim, concentration):
    k, b = mpmath.mpf(concentration), mpmath.mpf(dim - 1) / 2
    return float(k * (mpmath.digamma(2 * b + k) - mpmath.digamma(b + k)) - log_normaliser(dim, k))


def points_about(distribution):
    """Its own samples, uniform ones, and some next to minus the mean direction."""
    loc = distribution.loc
    torch.manual_seed(0)
    anywhere = HypersphericalUniform(len(loc), dtype=loc.dtype).sample((4,))
    opposite = normalize(1e-3 * torch.randn(2, len(loc), dtype=loc.dtype) - loc, dim=-1)
    return torch.cat([distribution.sample((6,)), anywhere, opposite])


def within_standard_errors(values, expected, count=4):
    """Whether the mean over the first dimension is the expected one."""
    values = values.double()
    error = values.std(0) / math.sqrt(len(values))
    return bool(((values.mean(0) - expected).abs() <= count * error + 1e-12).all())


@pytest.mark.parametrize("dim", sweep([2, 3, 4, 11], [2, 4]))
@pytest.mark.parametrize("concentration", sweep([0.0, 0.3, 1.0, 20.0, 1000.0], [0.0, 1.0, 1000.0]))
def test_the_density_integrates_to_one_and_its_logarithm_to_the_entropy(dim, concentration):
    loc = torch.eye(dim, dtype=torch.float64)[0]
    distribution = PowerSpherical(loc, concentration)
    circle = 2 * math.pi ** ((dim - 1) / 2) / special.gamma((dim - 1) / 2)  # the area of one dimension less

    def log_density(angle):
        value = torch.zeros(dim, dtype=torch.float64)
        value[0], value[1] = math.cos(angle), math.sin(angle)
        return distribution.log_prob(value).item()

    def integral(function):
        weighted = lambda angle: function(angle) * circle * math.sin(angle) ** (dim - 2)  # noqa: E731
        return integrate.quad(weighted, 0, math.pi, points=[0.05, 0.2], epsabs=1e-11, epsrel=1e-11, limit=200)[0]

    assert integral(lambda angle: math.exp(log_density(angle))) == pytest.approx(1, rel=1e-9)
    surprise = integral(lambda angle: -math.exp(log_density(angle)) * max(log_density(angle), -1e6))
    assert distribution.entropy().item() == pytest.approx(surprise, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("dim", [2, 3, 10, 300])
@pytest.mark.parametrize("concentration", [0.0, 1e-3, 1.0, 1e2, 1e4, 1e6, 1e8])
def test_log_prob_and_entropy_to_the_last_digits(dtype, tolerance, dim, concentration):
    distribution = PowerSpherical(unit_vectors(dim, dtype=dtype), torch.tensor(concentration, dtype=dtype))
    assert distribution.entropy().dtype == dtype
    stored = distribution.concentration.item()
    assert distribution.entropy().item() == pytest.approx(entropy_by_mpmath(dim, stored), rel=tolerance)
    value = points_about(distribution)
    log_prob = distribution.log_prob(value)
    assert log_prob.dtype == dtype
    for ours, x in zip(log_prob.tolist(), value, strict=True):
        assert ours == pytest.approx(log_prob_by_mpmath(distribution.loc, stored, x), rel=tolerance)


def test_a_concentration_beyond_every_cancellation():
    # ln Gamma of it has lost every digit of the difference
    distribution = PowerSpherical(unit_vectors(4), torch.tensor(1e20, dtype=torch.float64))
    assert distribution.entropy().item() == pytest.approx(entropy_by_mpmath(4, 1e20), rel=1e-12)
    log_peak = distribution.log_prob(distribution.mode).item()
    assert log_peak == pytest.approx(log_prob_by_mpmath(distribution.loc, 1e20, distribution.loc), rel=1e-12)


def test_next_to_minus_the_mean_direction():
    loc = torch.tensor([1.0, 0.0, 0.0])
    value = torch.tensor([[-1.0, 1e-15, 0.0], [-1.0, 0.0, 0.0]], requires_grad=True)
    concentration = torch.tensor([2.0], requires_grad=True)
    log_prob = PowerSpherical(loc, concentration).log_prob(value)
    assert log_prob[0].item() == pytest.approx(log_prob_by_mpmath(loc, 2.0, value[0]), rel=1e-6)
    assert log_prob[1] == -torch.inf
    (slope,) = torch.autograd.grad(log_prob[0], value)
    assert slope[0, 1].item() == pytest.approx(2 * 2.0 / 1e-15, rel=1e-6)
    concentration = torch.tensor([0.0], requires_grad=True)
    uniform = PowerSpherical(loc, concentration).log_prob(value)
    assert uniform.tolist() == pytest.approx([-math.log(4 * math.pi)] * 2)
    assert all(g.isfinite().all() for g in torch.autograd.grad(uniform[1], (value, concentration)))


def test_concentration_0_is_the_uniform_distribution():
    for dim, area in ((2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2), (50, None)):
        power = PowerSpherical(unit_vectors(dim), 0.0)
        uniform = HypersphericalUniform(dim, dtype=torch.float64)
        value = unit_vectors(5, dim, seed=1)
        torch.testing.assert_close(power.log_prob(value), uniform.log_prob(value), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(power.entropy(), uniform.entropy(), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(power.mean, uniform.mean)
        torch.testing.assert_close(power.variance, uniform.variance)
        if area:
            assert uniform.entropy().item() == pytest.approx(math.log(area), rel=1e-14)


def test_the_derivative_at_concentration_0_is_that_from_the_right():
    loc, value = unit_vectors(3), unit_vectors(6, 3, seed=1)
    concentration = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(PowerSpherical(loc, concentration).log_prob(value).sum(), concentration)
    expected = torch.log((1 + value @ loc) / 2) + special.digamma(2) - special.digamma(1)
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("dim", [2, 3, 6])
def test_gradients_of_densities_and_entropies(dim):
    direction, point = 0.7 * unit_vectors(3, dim), 1.6 * unit_vectors(3, dim, seed=1)
    concentration = torch.tensor([0.5, 3.0, 40.0], dtype=torch.float64)

    def log_prob(direction, concentration, point):
        return PowerSpherical(normalize(direction, dim=-1), concentration).log_prob(normalize(point, dim=-1))

    def entropy(concentration):
        return PowerSpherical(torch.eye(dim, dtype=torch.float64)[0], concentration).entropy()

    inputs = [v.requires_grad_() for v in (direction, concentration, point)]
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(log_prob, inputs)
        assert check(entropy, inputs[1:2])


def test_gradients_to_loc_and_value_are_tangent_to_the_sphere():
    loc, value = unit_vectors(5, 4).requires_grad_(), unit_vectors(5, 4, seed=1).requires_grad_()
    log_prob = PowerSpherical(loc, 7.0).log_prob(value)
    for vector, gradient in zip((loc, value), torch.autograd.grad(log_prob.sum(), (loc, value)), strict=True):
        assert gradient.norm(dim=-1).min() > 0.1
        torch.testing.assert_close((vector * gradient).sum(-1), torch.zeros(5, dtype=torch.float64))


DIRECTIONS = [
    [1.0, 0.0],
    [-1.0, 0.0],
    [0.6, -0.8],
    [1.0, 0.0, 0.0],
    [-1.0, 0.0, 0.0],
    [0.0, 1.0, 0.0],
    [-0.36, 0.48, 0.8],
    [0.5, -0.5, 0.5, 0.5],
]


@pytest.mark.parametrize("loc", DIRECTIONS)
@pytest.mark.parametrize("concentration", [0.0, 2.0, 50.0])
def test_samples_have_the_moments_of_the_distribution(loc, concentration):
    loc = torch.tensor(loc, dtype=torch.float64)
    dim, b = len(loc), (len(loc) - 1) / 2
    distribution = PowerSpherical(loc, concentration)
    torch.manual_seed(0)
    sample = distribution.sample((40_000,))
    torch.testing.assert_close(distribution.mean, loc * concentration / (2 * b + concentration))
    assert within_standard_errors(sample, distribution.mean)
    # of t = mu.x by the moments of its beta distribution; of the rest by |x| = 1
    of_cosine = stats.beta(b + concentration, b, loc=-1, scale=2)
    square = of_cosine.var() + of_cosine.mean() ** 2
    along = torch.outer(loc, loc)
    second = square * along + (1 - square) / (dim - 1) * (torch.eye(dim, dtype=torch.float64) - along)
    assert within_standard_errors(sample[:, :, None] * sample[:, None], second)
    torch.testing.assert_close(distribution.variance, second.diagonal() - distribution.mean**2)


@pytest.mark.parametrize("loc", DIRECTIONS)
@pytest.mark.parametrize("concentration", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_lie_on_the_sphere_at_the_right_distance(loc, concentration, dtype):
    loc = torch.tensor(loc, dtype=dtype)
    b = (len(loc) - 1) / 2
    torch.manual_seed(1)
    sample = PowerSpherical(loc, concentration).sample((20_000,))
    assert sample.dtype == dtype
    assert (sample.double().norm(dim=-1) - 1).abs().max() < 4 * torch.finfo(dtype).eps
    # the half chord to the mean direction, with its digits: 1 - z, of Beta(b, b + kappa)
    chord = 0.25 * (sample.double() - loc.double()).square().sum(-1)
    assert stats.kstest(chord.numpy(), stats.beta(b, b + concentration).cdf).pvalue > 1e-3


@pytest.mark.parametrize("loc", [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.48, 0.6, -0.64], [-0.48, 0.6, -0.64]])
def test_samples_lie_evenly_around_the_mean_direction(loc):
    loc = torch.tensor(loc, dtype=torch.float64)
    torch.manual_seed(2)
    sample = PowerSpherical(loc, 3.0).sample((20_000,)).numpy()
    _, _, plane = np.linalg.svd(loc.numpy()[None])
    angle = np.arctan2(sample @ plane[1], sample @ plane[2])
    assert stats.kstest(angle, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3


def test_uniform_samples():
    torch.manual_seed(0)
    for dim in (2, 3, 8):
        sample = HypersphericalUniform(dim).sample((20_000,))
        assert (sample.norm(dim=-1) - 1).abs().max() < 4e-7
        half_chord = (0.5 * (1 + sample.double() @ unit_vectors(dim))).numpy()
        assert stats.kstest(half_chord, stats.beta((dim - 1) / 2, (dim - 1) / 2).cdf).pvalue > 1e-3
        assert within_standard_errors(sample, HypersphericalUniform(dim).mean)
        assert within_standard_errors(sample**2, HypersphericalUniform(dim).variance)


def test_noise_of_zeros_has_a_direction_too(monkeypatch):
    distributions = PowerSpherical(unit_vectors(3), 1.0), HypersphericalUniform(3, dtype=torch.float64)
    monkeypatch.setattr(torch, "randn", torch.zeros)
    for distribution in distributions:
        torch.testing.assert_close(distribution.sample((5,)).norm(dim=-1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [2, 3, 9])
@pytest.mark.parametrize("concentration", [0.0, 1.0, 100.0, 1e6, 1e16])
def test_gradients_of_samples_to_the_concentration(dtype, dim, concentration):
    loc, b, number = unit_vectors(dim, dtype=dtype), (dim - 1) / 2, 100_000
    given = torch.full((number,), concentration, dtype=dtype, requires_grad=True)
    torch.manual_seed(0)
    sample = PowerSpherical(loc, given, validate_args=False).rsample()
    (gradient,) = torch.autograd.grad((sample @ loc).sum(), given)
    # of E mu.x = kappa/(2b + kappa), relatively: it is of the size of kappa^-2
    assert within_standard_errors(gradient.double() * (2 * b + concentration) ** 2 / (2 * b), 1.0)


@pytest.mark.parametrize("loc", DIRECTIONS)
@pytest.mark.parametrize("concentration", [0.5, 20.0])
def test_gradients_of_samples_to_both_parameters(loc, concentration):
    # of E (c.x)^2 = (c.mu)^2 E t^2 + (|c|^2 - (c.mu)^2) E (1 - t^2)/(d - 1)
    dim, b, number = len(loc), (len(loc) - 1) / 2, 60_000
    c = torch.linspace(0.5, 2.0, dim, dtype=torch.float64)

    def second_moment(loc, concentration):
        alpha, total = b + concentration, 2 * b + concentration
        across = 2 * alpha / (total * (total + 1))
        of_loc = (loc @ c) ** 2 / (loc * loc).sum(-1)
        return of_loc * (1 - (dim - 1) * across) + ((c @ c) - of_loc) * across

    def gradients(function, *parameters):
        parameters = [p.clone().requires_grad_() for p in parameters]
        return torch.autograd.grad(function(*parameters).sum(), parameters)

    def estimate(loc, concentration):
        return (PowerSpherical(loc, concentration, validate_args=False).rsample() @ c) ** 2

    torch.manual_seed(0)
    loc, concentration = (torch.tensor(v, dtype=torch.float64) for v in (loc, concentration))
    estimates = gradients(estimate, loc.expand(number, dim), concentration.expand(number))
    for found, expected in zip(estimates, gradients(second_moment, loc, concentration), strict=True):
        assert found.isfinite().all()
        assert within_standard_errors(found, expected)


def test_half_precision():
    for dtype in (torch.float16, torch.bfloat16):
        loc = unit_vectors(200, 8).to(dtype)
        concentration = torch.full((200,), 3e4).to(dtype)
        distribution = PowerSpherical(loc, concentration)
        sample = distribution.rsample()
        assert sample.dtype == distribution.mean.dtype == distribution.variance.dtype == dtype
        log_prob = distribution.log_prob(sample)
        assert log_prob.dtype == distribution.entropy().dtype == torch.float32
        for ours, mu, x in zip(log_prob[:9].tolist(), loc, sample, strict=False):
            assert ours == pytest.approx(log_prob_by_mpmath(mu, concentration[0].item(), x), rel=1e-5)
        uniform = HypersphericalUniform(8, dtype=dtype)
        assert uniform.rsample((3,)).dtype == dtype
        assert uniform.log_prob(uniform.sample((3,))).dtype == uniform.entropy().dtype == torch.float32
    # a number is kept as float32: it would overflow, or lose digits
    assert PowerSpherical(unit_vectors(8).half(), 1e6).entropy().item() == pytest.approx(entropy_by_mpmath(8, 1e6))


def test_shapes():
    distribution = PowerSpherical(unit_vectors(4, 1, 3), torch.ones(5))
    assert (distribution.batch_shape, distribution.event_shape) == ((4, 5), (3,))
    assert distribution.rsample((2,)).shape == (2, 4, 5, 3)
    assert distribution.log_prob(unit_vectors(3)).shape == distribution.entropy().shape == (4, 5)
    assert distribution.log_prob(unit_vectors(7, 1, 1, 3)).shape == (7, 4, 5)
    assert distribution.mean.shape == distribution.variance.shape == distribution.mode.shape == (4, 5, 3)
    assert distribution.support.check(distribution.sample()).shape == (4, 5)
    assert PowerSpherical(unit_vectors(3), torch.ones(5)).rsample().shape == (5, 3)
    assert PowerSpherical(torch.zeros(0, 3), 1.0).rsample((2,)).shape == (2, 0, 3)
    uniform = HypersphericalUniform(3, (4, 5))
    assert (uniform.batch_shape, uniform.event_shape) == ((4, 5), (3,))
    assert uniform.rsample((2,)).shape == (2, 4, 5, 3)
    assert uniform.log_prob(unit_vectors(7, 1, 1, 3)).shape == (7, 4, 5)
    assert uniform.entropy().shape == (4, 5)
    assert uniform.mean.shape == uniform.variance.shape == (4, 5, 3)


def test_expand():
    loc, concentration = unit_vectors(3), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    for given in (PowerSpherical(loc, concentration), HypersphericalUniform(3, dtype=torch.float64)):
        expanded = given.expand((6, 5))
        assert type(expanded) is type(given)
        assert (expanded.batch_shape, expanded.event_shape) == ((6, 5), (3,))
        sample = expanded.rsample()
        assert sample.shape == (6, 5, 3)
        assert len(sample.flatten().unique()) == 90
        torch.testing.assert_close(expanded.log_prob(sample), given.log_prob(sample))
        torch.testing.assert_close(expanded.entropy(), given.entropy().expand(6, 5))
        with pytest.raises(ValueError, match="support"):
            expanded.log_prob(2 * sample)
    for unchecked in (
        PowerSpherical(loc, concentration, validate_args=False),
        HypersphericalUniform(3, validate_args=False),
    ):
        assert unchecked.expand((2,)).log_prob(2 * loc).isfinite().all()


def test_everything_stays_on_the_device_of_the_parameters_and_never_waits_for_it():
    # a tensor without data has no value to wait for, and does not mix with the CPU's
    loc, concentration = torch.empty(4, 3, device="meta"), torch.empty(4, device="meta")
    distribution = PowerSpherical(loc, concentration, validate_args=False)
    uniform = HypersphericalUniform(3, device="meta", validate_args=False)
    for either in (distribution, uniform):
        sample = either.rsample((2,))
        computed = (sample, either.log_prob(sample), either.entropy(), either.mean, either.variance)
        assert all(tensor.device.type == "meta" for tensor in computed)


def test_parameters_and_values_are_checked():
    loc = unit_vectors(4, 3)
    for vectors in (1.02 * loc, 0 * loc, loc * torch.nan):
        with pytest.raises(ValueError, match="loc"):
            PowerSpherical(vectors, 1.0)
    for concentration in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="concentration"):
            PowerSpherical(loc, concentration)
    with pytest.raises(ValueError, match=r"\(4,\), concentration \(3,\)"):
        PowerSpherical(loc, torch.ones(3))
    for shape in ((), (1,), (4, 1)):
        with pytest.raises(ValueError, match="two components"):
            PowerSpherical(torch.ones(shape), 1.0)
    with pytest.raises(ValueError, match="dim=1"):
        HypersphericalUniform(1)
    for distribution in (PowerSpherical(loc, 1.0), HypersphericalUniform(3)):
        with pytest.raises(ValueError, match="support"):
            distribution.log_prob(1.02 * loc)
    with pytest.raises(ValueError, match="batch_shape"):
        HypersphericalUniform(3, (2,), validate_args=False).log_prob(loc)


def test_without_validation_the_direction_alone_is_read():
    loc, value = unit_vectors(4, 3), unit_vectors(4, 3, seed=1)
    unit, scaled = (PowerSpherical(v, 5.0, validate_args=False) for v in (loc, 3 * loc))
    torch.testing.assert_close(scaled.log_prob(2 * value), unit.log_prob(value))
    torch.testing.assert_close(scaled.mean, unit.mean)
    assert sphere.check(scaled.sample()).all()
