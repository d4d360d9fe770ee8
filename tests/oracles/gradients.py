"""Partial derivatives of the divergence to the stored parameters, by differences at many digits."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from mpmath import mp, mpf
from torch.distributions import Distribution

from tests.oracles.divergences import closed_form, is_separable, separated
from tests.oracles.expectations import NoClosedFormError
from tests.oracles.integrals import integrated
from tests.oracles.parameters import Parameters, stored


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
