"""kl_quadrature(p, q): the KL divergence of two one-dimensional densities by numerical integration."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from kldiv.distributions import check_distributions, in_double, inside, support_of, without_common_transforms
from kldiv.numerics import check_broadcast, expm1mx
from kldiv.quadrature.centers import along, centers_of, expanded, in_vmap, sample_quantiles
from kldiv.quadrature.rays import Panels, Rays
from kldiv.quadrature.rules import GAUSS, KRONROD

__all__ = [
    "QuadratureError",
    "kl_quadrature",
]


class QuadratureError(ArithmeticError):
    """Two rules disagree about an integral, or a density does not integrate to one."""


def kl_quadrature(p: Distribution, q: Distribution) -> Tensor:
    r"""D_KL(p||q) of two one-dimensional densities by numerical integration, in nats.

    .. math:: \int p\,(r - 1 - \ln r)\,dx, \quad r = q/p, \qquad\text{over the union of both supports}

    The integrand is never negative, and no digits are lost where p and q are close. q - p, which it has in addition to
    p ln(p/q), integrates to 0 over the union. Where p is zero the integrand is q.

    Args:
        p, q: continuous distributions of event shape (), whose batch shapes broadcast together. Their ``log_prob``
            takes ``float64`` values; torch's families, mixtures and transforms of them do, and so do your own.
    Returns: the broadcast batch shape, computed in ``float64``, in the promoted dtype of the parameters, ``float32``
        at least. Differentiable in the parameters of both. ``inf`` where q is zero and p is not, and where the
        integrand does not decay as far as numbers reach.
    Raises:
        TypeError: p or q is not a distribution.
        ValueError: a discrete one, an event shape other than (), batch shapes that do not broadcast.
        QuadratureError: an ArithmeticError. The Gauss rule of 7 points a panel and the Kronrod rule of 15 that contains
            it differ by more than 1e-6 of the value (and 1e-16), or a density does not integrate to 1 within 1e-6.

    **How.** From the center (median, mean or mode) of p, of q and of each of their mixture components, and from the
    ends of the supports, points lie evenly in the logarithm of the distance, in panels. The worst panels are halved,
    in 4 rounds or more, until the rules agree. Where this fails, quantiles of draws become centers as well; the global
    random state is left as it is.

    **What it cannot see.** A feature that is no component and narrower than a thousandth of its distance from all
    centers and ends may be stepped over. With less than 1e-6 of the mass it is missed without an error, and the result
    lacks its mass times its log-ratio. A density narrower than 1e-11 of its location has too few numbers to be
    resolved. Points reach 1e150 from a center: tails with more than 1e-6 of the mass or of the divergence beyond raise,
    such as those of Student's t with 0.05 degrees of freedom. Where ends of p and q that move
    coincide, the divergence has one-sided derivatives by them only, and they are not given.

    **What it costs.** Both densities at some 5000 points a pair, a quarter of them with the graph, and at 2500 more for
    each further component or end of a support. The check waits for the device, once and after each further round of
    halving; under ``torch.compile`` and ``torch.func.vmap`` it is skipped, and the first round has the last word.

    Source: Piessens et al. 1983, QUADPACK (the rules).

    >>> from torch.distributions import Exponential, HalfNormal
    >>> kl_quadrature(Exponential(torch.tensor([1.0, 2.0])), HalfNormal(1.0))
    tensor([0.2258, 0.1689])
    """
    for name, given in (("p", p), ("q", q)):
        _check(name, given)
    batch_shape = check_broadcast(**{"p.batch_shape": p.batch_shape, "q.batch_shape": q.batch_shape})
    tensors: list[Tensor] = []
    pair = [in_double(d, tensors) for d in (p, q)]
    pair = without_common_transforms([expanded(d, batch_shape) for d in pair])
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    zeros = torch.zeros(batch_shape, dtype=torch.float64, device=tensors[0].device if tensors else None)
    checked = not torch.compiler.is_compiling() and not any(map(in_vmap, tensors))

    with torch.no_grad():
        centers, panels, infinite = _place(pair, zeros, checked)
        t, half = panels.nodes()
        log_p, log_q, _ = Rays(pair, centers, zeros).log_densities(panels.ray, t)
        seen = [(log > -math.inf) & ~infinite for log in (log_p, log_q)]
    # the same points again, with the graph; zeros are left out, for their gradient may be infinite
    log_p, log_q, log_jacobian = Rays(pair, centers, zeros).log_densities(panels.ray, t, seen)
    value = (half * along(KRONROD, zeros) * _integrand(log_p, log_q, log_jacobian)).sum((0, 1))
    return torch.where(infinite, math.inf, value).to(dtype)


def _check(name: str, given: Distribution) -> None:
    check_distributions("Wrap parameters: torch.distributions.Normal(mean, stddev)", **{name: given})
    kind = type(given).__name__
    try:
        support: Any = given.support
    except NotImplementedError:
        support = constraints.real
    if support.is_discrete:
        raise ValueError(
            f"kl_quadrature integrates densities, and {name} is a discrete {kind}: kldiv.kl_summation(p, q) sums over "
            "counts, kldiv.kl_divergence(p, q) has closed forms, and kldiv.estimate_kl(p, q) samples"
        )
    if given.event_shape:
        raise ValueError(
            f"kl_quadrature takes one-dimensional densities, and {name} is a {kind} of event shape "
            f"{tuple(given.event_shape)}. Where its dimensions are independent, pass them as a batch and sum: "
            "kl_quadrature(Normal(mean, stddev), ...).sum(-1), DiagonalNormal(mean, log_var, event_dim=0) or the "
            "base_dist of an Independent. Otherwise kldiv.MonteCarloKLLoss(num_samples=64)(p, q) estimates it"
        )


def _integrand(log_p: Tensor, log_q: Tensor, log_jacobian: Tensor) -> Tensor:
    """p (r - 1 - ln r) dx/dt with r = q/p; q dx/dt where p is zero; 0 where q is zero, see ``_Sums.starved``."""
    both = (log_p > -math.inf) & (log_q > -math.inf)
    p, q = (log_p + log_jacobian).exp(), (log_q + log_jacobian).exp()
    log_r = torch.where(both, log_q, 0.0) - torch.where(both, log_p, 0.0)
    near = log_r < 30  # long before r overflows
    term = torch.where(near, p * expm1mx(torch.where(near, log_r, 0.0)), q - p * (1 + log_r))
    return torch.where(both, term, q)


class _Sums(NamedTuple):
    """Integrals over each panel, (panels, *batch), by the Kronrod rule, and how far the Gauss rule is from them."""

    kl: Tensor
    p: Tensor
    q: Tensor
    starved: Tensor  # p where q is zero
    kl_gauss: Tensor
    mass_error: Tensor

    def share(self) -> Tensor:
        """The largest part that each panel has in the divergence or the mass of p or q."""
        of_value = self.kl / self.kl.sum(0).clamp(min=_FLOOR)
        return torch.maximum(of_value, torch.maximum(self.p, self.q)).nan_to_num(nan=0.0)

    def failed(self, beyond: Tensor, infinite: Tensor) -> Tensor:
        """Where the rules disagree or a density does not integrate to 1, (*batch,)."""
        error = (self.kl - self.kl_gauss).abs().sum(0) + beyond
        disagree = ~((error <= _TOLERANCE * self.kl.sum(0) + _FLOOR) | infinite)
        lost = ~((torch.stack([self.p.sum(0), self.q.sum(0)]) - 1).abs() <= _TOLERANCE).all(0)
        return disagree | lost


def _integrate(rays: Rays, panels: Panels) -> _Sums:
    kronrod, gauss = along(KRONROD, rays.zeros), along(GAUSS, rays.zeros)
    # in pieces, to bound the memory of what is thrown away
    size = max(1, _PIECE // (15 * max(1, rays.zeros.numel())))
    pieces = []
    for first in range(0, len(panels.ray), size):
        piece = Panels(*(x[first : first + size] for x in panels))
        t, half = piece.nodes()
        log_p, log_q, log_jacobian = rays.log_densities(piece.ray, t)
        p, q = (log_p + log_jacobian).exp(), (log_q + log_jacobian).exp()
        # outside of q's support any p counts, even one that underflows; inside, q may have underflowed
        outside = ~rays.alive[1].gather(0, piece.ray)[:, None] & (log_p > -math.inf)
        starved = torch.where(outside, 1.0, torch.where(log_q > -math.inf, 0.0, p))
        integrands = (_integrand(log_p, log_q, log_jacobian), p, q, starved)
        sums = [(half * kronrod * f).sum(1) for f in integrands]
        coarse = [(half * gauss * f).sum(1) for f in integrands[:3]]
        mass_error = (coarse[1] - sums[1]).abs() + (coarse[2] - sums[2]).abs()
        pieces.append((*sums, coarse[0], mass_error))
    return _Sums(*(torch.cat(column) for column in zip(*pieces, strict=True)))


def _halve(rays: Rays, panels: Panels, sums: _Sums, count: int) -> tuple[Panels, _Sums]:
    """The panels with the ``count`` worst of each batch element halved."""
    error = (sums.kl - sums.kl_gauss).abs() / sums.kl.sum(0).clamp(min=_FLOOR) + sums.mass_error
    index = error.nan_to_num(nan=0.0).topk(min(count, len(error)), dim=0).indices
    ray, start, stop = panels.take(index)
    middle = 0.5 * (start + stop)
    halves = Panels(torch.cat([ray, ray]), torch.cat([start, middle]), torch.cat([middle, stop]))

    def replaced(old: Tensor, new: Tensor) -> Tensor:
        return torch.cat([old.scatter(0, index, new[: len(index)]), new[len(index) :]])

    of_halves = _integrate(rays, halves)
    return (
        Panels(*(replaced(old, new) for old, new in zip(panels, halves, strict=True))),
        _Sums(*(replaced(old, new) for old, new in zip(sums, of_halves, strict=True))),
    )


def _place(pair: list[Distribution], zeros: Tensor, checked: bool) -> tuple[list[Tensor], Panels, Tensor]:
    """The centers, the panels that count, and where the integral is infinite."""
    known = [centers_of(d, zeros) for d in pair]
    for sampled in (False, True):
        centers = [
            _centers(d, found, zeros, checked and (sampled or found is None))
            for d, found in zip(pair, known, strict=True)
        ]
        rays = Rays(pair, centers, zeros)
        panels = rays.panels()
        sums = _integrate(rays, panels)
        for rounds, each in _EFFORTS:
            for _ in range(rounds):
                panels, sums = _halve(rays, panels, sums, each * len(rays.origin))
            diverges, beyond = rays.tails()
            infinite = diverges | (sums.starved.sum(0) > _STARVED)
            if not checked or not zeros.numel():
                return centers, panels, infinite
            failed, share = sums.failed(beyond, infinite), sums.share()
            # this alone waits for the device
            counts = torch.stack([failed.sum(), (share > _NEGLIGIBLE).sum(0).max()]).cpu()
            failures, needed = (int(count) for count in counts.unbind())  # torch 2.6 has no tolist under jvp
            if not failures:
                return centers, panels.take(share.topk(max(1, needed), dim=0).indices), infinite
    raise QuadratureError(_failure(pair, failed, sums, beyond))


def _centers(distribution: Distribution, known: Tensor | None, zeros: Tensor, sampled: bool) -> Tensor:
    """Centers inside of the support, (centers, *batch): the known ones, and quantiles of draws if ``sampled``."""
    if sampled:
        quantiles = sample_quantiles(distribution, zeros)
        known = quantiles if known is None else torch.cat([known, quantiles])
    return inside(support_of(distribution), zeros[None] if known is None else known, zeros).detach()


def _failure(pair: list[Distribution], failed: Tensor, sums: _Sums, beyond: Tensor) -> str:
    first = int(failed.flatten().nonzero()[0])
    fine, coarse, tail, p, q = (
        float(x.flatten()[first]) for x in (sums.kl.sum(0), sums.kl_gauss.sum(0), beyond, sums.p.sum(0), sums.q.sum(0))
    )
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(first), failed.shape))
    kinds = " || ".join(type(d).__name__ for d in pair)
    return (
        f"the integral of D_KL({kinds}) was not found for {int(failed.sum())} of {failed.numel()} pairs, the first of "
        f"batch index {index}: the rule of 15 points a panel gives {fine:.9g} and that of 7 {coarse:.9g}, with "
        f"{tail:.3g} beyond the numbers, p integrates to {p:.9g} and q to {q:.9g}. A density is not normalised, has a "
        "feature too narrow to be found, or is known to too few digits where it counts. Estimate it by sampling: "
        "kldiv.MonteCarloKLLoss(num_samples=1024)(p, q)"
    )


_TOLERANCE = 1e-6
"""By how much the two rules may differ, relative to the value, and the mass of a density from 1."""
_FLOOR = 1e-16
"""By how much the two rules may differ in any case."""
_NEGLIGIBLE = 1e-17
"""A panel whose share is smaller is left out of the result."""
_STARVED = 1e-30
"""A mass of p where q is zero that makes the divergence infinite. With less, q has rather underflowed."""
_PIECE = 2**18
"""How many points are evaluated at once while the panels are placed."""
_EFFORTS = ((4, 4), (6, 8), (8, 16))
"""Rounds of halving, and how many panels a ray each halves, before the rules are compared; then more of both."""
