"""The divergence of two families on a line, from the entropy of one and its expectations of the other's statistics."""

from mpmath import mp, mpf

from tests.oracles.densities import POWER_OF_GAMMA, SUPPORT, log_density_terms
from tests.oracles.expectations import entropy, expectation
from tests.oracles.parameters import Parameters


def kl_continuous(family_p: str, p: Parameters, family_q: str, q: Parameters) -> mpf:
    terms = log_density_terms(family_q, q)
    if is_infinite(family_p, p, family_q, q):
        return mp.inf
    return -entropy(family_p, p) - mp.fsum(c * expectation(family_p, p, s) for c, s in terms if c)


def is_infinite(family_p: str, p: Parameters, family_q: str, q: Parameters) -> bool:
    """Whether p leaves the support of q, or its tail is too heavy for the log-density of q."""
    (low, high), (low_q, high_q) = SUPPORT[family_p](p), SUPPORT[family_q](q)
    if low < low_q or high > high_q:
        return True
    return not all(is_integrable(family_p, p, s) for c, s in log_density_terms(family_q, q) if c)


def is_integrable(family: str, p: Parameters, statistic: tuple) -> bool:
    kind, *argument = statistic
    if kind == "exp":  # e^(tx), t < 0: only a heavy left tail can make it diverge
        if family in ("Cauchy", "StudentT"):
            return False
        return family != "Laplace" or -argument[0] * p["scale"] < 1
    if kind not in ("power", "abs"):
        return True
    r = argument[0] if kind == "power" else mpf(1)
    if r == 0:
        return True
    if family in POWER_OF_GAMMA:
        _, d, kappa = POWER_OF_GAMMA[family](p)
        return d + r / kappa > 0
    if family in ("Cauchy", "HalfCauchy", "StudentT"):
        return -1 < r < p.get("df", 1)
    if family == "Pareto":
        return r < p["alpha"]
    if family in ("Beta", "Kumaraswamy"):
        return p["concentration1"] + r > 0
    if family in ("Uniform", "ContinuousBernoulli"):
        return SUPPORT[family](p)[0] > 0 or r > -1
    return True


def kl_cauchy(p: Parameters, q: Parameters) -> mpf:
    """Chyzak and Nielsen 2019."""
    (m, s), (n, t) = ((v.get("loc", mpf(0)), v["scale"]) for v in (p, q))
    return mp.log(((s + t) ** 2 + (m - n) ** 2) / (4 * s * t))


def kl_von_mises(p: Parameters, q: Parameters) -> mpf:
    kappa, other = p["concentration"], q["concentration"]
    mean = mp.besseli(1, kappa) / mp.besseli(0, kappa)
    return mp.log(mp.besseli(0, other) / mp.besseli(0, kappa)) + mean * (kappa - other * mp.cos(p["loc"] - q["loc"]))
