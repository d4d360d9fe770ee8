"""The oracles against numerical integrals, sums, and the densities and gradients of torch."""

import itertools
import math
import random

import pytest
import torch
from mpmath import mp, mpf
from torch.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    Chi2,
    ContinuousBernoulli,
    Dirichlet,
    Exponential,
    Gamma,
    Geometric,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    Independent,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    LogNormal,
    LowRankMultivariateNormal,
    Multinomial,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Pareto,
    Poisson,
    StudentT,
    Uniform,
    VonMises,
    Weibull,
    Wishart,
)

from kldiv import DiagonalNormal
from tests.marks import slow
from tests.oracles import (
    CROSS,
    FAMILIES,
    LOG_PMF,
    NoClosedFormError,
    canonical,
    closed_form,
    integrated,
    is_infinite,
    kl_of,
    kl_sum,
    log_density,
    relative_error,
    stored,
    tolerance,
    true_gradients,
    true_kl,
    true_partial,
)


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


def two(family, **parameters):
    """Two distributions from two values of each parameter."""
    return [family(**{name: tensor(pair[i]) for name, pair in parameters.items()}) for i in range(2)]


COUPLES = [
    two(Normal, loc=(0.3, -1.1), scale=(0.7, 1.9)),
    two(Laplace, loc=(0.4, 0.9), scale=(0.6, 1.3)),
    two(Gumbel, loc=(0.2, -0.4), scale=(0.8, 1.7)),
    two(Cauchy, loc=(0.2, -0.4), scale=(0.8, 1.7)),
    two(HalfNormal, scale=(0.7, 1.9)),
    two(HalfCauchy, scale=(0.7, 1.9)),
    two(LogNormal, loc=(0.3, -0.5), scale=(0.7, 0.4)),
    two(Exponential, rate=(0.6, 1.7)),
    two(Chi2, df=(3.0, 5.5)),
    two(Gamma, concentration=(2.4, 1.3), rate=(1.2, 0.7)),
    two(InverseGamma, concentration=(3.2, 2.3), rate=(1.4, 2.2)),
    two(Weibull, scale=(0.8, 1.6), concentration=(1.7, 0.9)),
    two(Pareto, scale=(0.7, 0.4), alpha=(3.6, 2.2)),
    two(Beta, concentration1=(1.6, 2.3), concentration0=(2.2, 1.4)),
    two(Kumaraswamy, concentration1=(1.6, 2.3), concentration0=(2.2, 1.4)),
    two(ContinuousBernoulli, logits=(1.3, -2.1)),
]
FIRST = [*(first for first, _ in COUPLES), ContinuousBernoulli(tensor(0.5)), Uniform(tensor(0.8), tensor(0.9))]
SECOND = [*(second for _, second in COUPLES), Uniform(tensor(0.0), tensor(1.0)), Uniform(tensor(-3.0), tensor(2.0))]
STUDENT = StudentT(tensor(3.5), tensor(0.2), tensor(1.3))

COUNTS = [
    *two(Bernoulli, probs=(0.3, 0.6)),
    *two(Geometric, probs=(0.3, 0.6)),
    *two(Poisson, rate=(1.3, 2.6)),
    *(Binomial(total_count=5, **given) for given in ({"probs": tensor(0.3)}, {"logits": tensor(0.7)})),
    *(NegativeBinomial(tensor(2.5), **given) for given in ({"probs": tensor(0.3)}, {"logits": tensor(-0.7)})),
]


def name_of(distribution):
    return type(distribution).__name__


# Densities are torch's


@pytest.mark.parametrize("distribution", [*FIRST, *SECOND, STUDENT], ids=name_of)
def test_log_density_is_that_of_torch(distribution):
    density = log_density(*canonical(*stored(distribution)))
    for x in (0.85, 0.8125, *((0.1, 0.25) if not isinstance(distribution, (Pareto, Uniform)) else ())):
        assert float(density(mpf(x), 1 - mpf(x))) == pytest.approx(distribution.log_prob(tensor(x)).item(), rel=1e-6)


@pytest.mark.parametrize("distribution", COUNTS, ids=name_of)
def test_log_pmf_is_that_of_torch(distribution):
    family, params = stored(distribution)
    for k in range(2 if family == "Bernoulli" else 6):
        expected = distribution.log_prob(tensor(float(k))).item()
        assert float(LOG_PMF[family](params, k)) == pytest.approx(expected, rel=1e-12)


# Closed forms are integrals and sums of them


INTEGRATED_SLOWLY = (Beta, ContinuousBernoulli, InverseGamma, Kumaraswamy, Uniform)


@pytest.mark.parametrize(
    "p",
    [pytest.param(p, marks=slow if isinstance(p, INTEGRATED_SLOWLY) else ()) for p in (*FIRST, SECOND[-2])],
    ids=name_of,
)
def test_closed_forms_are_the_integrals(p):
    for q in SECOND:
        arguments = (*stored(p), *stored(q))
        if p is q or is_infinite(*canonical(*stored(p)), *canonical(*stored(q))):
            continue
        with mp.workdps(40):
            try:
                value = closed_form(*arguments)
            except NoClosedFormError:
                continue
        integral = integrated(*arguments, digits=8)
        assert abs(value - integral) < mpf("1e-14") * max(1, integral), (stored(p), stored(q))


@pytest.mark.parametrize(
    ("p", "q"),
    [(p, q) for p, q in itertools.product(COUNTS, COUNTS) if type(p) is type(q) and p is not q],
    ids=lambda d: name_of(d),
)
def test_closed_forms_are_the_sums(p, q):
    with mp.workdps(40):
        value, total = closed_form(*stored(p), *stored(q)), kl_sum(*stored(p), *stored(q))
        assert abs(value - total) < mpf("1e-35") * total


def test_sums_of_different_families():
    p, q = Binomial(total_count=5, probs=tensor(0.3)), Poisson(tensor(1.7))
    support = p.enumerate_support()
    expected = (p.log_prob(support).exp() * (p.log_prob(support) - q.log_prob(support))).sum().item()
    assert float(true_kl(p, q)) == pytest.approx(expected, rel=1e-12)
    p, q = Poisson(tensor(1.7)), NegativeBinomial(tensor(2.5), logits=tensor(-0.7))
    support = torch.arange(60.0).double()
    expected = (p.log_prob(support).exp() * (p.log_prob(support) - q.log_prob(support))).sum().item()
    assert float(true_kl(p, q)) == pytest.approx(expected, rel=1e-12)


def test_von_mises_is_the_integral():
    (m, kappa), (n, other) = (mpf("0.4"), mpf("1.7")), (mpf("-1.1"), mpf("3.2"))

    def mass(loc, concentration):
        return mp.quad(lambda x: mp.exp(concentration * mp.cos(x - loc)), mp.linspace(-mp.pi, mp.pi, 5))

    with mp.workdps(25):
        total, rest = mass(m, kappa), mass(n, other)

        def integrand(x):
            u, v = kappa * mp.cos(x - m), other * mp.cos(x - n)
            return mp.exp(u) / total * (u - v - mp.log(total / rest))

        integral = mp.quad(integrand, mp.linspace(-mp.pi, mp.pi, 5))
        parameters = [{"loc": m, "concentration": kappa}, {"loc": n, "concentration": other}]
        assert abs(kl_of("VonMises", parameters[0], "VonMises", parameters[1]) - integral) < mpf("1e-20")


def test_multinomial_is_the_sum_over_outcomes():
    p, q = Multinomial(4, tensor([0.2, 0.5, 0.3])), Multinomial(4, logits=tensor([0.7, -0.4, 1.0]))
    outcomes = tensor([[i, j, 4 - i - j] for i in range(5) for j in range(5 - i)])
    expected = (p.log_prob(outcomes).exp() * (p.log_prob(outcomes) - q.log_prob(outcomes))).sum().item()
    assert float(true_kl(p, q)) == pytest.approx(expected, rel=1e-12)


def test_categorical_is_the_sum_over_categories():
    probs, logits = [0.25, 0.5, 0.125, 0.125], [0.7, -0.4, 1.0, 0.0]
    p, q = Categorical(tensor(probs)), OneHotCategorical(logits=tensor(logits))
    total = sum(math.exp(v) for v in logits)
    expected = sum(u * (math.log(u) - v + math.log(total)) for u, v in zip(probs, logits, strict=True))
    assert float(true_kl(p, q)) == pytest.approx(expected, rel=1e-12)
    assert float(true_kl(OneHotCategorical(tensor(probs)), q)) == pytest.approx(expected, rel=1e-12)


def integral_on_a_grid(p, q, points, volume):
    """The trapezoid rule for E_p[ln p - ln q]; it converges exponentially where all tails vanish."""
    log_p, log_q = p.log_prob(points), q.log_prob(points)
    return (log_p.exp() * (log_p - log_q) * volume).sum().item()


def normal_vectors():
    loc, covariance = tensor([0.3, -0.2]), tensor([[0.8, 0.3], [0.3, 0.5]])
    factor, diagonal = tensor([[0.5], [-0.7]]), tensor([0.4, 0.6])
    return {
        "covariance": MultivariateNormal(loc, covariance),
        "precision": MultivariateNormal(-loc, precision_matrix=covariance + torch.eye(2)),
        "scale": MultivariateNormal(loc * 0, scale_tril=torch.linalg.cholesky(covariance) * 0.9),
        "low rank": LowRankMultivariateNormal(loc * 2, factor, diagonal),
        "independent": Independent(Normal(loc * 3, diagonal.sqrt()), 1),
        "diagonal": DiagonalNormal(loc - 0.1, diagonal.log() / 2),
    }


@pytest.mark.parametrize("first", normal_vectors())
def test_normal_vectors_are_the_integral(first):
    line = torch.arange(-9, 9, 0.2, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    for second, q in normal_vectors().items():
        p = normal_vectors()[first]
        integral = integral_on_a_grid(p, q, points, 0.04)
        assert float(true_kl(p, q)) == pytest.approx(integral, rel=1e-9, abs=1e-12), second


def test_dirichlet_is_the_integral():
    p, q = Dirichlet(tensor([1.3, 2.5, 1.8])), Dirichlet(tensor([2.2, 1.1, 3.0]))
    line = torch.arange(-28, 28, 0.1, dtype=torch.float64)
    logits = torch.cat([torch.cartesian_prod(line, line), torch.zeros(len(line) ** 2, 1).double()], -1)
    points = logits.softmax(-1)
    volume = 0.01 * points.prod(-1)  # of the first two coordinates
    assert float(true_kl(p, q)) == pytest.approx(integral_on_a_grid(p, q, points, volume), rel=1e-9)


def test_wishart_is_the_integral():
    p = Wishart(tensor(5.5), tensor([[0.8, 0.3], [0.3, 0.5]]), validate_args=False)
    q = Wishart(tensor(4.2), precision_matrix=tensor([[1.3, 0.2], [0.2, 1.9]]), validate_args=False)
    log_x, log_z, angle = torch.cartesian_prod(
        *(torch.arange(low, high, 0.25, dtype=torch.float64) for low, high in ((-16, 5), (-16, 5), (-10, 10)))
    ).unbind(-1)
    x, z = log_x.exp(), log_z.exp()
    y = (x * z).sqrt() * angle.tanh()
    points = torch.stack([x, y, y, z], -1).unflatten(-1, (2, 2))
    volume = 0.25**3 * (x * z) ** 1.5 / angle.cosh() ** 2
    assert float(true_kl(p, q)) == pytest.approx(integral_on_a_grid(p, q, points, volume), rel=1e-9)


def test_wishart_of_one_dimension_is_gamma():
    p, q = (Wishart(tensor(df), tensor([[v]])) for df, v in ((3.5, 0.7), (4.25, 1.5)))
    u, v = ({"concentration": mpf(df) / 2, "rate": 1 / (2 * mpf(v))} for df, v in ((3.5, 0.7), (4.25, 1.5)))
    assert relative_error(float(true_kl(p, q)), kl_of("Gamma", u, "Gamma", v)) < 1e-15


def test_independent_is_the_sum():
    p = Independent(Gamma(tensor([1.5, 2.5]), tensor([0.5, 2.0])), 1)
    q = Independent(LogNormal(tensor([0.5, -0.5]), tensor([0.5, 2.0])), 1)
    parts = [
        true_kl(Gamma(*u), LogNormal(*v))
        for u, v in zip([(1.5, 0.5), (2.5, 2.0)], [(0.5, 0.5), (-0.5, 2.0)], strict=True)
    ]
    assert abs(true_kl(p, q) - sum(parts)) < 1e-14


# Digits


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (Gamma(tensor(1e8), tensor(2.0)), Gamma(tensor(1e8 + 10), tensor(2.0))),
        (Dirichlet(tensor([1e8, 1e-3, 7.0])), Dirichlet(tensor([1e8 + 10, 1.0000001e-3, 7.0]))),
        (Bernoulli(logits=tensor(700.0)), Bernoulli(logits=tensor(699.0))),
        (ContinuousBernoulli(logits=tensor(1e-9)), ContinuousBernoulli(logits=tensor(3e-9))),
        (Categorical(logits=tensor([0.0, -300.0])), Categorical(logits=tensor([0.0, -300.001]))),
        (VonMises(tensor(0.0), tensor(1e8)), VonMises(tensor(0.0), tensor(1e8 + 10))),
        (Normal(tensor(1e6), tensor(1e-6)), Normal(tensor(1e6), tensor(1e-6 * (1 + 1e-15)))),
    ],
    ids=lambda d: name_of(d),
)
def test_fifty_digits_however_many_cancel(p, q):
    value = true_kl(p, q)
    with mp.workdps(400):
        assert abs(value / closed_form(*stored(p), *stored(q)) - 1) < mpf("1e-50")


def test_known_values():
    assert (
        relative_error(
            7.0820264958665277434e-305, true_kl(Bernoulli(logits=tensor(700.0)), Bernoulli(logits=tensor(699.0)))
        )
        < 1e-9
    )
    assert float(true_kl(Normal(tensor(0.0), tensor(1e-30)), Normal(tensor(0.0), tensor(1.0)))) == pytest.approx(
        68.577553
    )
    assert float(
        true_kl(Categorical(logits=tensor([0.0, 0.0])), Categorical(logits=tensor([0.0, -110.0])))
    ) == pytest.approx(54.3, abs=0.01)
    assert float(true_kl(Exponential(tensor(1e30)), Exponential(tensor(1e-30)))) == pytest.approx(137.155, abs=1e-3)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (Exponential(tensor(0.5)), Chi2(tensor(2.0))),
        (Beta(tensor(1.0), tensor(1.0)), Uniform(tensor(0.0), tensor(1.0))),
        (Categorical(logits=tensor([0.0, 1.0])), Categorical(logits=tensor([0.0, 1.0]) + 4)),
        (Poisson(tensor(0.0)), Poisson(tensor(0.0))),
        (Binomial(0, tensor(0.3)), Binomial(0, tensor(0.4))),
    ],
    ids=lambda d: name_of(d),
)
def test_zero_where_the_distributions_are_the_same(p, q):
    assert true_kl(p, q) < mpf("1e-30")


# Infinities and edges


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (Pareto(tensor(1.0), tensor(1.0)), Exponential(tensor(1.0))),
        (Pareto(tensor(1.0), tensor(2.0)), Normal(tensor(0.0), tensor(1.0))),
        (Pareto(tensor(0.9), tensor(3.0)), Pareto(tensor(1.0), tensor(3.0))),
        (HalfNormal(tensor(1.0)), InverseGamma(tensor(1.0), tensor(1.0))),
        (Gamma(tensor(1.0), tensor(1.0)), InverseGamma(tensor(1.0), tensor(1.0))),
        (InverseGamma(tensor(1.0), tensor(1.0)), Gamma(tensor(1.0), tensor(1.0))),
        (HalfCauchy(tensor(1.0)), Exponential(tensor(1.0))),
        (Cauchy(tensor(0.0), tensor(1.0)), Normal(tensor(0.0), tensor(1.0))),
        (Laplace(tensor(0.0), tensor(1.0)), Gumbel(tensor(0.0), tensor(1.0))),
        (Normal(tensor(0.0), tensor(1.0)), Gamma(tensor(1.0), tensor(1.0))),
        (Gamma(tensor(1.0), tensor(1.0)), Beta(tensor(1.0), tensor(1.0))),
        (Uniform(tensor(0.0), tensor(2.0)), Uniform(tensor(0.0), tensor(1.0))),
        (Poisson(tensor(1.0)), Binomial(5, tensor(0.5))),
        (Poisson(tensor(1.0)), Poisson(tensor(0.0))),
        (Binomial(3, tensor(0.5)), Binomial(2, tensor(0.5))),
        (Multinomial(3, tensor([0.5, 0.5])), Multinomial(4, tensor([0.5, 0.5]))),
        (Bernoulli(tensor(0.5)), Bernoulli(tensor(0.0))),
        (Categorical(tensor([0.5, 0.5])), Categorical(tensor([1.0, 0.0]))),
        (Geometric(tensor(0.5)), Geometric(tensor(1.0))),
    ],
    ids=lambda d: name_of(d),
)
def test_infinite(p, q):
    assert true_kl(p, q) == mp.inf


@pytest.mark.parametrize(
    ("p", "q", "value"),
    [
        (Laplace(tensor(0.0), tensor(1.0)), Gumbel(tensor(0.0), tensor(2.0)), -math.log(2) - 1 + math.log(2) + 4 / 3),
        (Pareto(tensor(1.0), tensor(1.5)), Exponential(tensor(1.0)), math.log(1.5) - 1 - 1 / 1.5 + 3),
        (Poisson(tensor(0.0)), Poisson(tensor(1.0)), 1.0),
        (Poisson(tensor(0.0)), Bernoulli(tensor(0.5)), math.log(2)),
        (Binomial(10, tensor(1.0)), Binomial(10, tensor(0.5)), 10 * math.log(2)),
        (Bernoulli(tensor(1.0)), Bernoulli(tensor(0.25)), math.log(4)),
        (Categorical(tensor([1.0, 0.0])), Categorical(tensor([0.5, 0.5])), math.log(2)),
        (Categorical(logits=tensor([0.0, -math.inf])), Categorical(tensor([0.5, 0.5])), math.log(2)),
        (NegativeBinomial(tensor(3.0), tensor(0.0)), NegativeBinomial(tensor(3.0), tensor(0.5)), 3 * math.log(2)),
        (Geometric(tensor(1.0)), Geometric(tensor(0.5)), math.log(2)),
        (Binomial(2, tensor(1.0)), Binomial(3, tensor(0.5)), math.log(8 / 3)),
    ],
    ids=lambda d: name_of(d) if not isinstance(d, float) else "",
)
def test_edges(p, q, value):
    assert float(true_kl(p, q)) == pytest.approx(value, rel=1e-14)


def test_what_is_not_covered_raises():
    with pytest.raises(ValueError, match="not a batch"):
        true_kl(Normal(torch.zeros(2), torch.ones(2)), Normal(0.0, 1.0))
    with pytest.raises(NotImplementedError, match="no oracle for Normal to Poisson"):
        true_kl(Normal(0.0, 1.0), Poisson(1.0))


# Parameters as they are stored


def test_stored_parameters_are_those_that_were_given():
    assert stored(Bernoulli(torch.tensor(0.1)))[1] == {"probs": mpf(torch.tensor(0.1).item())}
    given = Bernoulli(logits=torch.tensor(0.1))
    assert given.probs > 0  # made on the way, and not what was given
    assert stored(given)[1] == {"logits": mpf(torch.tensor(0.1).item())}
    given = Geometric(logits=torch.tensor(0.1))
    assert given.probs > 0
    assert list(stored(given)[1]) == ["logits"]
    for family in (OneHotCategorical, Multinomial):
        assert "logits" in stored(family(logits=torch.tensor([0.1, 0.2])))[1]
    for name in ("covariance_matrix", "precision_matrix", "scale_tril"):
        for family, first in ((MultivariateNormal, {"loc": torch.zeros(2)}), (Wishart, {"df": torch.tensor(3.0)})):
            given = family(**first, **{name: torch.eye(2)})
            assert given.covariance_matrix.shape == given.precision_matrix.shape == given.scale_tril.shape
            assert list(stored(given)[1]) == [*first, name]
    assert stored(DiagonalNormal(torch.zeros(()), torch.ones(()), 0)) == ("DiagonalNormal", {"mean": 0, "log_var": 1})


# Gradients


@pytest.mark.parametrize(
    "pair",
    [
        two(Normal, loc=(0.3, -1.1), scale=(0.7, 1.9)),
        two(Gamma, concentration=(2.4, 1.3), rate=(1.2, 0.7)),
        two(Beta, concentration1=(1.6, 2.3), concentration0=(2.2, 1.4)),
        two(Dirichlet, concentration=([1.6, 2.3], [2.2, 1.4])),
        two(Gumbel, loc=(0.3, -1.1), scale=(0.7, 1.9)),
        two(Pareto, scale=(1.3, 1.1), alpha=(0.7, 1.9)),
        two(Bernoulli, probs=(0.3, 0.6)),
        two(Geometric, logits=(0.3, -0.6)),
        two(Categorical, logits=([0.3, 0.7, -1.0], [0.2, -1.3, 1.0])),
        two(MultivariateNormal, loc=([0.3, 0.7], [1.0, 1.0]), covariance_matrix=([[1.0, 0.5], [0.5, 2.0]],) * 2),
        two(MultivariateNormal, loc=([0.3, 0.7], [1.0, 1.0]), precision_matrix=([[1.0, 0.5], [0.5, 2.0]],) * 2),
        two(MultivariateNormal, loc=([0.3, 0.7], [1.0, 1.0]), scale_tril=([[1.0, 0.0], [0.5, 2.0]],) * 2),
        [Beta(tensor(1.6), tensor(2.3)), Normal(tensor(0.4), tensor(0.3))],
        [Uniform(tensor(0.2), tensor(0.7)), Gumbel(tensor(0.4), tensor(0.3))],
    ],
    ids=lambda pair: f"{name_of(pair[0])}-{name_of(pair[1])}-{'-'.join(stored(pair[0])[1])}",
)
def test_gradients_are_those_of_torch(pair):
    truth = true_gradients(*pair)
    sides = []
    for distribution in pair:
        names = stored(distribution)[1]
        sides.append({name: getattr(distribution, name).detach().clone().requires_grad_() for name in names})
    p, q = (type(d)(**parameters) for d, parameters in zip(pair, sides, strict=True))
    torch.distributions.kl_divergence(p, q).backward()
    for side, parameters in zip("pq", sides, strict=True):
        for name, parameter in parameters.items():
            expected = torch.tensor(truth[side, name], dtype=torch.float64)
            gradient = parameter.grad.tril() if name == "scale_tril" else parameter.grad
            torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-10)


def test_gradients_of_what_torch_has_not():
    # D_KL(N(m, v) || N(n, w)), dimension by dimension
    p, q = DiagonalNormal(tensor([0.3]), tensor([0.5])), Independent(Normal(tensor([1.0]), tensor([2.0])), 1)
    truth = true_gradients(p, q)
    assert float(truth["p", "mean"][0]) == pytest.approx((0.3 - 1) / 4, rel=1e-14)
    assert float(truth["p", "log_var"][0]) == pytest.approx((math.exp(0.5) / 4 - 1) / 2, rel=1e-14)
    assert float(truth["q", "scale"][0]) == pytest.approx(1 / 2 - (math.exp(0.5) + 0.49) / 8, rel=1e-14)


def test_gradients_near_one_another_keep_their_digits():
    p, q = Gamma(tensor(1e8), tensor(2.0)), Gamma(tensor(1e8 + 1), tensor(2.0))
    value = true_partial(*stored(p), *stored(q), ("p", "concentration"))
    with mp.workdps(60):  # (a - b) psi'(a)
        assert abs(value / -mp.psi(1, mpf(10) ** 8) - 1) < mpf("1e-30")


def test_gradients_of_tiny_probabilities():
    p, q = tensor([0.5, 0.5, 1e-20]), tensor([0.25, 0.75, 3e-25])
    gradients = true_gradients(Categorical(p), Categorical(q))
    divergence = (p * (p / q).log()).sum()
    expected_p, expected_q = (p / q).log() - divergence, 1 - p / q
    torch.testing.assert_close(tensor(list(map(float, gradients["p", "probs"]))), expected_p, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tensor(list(map(float, gradients["q", "probs"]))), expected_q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("distance", [1.0, 1e-5])
def test_gradients_of_wide_dirichlets(distance):
    p, q = FAMILIES["Dirichlet"].draw(random.Random(0), distance, torch.float64)
    (_, a), (_, b) = stored(p), stored(q)
    a, b = a["concentration"], b["concentration"]
    with mp.workdps(60):
        expected = (a[0] - b[0]) * mp.psi(1, a[0]) - (mp.fsum(a) - mp.fsum(b)) * mp.psi(1, mp.fsum(a))
        assert abs(true_partial(*stored(p), *stored(q), ("p", "concentration", 0)) / expected - 1) < mpf("1e-30")
        expected = mp.psi(0, mp.fsum(a)) - mp.psi(0, a[0]) - mp.psi(0, mp.fsum(b)) + mp.psi(0, b[0])
        assert abs(true_partial(*stored(p), *stored(q), ("q", "concentration", 0)) / expected - 1) < mpf("1e-30")


def test_gradients_at_the_edges():
    def partial(p, q, *which):
        return true_partial(*stored(p), *stored(q), which)

    half = Bernoulli(tensor(0.5))
    assert partial(Bernoulli(tensor(0.0)), half, "p", "probs") == -mp.inf
    assert partial(Bernoulli(tensor(1.0)), half, "p", "probs") == mp.inf
    assert float(partial(Bernoulli(tensor(0.0)), half, "q", "probs")) == pytest.approx(2)
    p, q = Categorical(logits=tensor([0.0, 0.0, -math.inf])), Categorical(logits=tensor([0.0, 1.0, 1.0]))
    gradients = true_gradients(p, q)
    assert gradients["p", "logits"][2] == 0
    assert float(sum(gradients["q", "logits"])) == pytest.approx(0, abs=1e-14)
    assert float(gradients["q", "logits"][2]) == pytest.approx(math.e / (1 + 2 * math.e))
    p, q = Uniform(tensor(0.0), tensor(1.0)), Uniform(tensor(0.0), tensor(2.0))
    assert float(partial(p, q, "p", "low")) == pytest.approx(1)
    assert float(partial(p, q, "q", "high")) == pytest.approx(0.5)
    assert float(partial(Poisson(tensor(0.0)), Poisson(tensor(1.0)), "q", "rate")) == pytest.approx(1)
    assert partial(Poisson(tensor(0.0)), Poisson(tensor(1.0)), "p", "rate") == -mp.inf


def test_gradients_of_integrals():
    """Kumaraswamy(a, 1) is Beta(a, 1), and the derivative to the other family's parameters is the same."""
    p, q = Kumaraswamy(tensor(1.7), tensor(1.0)), Beta(tensor(2.3), tensor(1.4))
    expected = true_partial(*stored(Beta(tensor(1.7), tensor(1.0))), *stored(q), ("q", "concentration0"))
    value = true_partial(*stored(p), *stored(q), ("q", "concentration0"))
    assert abs(value - expected) < mpf("1e-15")


# Draws


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FAMILIES)
def test_draws_of_families(name, dtype):
    draw, kind = FAMILIES[name]
    for distance in (1.0, 1e-5):
        p, q = draw(random.Random(0), distance, dtype)
        again, _ = draw(random.Random(0), distance, dtype)
        assert stored(p) == stored(again)
        truth = true_kl(p, q)
        assert 0 <= truth < torch.finfo(dtype).max
        assert 0 < tolerance(kind, dtype, p, q) < 1e-3


@pytest.mark.parametrize("pair", CROSS, ids=" to ".join)
def test_draws_of_crossed_families(pair):
    draw, kind = CROSS[pair]
    p, q = draw(random.Random(0), torch.float32)
    assert (type(p).__name__, type(q).__name__) == pair
    assert 0 < true_kl(p, q) < torch.finfo(torch.float32).max
    assert 0 < tolerance(kind, torch.float64, p, q) < 1e-3
