"""What the random pairs are made of: ranges of parameters, small shifts, and the accuracy that is asked of a pair."""

import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from tests.oracles.parameters import stored


class Pair(NamedTuple):
    """How to draw two distributions, and the accuracy that is asked of their divergence.

    ``FAMILIES[name].draw(rng, distance, dtype)`` and ``CROSS[p, q].draw(rng, dtype)`` give unbatched distributions
    whose divergence is finite in ``dtype``.
    """

    draw: Callable[..., tuple[Distribution, Distribution]]
    kind: str


def tolerance(kind: str, dtype: torch.dtype, p: Distribution, q: Distribution) -> float:
    """The relative error that is allowed to a divergence computed in ``dtype``."""
    single = dtype != torch.float64
    if kind == "elementary":
        return 1e-6 if single else 1e-12
    if kind == "matrix":
        return 1e-4 if single else 1e-9
    assert kind == "special"
    return 1e-5 if single else max(1e-10, 1e-14 * largest_concentration(p, q))


def largest_concentration(*distributions: Distribution) -> float:
    largest = 0.0
    for distribution in distributions:
        for name, value in stored(distribution)[1].items():
            if name.startswith("concentration") or name == "df":
                largest = max(largest, *map(float, value if isinstance(value, list) else [value]))
    return largest


Draw = Callable[[random.Random, float, torch.dtype], tuple[Distribution, Distribution]]
Range = tuple[float, float]
SCALES = (1e-6, 1e6)
CONCENTRATIONS = (1e-3, 1e8)


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def shift(rng: random.Random, distance: float) -> float:
    """Up to ``distance``, either way, and not near zero."""
    return rng.choice((-1, 1)) * rng.uniform(0.3, 1) * distance


def made(family: type, dtype: torch.dtype, **parameters: Any) -> Distribution:
    tensors = {name: torch.as_tensor(value, dtype=torch.float64).to(dtype) for name, value in parameters.items()}
    return family(**tensors)


def positive(family: type, **ranges: Range) -> Draw:
    """Parameters that are all positive, each perturbed by a factor."""

    def draw(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        p = {name: log_uniform(rng, *bounds) for name, bounds in ranges.items()}
        q = {name: value * math.exp(shift(rng, distance)) for name, value in p.items()}
        return made(family, dtype, **p), made(family, dtype, **q)

    return draw


def located(family: type, far: bool = True) -> Draw:
    """Location and scale; the locations lie a part of the scale apart, or of the location (if ``far``)."""

    def draw(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        scale = log_uniform(rng, *SCALES)
        unit = rng.choice((log_uniform(rng, *SCALES), scale)) if far else scale * log_uniform(rng, 1e-3, 1e3)
        loc = rng.choice((-1, 1)) * unit
        q_loc = loc + shift(rng, distance) * (rng.choice((loc, scale)) if far else scale)
        p, q = {"loc": loc, "scale": scale}, {"loc": q_loc, "scale": scale * math.exp(shift(rng, distance))}
        return made(family, dtype, **p), made(family, dtype, **q)

    return draw


def draw_odds(
    rng: random.Random, distance: float, dtype: torch.dtype, given: tuple[str, str] | None = None, small: float = 1.0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """logits or probs of both; probs stay below 1 in float32."""
    names = given or rng.choice((("logits", "logits"), ("probs", "probs")))
    logit = rng.uniform(-30, 30 if names == ("logits", "logits") else 14) * rng.choice((1, small))
    return tuple(
        {name: torch.tensor(value if name == "logits" else 1 / (1 + math.exp(-value)), dtype=dtype)}
        for name, value in zip(names, (logit, logit + shift(rng, distance)), strict=True)
    )
