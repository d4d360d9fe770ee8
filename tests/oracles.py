r"""The Kullback-Leibler divergence to fifty digits, for one unbatched pair of distributions.

.. math:: D_{KL}(p\|q) = E_p[\ln p - \ln q] = -H(p) - \sum_i c_i(q)\, E_p[s_i(x)],
              \quad \ln q(x) = \sum_i c_i(q)\, s_i(x)

The logarithm of each density is written once, as a sum of statistics s; the entropy and the expectations of the
statistics are written once for each p. What cancels there costs digits, and mpmath has them: every value is computed
at two precisions, which rise until the two show that fifty digits are right. Where an expectation has no closed form
the integral is taken numerically, to about 30 digits.

The parameters are those that the object stores, converted exactly. Nothing but the class DiagonalNormal is
shared with the package.
"""

import contextlib
import functools
import itertools
import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from mpmath import mp, mpf
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    Chi2,
    ContinuousBernoulli,
    Dirichlet,
    Distribution,
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
    Uniform,
    VonMises,
    Weibull,
    Wishart,
)

from kldiv import DiagonalNormal

DIGITS = 50
Parameters = dict[str, Any]  # mpf, or nested lists of them


class NoClosedFormError(NotImplementedError):
    """An expectation that has to be integrated."""


# What an object stores

PROBS = "probs or logits"
MATRIX = "covariance_matrix, precision_matrix or scale_tril"
PARAMETERS = {
    "Bernoulli": (PROBS,),
    "Beta": ("concentration1", "concentration0"),
    "Binomial": ("total_count", PROBS),
    "Categorical": (PROBS,),
    "Cauchy": ("loc", "scale"),
    "Chi2": ("df",),
    "ContinuousBernoulli": (PROBS,),
    "DiagonalNormal": ("mean", "log_var"),
    "Dirichlet": ("concentration",),
    "Exponential": ("rate",),
    "Gamma": ("concentration", "rate"),
    "Geometric": (PROBS,),
    "Gumbel": ("loc", "scale"),
    "HalfCauchy": ("scale",),
    "HalfNormal": ("scale",),
    "InverseGamma": ("concentration", "rate"),
    "Kumaraswamy": ("concentration1", "concentration0"),
    "Laplace": ("loc", "scale"),
    "LogNormal": ("loc", "scale"),
    "LowRankMultivariateNormal": ("loc", "cov_factor", "cov_diag"),
    "Multinomial": ("total_count", PROBS),
    "MultivariateNormal": ("loc", MATRIX),
    "NegativeBinomial": ("total_count", PROBS),
    "Normal": ("loc", "scale"),
    "OneHotCategorical": (PROBS,),
    "Pareto": ("scale", "alpha"),
    "Poisson": ("rate",),
    "StudentT": ("df", "loc", "scale"),
    "Uniform": ("low", "high"),
    "VonMises": ("loc", "concentration"),
    "Weibull": ("scale", "concentration"),
    "Wishart": ("df", MATRIX),
}


def family_of(distribution: Distribution) -> str:
    """The name of the first known class in the order of inheritance."""
    for kind in type(distribution).__mro__:
        if kind.__name__ in PARAMETERS:
            return kind.__name__
    raise NotImplementedError(f"no oracle for {type(distribution).__name__}")


def stored(distribution: Distribution) -> tuple[str, Parameters]:
    """The family and the parameters that the object stores, exactly.

    ``Independent(Normal(...), k)`` is the family ``"Independent(Normal)"``, its parameters flat lists.
    """
    if isinstance(distribution, Independent):
        base = distribution.base_dist
        if distribution.batch_shape or base.event_shape:
            raise NotImplementedError("only Independent of scalars, without a batch")
        family = family_of(base)
        return f"Independent({family})", {name: exact(value.flatten()) for name, value in tensors_of(base)}
    family = family_of(distribution)
    if distribution.batch_shape:
        raise ValueError(f"one distribution at a time, not a batch of {tuple(distribution.batch_shape)}")
    if family == "DiagonalNormal" and distribution.event_shape:
        return family, {name: exact(value.flatten()) for name, value in tensors_of(distribution)}
    return family, {name: exact(value) for name, value in tensors_of(distribution)}


def tensors_of(distribution: Distribution) -> list[tuple[str, Any]]:
    """Names and values of the parameters that the object was given."""
    tensors = []
    for parameter in PARAMETERS[family_of(distribution)]:
        owner, name = distribution, parameter
        if parameter == PROBS:
            owner = getattr(distribution, "_categorical", distribution)
            given = [key for key in owner.__dict__ if key in ("probs", "logits")]  # lazily made ones come later
            name = given[0]
            if hasattr(owner, "_param"):
                name = "logits" if owner._param is owner.__dict__.get("logits") else "probs"
        elif parameter == MATRIX:
            name = next(key for key in owner.__dict__ if key in MATRIX)
        tensors.append((name, getattr(owner, name)))
    return tensors


def exact(value: Any) -> Any:
    """A tensor as an mpf, or as nested lists of them."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().double().tolist()
    return [exact(v) for v in value] if isinstance(value, list) else mpf(value)


# What is asked for


def true_kl(p: Distribution, q: Distribution) -> mpf:
    """D_KL(p||q) of two unbatched distributions, in nats, to 50 digits (30 where it has to be integrated).

    Raises: NotImplementedError: a pair that is not covered; ValueError: batches, or sizes that do not fit.
    """
    return kl_of(*stored(p), *stored(q))


def kl_of(family_p: str, params_p: Parameters, family_q: str, params_q: Parameters) -> mpf:
    """The same from families and parameters, as :func:`stored` gives them."""
    if family_p == family_q and params_p == params_q:
        return mpf(0)
    arguments = (family_p, params_p, family_q, params_q)
    if is_separable(family_p, family_q):
        with mp.workdps(DIGITS):
            return mp.fsum(kl_of(*u, *v) for u, v in zip(*separated(*arguments), strict=True))
    try:
        return converged(lambda: closed_form(*arguments))
    except NoClosedFormError:
        return integrated(*arguments)


def converged(formula: Callable[[], mpf]) -> mpf:
    """The formula at precisions that rise until DIGITS of the last value are right."""
    lower, digits = None, 60
    while digits < 2000:
        with mp.workdps(digits):
            value = formula()
            if not mp.isfinite(value):
                return value
            # the lower precision shows how many digits cancel; the higher one lost as many
            if lower is not None and abs(value - lower) <= mpf("1e-3") * abs(value):
                return value
        lower, digits = value, digits + DIGITS if lower is None else 2 * digits
    if abs(value) < mpf("1e-900"):  # rounding alone
        return mpf(0)
    raise ArithmeticError(f"the formula does not settle: {mp.nstr(value, 20)}")


def true_partial(family_p: str, params_p: Parameters, family_q: str, params_q: Parameters, which: tuple) -> mpf:
    """The partial derivative of the divergence with respect to one stored parameter, to 30 digits (15 if integrated).

    Args:
        which: ``("p", "loc")``, or with the indices of an element: ``("q", "covariance_matrix", 0, 1)``.

    At the end of a domain (probabilities 0 and 1, equal ends of a support) the derivative is one-sided, and infinite
    where it diverges; nan where the divergence itself is infinite. A covariance or precision matrix is read as
    (M + M') / 2, a triangular factor without what is above the diagonal, as torch's gradients read them.
    """
    side, name, *index = which
    if is_separable(family_p, family_q):
        i, *index = index
        of_p, of_q = separated(family_p, params_p, family_q, params_q)
        return true_partial(*of_p[i], *of_q[i], (side, name, *index))
    family, params = (family_p, params_p) if side == "p" else (family_q, params_q)
    centre = functools.reduce(lambda values, i: values[i], index, params[name])
    with contextlib.suppress(NoClosedFormError):  # what has to be integrated has been found finite
        if not mp.isfinite(closed_form(family_p, params_p, family_q, params_q)):
            return mp.nan
    if not mp.isfinite(centre):  # a logit of minus infinity: its probability is zero to every order
        return mpf(0)

    def moved(step: mpf, evaluate: Callable[..., mpf]) -> mpf:
        changed = {**params, name: replaced(params[name], index, centre + step)}
        return evaluate(family_p, changed if side == "p" else params_p, family_q, changed if side == "q" else params_q)

    below = not (centre == 0 and (name == "probs" or family == "Poisson"))
    above = not (centre == 1 and name == "probs" and not index)

    def slope(step: mpf, evaluate: Callable[..., mpf]) -> mpf:
        step = step * (abs(centre) or 1)
        left = moved(-step, evaluate) if below else mp.inf
        right = moved(step, evaluate) if above else mp.inf
        if mp.isfinite(left) and mp.isfinite(right):
            return (right - left) / (2 * step)
        step = step**2  # a one-sided difference is right to the first order only
        if mp.isfinite(left):
            return (evaluate(family_p, params_p, family_q, params_q) - moved(-step, evaluate)) / step
        if mp.isfinite(right):
            return (moved(step, evaluate) - evaluate(family_p, params_p, family_q, params_q)) / step
        return mp.inf

    try:
        previous = None
        for digits, exponent in ((150, 30), (190, 35), (400, 60), (600, 80), (1200, 100)):
            with mp.workdps(digits):
                value = slope(mpf(10) ** -exponent, closed_form)
                if not mp.isfinite(value):
                    return value
                if previous is not None:
                    change = abs(value - previous)
                    if change <= mpf("1e-32") * abs(value) or change < mpf("1e-100") > abs(value):
                        return value if abs(value) > mpf("1e-100") else mpf(0)
            previous, last = value, previous
        return mp.sign(value - last) * mp.inf  # like the derivative of x ln x at 0
    except NoClosedFormError:
        with mp.workdps(40):
            return slope(mpf("1e-8"), integrated)


def replaced(values: Any, index: list[int], value: mpf) -> Any:
    """The nested lists with one element changed."""
    if not index:
        return value
    return [replaced(v, index[1:], value) if i == index[0] else v for i, v in enumerate(values)]


def true_gradients(p: Distribution, q: Distribution) -> dict[tuple[str, str], Any]:
    """Every partial derivative: ``("p", "loc")`` to an mpf or to nested lists of them, counts left out."""
    arguments = (*stored(p), *stored(q))

    def partials(side: str, name: str, values: Any, index: tuple[int, ...]) -> Any:
        if isinstance(values, list):
            return [partials(side, name, v, (*index, i)) for i, v in enumerate(values)]
        return true_partial(*arguments, (side, name, *index))

    return {
        (side, name): partials(side, name, values, ())
        for side, params in (("p", arguments[1]), ("q", arguments[3]))
        for name, values in params.items()
        if name != "total_count"
    }


def relative_error(value: Tensor | float, truth: mpf) -> float:
    """|value - truth| / |truth|; 0 where both are the same infinity or zero."""
    value = exact(value)
    if value == truth:
        return 0.0
    if not (mp.isfinite(value) and mp.isfinite(truth)) or truth == 0:
        return math.inf
    return float(abs((value - truth) / truth))


# Closed forms, at whatever precision mpmath is set to


def closed_form(family_p: str, p: Parameters, family_q: str, q: Parameters) -> mpf:
    family_p, family_q = (f.replace("OneHot", "") for f in (family_p, family_q))
    families = (family_p, family_q)
    if families in SPECIAL:
        return SPECIAL[families](p, q)
    if all(is_multivariate_normal(f) for f in families):
        return kl_multivariate_normal(gaussian(family_p, p), gaussian(family_q, q))
    family_p, p = canonical(family_p, p)
    family_q, q = canonical(family_q, q)
    if (family_p, family_q) in SPECIAL:
        return SPECIAL[family_p, family_q](p, q)
    if family_p in SUPPORT and family_q in SUPPORT:
        return kl_continuous(family_p, p, family_q, q)
    if family_p in LOG_PMF and family_q in LOG_PMF:
        return kl_sum(family_p, p, family_q, q)
    raise NotImplementedError(f"no oracle for {family_p} to {family_q}")


def is_separable(family_p: str, family_q: str) -> bool:
    """Independent scalars on both sides, other than normals, which are vectors here."""
    families = (family_p, family_q)
    return all(f.startswith("Independent(") for f in families) and not all(map(is_multivariate_normal, families))


def separated(family_p: str, p: Parameters, family_q: str, q: Parameters) -> list[list[tuple[str, Parameters]]]:
    """The scalars that two Independent join."""
    return [
        [(family[12:-1], dict(zip(params, values, strict=True))) for values in zip(*params.values(), strict=True)]
        for family, params in ((family_p, p), (family_q, q))
    ]


def canonical(family: str, p: Parameters) -> tuple[str, Parameters]:
    """Special cases as the general family."""
    if family == "Chi2":
        return "Gamma", {"concentration": p["df"] / 2, "rate": mpf(1) / 2}
    if family == "Exponential":
        return "Gamma", {"concentration": mpf(1), "rate": p["rate"]}
    if family == "DiagonalNormal":
        return "Normal", {"loc": p["mean"], "scale": mp.exp(p["log_var"] / 2)}
    return family, p


# Probability tables


class Table(NamedTuple):
    """Probabilities and their logarithms."""

    probs: list[mpf]
    logs: list[mpf]


def binary(p: Parameters) -> Table:
    """The two outcomes 1 and 0 of probs or logits."""
    if "logits" in p:
        odds, inverse = mp.exp(p["logits"]), mp.exp(-p["logits"])
        return Table([1 / (1 + inverse), 1 / (1 + odds)], [-mp.log1p(inverse), -mp.log1p(odds)])
    probs = p["probs"]
    return Table([probs, 1 - probs], [log(probs), mp.log1p(-probs) if probs < 1 else -mp.inf])


def categories(p: Parameters) -> Table:
    """Normalised: logits are real numbers, probs are divided by their sum."""
    if "probs" in p:
        total = mp.fsum(p["probs"])
        return Table([v / total for v in p["probs"]], [log(v / total) for v in p["probs"]])
    rest = sorted(p["logits"])
    top = rest.pop()
    log_total = top + mp.log1p(mp.fsum(mp.exp(v - top) for v in rest))
    logs = [v - log_total for v in p["logits"]]
    return Table([mp.exp(v) for v in logs], logs)


def kl_table(p: Table, q: Table) -> mpf:
    if len(p.probs) != len(q.probs):
        raise ValueError(f"{len(p.probs)} and {len(q.probs)} categories")
    if any(u > 0 and v == -mp.inf for u, v in zip(p.probs, q.logs, strict=True)):
        return mp.inf
    return mp.fsum(u * (a - b) for u, a, b in zip(p.probs, p.logs, q.logs, strict=True) if u > 0)


def log(x: mpf) -> mpf:
    return mp.log(x) if x > 0 else -mp.inf


def kl_bernoulli(p: Parameters, q: Parameters) -> mpf:
    return kl_table(binary(p), binary(q))


def kl_categorical(p: Parameters, q: Parameters) -> mpf:
    return kl_table(categories(p), categories(q))


def kl_multinomial(p: Parameters, q: Parameters) -> mpf:
    n = p["total_count"]
    if n != q["total_count"]:
        return mp.inf  # outcomes of n draws sum to n
    return n * kl_categorical(p, q) if n else mpf(0)


def kl_binomial(p: Parameters, q: Parameters) -> mpf:
    n = p["total_count"]
    if n != q["total_count"]:
        return kl_sum("Binomial", p, "Binomial", q)
    return n * kl_bernoulli(p, q) if n else mpf(0)


def kl_geometric(p: Parameters, q: Parameters) -> mpf:
    return kl_bernoulli(p, q) / binary(p).probs[0]  # one Bernoulli for each of 1 / p trials


def kl_negative_binomial(p: Parameters, q: Parameters) -> mpf:
    r = p["total_count"]
    if r != q["total_count"]:
        return kl_sum("NegativeBinomial", p, "NegativeBinomial", q)
    return r * kl_bernoulli(p, q) / binary(p).probs[1] if r else mpf(0)


def kl_poisson(p: Parameters, q: Parameters) -> mpf:
    if p["rate"] == 0:
        return q["rate"]
    if q["rate"] == 0:
        return mp.inf
    return p["rate"] * mp.log(p["rate"] / q["rate"]) - p["rate"] + q["rate"]


# Sums over counts


@functools.lru_cache(maxsize=200_000)
def log_gamma(x: mpf, precision: int) -> mpf:
    return mp.loggamma(x)


def log_factorial(k: int) -> mpf:
    return log_gamma(mpf(k + 1), mp.prec)


def times(count: mpf, logarithm: mpf) -> mpf:
    return count * logarithm if count else mpf(0)  # 0 ln 0 = 0


def log_pmf_binomial(p: Parameters, k: int) -> mpf:
    n = int(p.get("total_count", 1))
    if k > n:
        return -mp.inf
    yes, no = binary(p).logs
    return log_factorial(n) - log_factorial(k) - log_factorial(n - k) + times(mpf(k), yes) + times(mpf(n - k), no)


def log_pmf_negative_binomial(p: Parameters, k: int) -> mpf:
    r = p["total_count"]
    if r == 0:
        return mpf(0) if k == 0 else -mp.inf
    yes, no = binary(p).logs
    ways = log_gamma(r + k, mp.prec) - log_gamma(r, mp.prec) - log_factorial(k)
    return ways + times(mpf(k), yes) + times(r, no)


LOG_PMF: dict[str, Callable[[Parameters, int], mpf]] = {
    "Bernoulli": log_pmf_binomial,
    "Binomial": log_pmf_binomial,
    "Geometric": lambda p, k: binary(p).logs[0] + times(mpf(k), binary(p).logs[1]),
    "NegativeBinomial": log_pmf_negative_binomial,
    "Poisson": lambda p, k: times(mpf(k), log(p["rate"])) - p["rate"] - log_factorial(k),
}


def mean_count(family: str, p: Parameters) -> mpf:
    if family == "Poisson":
        return p["rate"]
    yes, no = binary(p).probs
    if family == "Geometric":
        return no / yes
    if family == "NegativeBinomial":
        return p["total_count"] * yes / no
    return p.get("total_count", 1) * yes


def kl_sum(family_p: str, p: Parameters, family_q: str, q: Parameters) -> mpf:
    """The divergence of counts, term by term."""
    mean = mean_count(family_p, p)
    if mean > 10**5:
        raise NotImplementedError(f"{family_p} to {family_q} is a sum over {mp.nstr(mean, 3)} terms: too many")
    last = int(p.get("total_count", 1)) if family_p in ("Bernoulli", "Binomial") else None
    total = mpf(0)
    for k in itertools.count():
        log_p = LOG_PMF[family_p](p, k)
        if log_p > -mp.inf:
            log_q = LOG_PMF[family_q](q, k)
            if log_q == -mp.inf:
                return mp.inf
            term = mp.exp(log_p) * (log_p - log_q)
            total += term
        else:
            term = mpf(0)
        if k == last or (last is None and k > mean and abs(term) < mp.eps * mp.eps * abs(total)):
            return total
        if last is None and log_p == -mp.inf and k > mean:  # a point mass
            return total
    raise AssertionError("endless")


# Densities on a line: the logarithm as a sum of statistics
#
# ("power", r): x^r; ("log", n): (ln x)^n; ("log1m",): ln(1 - x); ("log1m_power", a): ln(1 - x^a);
# ("exp", t): e^(tx); ("abs", c): |x - c|; ("log1p_square", m, s): ln(1 + ((x - m) / s)^2)

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


# x = theta G^(1/kappa), where G has the gamma distribution of concentration d and rate 1: theta, d, kappa
POWER_OF_GAMMA: dict[str, Callable[[Parameters], tuple[mpf, mpf, mpf]]] = {
    "Gamma": lambda p: (1 / p["rate"], p["concentration"], mpf(1)),
    "InverseGamma": lambda p: (p["rate"], p["concentration"], mpf(-1)),
    "Weibull": lambda p: (p["scale"], mpf(1), p["concentration"]),
    "HalfNormal": lambda p: (p["scale"] * mp.sqrt(2), mpf(1) / 2, mpf(2)),
}


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


def kl_cauchy(p: Parameters, q: Parameters) -> mpf:
    """Chyzak and Nielsen 2019."""
    (m, s), (n, t) = ((v.get("loc", mpf(0)), v["scale"]) for v in (p, q))
    return mp.log(((s + t) ** 2 + (m - n) ** 2) / (4 * s * t))


def kl_von_mises(p: Parameters, q: Parameters) -> mpf:
    kappa, other = p["concentration"], q["concentration"]
    mean = mp.besseli(1, kappa) / mp.besseli(0, kappa)
    return mp.log(mp.besseli(0, other) / mp.besseli(0, kappa)) + mean * (kappa - other * mp.cos(p["loc"] - q["loc"]))


# Integrals, where an expectation has no closed form


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


# Vectors and matrices

Matrix = list[list[mpf]]


def kl_dirichlet(p: Parameters, q: Parameters) -> mpf:
    a, b = p["concentration"], q["concentration"]
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} categories")
    total, other = mp.fsum(a), mp.fsum(b)
    constants = (
        mp.loggamma(total)
        - mp.loggamma(other)
        + mp.fsum(mp.loggamma(v) - mp.loggamma(u) for u, v in zip(a, b, strict=True))
    )
    mean_log = mp.digamma(total)
    return constants + mp.fsum((u - v) * (mp.digamma(u) - mean_log) for u, v in zip(a, b, strict=True) if u != v)


def cholesky(matrix: Matrix) -> Matrix:
    """The lower triangular factor, row by row; entries above the diagonal are left out."""
    rows: Matrix = []
    for i, values in enumerate(matrix):
        row: list[mpf] = []
        for j in range(i):
            row.append((values[j] - mp.fdot(row, rows[j][:j])) / rows[j][j])
        square = values[i] - mp.fdot(row, row)
        if square <= 0:
            raise ValueError("the matrix is not positive definite")
        rows.append([*row, mp.sqrt(square)])
    return rows


def solved(lower: Matrix, vector: list[mpf]) -> list[mpf]:
    """x in L x = vector."""
    x: list[mpf] = []
    for row, value in zip(lower, vector, strict=True):
        x.append((value - mp.fdot(row[:-1], x)) / row[-1])
    return x


def columns(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


def full(lower: Matrix) -> Matrix:
    return [[*row, *[mpf(0)] * (len(lower) - len(row))] for row in lower]


def symmetric(matrix: Matrix) -> Matrix:
    return [[(u + v) / 2 for u, v in zip(*pair, strict=True)] for pair in zip(matrix, columns(matrix), strict=True)]


def scale_of(p: Parameters) -> Matrix:
    """The Cholesky factor of the covariance of whichever matrix is given."""
    if "scale_tril" in p:
        return [row[: i + 1] for i, row in enumerate(p["scale_tril"])]
    if "covariance_matrix" in p:
        return cholesky(symmetric(p["covariance_matrix"]))
    lower = cholesky(symmetric(p["precision_matrix"]))
    identity = [[mpf(i == j) for j in range(len(lower))] for i in range(len(lower))]
    root = [solved(lower, unit) for unit in identity]  # row i: L^-1 e_i, so that root root' = (L L')^-1
    return cholesky([[mp.fdot(u, v) for v in root] for u in root])


def is_multivariate_normal(family: str) -> bool:
    return family in ("MultivariateNormal", "LowRankMultivariateNormal", "Independent(Normal)", "DiagonalNormal")


def gaussian(family: str, p: Parameters) -> tuple[list[mpf], Matrix]:
    """Mean and Cholesky factor of the covariance."""
    if family == "MultivariateNormal":
        return p["loc"], scale_of(p)
    if family == "LowRankMultivariateNormal":
        factor = p["cov_factor"]
        covariance = [
            [mp.fdot(u, v) + (d if u is v else 0) for v in factor] for u, d in zip(factor, p["cov_diag"], strict=True)
        ]
        return p["loc"], cholesky(covariance)
    mean = p["loc"] if family == "Independent(Normal)" else p["mean"]
    if not isinstance(mean, list):
        mean, p = [mean], {name: [value] for name, value in p.items()}
    scale = p["scale"] if family == "Independent(Normal)" else [mp.exp(v / 2) for v in p["log_var"]]
    return mean, [[*[mpf(0)] * i, v] for i, v in enumerate(scale)]


def kl_multivariate_normal(p: tuple[list[mpf], Matrix], q: tuple[list[mpf], Matrix]) -> mpf:
    (mean_p, scale_p), (mean_q, scale_q) = p, q
    if len(mean_p) != len(mean_q):
        raise ValueError(f"{len(mean_p)} and {len(mean_q)} dimensions")
    distance = solved(scale_q, [u - v for u, v in zip(mean_p, mean_q, strict=True)])
    return (trace_and_log_det(scale_p, scale_q)[2] + mp.fdot(distance, distance)) / 2


def trace_and_log_det(scale_p: Matrix, scale_q: Matrix) -> tuple[mpf, mpf, mpf]:
    """t = tr(V_q^-1 V_p) - d and l = ln det(V_q^-1 V_p), and t - l."""
    d = len(scale_p)
    ratio = [solved(scale_q, column) for column in columns(full(scale_p))]
    trace = mp.fsum(mp.fdot(column, column) for column in ratio) - d
    log_det = 2 * mp.fsum(mp.log(scale_p[i][i] / scale_q[i][i]) for i in range(d))
    return trace, log_det, trace - log_det


def kl_wishart(p: Parameters, q: Parameters) -> mpf:
    n, m = p["df"], q["df"]
    scale_p, scale_q = scale_of(p), scale_of(q)
    d = len(scale_p)
    trace, log_det, _ = trace_and_log_det(scale_p, scale_q)
    halves = [mpf(i) / 2 for i in range(d)]
    constants = mp.fsum(mp.loggamma(m / 2 - h) - mp.loggamma(n / 2 - h) for h in halves)
    mean_log = mp.fsum(mp.digamma(n / 2 - h) for h in halves)
    return (n * trace - m * log_det) / 2 + constants + (n - m) / 2 * mean_log


SPECIAL: dict[tuple[str, str], Callable[[Parameters, Parameters], mpf]] = {
    ("Bernoulli", "Bernoulli"): kl_bernoulli,
    ("Binomial", "Binomial"): kl_binomial,
    ("Categorical", "Categorical"): kl_categorical,
    ("Cauchy", "Cauchy"): kl_cauchy,
    ("Dirichlet", "Dirichlet"): kl_dirichlet,
    ("Geometric", "Geometric"): kl_geometric,
    ("HalfCauchy", "HalfCauchy"): kl_cauchy,
    ("Multinomial", "Multinomial"): kl_multinomial,
    ("NegativeBinomial", "NegativeBinomial"): kl_negative_binomial,
    ("Poisson", "Poisson"): kl_poisson,
    ("VonMises", "VonMises"): kl_von_mises,
    ("Wishart", "Wishart"): kl_wishart,
}

# Random pairs


class Pair(NamedTuple):
    """How to draw two distributions, and the accuracy that is asked of their divergence.

    ``FAMILIES[name].draw(rng, distance, dtype)`` and ``CROSS[p, q].draw(rng, dtype)`` give unbatched distributions
    whose divergence is finite in ``dtype``.
    """

    draw: Callable[..., tuple[Distribution, Distribution]]
    kind: str


def tolerance(kind: str, dtype: torch.dtype, p: Distribution, q: Distribution) -> float:
    """The relative error that is allowed to a divergence computed in ``dtype``."""
    single = dtype != torch.float64
    if kind == "elementary":
        return 1e-6 if single else 1e-12
    if kind == "matrix":
        return 1e-4 if single else 1e-9
    assert kind == "special"
    return 1e-5 if single else max(1e-10, 1e-14 * largest_concentration(p, q))


def largest_concentration(*distributions: Distribution) -> float:
    largest = 0.0
    for distribution in distributions:
        for name, value in stored(distribution)[1].items():
            if name.startswith("concentration") or name == "df":
                largest = max(largest, *map(float, value if isinstance(value, list) else [value]))
    return largest


Draw = Callable[[random.Random, float, torch.dtype], tuple[Distribution, Distribution]]
Range = tuple[float, float]

SCALES = (1e-6, 1e6)
CONCENTRATIONS = (1e-3, 1e8)


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def shift(rng: random.Random, distance: float) -> float:
    """Up to ``distance``, either way, and not near zero."""
    return rng.choice((-1, 1)) * rng.uniform(0.3, 1) * distance


def made(family: type, dtype: torch.dtype, **parameters: Any) -> Distribution:
    tensors = {name: torch.as_tensor(value, dtype=torch.float64).to(dtype) for name, value in parameters.items()}
    return family(**tensors)


def positive(family: type, **ranges: Range) -> Draw:
    """Parameters that are all positive, each perturbed by a factor."""

    def draw(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        p = {name: log_uniform(rng, *bounds) for name, bounds in ranges.items()}
        q = {name: value * math.exp(shift(rng, distance)) for name, value in p.items()}
        return made(family, dtype, **p), made(family, dtype, **q)

    return draw


def located(family: type, far: bool = True) -> Draw:
    """Location and scale; the locations lie a part of the scale apart, or of the location (if ``far``)."""

    def draw(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        scale = log_uniform(rng, *SCALES)
        unit = rng.choice((log_uniform(rng, *SCALES), scale)) if far else scale * log_uniform(rng, 1e-3, 1e3)
        loc = rng.choice((-1, 1)) * unit
        q_loc = loc + shift(rng, distance) * (rng.choice((loc, scale)) if far else scale)
        p, q = {"loc": loc, "scale": scale}, {"loc": q_loc, "scale": scale * math.exp(shift(rng, distance))}
        return made(family, dtype, **p), made(family, dtype, **q)

    return draw


def draw_uniform(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
    width = log_uniform(rng, *SCALES)
    low = rng.choice((-1, 0, 1)) * width * log_uniform(rng, 1e-3, 1e3)
    ends = low - width * abs(shift(rng, distance)), low + width * (1 + abs(shift(rng, distance)))
    p, q = {"low": low, "high": low + width}, dict(zip(("low", "high"), ends, strict=True))
    return made(Uniform, dtype, **p), made(Uniform, dtype, **q)


def draw_pareto(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
    p = {"scale": log_uniform(rng, *SCALES), "alpha": log_uniform(rng, 1e-3, 1e6)}
    lower = abs(shift(rng, distance)) * rng.choice((0, 1))
    q = {"scale": p["scale"] * math.exp(-lower), "alpha": p["alpha"] * math.exp(shift(rng, distance))}
    return made(Pareto, dtype, **p), made(Pareto, dtype, **q)


def draw_von_mises(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
    concentration, loc = log_uniform(rng, *CONCENTRATIONS), rng.uniform(-math.pi, math.pi)
    spread = rng.choice((1, 1 / math.sqrt(1 + concentration)))
    q = {"loc": loc + shift(rng, distance) * spread, "concentration": concentration * math.exp(shift(rng, distance))}
    return made(VonMises, dtype, loc=loc, concentration=concentration), made(VonMises, dtype, **q)


def draw_dirichlet(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
    size, common = rng.randint(2, 10), log_uniform(rng, *CONCENTRATIONS)
    alike = rng.choice((False, True))  # or each of its own order of magnitude
    p = [common if alike else log_uniform(rng, *CONCENTRATIONS) for _ in range(size)]
    q = [value * math.exp(shift(rng, distance)) for value in p]
    return made(Dirichlet, dtype, concentration=p), made(Dirichlet, dtype, concentration=q)


def draw_kumaraswamy(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
    # the two families meet where one of the concentrations is 1
    p = {"concentration1": log_uniform(rng, 0.1, 100), "concentration0": log_uniform(rng, 0.1, 100)}
    p[rng.choice(tuple(p))] = math.exp(shift(rng, distance))
    q = {name: value * math.exp(shift(rng, distance)) for name, value in p.items()}
    return made(Kumaraswamy, dtype, **p), made(Beta, dtype, **q)


def draw_odds(
    rng: random.Random, distance: float, dtype: torch.dtype, given: tuple[str, str] | None = None, small: float = 1.0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """logits or probs of both; probs stay below 1 in float32."""
    names = given or rng.choice((("logits", "logits"), ("probs", "probs")))
    logit = rng.uniform(-30, 30 if names == ("logits", "logits") else 14) * rng.choice((1, small))
    return tuple(
        {name: torch.tensor(value if name == "logits" else 1 / (1 + math.exp(-value)), dtype=dtype)}
        for name, value in zip(names, (logit, logit + shift(rng, distance)), strict=True)
    )


def binary_pair(family: type, given: tuple[str, str] | None = None, counts: Range | None = None) -> Draw:
    def draw(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        count = {}
        if counts:
            number = log_uniform(rng, *counts)
            count["total_count"] = round(number) if counts[0] >= 1 else torch.tensor(number, dtype=dtype)
        p, q = draw_odds(rng, distance, dtype, given, small=1e-3 if family is ContinuousBernoulli else 1.0)
        return family(**count, **p), family(**count, **q)

    return draw


def draw_binomials(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
    """q has more trials than p."""
    n = round(log_uniform(rng, 1, 50))
    p, q = draw_odds(rng, distance, dtype)
    return Binomial(n, **p), Binomial(n + rng.randint(1, 10), **q)


def table_pair(family_p: type, family_q: type | None = None, given: tuple[str, str] | None = None) -> Draw:
    def draw(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        count = {"total_count": round(log_uniform(rng, 1, 1000))} if family_p is Multinomial else {}
        names = given or rng.choice((("logits", "logits"), ("probs", "probs")))
        spread = rng.choice((1, 5, 30))
        logits = [rng.uniform(-spread, spread) for _ in range(rng.randint(2, 20))]
        sides = []
        for name, apart in zip(names, (0, distance), strict=True):
            values = torch.tensor([v + shift(rng, apart) for v in logits], dtype=torch.float64)
            sides.append({name: (values if name == "logits" else values.softmax(-1)).to(dtype)})
        return family_p(**count, **sides[0]), (family_q or family_p)(**count, **sides[1])

    return draw


def random_matrix(rng: random.Random, *shape: int) -> Tensor:
    return torch.tensor([rng.gauss(0, 1) for _ in range(math.prod(shape))], dtype=torch.float64).reshape(shape)


def near(rng: random.Random, scale_tril: Tensor, distance: float) -> Tensor:
    """L (1 + E) L' for a symmetric E of norm ``distance`` / 2."""
    noise = random_matrix(rng, *scale_tril.shape)
    noise = noise + noise.mT
    noise = noise * (distance / 2 / torch.linalg.matrix_norm(noise, 2))
    return scale_tril @ (torch.eye(len(noise), dtype=torch.float64) + noise) @ scale_tril.mT


def rotated(rng: random.Random, variances: Tensor) -> Tensor:
    basis, _ = torch.linalg.qr(random_matrix(rng, len(variances), len(variances)))
    return basis * variances @ basis.mT


def draw_variances(rng: random.Random, size: int) -> Tensor:
    unit, condition = log_uniform(rng, 1e-3, 1e3), log_uniform(rng, 1, 1e6)
    between = [1 / condition, 1.0, *(log_uniform(rng, 1 / condition, 1) for _ in range(size))]
    return unit * torch.tensor(between[-size:] if size < 2 else between[:size], dtype=torch.float64)


def matrix_parameter(rng: random.Random, covariance: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    name = rng.choice(("covariance_matrix", "precision_matrix", "scale_tril"))
    matrix = torch.linalg.cholesky(covariance)
    if name == "precision_matrix":
        matrix = torch.cholesky_inverse(matrix)
    if name == "covariance_matrix":
        matrix = covariance
    return {name: (matrix if name == "scale_tril" else (matrix + matrix.mT) / 2).to(dtype)}


def normal_vector(
    kind: str, rng: random.Random, mean: Tensor, factor: Tensor, diagonal: Tensor, distance: float, dtype: torch.dtype
) -> Distribution:
    """Of covariance W W' + D, perturbed by ``distance``."""
    factors = torch.tensor([math.exp(shift(rng, distance)) for _ in diagonal], dtype=torch.float64)
    if kind == "DiagonalNormal":
        return DiagonalNormal(mean.to(dtype), (diagonal * factors).log().to(dtype))
    if kind == "Independent":
        return Independent(Normal(mean.to(dtype), (diagonal * factors).sqrt().to(dtype)), 1)
    if kind == "LowRankMultivariateNormal":
        noise = random_matrix(rng, *factor.shape) * diagonal.sqrt()[:, None]
        perturbed = factor * (1 + distance / 4 * random_matrix(rng, *factor.shape)) + distance / 4 * noise
        return LowRankMultivariateNormal(mean.to(dtype), perturbed.to(dtype), (diagonal * factors).to(dtype))
    covariance = near(rng, torch.linalg.cholesky(factor @ factor.mT + torch.diag(diagonal)), distance)
    return MultivariateNormal(mean.to(dtype), **matrix_parameter(rng, covariance, dtype))


def retried(draw: Draw) -> Draw:
    """Matrices that are no longer positive definite once they are rounded are drawn again."""

    def again(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        while True:
            with contextlib.suppress(ValueError, torch.linalg.LinAlgError):
                p, q = draw(rng, distance, dtype)
                true_kl(p, q)
                return p, q

    return again


NORMAL_VECTORS = ("MultivariateNormal", "LowRankMultivariateNormal", "Independent", "DiagonalNormal")


def normal_vectors(kind_p: str, kind_q: str) -> Draw:
    kinds = {kind_p, kind_q}

    def draw(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        size = rng.randint(1, 6)
        diagonal = draw_variances(rng, size)
        factor = torch.zeros(size, rng.randint(1, 3), dtype=torch.float64)
        if kinds == {"MultivariateNormal"}:
            factor = torch.linalg.cholesky(rotated(rng, diagonal))
            diagonal = torch.zeros_like(diagonal)
        elif not kinds & {"Independent", "DiagonalNormal"}:
            factor = random_matrix(rng, *factor.shape) * diagonal.max().sqrt()
        scale = torch.linalg.cholesky(factor @ factor.mT + torch.diag(diagonal))
        mean = scale @ random_matrix(rng, size) * rng.choice((1, 1, 100))
        other = mean + distance * scale @ random_matrix(rng, size)
        # p too, where the other kind cannot follow it
        apart = distance if len(kinds) > 1 else 0.0
        p = normal_vector(kind_p, rng, mean, factor, diagonal, apart, dtype)
        return p, normal_vector(kind_q, rng, other, factor, diagonal, distance, dtype)

    return retried(draw)


def draw_wishart(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
    size = rng.randint(1, 5)
    scale = torch.linalg.cholesky(rotated(rng, draw_variances(rng, size)))
    df = size + log_uniform(rng, 1e-2, 1e4)
    sides = []
    for apart in (0.0, distance):
        covariance = near(rng, scale, apart)
        n = max(size, df * math.exp(shift(rng, apart)))
        sides.append(Wishart(torch.tensor(n, dtype=dtype), **matrix_parameter(rng, covariance, dtype)))
    return sides[0], sides[1]


FAMILIES: dict[str, Pair] = {
    "Bernoulli": Pair(binary_pair(Bernoulli), "elementary"),
    "Bernoulli, logits to probs": Pair(binary_pair(Bernoulli, ("logits", "probs")), "elementary"),
    "Bernoulli, probs to logits": Pair(binary_pair(Bernoulli, ("probs", "logits")), "elementary"),
    "Beta": Pair(positive(Beta, concentration1=CONCENTRATIONS, concentration0=CONCENTRATIONS), "special"),
    "Binomial": Pair(binary_pair(Binomial, counts=(1, 1e6)), "elementary"),
    "Binomial, more trials": Pair(draw_binomials, "special"),
    "Categorical": Pair(table_pair(Categorical), "elementary"),
    "Categorical, logits to probs": Pair(table_pair(Categorical, given=("logits", "probs")), "elementary"),
    "Categorical, probs to logits": Pair(table_pair(Categorical, given=("probs", "logits")), "elementary"),
    "Categorical to OneHotCategorical": Pair(table_pair(Categorical, OneHotCategorical), "elementary"),
    "OneHotCategorical to Categorical": Pair(table_pair(OneHotCategorical, Categorical), "elementary"),
    "OneHotCategorical": Pair(table_pair(OneHotCategorical), "elementary"),
    "Cauchy": Pair(located(Cauchy), "elementary"),
    "Chi2": Pair(positive(Chi2, df=CONCENTRATIONS), "special"),
    "ContinuousBernoulli": Pair(binary_pair(ContinuousBernoulli), "special"),
    "Dirichlet": Pair(draw_dirichlet, "special"),
    "Exponential": Pair(positive(Exponential, rate=SCALES), "elementary"),
    "Gamma": Pair(positive(Gamma, concentration=CONCENTRATIONS, rate=SCALES), "special"),
    "Geometric": Pair(binary_pair(Geometric), "elementary"),
    "Gumbel": Pair(located(Gumbel, far=False), "special"),
    "HalfCauchy": Pair(positive(HalfCauchy, scale=SCALES), "elementary"),
    "HalfNormal": Pair(positive(HalfNormal, scale=SCALES), "elementary"),
    "InverseGamma": Pair(positive(InverseGamma, concentration=CONCENTRATIONS, rate=SCALES), "special"),
    "Kumaraswamy to Beta": Pair(draw_kumaraswamy, "special"),
    "Laplace": Pair(located(Laplace), "elementary"),
    "LogNormal": Pair(located(LogNormal), "elementary"),
    "Multinomial": Pair(table_pair(Multinomial), "elementary"),
    "NegativeBinomial": Pair(binary_pair(NegativeBinomial, counts=(1e-2, 1e6)), "elementary"),
    "Normal": Pair(located(Normal), "elementary"),
    "Pareto": Pair(draw_pareto, "elementary"),
    "Poisson": Pair(positive(Poisson, rate=SCALES), "elementary"),
    "Uniform": Pair(draw_uniform, "elementary"),
    "VonMises": Pair(draw_von_mises, "special"),
    "Weibull": Pair(positive(Weibull, scale=SCALES, concentration=(1e-2, 50)), "special"),
    "Wishart": Pair(retried(draw_wishart), "matrix"),
    **{
        f"{p} to {q}": Pair(normal_vectors(p, q), "matrix" if "Multivariate" in p + q else "elementary")
        for p, q in itertools.product(NORMAL_VECTORS, repeat=2)
    },
}


# Pairs of different families: p at random, q so that it covers about where p lies


class Place(NamedTuple):
    """Where a distribution has its mass."""

    centre: float
    width: float
    low: float = -math.inf
    high: float = math.inf


ONLY = (1e-3, 1e3)


def draw_p(family: str, family_q: str, rng: random.Random) -> tuple[dict[str, float], Place]:
    """Parameters and where the mass lies; with the moments that q asks for."""
    unit = log_uniform(rng, *ONLY)
    match family:
        case "Normal" | "Laplace" | "Gumbel":
            loc = rng.uniform(-3, 3) * unit * rng.choice((1, 10))
            return {"loc": loc, "scale": unit}, Place(loc, unit)
        case "HalfNormal":
            return {"scale": unit}, Place(unit, unit, 0)
        case "LogNormal":
            loc, scale = rng.uniform(-5, 5), log_uniform(rng, 1e-2, 3)
            return {"loc": loc, "scale": scale}, Place(math.exp(loc), math.exp(loc) * min(scale, 1), 0)
        case "Exponential":
            return {"rate": 1 / unit}, Place(unit, unit, 0)
        case "Gamma":
            a = log_uniform(rng, 1e-2, 1e3 if family_q == "Laplace" else 1e6)
            a += family_q == "InverseGamma"  # E[1/x]
            return {"concentration": a, "rate": 1 / unit}, Place(a * unit, math.sqrt(a) * unit, 0)
        case "InverseGamma":
            a = 1 + log_uniform(rng, 1e-2, 1e4)  # E[x]
            return {"concentration": a, "rate": unit}, Place(unit / a, unit / a / math.sqrt(a), 0)
        case "Weibull":
            k = log_uniform(rng, 0.2, 50)
            return {"scale": unit, "concentration": k}, Place(unit, unit / k, 0)
        case "Beta":
            a, b = log_uniform(rng, 1e-2, 1e5), log_uniform(rng, 1e-2, 1e5)
            mean = a / (a + b)
            return {"concentration1": a, "concentration0": b}, Place(
                mean, math.sqrt(mean * b / (a + b) / (a + b + 1)), 0, 1
            )
        case "ContinuousBernoulli":
            return {"logits": rng.uniform(-30, 30) * rng.choice((1, 1e-3))}, Place(0.5, 0.3, 0, 1)
        case "Pareto":
            a = (2 if family_q == "Normal" else 1) + log_uniform(rng, 1e-1, 1e3)
            return {"scale": unit, "alpha": a}, Place(unit * (1 + 1 / a), unit / a, unit)
        case "Uniform":
            if family_q in ("Beta", "ContinuousBernoulli"):
                low, high = rng.choice(
                    ((0.0, 1.0), (0.0, rng.uniform(0.01, 0.9)), sorted((rng.random(), rng.random())))
                )
            else:
                low = unit * rng.choice((0.0, log_uniform(rng, *ONLY)))
                if family_q == "Pareto":
                    low = low or unit
                if family_q in ("Normal", "Laplace", "Gumbel"):
                    low *= rng.choice((-1, 1))
                high = low + unit
            return {"low": low, "high": high}, Place((low + high) / 2, high - low, low, high)
    raise AssertionError(family)


def draw_q(family: str, place: Place, rng: random.Random) -> dict[str, float]:
    near_one = log_uniform(rng, 0.2, 5)
    match family:
        case "Normal" | "Laplace" | "Gumbel":
            scale = place.width * log_uniform(rng, 0.3, 30)
            return {"loc": place.centre + rng.uniform(-3, 3) * min(scale, place.width), "scale": scale}
        case "Exponential":
            return {"rate": log_uniform(rng, 1e-2, 1e2) / place.centre}
        case "Gamma":
            a = log_uniform(rng, 1e-2, 1e3)
            return {"concentration": a, "rate": a / place.centre * near_one}
        case "InverseGamma":
            a = log_uniform(rng, 1e-2, 1e3)
            return {"concentration": a, "rate": a * place.centre * near_one}
        case "Weibull":
            return {"concentration": log_uniform(rng, 0.1, 5), "scale": place.centre * near_one}
        case "LogNormal":
            return {"loc": math.log(place.centre) + rng.uniform(-2, 2), "scale": log_uniform(rng, 0.1, 10)}
        case "Beta":
            return {name: log_uniform(rng, 1e-2, 1e3) for name in ("concentration1", "concentration0")}
        case "ContinuousBernoulli":
            return {"logits": rng.uniform(-30, 30) * rng.choice((1, 1e-3))}
        case "Uniform":
            beyond = rng.choice((0.0, log_uniform(rng, *ONLY))) * (place.high - place.low)
            return {"low": place.low - beyond * rng.choice((0, 1)), "high": place.high + beyond}
        case "Pareto":
            return {"scale": place.low * rng.choice((1, rng.uniform(0.01, 1))), "alpha": log_uniform(rng, *ONLY)}
    raise AssertionError(family)


def continuous_pair(family_p: str, family_q: str) -> Callable[..., tuple[Distribution, Distribution]]:
    def draw(rng: random.Random, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        params, place = draw_p(family_p, family_q, rng)
        p = made(getattr(torch.distributions, family_p), dtype, **params)
        ends = {"low": "low", "scale": "low", "high": "high"} if family_p in ("Uniform", "Pareto") else {}
        stored_ends = {end: getattr(p, name).item() for name, end in ends.items() if hasattr(p, name)}
        q = draw_q(family_q, place._replace(**stored_ends), rng)
        return p, made(getattr(torch.distributions, family_q), dtype, **q)

    return draw


def count_pair(family_p: type, family_q: type) -> Callable[..., tuple[Distribution, Distribution]]:
    def draw(rng: random.Random, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        p, q = (draw_odds(rng, 0.0, dtype)[0] for _ in range(2))
        count = {"total_count": round(log_uniform(rng, 1, 60))} if family_p is Binomial else {}
        if family_q is Poisson:
            q = {"rate": torch.tensor(log_uniform(rng, 1e-3, 1e3), dtype=dtype)}
        more = {"total_count": round(log_uniform(rng, 1, 60))} if family_q is Binomial else {}
        return family_p(**count, **p), family_q(**more, **q)

    return draw


CONTINUOUS = {
    "Beta": ("ContinuousBernoulli", "Exponential", "Gamma", "Normal", "Uniform"),
    "ContinuousBernoulli": ("Exponential", "Normal", "Uniform"),
    "Exponential": ("Gamma", "Gumbel", "Normal", "Weibull", "Laplace"),
    "Gamma": ("Exponential", "Gumbel", "Normal", "Weibull", "LogNormal", "InverseGamma", "Laplace"),
    "Gumbel": ("Normal", "Laplace"),
    "HalfNormal": ("Exponential", "Gamma"),
    "InverseGamma": ("Gamma",),
    "Laplace": ("Normal",),
    "LogNormal": ("Gamma",),
    "Normal": ("Gumbel", "Laplace"),
    "Pareto": ("Exponential", "Gamma", "Normal"),
    "Uniform": (
        "Beta",
        "ContinuousBernoulli",
        "Exponential",
        "Gamma",
        "Gumbel",
        "Normal",
        "Pareto",
        "Laplace",
    ),
    "Weibull": ("Gamma", "Exponential"),
}

CROSS: dict[tuple[str, str], Pair] = {
    ("Bernoulli", "Binomial"): Pair(count_pair(Bernoulli, Binomial), "special"),
    ("Bernoulli", "Geometric"): Pair(count_pair(Bernoulli, Geometric), "elementary"),
    ("Bernoulli", "Poisson"): Pair(count_pair(Bernoulli, Poisson), "elementary"),
    ("Binomial", "Poisson"): Pair(count_pair(Binomial, Poisson), "special"),
    **{(p, q): Pair(continuous_pair(p, q), "special") for p, several in CONTINUOUS.items() for q in several},
}
