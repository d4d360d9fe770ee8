"""CROSS: how to draw p from one family and q from another, so that q covers about where p lies."""

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.distributions import Bernoulli, Binomial, Distribution, Geometric, Poisson

from tests.oracles.drawing import Pair, draw_odds, log_uniform, made


class Place(NamedTuple):
    """Where a distribution has its mass."""

    centre: float
    width: float
    low: float = -math.inf
    high: float = math.inf


ONLY = (1e-3, 1e3)


def draw_p(family: str, family_q: str, rng: random.Random) -> tuple[dict[str, float], Place]:
    """Parameters and where the mass lies; with the moments that q asks for."""
    unit = log_uniform(rng, *ONLY)
    match family:
        case "Normal" | "Laplace" | "Gumbel":
            loc = rng.uniform(-3, 3) * unit * rng.choice((1, 10))
            return {"loc": loc, "scale": unit}, Place(loc, unit)
        case "HalfNormal":
            return {"scale": unit}, Place(unit, unit, 0)
        case "LogNormal":
            loc, scale = rng.uniform(-5, 5), log_uniform(rng, 1e-2, 3)
            return {"loc": loc, "scale": scale}, Place(math.exp(loc), math.exp(loc) * min(scale, 1), 0)
        case "Exponential":
            return {"rate": 1 / unit}, Place(unit, unit, 0)
        case "Gamma":
            a = log_uniform(rng, 1e-2, 1e3 if family_q == "Laplace" else 1e6)
            a += family_q == "InverseGamma"  # E[1/x]
            return {"concentration": a, "rate": 1 / unit}, Place(a * unit, math.sqrt(a) * unit, 0)
        case "InverseGamma":
            a = 1 + log_uniform(rng, 1e-2, 1e4)  # E[x]
            return {"concentration": a, "rate": unit}, Place(unit / a, unit / a / math.sqrt(a), 0)
        case "Weibull":
            k = log_uniform(rng, 0.2, 50)
            return {"scale": unit, "concentration": k}, Place(unit, unit / k, 0)
        case "Beta":
            a, b = log_uniform(rng, 1e-2, 1e5), log_uniform(rng, 1e-2, 1e5)
            mean = a / (a + b)
            return {"concentration1": a, "concentration0": b}, Place(
                mean, math.sqrt(mean * b / (a + b) / (a + b + 1)), 0, 1
            )
        case "ContinuousBernoulli":
            return {"logits": rng.uniform(-30, 30) * rng.choice((1, 1e-3))}, Place(0.5, 0.3, 0, 1)
        case "Pareto":
            a = (2 if family_q == "Normal" else 1) + log_uniform(rng, 1e-1, 1e3)
            return {"scale": unit, "alpha": a}, Place(unit * (1 + 1 / a), unit / a, unit)
        case "Uniform":
            if family_q in ("Beta", "ContinuousBernoulli"):
                low, high = rng.choice(
                    ((0.0, 1.0), (0.0, rng.uniform(0.01, 0.9)), sorted((rng.random(), rng.random())))
                )
            else:
                low = unit * rng.choice((0.0, log_uniform(rng, *ONLY)))
                if family_q == "Pareto":
                    low = low or unit
                if family_q in ("Normal", "Laplace", "Gumbel"):
                    low *= rng.choice((-1, 1))
                high = low + unit
            return {"low": low, "high": high}, Place((low + high) / 2, high - low, low, high)
    raise AssertionError(family)


def draw_q(family: str, place: Place, rng: random.Random) -> dict[str, float]:
    near_one = log_uniform(rng, 0.2, 5)
    match family:
        case "Normal" | "Laplace" | "Gumbel":
            scale = place.width * log_uniform(rng, 0.3, 30)
            return {"loc": place.centre + rng.uniform(-3, 3) * min(scale, place.width), "scale": scale}
        case "Exponential":
            return {"rate": log_uniform(rng, 1e-2, 1e2) / place.centre}
        case "Gamma":
            a = log_uniform(rng, 1e-2, 1e3)
            return {"concentration": a, "rate": a / place.centre * near_one}
        case "InverseGamma":
            a = log_uniform(rng, 1e-2, 1e3)
            return {"concentration": a, "rate": a * place.centre * near_one}
        case "Weibull":
            return {"concentration": log_uniform(rng, 0.1, 5), "scale": place.centre * near_one}
        case "LogNormal":
            return {"loc": math.log(place.centre) + rng.uniform(-2, 2), "scale": log_uniform(rng, 0.1, 10)}
        case "Beta":
            return {name: log_uniform(rng, 1e-2, 1e3) for name in ("concentration1", "concentration0")}
        case "ContinuousBernoulli":
            return {"logits": rng.uniform(-30, 30) * rng.choice((1, 1e-3))}
        case "Uniform":
            beyond = rng.choice((0.0, log_uniform(rng, *ONLY))) * (place.high - place.low)
            return {"low": place.low - beyond * rng.choice((0, 1)), "high": place.high + beyond}
        case "Pareto":
            return {"scale": place.low * rng.choice((1, rng.uniform(0.01, 1))), "alpha": log_uniform(rng, *ONLY)}
    raise AssertionError(family)


def continuous_pair(family_p: str, family_q: str) -> Callable[..., tuple[Distribution, Distribution]]:
    def draw(rng: random.Random, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        params, place = draw_p(family_p, family_q, rng)
        p = made(getattr(torch.distributions, family_p), dtype, **params)
        ends = {"low": "low", "scale": "low", "high": "high"} if family_p in ("Uniform", "Pareto") else {}
        stored_ends = {end: getattr(p, name).item() for name, end in ends.items() if hasattr(p, name)}
        q = draw_q(family_q, place._replace(**stored_ends), rng)
        return p, made(getattr(torch.distributions, family_q), dtype, **q)

    return draw


def count_pair(family_p: type, family_q: type) -> Callable[..., tuple[Distribution, Distribution]]:
    def draw(rng: random.Random, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        p, q = (draw_odds(rng, 0.0, dtype)[0] for _ in range(2))
        count = {"total_count": round(log_uniform(rng, 1, 60))} if family_p is Binomial else {}
        if family_q is Poisson:
            q = {"rate": torch.tensor(log_uniform(rng, 1e-3, 1e3), dtype=dtype)}
        more = {"total_count": round(log_uniform(rng, 1, 60))} if family_q is Binomial else {}
        return family_p(**count, **p), family_q(**more, **q)

    return draw


CONTINUOUS = {
    "Beta": ("ContinuousBernoulli", "Exponential", "Gamma", "Normal", "Uniform"),
    "ContinuousBernoulli": ("Exponential", "Normal", "Uniform"),
    "Exponential": ("Gamma", "Gumbel", "Normal", "Weibull", "Laplace"),
    "Gamma": ("Exponential", "Gumbel", "Normal", "Weibull", "LogNormal", "InverseGamma", "Laplace"),
    "Gumbel": ("Normal", "Laplace"),
    "HalfNormal": ("Exponential", "Gamma"),
    "InverseGamma": ("Gamma",),
    "Laplace": ("Normal",),
    "LogNormal": ("Gamma",),
    "Normal": ("Gumbel", "Laplace"),
    "Pareto": ("Exponential", "Gamma", "Normal"),
    "Uniform": (
        "Beta",
        "ContinuousBernoulli",
        "Exponential",
        "Gamma",
        "Gumbel",
        "Normal",
        "Pareto",
        "Laplace",
    ),
    "Weibull": ("Gamma", "Exponential"),
}
CROSS: dict[tuple[str, str], Pair] = {
    ("Bernoulli", "Binomial"): Pair(count_pair(Bernoulli, Binomial), "special"),
    ("Bernoulli", "Geometric"): Pair(count_pair(Bernoulli, Geometric), "elementary"),
    ("Bernoulli", "Poisson"): Pair(count_pair(Bernoulli, Poisson), "elementary"),
    ("Binomial", "Poisson"): Pair(count_pair(Binomial, Poisson), "special"),
    **{(p, q): Pair(continuous_pair(p, q), "special") for p, several in CONTINUOUS.items() for q in several},
}
