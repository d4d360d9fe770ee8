"""FAMILIES: how to draw two distributions of one family, a given distance apart."""

import itertools
import math
import random

import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    Chi2,
    ContinuousBernoulli,
    Dirichlet,
    Distribution,
    Exponential,
    Gamma,
    Geometric,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    LogNormal,
    Multinomial,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Pareto,
    Poisson,
    Uniform,
    VonMises,
    Weibull,
)

from tests.oracles.drawing import (
    CONCENTRATIONS,
    SCALES,
    Draw,
    Pair,
    Range,
    draw_odds,
    located,
    log_uniform,
    made,
    positive,
    shift,
)
from tests.oracles.normal_vectors import NORMAL_VECTORS, draw_wishart, normal_vectors, retried


def draw_uniform(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
    width = log_uniform(rng, *SCALES)
    low = rng.choice((-1, 0, 1)) * width * log_uniform(rng, 1e-3, 1e3)
    ends = low - width * abs(shift(rng, distance)), low + width * (1 + abs(shift(rng, distance)))
    p, q = {"low": low, "high": low + width}, dict(zip(("low", "high"), ends, strict=True))
    return made(Uniform, dtype, **p), made(Uniform, dtype, **q)


def draw_pareto(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
    p = {"scale": log_uniform(rng, *SCALES), "alpha": log_uniform(rng, 1e-3, 1e6)}
    lower = abs(shift(rng, distance)) * rng.choice((0, 1))
    q = {"scale": p["scale"] * math.exp(-lower), "alpha": p["alpha"] * math.exp(shift(rng, distance))}
    return made(Pareto, dtype, **p), made(Pareto, dtype, **q)


def draw_von_mises(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
    concentration, loc = log_uniform(rng, *CONCENTRATIONS), rng.uniform(-math.pi, math.pi)
    spread = rng.choice((1, 1 / math.sqrt(1 + concentration)))
    q = {"loc": loc + shift(rng, distance) * spread, "concentration": concentration * math.exp(shift(rng, distance))}
    return made(VonMises, dtype, loc=loc, concentration=concentration), made(VonMises, dtype, **q)


def draw_dirichlet(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
    size, common = rng.randint(2, 10), log_uniform(rng, *CONCENTRATIONS)
    alike = rng.choice((False, True))  # or each of its own order of magnitude
    p = [common if alike else log_uniform(rng, *CONCENTRATIONS) for _ in range(size)]
    q = [value * math.exp(shift(rng, distance)) for value in p]
    return made(Dirichlet, dtype, concentration=p), made(Dirichlet, dtype, concentration=q)


def draw_kumaraswamy(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
    # the two families meet where one of the concentrations is 1
    p = {"concentration1": log_uniform(rng, 0.1, 100), "concentration0": log_uniform(rng, 0.1, 100)}
    p[rng.choice(tuple(p))] = math.exp(shift(rng, distance))
    q = {name: value * math.exp(shift(rng, distance)) for name, value in p.items()}
    return made(Kumaraswamy, dtype, **p), made(Beta, dtype, **q)


def binary_pair(family: type, given: tuple[str, str] | None = None, counts: Range | None = None) -> Draw:
    def draw(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        count = {}
        if counts:
            number = log_uniform(rng, *counts)
            count["total_count"] = round(number) if counts[0] >= 1 else torch.tensor(number, dtype=dtype)
        p, q = draw_odds(rng, distance, dtype, given, small=1e-3 if family is ContinuousBernoulli else 1.0)
        return family(**count, **p), family(**count, **q)

    return draw


def draw_binomials(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
    """q has more trials than p."""
    n = round(log_uniform(rng, 1, 50))
    p, q = draw_odds(rng, distance, dtype)
    return Binomial(n, **p), Binomial(n + rng.randint(1, 10), **q)


def table_pair(family_p: type, family_q: type | None = None, given: tuple[str, str] | None = None) -> Draw:
    def draw(rng: random.Random, distance: float, dtype: torch.dtype) -> tuple[Distribution, Distribution]:
        count = {"total_count": round(log_uniform(rng, 1, 1000))} if family_p is Multinomial else {}
        names = given or rng.choice((("logits", "logits"), ("probs", "probs")))
        spread = rng.choice((1, 5, 30))
        logits = [rng.uniform(-spread, spread) for _ in range(rng.randint(2, 20))]
        sides = []
        for name, apart in zip(names, (0, distance), strict=True):
            values = torch.tensor([v + shift(rng, apart) for v in logits], dtype=torch.float64)
            sides.append({name: (values if name == "logits" else values.softmax(-1)).to(dtype)})
        return family_p(**count, **sides[0]), (family_q or family_p)(**count, **sides[1])

    return draw


FAMILIES: dict[str, Pair] = {
    "Bernoulli": Pair(binary_pair(Bernoulli), "elementary"),
    "Bernoulli, logits to probs": Pair(binary_pair(Bernoulli, ("logits", "probs")), "elementary"),
    "Bernoulli, probs to logits": Pair(binary_pair(Bernoulli, ("probs", "logits")), "elementary"),
    "Beta": Pair(positive(Beta, concentration1=CONCENTRATIONS, concentration0=CONCENTRATIONS), "special"),
    "Binomial": Pair(binary_pair(Binomial, counts=(1, 1e6)), "elementary"),
    "Binomial, more trials": Pair(draw_binomials, "special"),
    "Categorical": Pair(table_pair(Categorical), "elementary"),
    "Categorical, logits to probs": Pair(table_pair(Categorical, given=("logits", "probs")), "elementary"),
    "Categorical, probs to logits": Pair(table_pair(Categorical, given=("probs", "logits")), "elementary"),
    "Categorical to OneHotCategorical": Pair(table_pair(Categorical, OneHotCategorical), "elementary"),
    "OneHotCategorical to Categorical": Pair(table_pair(OneHotCategorical, Categorical), "elementary"),
    "OneHotCategorical": Pair(table_pair(OneHotCategorical), "elementary"),
    "Cauchy": Pair(located(Cauchy), "elementary"),
    "Chi2": Pair(positive(Chi2, df=CONCENTRATIONS), "special"),
    "ContinuousBernoulli": Pair(binary_pair(ContinuousBernoulli), "special"),
    "Dirichlet": Pair(draw_dirichlet, "special"),
    "Exponential": Pair(positive(Exponential, rate=SCALES), "elementary"),
    "Gamma": Pair(positive(Gamma, concentration=CONCENTRATIONS, rate=SCALES), "special"),
    "Geometric": Pair(binary_pair(Geometric), "elementary"),
    "Gumbel": Pair(located(Gumbel, far=False), "special"),
    "HalfCauchy": Pair(positive(HalfCauchy, scale=SCALES), "elementary"),
    "HalfNormal": Pair(positive(HalfNormal, scale=SCALES), "elementary"),
    "InverseGamma": Pair(positive(InverseGamma, concentration=CONCENTRATIONS, rate=SCALES), "special"),
    "Kumaraswamy to Beta": Pair(draw_kumaraswamy, "special"),
    "Laplace": Pair(located(Laplace), "elementary"),
    "LogNormal": Pair(located(LogNormal), "elementary"),
    "Multinomial": Pair(table_pair(Multinomial), "elementary"),
    "NegativeBinomial": Pair(binary_pair(NegativeBinomial, counts=(1e-2, 1e6)), "elementary"),
    "Normal": Pair(located(Normal), "elementary"),
    "Pareto": Pair(draw_pareto, "elementary"),
    "Poisson": Pair(positive(Poisson, rate=SCALES), "elementary"),
    "Uniform": Pair(draw_uniform, "elementary"),
    "VonMises": Pair(draw_von_mises, "special"),
    "Weibull": Pair(positive(Weibull, scale=SCALES, concentration=(1e-2, 50)), "special"),
    "Wishart": Pair(retried(draw_wishart), "matrix"),
    **{
        f"{p} to {q}": Pair(normal_vectors(p, q), "matrix" if "Multivariate" in p + q else "elementary")
        for p, q in itertools.product(NORMAL_VECTORS, repeat=2)
    },
}
