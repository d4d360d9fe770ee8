"""Rays, Panels: the line cut into pieces on which the integrand is smooth."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from kldiv.distributions import Support, as_tensor, log_density, support_of
from kldiv.numerics import expm1mx
from kldiv.quadrature.centers import along
from kldiv.quadrature.rules import (
    END_EDGES,
    EPS,
    GAP_EDGES,
    LOG_NOTHING,
    NODES,
    POWER_LAW_TOLERANCE,
    SLOWEST_DECAY,
    TAIL_EDGES,
)

__all__ = [
    "Panels",
    "Rays",
]


class Rays:
    """The line, cut into rays: points origin + sign * length * exp(t), on which the integrand is smooth in t.

    Breaks are the ends of both supports and the centers of both densities. Each gap between two breaks is two rays
    that meet in its middle, with t from 0 down. From the outermost breaks rays go to infinity. In t, scales of all
    sizes, power laws at the ends of supports and heavy tails are all smooth.

    Attributes have the shape (rays, *batch), and those of each density are pairs, of p and of q:

    - ``inside``: a point inside of each support, (*batch,);
    - ``origin``, ``sign``, ``log_length``: of each ray; the first ``gaps`` of them lie in gaps, the others go outwards;
    - ``alive``: whether a ray has a length and lies in the support of each density;
    - ``at_end``: whether it starts at an end of a support; ``has_ends``: whether there is any end;
    - ``nearest``: the least distance from the origin at which a density is evaluated;
    - ``laws``: the power law of each density nearer than that, see ``_power_law``.
    """

    def __init__(self, pair: list[Distribution], centers: list[Tensor], zeros: Tensor) -> None:
        self.pair, self.zeros = pair, zeros
        self.inside = [center[0] for center in centers]
        supports = [support_of(d) for d in pair]
        ends = _ends(supports, zeros)
        self.has_ends = bool(ends)
        breaks = self._breaks(ends, torch.cat(centers))
        in_gaps = _in_gaps(breaks, supports, zeros)
        bundles = [*in_gaps, *_outwards(breaks, supports, zeros)]
        self.gaps = sum(len(bundle.origin) for bundle in in_gaps)

        signs = [bundle.sign for bundle in bundles for _ in range(len(bundle.origin))]
        self.sign = along(signs, zeros).expand(-1, *zeros.shape)
        self.origin = torch.cat([bundle.origin for bundle in bundles])
        length = torch.cat([bundle.length for bundle in bundles])
        exists = length > 0  # two breaks may coincide
        self.log_length = torch.where(exists, length, 1.0).log()
        self.alive = [torch.cat([bundle.alive[j] for bundle in bundles]) & exists for j in (0, 1)]

        self.at_end = torch.zeros_like(exists)
        for end in ends:
            self.at_end = self.at_end | ((self.origin == end) & end.isfinite())
        self.nearest = torch.where(self.at_end & exists, self._least_distance(length), 0.0).detach()
        self.laws = [self._power_law(j) for j in (0, 1)] if self.has_ends else []

    def _breaks(self, ends: list[Tensor], centers: Tensor) -> Tensor:
        """The finite ends and the centers in order, (breaks, *batch)."""
        finite = [torch.where(end.isfinite(), end, self.inside[0])[None] for end in ends]
        for end in ends:  # a center on an end moves with it
            centers = torch.where(centers == end, end, centers)
        return torch.cat([*finite, centers]).sort(0).values

    def _least_distance(self, length: Tensor) -> Tensor:
        """Nearer to its origin than this a ray has too few numbers: the one next to 1e4 is 2e-12 away."""
        distance = (2**20 * EPS * self.origin.abs()).clamp(min=1e-290)
        ray = torch.arange(len(length), device=self.zeros.device).view(-1, *[1] * self.zeros.dim())
        return torch.where(ray < self.gaps, torch.minimum(distance, length / 64), distance)

    def _power_law(self, j: int) -> tuple[Tensor, Tensor, Tensor]:
        """a and b of ln density = constant + a ln d + b d at a distance d from an end, and where this law holds."""
        multiples = along((1.0, 2.0, 4.0, 8.0), self.zeros)
        points = self.origin[:, None] + self.sign[:, None] * self.nearest[:, None] * multiples

        def law(on: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            d = torch.where(on[:, None], (points - self.origin[:, None]).abs(), multiples)
            log = log_density(self.pair[j], torch.where(on[:, None], points, self.inside[j]))
            step, rise, stretch = ((x[:, 1:] - x[:, :-1]).unbind(1) for x in (log, d.log(), d))
            determinant = rise[0] * stretch[1] - rise[1] * stretch[0]
            a = (step[0] * stretch[1] - step[1] * stretch[0]) / determinant
            b = (rise[0] * step[1] - rise[1] * step[0]) / determinant
            # two of the steps give a and b, the third tells whether the law holds
            off = (a * rise[2] + b * stretch[2] - step[2]).abs() / (1 + step[0].abs())
            return a, b, on & (off < POWER_LAW_TOLERANCE)

        with torch.no_grad():
            fits = law(self.alive[j] & self.at_end)[2]
        a, b, _ = law(fits)
        return torch.where(fits, a, 0.0), torch.where(fits, b, 0.0), fits

    def log_densities(
        self, ray: Tensor, t: Tensor, seen: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ln p, ln q and ln |dx/dt| at t of shape (panels, nodes, *batch), each panel on its ray.

        -inf where a density is zero, and outside of ``seen``, a mask for each density.
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

    def panels(self) -> "Panels":
        """The first panels of each ray. Each is short enough for one scale of the densities."""
        inwards = (*(END_EDGES if self.has_ends else ()), *GAP_EDGES)
        rays: list[int] = []
        starts: list[float] = []
        stops: list[float] = []
        for ray in range(len(self.origin)):
            edges = inwards if ray < self.gaps else (*GAP_EDGES, *TAIL_EDGES)
            rays += [ray] * (len(edges) - 1)
            starts += edges[:-1]
            stops += edges[1:]
        shape = (-1, *self.zeros.shape)
        index = torch.tensor(rays, device=self.zeros.device).view(-1, *[1] * self.zeros.dim())
        return Panels(*(x.expand(shape) for x in (index, along(starts, self.zeros), along(stops, self.zeros))))

    def tails(self) -> tuple[Tensor, Tensor]:
        """Where the integrand does not decay before numbers run out, and how much lies beyond elsewhere. (*batch,)."""
        ray = along(range(len(self.origin)), self.zeros, torch.int64)
        outward = ray >= self.gaps
        meets = self.alive[0] & self.alive[1] & (self.at_end | outward)
        if self.has_ends:  # between two power laws it decays
            meets = meets & ~(self.laws[0][2] & self.laws[1][2])
        last = torch.where(outward, TAIL_EDGES[-1], self.nearest.clamp(min=1e-300).log() - self.log_length)
        t = last[:, None] * along([1 - 0.1 * k for k in range(10)], self.zeros)
        log_p, log_q, log_jacobian = self.log_densities(ray.expand_as(last), t)
        log_r = log_q - log_p
        near = log_r < 30
        kl = log_p + torch.where(near, expm1mx(torch.where(near, log_r, 0.0)), 1.0).log()
        log = log_jacobian + torch.where(near, kl, log_q)
        # where p underflows the integrand is q, which means nothing where it is small
        number = log.isfinite() & (log_p.isfinite() | (log > LOG_NOTHING)) & meets[:, None]
        # the outermost point where something is left, and the next one inwards
        left = (number & (log > LOG_NOTHING))[:, :-1]
        at = left.to(torch.int64).argmax(1, keepdim=True)
        here, next_in = log.gather(1, at)[:, 0], log.gather(1, at + 1)[:, 0]
        outermost = (at == 0)[:, 0] | ~number.gather(1, (at - 1).clamp(min=0))[:, 0]
        remains = left.any(1) & outermost & next_in.isfinite()
        decay = torch.where(remains, (next_in - here) / (0.1 * last.abs()), math.inf)
        beyond = torch.where(remains & (decay >= SLOWEST_DECAY), here.exp() / decay, 0.0)
        return (decay < SLOWEST_DECAY).any(0), beyond.sum(0)


class Panels(NamedTuple):
    """Intervals of t, each on a ray. All of the shape (panels, *batch)."""

    ray: Tensor
    start: Tensor
    stop: Tensor

    def nodes(self) -> tuple[Tensor, Tensor]:
        """t at the nodes, of shape (panels, 15, *batch), and the half widths, of shape (panels, 1, *batch)."""
        half = 0.5 * (self.stop - self.start)[:, None]
        return 0.5 * (self.stop + self.start)[:, None] + half * along(NODES, self.start[0]), half

    def take(self, index: Tensor) -> "Panels":
        return Panels(*(x.gather(0, index) for x in self))


class _Bundle(NamedTuple):
    """Rays of one direction."""

    sign: float
    origin: Tensor
    length: Tensor
    alive: list[Tensor]  # of p and of q: whether the ray lies in the support


def _ends(supports: list[Support], zeros: Tensor) -> list[Tensor]:
    """The ends of both supports, (*batch,) each, infinite ones among those that move.

    An end keeps its graph: where a support moves with a parameter, the points move with it.
    """
    every: list[Tensor | float] = [end for s in supports for end in (s.lower, s.upper)]
    every += [end for s in supports for end in s.inner]
    constant = {end for end in every if not isinstance(end, Tensor) and math.isfinite(end)}
    moving = [end for end in every if isinstance(end, Tensor)]
    return [as_tensor(end, zeros) for end in sorted(constant)] + [as_tensor(end, zeros) for end in moving]


def _in_gaps(breaks: Tensor, supports: list[Support], zeros: Tensor) -> list[_Bundle]:
    """The rays from both sides of each gap to its middle."""
    low, high = breaks[:-1], breaks[1:]
    alive = [(low >= as_tensor(s.lower, zeros)) & (high <= as_tensor(s.upper, zeros)) for s in supports]
    half = 0.5 * (high - low)
    return [_Bundle(1.0, low, half, alive), _Bundle(-1.0, high, half, alive)]


def _outwards(breaks: Tensor, supports: list[Support], zeros: Tensor) -> list[_Bundle]:
    """The rays from the outermost breaks to where a support may be infinite."""
    bundles = []
    for sign, origin, reach in (
        (-1.0, breaks[:1], [s.lower for s in supports]),
        (1.0, breaks[-1:], [s.upper for s in supports]),
    ):
        if any(isinstance(end, Tensor) or math.isinf(end) for end in reach):
            alive = [as_tensor(end, zeros).isinf()[None] for end in reach]
            bundles.append(_Bundle(sign, origin, torch.ones_like(origin), alive))
    return bundles
