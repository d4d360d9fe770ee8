"""kl_summation(p, q): the sum itself, for two distributions of counts."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.checkpoint import checkpoint

from kldiv.distributions import check_distributions, result_dtype
from kldiv.numerics import check_broadcast, expm1mx
from kldiv.quadrature.counts import COUNTS, Counts, counts_of, ratio_of_factors

__all__ = ["kl_summation"]

_MOST_TERMS = 10**7
_BLOCK = 2**18
"""Numbers in a block of counts."""
_NOTHING = -75.0
"""ln of the mass that is left out on either side."""


def kl_summation(p: Distribution, q: Distribution) -> Tensor:
    r"""D_KL(p||q) of two distributions of counts, summed over the counts, in nats.

    .. math:: \sum_{k \in K} p_k\,\varphi\left(\ln\frac{q_k}{p_k}\right) + \sum_{k \notin K} q_k,
              \qquad \varphi(u) = e^u - 1 - u

    K holds all of p but :math:`e^{-75}` of its mass. No term is negative, and no digits are lost where p and q are
    close: the logarithms of the ratios grow from count to count by differences that are known to their own digits.

    Args:
        p, q: ``Poisson``, ``NegativeBinomial``, ``Geometric``, ``Binomial`` or ``Bernoulli``, of batch shapes that
            broadcast. Any pair of them.
    Returns: the broadcast batch shape, computed in ``float64``, in the promoted dtype of the parameters, ``float32`` at
        least. ``inf`` where p gives mass to a count that is impossible under q. Differentiable in the parameters of
        both, but for the numbers of trials of a binomial distribution.
    Raises:
        TypeError: p or q is no distribution.
        ValueError: another distribution; batch shapes that do not broadcast; more than 1e7 terms for one pair.

    Terms are summed in blocks, which are computed again in the backward pass. How many there are depends on the
    parameters, so the call waits for the device, and it cannot be compiled into one graph or vmapped.

    >>> from torch.distributions import Geometric, Poisson
    >>> kl_summation(Poisson(torch.tensor([0.0, 2.0])), Geometric(torch.tensor(0.3)))
    tensor([1.2040, 0.2124])
    """
    check_distributions("Wrap parameters: torch.distributions.Poisson(rate)", p=p, q=q)
    for name, each in (("p", p), ("q", q)):
        if not isinstance(each, COUNTS):
            raise ValueError(_is_not_of_counts(name, each))
    shape = check_broadcast(**{"p.batch_shape": p.batch_shape, "q.batch_shape": q.batch_shape})
    of_p, of_q = counts_of(p, shape), counts_of(q, shape)
    return _sum(of_p, of_q).reshape(shape).to(result_dtype(p, q))


def _is_not_of_counts(name: str, given: Distribution) -> str:
    kinds = ", ".join(kind.__name__ for kind in COUNTS)
    return (
        f"kl_summation takes two distributions of counts ({kinds}), and {name} is a {type(given).__name__} of event "
        f"shape {tuple(given.event_shape)}. kldiv.kl_divergence(p, q) knows more pairs, kldiv.kl_quadrature(p, q) "
        "integrates densities, and kldiv.estimate_kl(p, q) samples. Of an Independent pass the base_dist, and sum"
    )


def _sum(p: Counts, q: Counts) -> Tensor:
    """(B, 1)."""
    with torch.no_grad():
        # where p is certain of one count it is -ln q of that
        certain = (p.last() == 0) | ((p.rest == 0) if p.sign < 0 else False)
        point = torch.where(certain, p.last(), 0.0)
        impossible = p.last() > q.last()
        if q.sign < 0:  # q is certain of one count
            impossible = impossible | (q.rest == 0)
        index = (~certain & ~impossible & p.mean().isfinite()).nonzero()[:, 0]
    value = torch.where(certain, -q.log_mass(point), torch.inf)
    if not len(index):
        return value
    return value.index_put((index,), _sum_of_many(p.take(index), q.take(index)))


def _sum_of_many(p: Counts, q: Counts) -> Tensor:
    """Of p with more than one count, all of which q has too."""
    with torch.no_grad():
        anchor = torch.minimum(p.mean().floor(), p.last())
        first, last = _range(p, anchor)
        inside = _over_counts(p, q, anchor, first, last, _mass_of_q)
        # what q has outside is summed, unless it is most of q: then it is what lacks inside
        is_little = inside > 0.5
        first_q, last_q = _range(q, torch.minimum(q.mean().floor(), q.last()))
        first = torch.where(is_little, torch.minimum(first, first_q), first)
        last_q = torch.where(is_little, torch.maximum(last, last_q), last)
        last = torch.minimum(last_q, p.last())
    value = _over_counts(p, q, anchor, first, last, _terms)
    beyond = _over_counts(q, q, last + 1, last + 1, last_q, _mass_of_q)  # q's alone
    lacking = 1 - _over_counts(p, q, anchor, first, last, _mass_of_q)
    return value + torch.where(is_little, beyond, lacking)


def _range(f: Counts, mode: Tensor) -> tuple[Tensor, Tensor]:
    """The counts around ``mode`` between which all but a mass of e^-75 on either side lies."""

    def beyond(k: Tensor, up: bool) -> Tensor:
        """Whether a geometric series bounds the mass from k outwards by e^-75."""
        log_step = f.log_factor(k) - torch.log(k + 1) if up else torch.log(k) - f.log_factor(k - 1)
        if up and f.sign > 0:  # below one failure the ratios rise, up to this
            log_step = torch.maximum(log_step, torch.log(f.chance))
        room = torch.log(-torch.expm1(log_step.clamp(max=-1e-300)))
        return (f.log_mass(k) - room < _NOTHING) & (log_step < 0)

    def search(up: bool, end: Tensor) -> Tensor:
        inner, step = mode, torch.ones_like(mode)
        direction = 1.0 if up else -1.0
        for _ in range(64):
            outer = mode + direction * step
            outer = torch.minimum(outer, end) if up else torch.maximum(outer, end)
            done = (outer == end) | beyond(outer, up)
            if bool(done.all()):
                break
            inner, step = torch.where(done, inner, outer), torch.where(done, step, 2 * step)
        for _ in range(64):
            if bool(((outer - inner).abs() <= 1).all()):
                break
            middle = (0.5 * (inner + outer)).floor() if up else (0.5 * (inner + outer)).ceil()
            enough = beyond(middle, up)
            inner, outer = torch.where(enough, inner, middle), torch.where(enough, middle, outer)
        return outer

    return search(False, torch.zeros_like(mode)), search(True, f.last())


Summand = Callable[[Tensor, Tensor], Tensor]
"""Of ln p and ln(q/p)."""


def _mass_of_q(log_p: Tensor, log_ratio: Tensor) -> Tensor:
    return torch.exp(log_p + log_ratio)


def _terms(log_p: Tensor, log_ratio: Tensor) -> Tensor:
    near = log_ratio < 30
    close = torch.exp(log_p) * expm1mx(torch.where(near, log_ratio, 0.0))
    return torch.where(near, close, torch.exp(log_p + log_ratio) - torch.exp(log_p) * (1 + log_ratio))


def _over_counts(p: Counts, q: Counts, anchor: Tensor, first: Tensor, last: Tensor, summand: Summand) -> Tensor:
    """The sum over the counts from ``first`` to ``last``, (B, 1), upwards and downwards from the anchor."""
    total = torch.zeros_like(anchor)
    for up, length in ((True, last - anchor + 1), (False, anchor - first)):
        if bool((length > _MOST_TERMS).any()):
            raise ValueError(
                f"the divergence has {float(length.max()):.0f} terms and more for one pair, and kl_summation takes 1e7 "
                "at most. kldiv.estimate_kl(p, q) samples"
            )
        index, done = (length[:, 0] > 0).nonzero()[:, 0], 0
        log_ratio = q.take(index).log_mass(anchor[index]) - p.take(index).log_mass(anchor[index])
        while len(index):
            width = max(1, min(int(length[index].max()) - done, _BLOCK // len(index)))
            block = _Block(anchor[index], length[index], done, width, up)
            part, log_ratio = checkpoint(
                _sum_of_block, p.take(index), q.take(index), block, log_ratio, summand, use_reentrant=False
            )
            total = total.index_add(0, index, part)
            done += width
            left = (length[index, 0] > done).nonzero()[:, 0]
            index, log_ratio = index[left], log_ratio[left]
    return total


class _Block(NamedTuple):
    """Some of the counts on one side of the anchor."""

    anchor: Tensor
    length: Tensor
    done: int
    width: int
    up: bool


def _sum_of_block(p: Counts, q: Counts, block: _Block, log_ratio: Tensor, summand: Summand) -> tuple[Tensor, Tensor]:
    """The sum, (B, 1), and ln(q/p) where the next block goes on."""
    anchor, length, done, width, up = block
    j = torch.arange(done, done + width, dtype=anchor.dtype, device=anchor.device)
    within = j < length
    if up:
        k = torch.where(within, anchor + j, anchor)
        # each step leads to the next count; from the last one none does
        has_next = j + 1 < length
        steps = torch.where(has_next, ratio_of_factors(p, q, torch.where(has_next, k, 0.0)), 0.0)
        after = log_ratio + steps.cumsum(1)
        here = torch.cat([log_ratio, after[:, :-1]], 1)
    else:
        k = torch.where(within, anchor - 1 - j, 0.0)
        after = here = log_ratio - torch.where(within, ratio_of_factors(p, q, k), 0.0).cumsum(1)
    terms = summand(p.log_mass(k), here)
    return torch.where(within, terms, 0.0).sum(1, keepdim=True), after[:, -1:]
