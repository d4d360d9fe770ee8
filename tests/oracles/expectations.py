"""The entropy of each family on a line, and what it expects of the statistics in a log-density."""

from collections.abc import Callable
from typing import Any

from mpmath import mp, mpf

from tests.oracles.densities import ONE, POWER_OF_GAMMA, SUPPORT, X, log_beta, log_odds, tilted_mass
from tests.oracles.parameters import Parameters


class NoClosedFormError(NotImplementedError):
    """An expectation that has to be integrated."""


def entropy(family: str, p: Parameters) -> mpf:
    """-E ln p."""
    if family in POWER_OF_GAMMA:
        theta, d, kappa = POWER_OF_GAMMA[family](p)
        return mp.log(theta) + mp.loggamma(d) - mp.log(abs(kappa)) + d + (1 / kappa - d) * mp.digamma(d)
    match family:
        case "Normal":
            return mp.log(2 * mp.pi * mp.e) / 2 + mp.log(p["scale"])
        case "LogNormal":
            return mp.log(2 * mp.pi * mp.e) / 2 + mp.log(p["scale"]) + p["loc"]
        case "Beta":
            a, b = p["concentration1"], p["concentration0"]
            moments = (a - 1) * mp.digamma(a) + (b - 1) * mp.digamma(b) - (a + b - 2) * mp.digamma(a + b)
            return log_beta(a, b) - moments
        case "Kumaraswamy":
            a, b = p["concentration1"], p["concentration0"]
            return 1 - 1 / b + (1 - 1 / a) * mp.harmonic(b) - mp.log(a * b)
        case "ContinuousBernoulli":
            return mp.log(tilted_mass(log_odds(p))) - log_odds(p) * expectation(family, p, X)
        case "Uniform":
            return mp.log(p["high"] - p["low"])
        case "Pareto":
            return mp.log(p["scale"] / p["alpha"]) + 1 + 1 / p["alpha"]
        case "Gumbel":
            return mp.log(p["scale"]) + mp.euler + 1
        case "Laplace":
            return mp.log(2 * p["scale"]) + 1
    raise NoClosedFormError(f"entropy of {family}")


def expectation(family: str, p: Parameters, statistic: tuple) -> mpf:
    """E_p of one of the statistics, finite by :func:`is_integrable`."""
    kind, *argument = statistic
    if statistic == ONE:
        return mpf(1)
    if kind == "log1m_power" and argument[0] == 1:
        statistic, kind = ("log1m",), "log1m"
    low, high = SUPPORT[family](p)
    if kind == "abs" and not low < argument[0] < high:
        return abs(expectation(family, p, X) - argument[0])
    closed = EXPECTATIONS.get("PowerOfGamma" if family in POWER_OF_GAMMA else family)
    try:
        value = closed(family, p, kind, argument[0] if argument else None) if closed else None
    except (ValueError, mp.NoConvergence):  # a hypergeometric series that mpmath cannot sum
        value = None
    if value is None:
        raise NoClosedFormError(f"expectation of {statistic} under {family}")
    return value


def normal_cdf(x: mpf) -> mpf:
    return mp.erfc(-x / mp.sqrt(2)) / 2


def expect_power_of_gamma(family: str, p: Parameters, kind: str, v: Any) -> mpf | None:
    theta, d, kappa = POWER_OF_GAMMA[family](p)
    match kind:
        case "power":
            return theta**v * mp.exp(mp.loggamma(d + v / kappa) - mp.loggamma(d))
        case "log":
            mean = mp.log(theta) + mp.digamma(d) / kappa
            return mean if v == 1 else mean**2 + mp.psi(1, d) / kappa**2
        case "abs":
            mean = expect_power_of_gamma(family, p, "power", mpf(1))
            u = mp.exp(kappa * mp.log(v / theta))
            below, mean_below = (
                (mp.gammainc(c, 0, u) if kappa > 0 else mp.gammainc(c, u)) / mp.gamma(c) for c in (d, d + 1 / kappa)
            )
            return mean - v + 2 * (v * below - mean * mean_below)
        case "exp" if family == "Gamma":
            return mp.exp(-d * mp.log1p(-v * theta))
        case "exp" if family == "HalfNormal":
            return mp.exp((p["scale"] * v) ** 2 / 2) * mp.erfc(-p["scale"] * v / mp.sqrt(2))
        case "exp" if family == "InverseGamma":
            return 2 * mp.exp(d / 2 * mp.log(-v * theta) - mp.loggamma(d)) * mp.besselk(d, 2 * mp.sqrt(-v * theta))
    return None


def expect_normal(family: str, p: Parameters, kind: str, v: Any) -> mpf | None:
    m, s = p["loc"], p["scale"]
    match kind:
        case "power":
            return {1: m, 2: m * m + s * s}.get(int(v))
        case "exp":
            return mp.exp(m * v + (s * v) ** 2 / 2)
        case "abs":
            d = m - v
            return s * mp.sqrt(2 / mp.pi) * mp.exp(-((d / s) ** 2) / 2) + d * mp.erf(d / (s * mp.sqrt(2)))
    return None


def expect_log_normal(family: str, p: Parameters, kind: str, v: Any) -> mpf | None:
    m, s = p["loc"], p["scale"]
    match kind:
        case "power":
            return mp.exp(m * v + (s * v) ** 2 / 2)
        case "log":
            return m if v == 1 else m * m + s * s
        case "abs":
            mean, z = mp.exp(m + s * s / 2), (mp.log(v) - m) / s
            return 2 * (mean * normal_cdf(s - z) - v * normal_cdf(-z)) - mean + v
    return None


def expect_beta(family: str, p: Parameters, kind: str, v: Any) -> mpf | None:
    a, b = p["concentration1"], p["concentration0"]
    match kind:
        case "power":
            return mp.exp(log_beta(a + v, b) - log_beta(a, b))
        case "log":
            mean = mp.digamma(a) - mp.digamma(a + b)
            return mean if v == 1 else mean**2 + mp.psi(1, a) - mp.psi(1, a + b)
        case "log1m":
            return mp.digamma(b) - mp.digamma(a + b)
        case "exp":
            return mp.hyp1f1(a, a + b, v)
        case "abs":
            mean = a / (a + b)
            below, mean_below = (mp.betainc(c, b, 0, v, regularized=True) for c in (a, a + 1))
            return mean - v + 2 * (v * below - mean * mean_below)
    return None


def expect_kumaraswamy(family: str, p: Parameters, kind: str, v: Any) -> mpf | None:
    a, b = p["concentration1"], p["concentration0"]
    match kind:
        case "power":
            return b * mp.exp(log_beta(1 + v / a, b))
        case "log" if v == 1:
            return -mp.harmonic(b) / a
        case "log1m" if a == 1:
            return -1 / b
        case "log1m_power" if v == a:  # 1 - x^a is the power 1 / b of a uniform variable
            return -1 / b
    return None


def expect_continuous_bernoulli(family: str, p: Parameters, kind: str, v: Any) -> mpf | None:
    t = log_odds(p)
    match kind:
        case "power" if v == 1:
            return -1 / mp.expm1(-t) - 1 / t if t else mpf(1) / 2
        case "power" if v == 2:
            return (mp.exp(t) * (t * t - 2 * t + 2) - 2) / t**3 / tilted_mass(t) if t else mpf(1) / 3
        case "exp":
            return tilted_mass(t + v) / tilted_mass(t)
        case "log" if v == 1:
            return -(mp.ei(t) - mp.log(abs(t)) - mp.euler) / mp.expm1(t) if t else mpf(-1)
        case "log1m":
            return expect_continuous_bernoulli(family, {"logits": -t}, "log", 1)
    return None


def expect_uniform(family: str, p: Parameters, kind: str, v: Any) -> mpf | None:
    low, high = p["low"], p["high"]

    def average(integral: Callable[[mpf], mpf]) -> mpf:
        return (integral(high) - integral(low)) / (high - low)

    match kind:
        case "power" if v == -1:
            return average(mp.log)
        case "power":
            return average(lambda x: (x ** (v + 1) if x or v > -1 else mpf(0)) / (v + 1))
        case "log" if v == 1:
            return average(lambda x: x * (mp.log(x) - 1) if x else mpf(0))
        case "log":
            return average(lambda x: x * ((mp.log(x) - 2) * mp.log(x) + 2) if x else mpf(0))
        case "log1m":
            return expect_uniform(family, {"low": 1 - high, "high": 1 - low}, "log", 1)
        case "exp":
            return average(lambda x: mp.exp(v * x) / v)
        case "abs":
            return average(lambda x: abs(x - v) * (x - v) / 2)
    return None


def expect_pareto(family: str, p: Parameters, kind: str, v: Any) -> mpf | None:
    m, a = p["scale"], p["alpha"]
    match kind:
        case "power":
            return a * m**v / (a - v)
        case "log":
            mean = mp.log(m) + 1 / a
            return mean if v == 1 else mean**2 + 1 / a**2
        case "exp":
            return a * (-v * m) ** a * mp.gammainc(-a, -v * m)
        case "abs":
            return a * m / (a - 1) + v - 2 * m - 2 * m**a * (v ** (1 - a) - m ** (1 - a)) / (1 - a)
    return None


def expect_gumbel(family: str, p: Parameters, kind: str, v: Any) -> mpf | None:
    m, s = p["loc"], p["scale"]
    mean = m + mp.euler * s
    match kind:
        case "power":
            return {1: mean, 2: mean**2 + (mp.pi * s) ** 2 / 6}.get(int(v))
        case "exp":
            return mp.exp(m * v + mp.loggamma(1 - s * v))
        case "abs":
            return mean - v + 2 * s * mp.e1(mp.exp(-(v - m) / s))
    return None


def expect_laplace(family: str, p: Parameters, kind: str, v: Any) -> mpf | None:
    m, b = p["loc"], p["scale"]
    match kind:
        case "power":
            return {1: m, 2: m * m + 2 * b * b}.get(int(v))
        case "exp":
            return mp.exp(m * v) / (1 - (b * v) ** 2)
        case "abs":
            return abs(m - v) + b * mp.exp(-abs(m - v) / b)
    return None


EXPECTATIONS: dict[str, Callable[[str, Parameters, str, Any], mpf | None]] = {
    "Beta": expect_beta,
    "ContinuousBernoulli": expect_continuous_bernoulli,
    "Gumbel": expect_gumbel,
    "Kumaraswamy": expect_kumaraswamy,
    "Laplace": expect_laplace,
    "LogNormal": expect_log_normal,
    "Normal": expect_normal,
    "Pareto": expect_pareto,
    "PowerOfGamma": expect_power_of_gamma,
    "Uniform": expect_uniform,
}
