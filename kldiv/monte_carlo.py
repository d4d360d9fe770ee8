"""estimate_kl(p, q): the KL divergence as a mean over samples, with its standard error."""

import contextlib
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from kldiv.distributions import widened
from kldiv.functional import check_broadcast


class KLEstimate(NamedTuple):
    """A KL divergence estimated from samples, in nats."""

    value: Tensor
    """The mean; its gradient estimates that of the divergence."""
    standard_error: Tensor
    """Of the value, without a graph; ``inf`` from one sample."""


def estimate_kl(
    p: Distribution,
    q: Distribution,
    num_samples: int = 64,
    *,
    value: str = "k1",
    gradient: str = "pathwise",
    sampler: str = "iid",
    generator: torch.Generator | None = None,
) -> KLEstimate:
    r"""D_KL(p||q) as a mean over samples of p, in nats, for any pair of distributions with ``log_prob``.

    .. math:: \frac1S \sum_s \ln p(x_s) - \ln q(x_s), \qquad x_s \sim p, \qquad
              \mathrm{se}^2 = \frac{1}{S(S-1)}\sum_s (\ln\tfrac{p}{q}(x_s) - \text{mean})^2

    Unbiased, in value (``"k1"``) and in the gradient to both arguments (``"pathwise"``: through the samples). A single
    value may be negative.

    Args:
        p, q: distributions whose batch shapes broadcast together, of one event shape.
        num_samples: S, draws for each element of the batch, at least 1.
        value, gradient, sampler: the estimator, ``"k1"``, ``"pathwise"`` and ``"iid"``.
        generator: where the noise comes from; the global random state is left alone. ``None`` is the global one.
    Returns: value and standard error, each of the broadcast batch shape.
    Raises:
        TypeError: p or q is no distribution.
        ValueError: unknown options; shapes that do not fit; a p without ``rsample`` whose parameters want gradients.
    Source: Schulman 2020, "Approximating KL divergence"; Kingma & Welling 2014, eq. 6.

    >>> normal = torch.distributions.Normal(torch.zeros(3), 1.0)
    >>> estimate_kl(normal, torch.distributions.Laplace(0.0, 1.0)).value.shape
    torch.Size([3])
    """
    for name, given in (("p", p), ("q", q)):
        if not isinstance(given, Distribution):
            raise TypeError(f"estimate_kl(p, q) takes two distributions, and {name} is a {type(given).__name__}")
    check_options(num_samples, value, gradient, sampler)
    shape = check_broadcast(**{"p.batch_shape": p.batch_shape, "q.batch_shape": q.batch_shape})
    if p.event_shape != q.event_shape:
        raise ValueError(f"p has the event shape {tuple(p.event_shape)} and q {tuple(q.event_shape)}: it must be one")
    # samples in half precision are others than were meant
    p, q = widened(p), widened(q)
    p = p if p.batch_shape == shape else p.expand(shape)
    with _noise_of(generator):
        draws = torch.Size([num_samples])
        sample = p.rsample(draws) if p.has_rsample else p.sample(draws)
    log_p = p.log_prob(sample)
    if not p.has_rsample and torch.is_grad_enabled() and log_p.requires_grad:
        raise ValueError(
            f"{type(p).__name__} has no rsample, which the pathwise gradient goes through, and its parameters want "
            "gradients. For the value alone compute under torch.no_grad(); kldiv.kl_divergence(p, q) has closed forms"
        )
    ratios = log_p - q.log_prob(sample)
    spread = ratios.detach()
    error = spread.std(0) / math.sqrt(num_samples) if num_samples > 1 else torch.full_like(spread[0], torch.inf)
    return KLEstimate(ratios.mean(0), error)


def check_options(num_samples: int, value: str, gradient: str, sampler: str) -> None:
    """Raises: ValueError: fewer than one sample, or an option that is none of those known."""
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples}: at least one sample is needed")
    for name, option, known in (
        ("value", value, ("k1",)),
        ("gradient", gradient, ("pathwise",)),
        ("sampler", sampler, ("iid",)),
    ):
        if option not in known:
            raise ValueError(f"{name}={option!r} is none of {', '.join(map(repr, known))}")


@contextlib.contextmanager
def _noise_of(generator: torch.Generator | None):  # type: ignore[no-untyped-def]
    # distributions draw from the global generators: those are lent a seed of the given one, and put back
    if generator is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        yield
