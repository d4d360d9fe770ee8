"""The divergence of one unbatched pair, at precisions that rise until fifty digits are right."""

import math
from collections.abc import Callable

from mpmath import mp, mpf
from torch import Tensor
from torch.distributions import Distribution

from tests.oracles.continuous import kl_cauchy, kl_continuous, kl_von_mises
from tests.oracles.densities import SUPPORT, canonical
from tests.oracles.discrete import (
    LOG_PMF,
    kl_bernoulli,
    kl_binomial,
    kl_categorical,
    kl_geometric,
    kl_multinomial,
    kl_negative_binomial,
    kl_poisson,
    kl_sum,
)
from tests.oracles.expectations import NoClosedFormError
from tests.oracles.integrals import integrated
from tests.oracles.matrices import gaussian, is_multivariate_normal, kl_dirichlet, kl_multivariate_normal, kl_wishart
from tests.oracles.parameters import Parameters, exact, stored

DIGITS = 50


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


def relative_error(value: Tensor | float, truth: mpf) -> float:
    """|value - truth| / |truth|; 0 where both are the same infinity or zero."""
    value = exact(value)
    if value == truth:
        return 0.0
    if not (mp.isfinite(value) and mp.isfinite(truth)) or truth == 0:
        return math.inf
    return float(abs((value - truth) / truth))


def closed_form(family_p: str, p: Parameters, family_q: str, q: Parameters) -> mpf:
    """The formula, at whatever precision mpmath is set to. Raises NoClosedFormError where there is an integral only."""
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
