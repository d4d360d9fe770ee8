"""The line, cut into rays and panels, on which an integrand is tame."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from kldiv.distributions import as_tensor, log_density, support_of
from kldiv.numerics import expm1mx
from kldiv.quadrature.centers import along
from kldiv.quadrature.rules import CURVED, DECAY, EPS, INWARDS, NODES, OUTWARDS, POWERS, VOID

__all__ = [
    "Panels",
    "Rays",
]


class Rays:
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
        nearest = (2**20 * EPS * self.origin.abs()).clamp(min=1e-290)
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
            return a, b, on & (off < CURVED)

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

    def panels(self) -> "Panels":
        """The first panels: those of each ray, which has about a scale of the distributions in each."""
        inwards = (*(POWERS if self.has_ends else ()), *INWARDS)
        rays: list[int] = []
        starts: list[float] = []
        stops: list[float] = []
        for ray in range(len(self.origin)):
            edges = inwards if ray < self.gaps else (*INWARDS, *OUTWARDS)
            rays += [ray] * (len(edges) - 1)
            starts += edges[:-1]
            stops += edges[1:]
        shape = (-1, *self.zeros.shape)
        index = torch.tensor(rays, device=self.zeros.device).view(-1, *[1] * self.zeros.dim())
        return Panels(*(x.expand(shape) for x in (index, along(starts, self.zeros), along(stops, self.zeros))))

    def tails(self) -> tuple[Tensor, Tensor]:
        """Where the integrand does not decay before numbers run out, and otherwise how much lies beyond."""
        ray = along(range(len(self.origin)), self.zeros, torch.int64)
        outward = ray >= self.gaps
        meets = self.alive[0] & self.alive[1] & (self.at_end | outward)
        if self.has_ends:  # between two power laws it decays
            meets = meets & ~(self.laws[0][2] & self.laws[1][2])
        last = torch.where(outward, OUTWARDS[-1], self.nearest.clamp(min=1e-300).log() - self.log_length)
        t = last[:, None] * along([1 - 0.1 * k for k in range(10)], self.zeros)
        log_p, log_q, log_jacobian = self.log_densities(ray.expand_as(last), t)
        log_r = log_q - log_p
        near = log_r < 30
        kl = log_p + torch.where(near, expm1mx(torch.where(near, log_r, 0.0)), 1.0).log()
        log = log_jacobian + torch.where(near, kl, log_q)
        # a p beyond numbers leaves q, which says nothing where it is small
        number = log.isfinite() & (log_p.isfinite() | (log > VOID)) & meets[:, None]
        # the outermost point where there is something left, and the next
        left = (number & (log > VOID))[:, :-1]
        at = left.to(torch.int64).argmax(1, keepdim=True)
        here, next_in = log.gather(1, at)[:, 0], log.gather(1, at + 1)[:, 0]
        outermost = (at == 0)[:, 0] | ~number.gather(1, (at - 1).clamp(min=0))[:, 0]
        remains = left.any(1) & outermost & next_in.isfinite()
        decay = torch.where(remains, (next_in - here) / (0.1 * last.abs()), math.inf)
        beyond = torch.where(remains & (decay >= DECAY), here.exp() / decay, 0.0)
        return (decay < DECAY).any(0), beyond.sum(0)


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
