"""Densities on a line: each logarithm is written once, as a sum of statistics.

``("power", r)``: x^r; ``("log", n)``: (ln x)^n; ``("log1m",)``: ln(1 - x); ``("log1m_power", a)``: ln(1 - x^a);
``("exp", t)``: e^(tx); ``("abs", c)``: |x - c|; ``("log1p_square", m, s)``: ln(1 + ((x - m) / s)^2).
"""

from collections.abc import Callable

from mpmath import mp, mpf

from tests.oracles.parameters import Parameters


def canonical(family: str, p: Parameters) -> tuple[str, Parameters]:
    """Special cases as the general family."""
    if family == "Chi2":
        return "Gamma", {"concentration": p["df"] / 2, "rate": mpf(1) / 2}
    if family == "Exponential":
        return "Gamma", {"concentration": mpf(1), "rate": p["rate"]}
    if family == "DiagonalNormal":
        return "Normal", {"loc": p["mean"], "scale": mp.exp(p["log_var"] / 2)}
    return family, p


ONE = ("power", mpf(0))
X = ("power", mpf(1))
XX = ("power", mpf(2))
LOG = ("log", 1)

Terms = list[tuple[mpf, tuple]]


def log_normal_density(m: mpf, s: mpf, statistics: tuple, doubled: bool = False) -> Terms:
    constant = -mp.log(s) - mp.log(2 * mp.pi) / 2 - m * m / (2 * s * s) + (mp.log(2) if doubled else 0)
    return [(constant, ONE), (m / (s * s), statistics[0]), (-1 / (2 * s * s), statistics[1])]


def log_density_terms(family: str, q: Parameters) -> Terms:
    """Coefficients and statistics whose sum is the log-density on the support."""
    match family:
        case "Normal":
            return log_normal_density(q["loc"], q["scale"], (X, XX))
        case "HalfNormal":
            return log_normal_density(mpf(0), q["scale"], (X, XX), doubled=True)
        case "LogNormal":
            return [*log_normal_density(q["loc"], q["scale"], (LOG, ("log", 2))), (mpf(-1), LOG)]
        case "Gamma" | "InverseGamma":
            a, b = q["concentration"], q["rate"]
            sign = 1 if family == "Gamma" else -1
            return [(a * mp.log(b) - mp.loggamma(a), ONE), (sign * a - 1, LOG), (-b, ("power", mpf(sign)))]
        case "Weibull":
            s, k = q["scale"], q["concentration"]
            return [(mp.log(k) - k * mp.log(s), ONE), (k - 1, LOG), (-mp.exp(-k * mp.log(s)), ("power", k))]
        case "Beta":
            a, b = q["concentration1"], q["concentration0"]
            return [(-log_beta(a, b), ONE), (a - 1, LOG), (b - 1, ("log1m",))]
        case "Kumaraswamy":
            a, b = q["concentration1"], q["concentration0"]
            return [(mp.log(a * b), ONE), (a - 1, LOG), (b - 1, ("log1m_power", a))]
        case "ContinuousBernoulli":
            return [(-mp.log(tilted_mass(log_odds(q))), ONE), (log_odds(q), X)]
        case "Uniform":
            return [(-mp.log(q["high"] - q["low"]), ONE)]
        case "Pareto":
            return [(mp.log(q["alpha"]) + q["alpha"] * mp.log(q["scale"]), ONE), (-q["alpha"] - 1, LOG)]
        case "Gumbel":
            m, s = q["loc"], q["scale"]
            return [(m / s - mp.log(s), ONE), (-1 / s, X), (-mp.exp(m / s), ("exp", -1 / s))]
        case "Laplace":
            return [(-mp.log(2 * q["scale"]), ONE), (-1 / q["scale"], ("abs", q["loc"]))]
        case "Cauchy":
            m, s = q["loc"], q["scale"]
            return [(-mp.log(mp.pi * s), ONE), (mpf(-1), ("log1p_square", m, s))]
        case "HalfCauchy":
            return [(-mp.log(mp.pi * q["scale"] / 2), ONE), (mpf(-1), ("log1p_square", mpf(0), q["scale"]))]
        case "StudentT":
            n, m, s = q["df"], q["loc"], q["scale"]
            constant = -log_beta(n / 2, mpf(1) / 2) - mp.log(n) / 2 - mp.log(s)
            return [(constant, ONE), (-(n + 1) / 2, ("log1p_square", m, s * mp.sqrt(n)))]
    raise NotImplementedError(f"no density for {family}")


def log_beta(a: mpf, b: mpf) -> mpf:
    return mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)


def log_odds(p: Parameters) -> mpf:
    if "logits" in p:
        return p["logits"]
    return mp.log(p["probs"]) - mp.log1p(-p["probs"])


def tilted_mass(t: mpf) -> mpf:
    """The integral of e^(tx) over the unit interval."""
    return mp.expm1(t) / t if t else mpf(1)


SUPPORT: dict[str, Callable[[Parameters], tuple[mpf, mpf]]] = {
    **dict.fromkeys(("Normal", "Gumbel", "Laplace", "Cauchy", "StudentT"), lambda p: (-mp.inf, mp.inf)),
    **dict.fromkeys(
        ("HalfNormal", "LogNormal", "Gamma", "InverseGamma", "Weibull", "HalfCauchy"), lambda p: (mpf(0), mp.inf)
    ),
    **dict.fromkeys(("Beta", "Kumaraswamy", "ContinuousBernoulli"), lambda p: (mpf(0), mpf(1))),
    "Uniform": lambda p: (p["low"], p["high"]),
    "Pareto": lambda p: (p["scale"], mp.inf),
}

# x = theta G^(1/kappa), where G has the gamma distribution of concentration d and rate 1: theta, d, kappa
POWER_OF_GAMMA: dict[str, Callable[[Parameters], tuple[mpf, mpf, mpf]]] = {
    "Gamma": lambda p: (1 / p["rate"], p["concentration"], mpf(1)),
    "InverseGamma": lambda p: (p["rate"], p["concentration"], mpf(-1)),
    "Weibull": lambda p: (p["scale"], mpf(1), p["concentration"]),
    "HalfNormal": lambda p: (p["scale"] * mp.sqrt(2), mpf(1) / 2, mpf(2)),
}
