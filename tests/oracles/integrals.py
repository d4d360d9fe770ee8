"""The divergence of two families on a line as an integral, for expectations that have no closed form."""

from collections.abc import Callable
from typing import NamedTuple

from mpmath import mp, mpf

from tests.oracles.densities import ONE, POWER_OF_GAMMA, SUPPORT, canonical, log_density_terms
from tests.oracles.parameters import Parameters


class Line(NamedTuple):
    """A coordinate t in which p has one peak, about ``width`` wide, at ``centre``, and light tails."""

    point: Callable[[mpf], tuple[mpf, mpf, mpf]]  # t to x, 1 - x and |dx/dt|
    inverse: Callable[[mpf], mpf]
    centre: mpf
    width: mpf
    low: mpf = -mp.inf


def line_of(family: str, p: Parameters) -> Line:
    def exponential(centre: mpf, width: mpf, unit: mpf | int = 1, low: mpf = -mp.inf) -> Line:
        def point(t: mpf) -> tuple[mpf, mpf, mpf]:
            x = unit * mp.exp(t)
            return x, 1 - x, x

        return Line(point, lambda x: mp.log(x / unit), centre, width, low)

    if family in POWER_OF_GAMMA:
        theta, d, kappa = POWER_OF_GAMMA[family](p)
        return exponential(mp.log(theta) + mp.log(d) / kappa, 1 / mp.sqrt(d) / abs(kappa))
    if family == "LogNormal":
        return exponential(p["loc"], p["scale"])
    if family == "HalfCauchy":
        return exponential(mp.log(p["scale"]), mpf(1))
    if family == "Pareto":
        return exponential(mpf(0), 1 / p["alpha"], p["scale"], mpf(0))
    if family in ("Cauchy", "StudentT"):
        m, s = p["loc"], p["scale"]

        def heavy(t: mpf) -> tuple[mpf, mpf, mpf]:
            x = m + s * mp.sinh(t)
            return x, 1 - x, s * mp.cosh(t)

        return Line(heavy, lambda x: mp.asinh((x - m) / s), mpf(0), mpf(1))
    if family in ("Normal", "Gumbel", "Laplace"):
        m, s = p["loc"], p["scale"]
        return Line(lambda t: (m + s * t, 1 - m - s * t, s), lambda x: (x - m) / s, mpf(0), mpf(1))
    low, high = SUPPORT[family](p)

    def logistic(t: mpf) -> tuple[mpf, mpf, mpf]:
        x, y = 1 / (1 + mp.exp(-t)), 1 / (1 + mp.exp(t))
        return low + (high - low) * x, 1 - high + (high - low) * y, (high - low) * x * y

    centre, width = mpf(0), mpf(1)
    if family == "Beta":
        a, b = p["concentration1"], p["concentration0"]
        centre, width = mp.log(a / b), mp.sqrt(1 / a + 1 / b)
    elif family == "Kumaraswamy":
        a, b = p["concentration1"], p["concentration0"]
        median = mp.exp(mp.log(-mp.expm1(-mp.log(2) / b)) / a)
        centre, width = mp.log(median / (1 - median)), 1 / a + 1 / b
    return Line(logistic, lambda x: mp.log((x - low) / (high - x)), centre, width)


def statistic_at(statistic: tuple) -> Callable[[mpf, mpf], mpf]:
    """The statistic as a function of x and y = 1 - x."""
    match statistic:
        case ("power", r):
            return lambda x, y: x**r if r else mpf(1)
        case ("log", n):
            return lambda x, y: mp.log(x) ** n
        case ("log1m",):
            return lambda x, y: mp.log(y)
        case ("log1m_power", a):
            return lambda x, y: mp.log(-mp.expm1(a * (mp.log1p(-y) if y < x else mp.log(x))))
        case ("exp", t):
            return lambda x, y: mp.exp(t * x)
        case ("abs", c):
            return lambda x, y: abs(x - c)
        case ("log1p_square", m, s):
            return lambda x, y: mp.log1p(((x - m) / s) ** 2)
    raise NotImplementedError(statistic)


def log_density(family: str, p: Parameters) -> Callable[[mpf, mpf], mpf]:
    """x and 1 - x to the log-density on the support."""
    terms = [(c, statistic_at(s)) for c, s in log_density_terms(family, p) if c and s != ONE]
    constant = sum(c for c, s in log_density_terms(family, p) if s == ONE)
    return lambda x, y: sum((c * value(x, y) for c, value in terms), constant)


def integrated(family_p: str, p: Parameters, family_q: str, q: Parameters, digits: int = 30) -> mpf:
    """The integral of p (ln p - ln q) on the support of p, for a divergence that is finite."""
    (family_p, p), (family_q, q) = canonical(family_p, p), canonical(family_q, q)
    with mp.workdps(digits + 10):
        line, log_p, log_q = line_of(family_p, p), log_density(family_p, p), log_density(family_q, q)

        def integrand(t: mpf) -> mpf:
            x, y, slope = line.point(t)
            u = log_p(x, y)
            return mp.exp(u) * (u - log_q(x, y)) * slope

        def size(t: mpf) -> mpf:
            x, y, slope = line.point(t)
            u = log_p(x, y)
            return mp.exp(u) * (1 + abs(u - log_q(x, y))) * slope

        peak, ends = size(line.centre), []
        for direction in (-1, 1):
            t, step = line.centre, direction * line.width
            while t > line.low or direction > 0:
                t, step = max(t + step, line.low), step * mpf("1.5")
                here = size(t) if t > line.low else mpf(0)
                peak = max(peak, here)
                if here < peak * mpf(10) ** -(digits + 8):
                    break
            ends.append(t)
        low, high = ends
        cuts = [line.centre + sign * line.width * mpf(4) ** i / 2 for sign in (-1, 1) for i in range(40)]
        kinks = [params["loc"] for f, params in ((family_p, p), (family_q, q)) if f == "Laplace"]
        support = SUPPORT[family_p](p)
        cuts += [line.inverse(x) for x in kinks if support[0] < x < support[1]]
        points = [low, *sorted({t for t in cuts if low < t < high}), high]
        value, error = mp.quad(integrand, points, error=True)
        if error > mpf(10) ** (2 - digits) * max(abs(value), mpf(1)):
            raise ArithmeticError(
                f"{family_p} to {family_q}: {mp.nstr(value, 20)} with an error of {mp.nstr(error, 3)}"
            )
        return value
