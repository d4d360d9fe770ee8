"""estimate_kl(p, q): the KL divergence as a mean over samples, with its standard error."""

import functools
import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.checkpoint import checkpoint

from kldiv.distributions import Pair, check_distributions, materialise
from kldiv.monte_carlo.adaptive import fit_coefficients
from kldiv.monte_carlo.estimators import (
    GRADIENTS,
    UNITS_NEEDED,
    VALUES,
    Gradient,
    Plan,
    Value,
    check_choice,
    evaluate,
    with_gradient,
)
from kldiv.monte_carlo.moments import Moments, Variances, variances_of_k3
from kldiv.monte_carlo.samplers import SAMPLERS, Draws, GivenDraws, Sampler, noise_of
from kldiv.numerics import check_broadcast, sum_rightmost

__all__ = [
    "KLEstimate",
    "average",
    "check_options",
    "estimate_kl",
]


_CHUNK_ELEMENTS = 2**22
"""Of samples at once: 16 MiB in float32, and a small multiple with what is computed of them."""


class KLEstimate(NamedTuple):
    """A KL divergence estimated from samples, in nats."""

    value: Tensor
    """The mean; its gradient estimates that of the divergence."""
    standard_error: Tensor
    """Of the value, without a graph, from independent units; ``inf`` from one unit."""


def estimate_kl(
    p: Distribution,
    q: Distribution,
    num_samples: int = 64,
    *,
    value: Value = "k1",
    gradient: Gradient = "pathwise",
    sampler: Sampler = "iid",
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> KLEstimate:
    r"""D_KL(p||q) as a mean over samples of p, in nats, for any pair of distributions with ``log_prob``.

    .. math:: \frac1S \sum_s f(x_s), \qquad x_s \sim p, \qquad
              \mathrm{se}^2 = \frac{1}{U(U-1)}\sum_u (f_u - \text{mean})^2 \cdot \left(1 + \tfrac{g^2}U\right)^2

    f is chosen by ``value``; f_u is its mean over an independent unit: a draw, an antithetic pair or a Sobol scramble.
    The value is never differentiated, and whatever it is, the gradient estimates that of D_KL(p||q) in the parameters
    of both, without bias. A pair that factorises over its dimensions is estimated dimension by dimension, and summed.

    =========================== ======== ============ =================================================================
    ``value``                   unbiased non-negative variance
    =========================== ======== ============ =================================================================
    ``"k1"``                    yes      no           that of ln p/q
    ``"k2"``                    **no**   yes          moderate; the value is far too large away from p = q
    ``"k3"``                    yes      yes          least near p = q; **infinite** where p is much narrower than q
                                                      (normal: a variance of at most half of q's)
    ``"analytic_entropy"``      yes      no           least where p is narrower than q, large near p = q; needs
                                                      ``p.entropy()``
    =========================== ======== ============ =================================================================

    ============================ ============ =========================================================================
    ``gradient``                 needs        variance
    ============================ ============ =========================================================================
    ``"pathwise"``               ``rsample``  does not vanish at p = q; the better one far from it
    ``"sticking_the_landing"``   ``rsample``  vanishes at p = q; large far from it
    ``"adaptive"``               ``rsample``, near that of the better of these two
                                 3 units
    ``"score"``                  2 units      large; works for any p, discrete ones too
    ============================ ============ =========================================================================

    k3 alone has not the mean of the divergence where q has mass and p has none: it is less by that mass, which no
    sample of p can see. The mass is added where it is known (categories, counts, and one-dimensional q with a ``cdf``);
    otherwise ``"k3"`` is refused. A p that tells no support, such as a flow, is taken to have mass everywhere.

    ``"antithetic"`` pairs u and 1 - u: a lower variance of pathwise gradients, most so far from p = q; that of k1 is
    lower where means differ and higher where scales do.
    ``"sobol"`` has eight independent scrambles of a Sobol net, and a shift of its own for each element of the batch:
    the variance falls faster than 1/S. The sources and details are in :mod:`kldiv.monte_carlo`.

    The standard error is enlarged by the units' skewness g, so that Student's interval covers as it says for skewed
    log-ratios too (a chi-square of one degree of freedom at 64 samples: by 5 to 15 %). That of ``"k3"`` looks into the
    tails of p by as many samples of q, without which its intervals would be far too short. Of other tails that no draw
    has seen it cannot know.

    A 95 % interval is value +- t * standard_error, with Student's t at U - 1 degrees of freedom: S - 1 for ``"iid"``,
    S/2 - 1 for ``"antithetic"``, 7 (t = 2.36) for ``"sobol"``.

    Args:
        p, q: distributions whose batch shapes broadcast together, of one event shape.
        num_samples: S, draws for each element of the batch: even for antithetic pairs, a multiple of 8 for Sobol.
        value: ``"k1"``, ``"k2"``, ``"k3"`` or ``"analytic_entropy"``.
        gradient: ``"pathwise"``, ``"sticking_the_landing"``, ``"score"`` or ``"adaptive"``.
        sampler: ``"iid"``, ``"antithetic"`` or ``"sobol"``; the latter two need p's map from uniform noise: normal
            distributions, those with an ``icdf``, and what torch composes of them.
        generator: where the noise comes from; the global random state is left alone. ``None`` is the global one.
        chunk_size: how many draws are evaluated at once. What a chunk needs for its gradient is computed again in the
            backward pass, so that memory does not grow with S. ``None`` keeps samples below 2^22 numbers a chunk.
    Returns: value and standard error, each of the broadcast batch shape.
    Raises:
        TypeError: p or q is no distribution.
        ValueError: unknown options; shapes that do not fit; a choice that cannot be right: a p without ``rsample``
            whose parameters want gradients (except for ``"score"``), too few units, no noise map, no entropy; a NaN
            log-probability, which the message names. On an accelerator the value is NaN instead: a look would wait.
    Source: Schulman 2020, "Approximating KL divergence"; Kingma & Welling 2014; Roeder et al. 2017; Buchholz et al.
        2018.

    >>> normal = torch.distributions.Normal(torch.zeros(3), 1.0)
    >>> estimate_kl(normal, torch.distributions.Laplace(0.0, 1.0)).value.shape
    torch.Size([3])
    """
    check_distributions("Write it as a distribution: kldiv.DiagonalNormal(mean, log_var)", p=p, q=q)
    check_options(num_samples, value, gradient, sampler)
    pair = Pair.of(p, q)
    check_broadcast(**{"p.batch_shape": p.batch_shape, "q.batch_shape": q.batch_shape})
    if p.event_shape != q.event_shape:
        raise ValueError(f"p has the event shape {tuple(p.event_shape)} and q {tuple(q.event_shape)}: it must be one")
    batch_dims = max(len(p.batch_shape), len(q.batch_shape))
    pair = pair.by_dimension().before_shared_transforms()
    shape = check_broadcast(p=pair.p.batch_shape, q=pair.q.batch_shape)
    plan = Plan(value, gradient, chunk_size, batch_dims, event_dims=len(shape) - batch_dims)
    with noise_of(generator):
        draws = Draws(pair.p, shape, num_samples, sampler, with_gradient=gradient != "score")
        found = average(pair, draws, plan)
    return KLEstimate(*(each.to(pair.dtype) for each in found))


def check_options(num_samples: int, value: str, gradient: str, sampler: str) -> None:
    """Raises: ValueError: fewer than one sample, or an option that is none of those known."""
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples={num_samples!r}: a whole number of samples, at least one")
    for name, option, known in (
        ("value", value, VALUES),
        ("gradient", gradient, GRADIENTS),
        ("sampler", sampler, SAMPLERS),
    ):
        if option not in known:
            raise ValueError(f"{name}={option!r} is none of {', '.join(map(repr, known))}")


def average(pair: Pair, draws: Draws, plan: Plan) -> KLEstimate:
    r"""The mean over all draws of p, (\*batch) without the dimensions of an event, and its standard error."""
    check_choice(pair, draws, plan.gradient)
    # what k3 misses of its mean: no draw of p can see it
    missed = pair.missed_mass() if plan.value == "k3" else 0.0
    chunks = _chunks(draws, plan)
    found = _at_once(pair, draws, plan) if len(chunks) == 1 else _by_chunks(pair, draws, plan, chunks)
    if isinstance(missed, Tensor):
        batch = pair.p.batch_shape if isinstance(draws, GivenDraws) else draws.batch_shape
        found = found._replace(value=found.value + sum_rightmost(missed.expand(batch), plan.event_dims))
    beyond = pair.reaches_beyond()
    if beyond is False:
        return found
    if isinstance(beyond, Tensor) and plan.event_dims:
        beyond = beyond.flatten(-plan.event_dims).any(-1)
    # whatever the samples have seen
    infinite = torch.as_tensor(beyond, device=found.value.device)
    return KLEstimate(*(torch.where(infinite, torch.inf, each) for each in found))


def _at_once(pair: Pair, draws: Draws, plan: Plan) -> KLEstimate:
    sample = draws()
    values, surrogate = evaluate(pair, sample, plan, _coefficients(pair, sample, plan))
    if not plan.with_error:
        return KLEstimate(with_gradient(values.mean(0), surrogate), torch.full_like(surrogate, torch.nan))
    moments = Moments()
    moments.add(values)
    variances = variances_of_k3(pair, sample, plan.event_dims) if _looks_at_tails(plan, draws) else None
    error = moments.standard_error(variances)
    return KLEstimate(with_gradient(moments.mean, surrogate), error)


def _by_chunks(pair: Pair, draws: Draws, plan: Plan, chunks: list[tuple[int, int]]) -> KLEstimate:
    """Each chunk is drawn and evaluated again in the backward pass, so that memory does not grow with their number."""
    for distribution in (pair.p, pair.q):
        materialise(distribution)
    moments = Moments()
    surrogate, of_scrambles, whole, seen = (torch.zeros(()) for _ in range(4))
    tails_are_known = _looks_at_tails(plan, draws)
    for start, stop in chunks:
        seed = None if isinstance(draws, GivenDraws) else int(torch.randint(2**62, ()))
        draw = functools.partial(_drawn, draws, start, stop, seed)
        # fitted outside of the checkpoint: backward passes inside would compute it again, each of them
        coefficients = _coefficients(pair, draw(), plan)
        values, of_chunk = checkpoint(
            lambda draw=draw, coefficients=coefficients: evaluate(pair, draw(), plan, coefficients),
            use_reentrant=False,
            preserve_rng_state=False,
        )
        share = (stop - start) / draws.length
        surrogate = surrogate + share * of_chunk
        if draws.sampler == "sobol":  # a chunk has some of the points of every scramble
            of_scrambles = of_scrambles + share * values
        else:
            moments.add(values)
        if tails_are_known:
            variances = variances_of_k3(pair, draw(), plan.event_dims)
            tails_are_known = variances is not None
            if variances is not None:
                whole, seen = whole + share * variances.whole, seen + share * variances.seen
    if draws.sampler == "sobol":
        moments.add(of_scrambles)
    error = moments.standard_error(Variances(whole, seen) if tails_are_known else None)
    return KLEstimate(with_gradient(moments.mean, surrogate), error)


def _coefficients(pair: Pair, sample: Tensor, plan: Plan) -> Tensor | None:
    """Those of ``"adaptive"``, where there is a gradient."""
    fits = plan.gradient == "adaptive" and torch.is_grad_enabled()
    return fit_coefficients(pair, sample, plan.batch_dims) if fits else None


def _looks_at_tails(plan: Plan, draws: Draws) -> bool:
    """Whether samples of p may have missed most of the variance: those of k3, in the tails of p."""
    return plan.with_error and plan.value == "k3" and draws.units > 1


def _drawn(draws: Draws, start: int, stop: int, seed: int | None) -> Tensor:
    with noise_of(seed):
        return draws(start, stop)


def _chunks(draws: Draws, plan: Plan) -> list[tuple[int, int]]:
    """Where each chunk starts and ends, in what :attr:`Draws.length` counts: equal ones with the units they need."""
    chunk_size = plan.chunk_size
    if chunk_size is None:
        if torch._C._functorch.peek_interpreter_stack() is not None:  # checkpoints know nothing of vmap and jvp
            return [(0, draws.length)]
        elements = math.prod(draws.batch_shape) * math.prod(draws.p.event_shape)
        chunk_size = max(_CHUNK_ELEMENTS // max(elements, 1), 1)
    elif chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: at least one draw at a time")
    draws_each = draws.num_samples // draws.length
    least = 1 if draws.sampler == "sobol" else UNITS_NEEDED[plan.gradient]
    count = -(-draws.length // max(chunk_size // draws_each, least))
    count = max(min(count, draws.length // least), 1)
    ends = [draws.length * k // count for k in range(count + 1)]
    return list(itertools.pairwise(ends))
