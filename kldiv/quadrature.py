"""kl_quadrature(p, q): the integral itself, for two one-dimensional densities."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    constraints,
)

from kldiv.copies import in_double
from kldiv.densities import (
    along,
    as_tensor,
    centers_of,
    expanded,
    in_vmap,
    inside,
    log_density,
    sample_quantiles,
    support_of,
    without_common_transforms,
)
from kldiv.functional import check_broadcast
from kldiv.special import expm1mx

__all__ = ["QuadratureError", "kl_quadrature"]


class QuadratureError(ArithmeticError):
    """Two rules disagree about an integral, or a density does not integrate to one."""


def kl_quadrature(p: Distribution, q: Distribution) -> Tensor:
    r"""D_KL(p||q) of two one-dimensional densities by numerical integration, in nats.

    .. math:: \int p\,(r - 1 - \ln r)\,dx, \quad r = q/p, \qquad\text{over the union of both supports}

    The integrand is never negative, and no digits are lost where p and q are close. Over the union, q - p integrates
    to nothing; where p is zero the integrand is q, and the mass of q outside of p's support is counted.

    Args:
        p, q: continuous distributions of event shape (), whose batch shapes broadcast together. Their ``log_prob``
            takes ``float64`` values; torch's families, mixtures and transforms of them do, and so do your own.
    Returns: the broadcast batch shape, computed in ``float64``, in the promoted dtype of the parameters, ``float32``
        at least. Differentiable in the parameters of both. ``inf`` where q is zero and p is not, and where the
        integrand does not decay as far as numbers reach.
    Raises:
        TypeError: p or q is no distribution.
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
        log_p, log_q, _ = _Rays(pair, centers, zeros).log_densities(panels.ray, t)
        seen = [(log > -math.inf) & ~infinite for log in (log_p, log_q)]
    # the same points once more, with the graph; what is zero is left out, for its gradient may be infinite
    log_p, log_q, log_jacobian = _Rays(pair, centers, zeros).log_densities(panels.ray, t, seen)
    value = (half * along(_KRONROD, zeros) * _integrand(log_p, log_q, log_jacobian)).sum((0, 1))
    return torch.where(infinite, math.inf, value).to(dtype)


def _check(name: str, given: object) -> None:
    if not isinstance(given, Distribution):
        raise TypeError(
            f"kl_quadrature(p, q) takes two distributions, and {name} is a {type(given).__name__}. Wrap parameters: "
            "torch.distributions.Normal(mean, stddev)"
        )
    kind = type(given).__name__
    try:
        support: Any = given.support
    except NotImplementedError:
        support = constraints.real
    if support.is_discrete:
        raise ValueError(
            f"kl_quadrature integrates densities, and {name} is a discrete {kind}: kldiv.kl_divergence(p, q) sums, and "
            "kldiv.MonteCarloKLLoss(num_samples=64)(p, q) estimates"
        )
    if given.event_shape:
        raise ValueError(
            f"kl_quadrature takes one-dimensional densities, and {name} is a {kind} of event shape "
            f"{tuple(given.event_shape)}. Where its dimensions are independent, pass them as a batch and sum: "
            "kl_quadrature(Normal(mean, stddev), ...).sum(-1), DiagonalNormal(mean, log_var, event_dim=0) or the "
            "base_dist of an Independent. Otherwise kldiv.MonteCarloKLLoss(num_samples=64)(p, q) estimates it"
        )


def _integrand(log_p: Tensor, log_q: Tensor, log_jacobian: Tensor) -> Tensor:
    """p (r - 1 - ln r) dx/dt with r = q/p; q dx/dt where p is zero, and 0 where q is: that is counted elsewhere."""
    both = (log_p > -math.inf) & (log_q > -math.inf)
    p, q = (log_p + log_jacobian).exp(), (log_q + log_jacobian).exp()
    log_r = torch.where(both, log_q, 0.0) - torch.where(both, log_p, 0.0)
    near = log_r < 30  # long before r overflows
    term = torch.where(near, p * expm1mx(torch.where(near, log_r, 0.0)), q - p * (1 + log_r))
    return torch.where(both, term, q)


class _Rays:
    """The line, cut into rays: points origin + sign * length * exp(t), with an integrand that is tame in t.

    Breaks are the ends of both supports and the centers of both. Each gap between two of them is two rays that meet in
    its middle, with t from 0 down; the outermost breaks send rays to infinity. Scales of all sizes, power laws at the
    ends of supports and heavy tails are all smooth in t. Tensors have the shape (rays, *batch).
    """

    def __init__(self, pair: list[Distribution], centers: list[Tensor], zeros: Tensor) -> None:
        self.pair, self.zeros = pair, zeros
        self.inside = [center[0] for center in centers]
        supports = [support_of(d) for d in pair]
        # a bound keeps its graph: where a support moves with a parameter, the points move with it
        bounds: list[Tensor | float] = [bound for s in supports for bound in (s.lower, s.upper)]
        bounds += [bound for s in supports for bound in s.inner]
        constant = sorted({bound for bound in bounds if not isinstance(bound, Tensor) and math.isfinite(bound)})
        moving = [bound for bound in bounds if isinstance(bound, Tensor)]
        ends = [as_tensor(bound, zeros) for bound in constant] + [as_tensor(bound, zeros) for bound in moving]
        finite = [torch.where(end.isfinite(), end, self.inside[0])[None] for end in ends]
        between = torch.cat(centers)
        for end in ends:  # a center on an end moves with it
            between = torch.where(between == end, end, between)
        breaks = torch.cat([*finite, between]).sort(0).values
        self.has_ends = bool(ends)

        low, high = breaks[:-1], breaks[1:]
        self.gaps = 2 * len(low)
        sign = [1.0] * len(low) + [-1.0] * len(low)
        origin, length = [low, high], [0.5 * (high - low)] * 2
        alive = []
        for s in supports:
            within = (low >= as_tensor(s.lower, zeros)) & (high <= as_tensor(s.upper, zeros))
            alive.append([within, within])
        for side, outermost in ((-1.0, breaks[:1]), (1.0, breaks[-1:])):
            reach = [s.lower if side < 0 else s.upper for s in supports]
            if any(isinstance(bound, Tensor) or math.isinf(bound) for bound in reach):
                sign.append(side)
                origin.append(outermost)
                length.append(torch.ones_like(outermost))
                for covered, bound in zip(alive, reach, strict=True):
                    covered.append(as_tensor(bound, zeros).isinf()[None])
        self.origin, self.sign = torch.cat(origin), along(sign, zeros).expand(-1, *zeros.shape)
        lengths = torch.cat(length)
        exists = lengths > 0
        self.alive = [torch.cat(covered) & exists for covered in alive]
        self.log_length = torch.where(exists, lengths, 1.0).log()

        self.at_end = torch.zeros_like(exists)
        for end in ends:
            self.at_end = self.at_end | ((self.origin == end) & end.isfinite())
        # nearer to an end than this there are too few numbers: next to 1e4 the nearest is 2e-12 away
        nearest = (2**20 * _EPS * self.origin.abs()).clamp(min=1e-290)
        gap = torch.arange(len(sign), device=zeros.device).view(-1, *[1] * zeros.dim()) < self.gaps
        nearest = torch.where(gap, torch.minimum(nearest, lengths / 64), nearest)
        self.nearest = torch.where(self.at_end & exists, nearest, 0.0).detach()
        self.laws = [self._power_law(j) for j in (0, 1)] if self.has_ends else []

    def _power_law(self, j: int) -> tuple[Tensor, Tensor, Tensor]:
        """a and b of ln density = constant + a ln d + b d, d from an end where numbers run out; where it is one."""
        multiples = along((1.0, 2.0, 4.0, 8.0), self.zeros)
        points = self.origin[:, None] + self.sign[:, None] * self.nearest[:, None] * multiples

        def law(on: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            d = torch.where(on[:, None], (points - self.origin[:, None]).abs(), multiples)
            log = log_density(self.pair[j], torch.where(on[:, None], points, self.inside[j]))
            step, rise, stretch = ((x[:, 1:] - x[:, :-1]).unbind(1) for x in (log, d.log(), d))
            determinant = rise[0] * stretch[1] - rise[1] * stretch[0]
            a = (step[0] * stretch[1] - step[1] * stretch[0]) / determinant
            b = (rise[0] * step[1] - rise[1] * step[0]) / determinant
            # two of the steps give a and b, the third tells whether it is such a law
            off = (a * rise[2] + b * stretch[2] - step[2]).abs() / (1 + step[0].abs())
            return a, b, on & (off < _CURVED)

        with torch.no_grad():
            fits = law(self.alive[j] & self.at_end)[2]
        a, b, _ = law(fits)
        return torch.where(fits, a, 0.0), torch.where(fits, b, 0.0), fits

    def log_densities(
        self, ray: Tensor, t: Tensor, seen: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ln p, ln q and ln |dx/dt| at t of shape (panels, nodes, *batch), each panel on its ray.

        -inf where a density is zero or ``seen``, one mask for each, says to leave it out.
        """

        def of_ray(value: Tensor) -> Tensor:
            return value.gather(0, ray)[:, None]

        log_distance = of_ray(self.log_length) + t
        distance = log_distance.exp()
        origin, at_end = of_ray(self.origin), of_ray(self.at_end)
        point = origin + of_ray(self.sign) * torch.maximum(distance, of_ray(self.nearest))
        # the distance of the rounded point, from which the power law leads to the distance that was meant
        rounded = torch.where(at_end, (point - origin).abs().clamp(min=1e-300), 1.0)
        logs = []
        for j, distribution in enumerate(self.pair):
            on = of_ray(self.alive[j])
            if seen is not None:
                on = on & seen[j]
            log = log_density(distribution, torch.where(on, point, self.inside[j]))
            if self.has_ends:
                a, b = of_ray(self.laws[j][0]), of_ray(self.laws[j][1])
                law = a * (log_distance - rounded.log()) + b * (distance - rounded)
                log = log + torch.where(at_end, law, 0.0)
            logs.append(torch.where(on & log.isfinite(), log, -math.inf))
        return logs[0], logs[1], log_distance

    def panels(self) -> "_Panels":
        """The first panels: those of each ray, which has about a scale of the distributions in each."""
        inwards = (*(_POWERS if self.has_ends else ()), *_INWARDS)
        rays: list[int] = []
        starts: list[float] = []
        stops: list[float] = []
        for ray in range(len(self.origin)):
            edges = inwards if ray < self.gaps else (*_INWARDS, *_OUTWARDS)
            rays += [ray] * (len(edges) - 1)
            starts += edges[:-1]
            stops += edges[1:]
        shape = (-1, *self.zeros.shape)
        index = torch.tensor(rays, device=self.zeros.device).view(-1, *[1] * self.zeros.dim())
        return _Panels(*(x.expand(shape) for x in (index, along(starts, self.zeros), along(stops, self.zeros))))

    def tails(self) -> tuple[Tensor, Tensor]:
        """Where the integrand does not decay before numbers run out, and otherwise how much lies beyond."""
        ray = along(range(len(self.origin)), self.zeros, torch.int64)
        outward = ray >= self.gaps
        meets = self.alive[0] & self.alive[1] & (self.at_end | outward)
        if self.has_ends:  # between two power laws it decays
            meets = meets & ~(self.laws[0][2] & self.laws[1][2])
        last = torch.where(outward, _OUTWARDS[-1], self.nearest.clamp(min=1e-300).log() - self.log_length)
        t = last[:, None] * along([1 - 0.1 * k for k in range(10)], self.zeros)
        log_p, log_q, log_jacobian = self.log_densities(ray.expand_as(last), t)
        log_r = log_q - log_p
        near = log_r < 30
        kl = log_p + torch.where(near, expm1mx(torch.where(near, log_r, 0.0)), 1.0).log()
        log = log_jacobian + torch.where(near, kl, log_q)
        # a p beyond numbers leaves q, which says nothing where it is small
        number = log.isfinite() & (log_p.isfinite() | (log > _VOID)) & meets[:, None]
        # the outermost point where there is something left, and the next
        left = (number & (log > _VOID))[:, :-1]
        at = left.to(torch.int64).argmax(1, keepdim=True)
        here, next_in = log.gather(1, at)[:, 0], log.gather(1, at + 1)[:, 0]
        outermost = (at == 0)[:, 0] | ~number.gather(1, (at - 1).clamp(min=0))[:, 0]
        remains = left.any(1) & outermost & next_in.isfinite()
        decay = torch.where(remains, (next_in - here) / (0.1 * last.abs()), math.inf)
        beyond = torch.where(remains & (decay >= _DECAY), here.exp() / decay, 0.0)
        return (decay < _DECAY).any(0), beyond.sum(0)


class _Panels(NamedTuple):
    """Intervals of t, each on a ray. All of the shape (panels, *batch)."""

    ray: Tensor
    start: Tensor
    stop: Tensor

    def nodes(self) -> tuple[Tensor, Tensor]:
        """t at the nodes, of shape (panels, 15, *batch), and the half widths, of shape (panels, 1, *batch)."""
        half = 0.5 * (self.stop - self.start)[:, None]
        return 0.5 * (self.stop + self.start)[:, None] + half * along(_NODES, self.start[0]), half

    def take(self, index: Tensor) -> "_Panels":
        return _Panels(*(x.gather(0, index) for x in self))


class _Sums(NamedTuple):
    """Integrals over each panel, of shape (panels, *batch), and what the coarser rule makes of them."""

    kl: Tensor
    p: Tensor
    q: Tensor
    starved: Tensor  # p where q is zero
    kl_gauss: Tensor
    mass_error: Tensor


def _integrate(rays: _Rays, panels: _Panels) -> _Sums:
    kronrod, gauss = along(_KRONROD, rays.zeros), along(_GAUSS, rays.zeros)
    # in pieces, so that what is thrown away again stays small
    size = max(1, _PIECE // (15 * max(1, rays.zeros.numel())))
    pieces = []
    for first in range(0, len(panels.ray), size):
        piece = _Panels(*(x[first : first + size] for x in panels))
        t, half = piece.nodes()
        log_p, log_q, log_jacobian = rays.log_densities(piece.ray, t)
        p, q = (log_p + log_jacobian).exp(), (log_q + log_jacobian).exp()
        # outside of q's support every p counts, be it too small for a number; inside, q may be the one too small
        outside = ~rays.alive[1].gather(0, piece.ray)[:, None] & (log_p > -math.inf)
        starved = torch.where(outside, 1.0, torch.where(log_q > -math.inf, 0.0, p))
        integrands = (_integrand(log_p, log_q, log_jacobian), p, q, starved)
        sums = [(half * kronrod * f).sum(1) for f in integrands]
        coarse = [(half * gauss * f).sum(1) for f in integrands[:3]]
        mass_error = (coarse[1] - sums[1]).abs() + (coarse[2] - sums[2]).abs()
        pieces.append((*sums, coarse[0], mass_error))
    return _Sums(*(torch.cat(column) for column in zip(*pieces, strict=True)))


def _halve(rays: _Rays, panels: _Panels, sums: _Sums, count: int) -> tuple[_Panels, _Sums]:
    """The panels with the ``count`` worst of each batch element halved."""
    error = (sums.kl - sums.kl_gauss).abs() / sums.kl.sum(0).clamp(min=_FLOOR) + sums.mass_error
    index = error.nan_to_num(nan=0.0).topk(min(count, len(error)), dim=0).indices
    ray, start, stop = panels.take(index)
    middle = 0.5 * (start + stop)
    halves = _Panels(torch.cat([ray, ray]), torch.cat([start, middle]), torch.cat([middle, stop]))

    def replaced(old: Tensor, new: Tensor) -> Tensor:
        return torch.cat([old.scatter(0, index, new[: len(index)]), new[len(index) :]])

    of_halves = _integrate(rays, halves)
    return (
        _Panels(*(replaced(old, new) for old, new in zip(panels, halves, strict=True))),
        _Sums(*(replaced(old, new) for old, new in zip(sums, of_halves, strict=True))),
    )


def _place(pair: list[Distribution], zeros: Tensor, checked: bool) -> tuple[list[Tensor], _Panels, Tensor]:
    """The centers, the panels that count, and where the integral is infinite."""
    known = [centers_of(d, zeros) for d in pair]
    for sampled in (False, True):
        centers = []
        for d, found in zip(pair, known, strict=True):
            if checked and (sampled or found is None):
                quantiles = sample_quantiles(d, zeros)
                found = quantiles if found is None else torch.cat([found, quantiles])
            centers.append(inside(support_of(d), zeros[None] if found is None else found, zeros).detach())
        rays = _Rays(pair, centers, zeros)
        panels = rays.panels()
        sums = _integrate(rays, panels)
        for rounds, each in _EFFORTS:
            for _ in range(rounds):
                panels, sums = _halve(rays, panels, sums, each * len(rays.origin))
            value = sums.kl.sum(0)
            diverges, beyond = rays.tails()
            infinite = diverges | (sums.starved.sum(0) > _STARVED)
            if not checked or not zeros.numel():
                return centers, panels, infinite
            share = torch.maximum(sums.kl / value.clamp(min=_FLOOR), torch.maximum(sums.p, sums.q)).nan_to_num(nan=0.0)
            error = (sums.kl - sums.kl_gauss).abs().sum(0) + beyond
            disagree = ~((error <= _TOLERANCE * value + _FLOOR) | infinite)
            lost = ~((torch.stack([sums.p.sum(0), sums.q.sum(0)]) - 1).abs() <= _TOLERANCE).all(0)
            # the one that waits for the device
            failed, needed = torch.stack([(disagree | lost).sum(), (share > _NEGLIGIBLE).sum(0).max()]).tolist()
            if not failed:
                return centers, panels.take(share.topk(max(1, needed), dim=0).indices), infinite
    raise QuadratureError(_failure(pair, disagree | lost, sums, beyond))


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


_EPS = 2.0**-52
_TOLERANCE, _FLOOR = 1e-6, 1e-16  # by how much the rules may differ, relative and absolute
_NEGLIGIBLE = 1e-17  # what a panel holds that is left out in the end
_STARVED = 1e-30  # p's mass where q is zero: below, q is rather a number too small
_VOID = -90.0  # ln of an integrand that is nothing
_DECAY = 4e-3  # of ln integrand per ln distance: a slower one is none
_CURVED = 3e-4  # by how much ln density may be off a power law, relative to a step of it
_PIECE = 2**18
_EFFORTS = ((4, 4), (6, 8), (8, 16))  # how often panels are halved, how many a ray, before the rules are compared

# edges of panels in t = ln(distance / length)
_POWERS = tuple(-10.0 * 2**k for k in range(13, 4, -1))
_INWARDS = (-160.0, -80.0, -56.0, -40.0, -32.0, -24.0, -16.0, -8.0, 0.0)
_OUTWARDS = (8.0, 16.0, 24.0, 32.0, 40.0, 48.0, 56.0, 64.0, 72.0, 80.0, 120.0, 160.0, 240.0, 345.0)


def _symmetric(*half: float, sign: float = 1.0) -> tuple[float, ...]:
    return (*(sign * x for x in half), *reversed(half[:-1]))


_NODES = _symmetric(
    0.991455371120812639206854697526329,
    0.949107912342758524526189684047851,
    0.864864423359769072789712788640926,
    0.741531185599394439863864773280788,
    0.586087235467691130294144691258380,
    0.405845151377397166906606412076961,
    0.207784955007898467600689403773245,
    0.0,
    sign=-1.0,
)
_KRONROD = _symmetric(
    0.022935322010529224963732008058970,
    0.063092092629978553290700663189204,
    0.104790010322250183839876322541518,
    0.140653259715525918745189590510238,
    0.169004726639267902826583426598550,
    0.190350578064785409913256402421014,
    0.204432940075298892414161999234649,
    0.209482141084727828012999174891714,
)
_GAUSS = _symmetric(
    0.0,
    0.129484966168869693270611432679082,
    0.0,
    0.279705391489276667901467771423780,
    0.0,
    0.381830050505118944950369775488975,
    0.0,
    0.417959183673469387755102040816327,
)
