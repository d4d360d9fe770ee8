"""Estimators of the KL divergence from samples: of its value, and of its gradient by a surrogate.

The two are chosen apart. With samples x of p and the log-ratio l = ln p(x) - ln q(x), the value is a mean of some
function of l and is never differentiated; the gradient is that of the mean of

.. math:: \\ln p_\\theta(x) - (1 - c) \\ln p_\\theta(\\bar x) - \\ln q(x), \\qquad \\bar x: \\text{x without gradient}

for samples that carry one: with c = 1 the pathwise gradient, with c = 0 that which sticks the landing, for the second
term takes off the score, whose mean is zero. No parameter need be detached, so any distribution will do.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from kldiv.distributions import Pair, has_moving_support
from kldiv.monte_carlo.looks import check_nan
from kldiv.monte_carlo.samplers import Draws, GivenDraws, has_pathwise_gradient
from kldiv.numerics import expm1mx, sum_rightmost

__all__ = [
    "GRADIENTS",
    "UNITS_NEEDED",
    "VALUES",
    "Gradient",
    "Plan",
    "Value",
    "adaptive",
    "analytic_entropy",
    "check_choice",
    "check_scramble",
    "evaluate",
    "k1",
    "k2",
    "k3",
    "pathwise",
    "score",
    "sticking_the_landing",
    "with_gradient",
]

Value = Literal["k1", "k2", "k3", "analytic_entropy"]
Gradient = Literal["pathwise", "sticking_the_landing", "score", "adaptive"]


class Plan(NamedTuple):
    """How an estimate is made of samples."""

    value: Value
    gradient: Gradient
    chunk_size: int | None = None
    """How many draws are evaluated at once; ``None``: as many as memory should hold."""
    batch_dims: int = 1
    """Leading dimensions of the batch, each element of which has coefficients of its own in ``"adaptive"``."""
    event_dims: int = 0
    """Trailing dimensions of the batch that are independent dimensions of one event: they are summed."""
    with_error: bool = True
    """Whether the standard error is wanted; it is NaN where not."""
    names_nan: bool = True
    """Whether a NaN raises, where a look waits for no device. Not where values may be masked later."""


# --- values: functions of the log-ratio l = ln p(x) - ln q(x), of ln q(x), and of p


def k1(log_ratio: Tensor, log_q: Tensor, p: Distribution) -> Tensor:
    """The log-ratio itself.

    Bias: none. Non-negative: no, a mean of few samples may be below zero. Variance: that of the log-ratio, of the order
    of twice the KL for Gaussians that are close; finite wherever ln p and ln q have second moments under p.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return log_ratio


def k2(log_ratio: Tensor, log_q: Tensor, p: Distribution) -> Tensor:
    """Half the squared log-ratio.

    Bias: yes, small near p = q (of third order in their distance) and far too large away from it: 10 to 100 times the
    KL at some tens of nats. Non-negative: yes. Variance: finite where the log-ratio has a fourth moment.

    Source: Schulman 2020.
    """
    return 0.5 * log_ratio.square()


def k3(log_ratio: Tensor, log_q: Tensor, p: Distribution) -> Tensor:
    """r - 1 - ln r, with r = q(x)/p(x) = exp(-l): k1 with the control variate r - 1, whose mean is zero.

    Bias: none where p has mass wherever q has; elsewhere the mean is the KL less the mass of q off the support of p,
    which :func:`average` adds, or refuses where it is not known. Non-negative: yes, sample by sample. Variance:
    infinite once E_p r^2 is: for normal distributions when the variance of p in some direction is at most half of q's
    (a posterior of variance below one half, and the standard normal prior), and then the mean is nearly always too
    small.

    Source: Schulman 2020.
    """
    return expm1mx(-log_ratio)


def analytic_entropy(log_ratio: Tensor, log_q: Tensor, p: Distribution) -> Tensor:
    """-H(p) - ln q(x), the entropy in closed form.

    Bias: none. Non-negative: no. Variance: that of ln q(x), a tenth of k1's in the regime of VAE posteriors, narrower
    than the prior, and hundreds of times k1's near p = q. Needs ``p.entropy()``.

    Source: Kingma & Welling 2014, eq. 10 and appendix B, for the split.
    """
    try:
        entropy = p.entropy()
    except NotImplementedError as error:
        raise ValueError(
            f"value='analytic_entropy' needs an entropy in closed form, and {type(p).__name__} has none. "
            "value='k1' would do"
        ) from error
    return -entropy - log_q


VALUES: dict[str, Callable[[Tensor, Tensor, Distribution], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "analytic_entropy": analytic_entropy,
}


# --- gradients: unbiased, for both p and q, whatever the value


def pathwise(pair: Pair, sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Through the samples: the derivative of ln p(x) - ln q(x), x = x(parameters of p, noise).

    Unbiased. Variance: does not vanish at p = q, where the score, of mean zero, remains; the choice where the posterior
    is far from the prior. Finite where the derivatives of the log-ratio along x have second moments.

    Source: Kingma & Welling 2014, eq. 6; Rezende, Mohamed & Wierstra 2014.
    """
    log_p, log_q = pair.log_p(sample), pair.log_q(sample)
    _check_sample_gradient(pair.p, log_p, sample, "pathwise")
    return log_p, log_q, log_p - log_q


def sticking_the_landing(
    pair: Pair, sample: Tensor, called: Gradient = "sticking_the_landing"
) -> tuple[Tensor, Tensor, Tensor]:
    """Pathwise without the score, d ln p / d parameters at fixed x: parameters reach p only through the samples.

    Unbiased, as the score's mean is zero. Variance: zero at p = q, a hundredth to a thousandth of the pathwise one near
    it, and hundreds of times larger where p is much narrower than q.

    Source: Roeder, Wu & Duvenaud 2017.
    """
    log_p, log_q = pair.log_p(sample), pair.log_q(sample)
    log_p_fixed = pair.log_p(sample.detach())
    _check_sample_gradient(pair.p, log_p_fixed, sample, called)
    return log_p, log_q, log_p - log_p_fixed - log_q


def adaptive(pair: Pair, sample: Tensor, coefficients: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Pathwise and sticking-the-landing mixed, with the coefficient between 0 and 1 that makes the variance least.

    Each unit's coefficient is fitted on the other units, by :func:`fit_coefficients`, so that it is
    independent of what it multiplies. Unbiased. Variance: that of the better of the two and a little more, near p = q
    and far from it. Costs some 30 backward passes through the sampling, and for distributions of other packages through
    everything before it. Needs three units.

    Source: Geffner & Domke 2018 (control variates); Roeder et al. 2017 and Kingma & Welling 2014 for the two.
    """
    log_p, log_q, landing = sticking_the_landing(pair, sample, "adaptive")
    if coefficients is not None:
        landing = landing + coefficients * pair.log_p(sample.detach())
    return log_p, log_q, landing


def score(pair: Pair, sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The score-function gradient, (l - baseline) d ln p(x), x fixed: for distributions without ``rsample``.

    The baseline of a unit is the mean of l over all other units; an antithetic pair is left out as a whole, for leaving
    out one draw of it is biased. Unbiased. Variance: that of l times the score's, far above the pathwise one where that
    exists; zero at p = q. Needs two units.

    Source: Williams 1992; Kool, van Hoof & Welling 2019 (leave-one-out baseline).
    """
    sample = sample.detach() if sample.requires_grad else sample
    log_p, log_q = pair.log_p(sample), pair.log_q(sample)
    log_ratio = (log_p - log_q).detach()
    of_units = log_ratio.mean(1, keepdim=True)
    units = len(of_units)
    baseline = (of_units.sum(0, keepdim=True) - of_units) / (units - 1)
    return log_p, log_q, (log_ratio - baseline) * log_p - log_q


GRADIENTS: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {
    "pathwise": pathwise,
    "sticking_the_landing": sticking_the_landing,
    "score": score,
    "adaptive": adaptive,
}
"""Each gives ln p and ln q of the samples and, for each sample, a surrogate with the gradient that is wanted."""
UNITS_NEEDED = {"pathwise": 1, "sticking_the_landing": 1, "score": 2, "adaptive": 3}

_WITH_OTHERS = {"score": "takes its baseline from the other", "adaptive": "fits its coefficient on the other"}


def check_scramble(gradient: Gradient) -> None:
    """Raises: ValueError: a gradient that needs more than the dependent points of one Sobol scramble."""
    if (needed := UNITS_NEEDED[gradient]) > 1:
        raise ValueError(
            f"gradient={gradient!r} {_WITH_OTHERS[gradient]} independent draws, and the points of one Sobol scramble "
            f"are dependent. sampler='iid' with {needed} samples or more would do"
        )


def check_choice(pair: Pair, draws: Draws, gradient: Gradient) -> None:
    """Whether the gradient can be right with so many independent units, and with this p.

    Raises: ValueError: it cannot; the message says why and what would do.
    """
    p = pair.p
    if gradient != "pathwise" and torch.is_grad_enabled() and has_moving_support(p, pair.p_can_be_copied):
        raise ValueError(
            f"the support of {type(p).__name__} moves with its parameters, so the mean of its score is not zero, and "
            f"gradient={gradient!r} would be biased. gradient='pathwise' would do"
        )
    needed = UNITS_NEEDED[gradient]
    if draws.units >= needed:
        return
    if draws.units == 0:
        raise ValueError("the sample has 0 draws: its leading dimensions are their number")
    if draws.sampler == "sobol":
        check_scramble(gradient)
    unit, size = ("antithetic pairs", 2) if draws.sampler == "antithetic" else ("draws", 1)
    given = isinstance(draws, GivenDraws)
    more = f"A sample of shape ({needed}, ...)" if given else f"num_samples={needed * size}"
    raise ValueError(
        f"gradient={gradient!r} {_WITH_OTHERS[gradient]} {unit} and needs at least {needed} of them; here are "
        f"{draws.units}. {more} would do" + (", or gradient='pathwise'" if has_pathwise_gradient(p) else "")
    )


def evaluate(pair: Pair, sample: Tensor, plan: Plan, coefficients: Tensor | None) -> tuple[Tensor, Tensor]:
    r"""Values and surrogates of samples (units, points, \*batch, \*event), with the coefficients of ``"adaptive"``.

    Returns: each unit's mean value (units, \*batch), without a graph, and the mean surrogate (\*batch), both with the
        dimensions of an event summed.
    Raises: ValueError: a NaN among the values, where a look at them waits for no device.
    """
    options: dict[str, Any] = {} if coefficients is None else {"coefficients": coefficients}
    log_p, log_q, surrogate = GRADIENTS[plan.gradient](pair, sample, **options)
    with torch.no_grad():
        values = VALUES[plan.value](log_p - log_q, log_q, pair.p).mean(1)
        if plan.names_nan:
            check_nan(pair, sample, log_p, log_q, values)
    return sum_rightmost(values, plan.event_dims), sum_rightmost(surrogate.mean((0, 1)), plan.event_dims)


def with_gradient(value: Tensor, surrogate: Tensor) -> Tensor:
    """The value, with the gradient of the surrogate."""
    if not surrogate.requires_grad:
        return value
    # inf - inf is NaN
    return value + torch.where(surrogate.isfinite(), surrogate - surrogate.detach(), 0.0)


def _check_sample_gradient(p: Distribution, log_p: Tensor, sample: Tensor, gradient: Gradient) -> None:
    if not torch.is_grad_enabled() or not log_p.requires_grad:
        return
    if not has_pathwise_gradient(p):
        lacks = "has an rsample that is straight-through, not reparametrised" if p.has_rsample else "has no rsample"
        raise ValueError(
            f"{type(p).__name__} {lacks}, which gradient={gradient!r} goes through, and its parameters want gradients. "
            "gradient='score' would do, with two or more draws, or torch.no_grad() for the value alone"
        )
    if not sample.requires_grad:
        raise ValueError(
            f"the sample carries no gradient and the parameters of {type(p).__name__} want one: gradient={gradient!r} "
            "goes through the sample, and would be wrong. Draw it with rsample(), or compute under torch.no_grad()"
        )
