"""Random shapes, parameters and distributions."""

from typing import Any

import torch
from torch import Tensor
from torch import distributions as D  # noqa: N812

from tests.stress.case import Case


def shape_of(case: Case, least: int = 0, most: int = 3, largest: int = 4, empty: float = 0.03) -> tuple[int, ...]:
    """Sizes of some dimensions, one of them 0 now and then."""
    shape = [case.rng.randint(1, largest) for _ in range(case.rng.randint(least, most))]
    if shape and case.chance(empty):
        shape[case.rng.randrange(len(shape))] = 0
    return tuple(shape)


def broadcasting_to(case: Case, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to another."""
    kept = shape[case.rng.randint(0, len(shape)) :] if case.chance(0.5) else shape
    return tuple(1 if case.chance(0.2) else size for size in kept)


# families of scalars: how each is made of tensors, and how these are drawn
POSITIVE, REAL, LOGIT = "positive", "real", "logit"
SCALARS: dict[str, tuple[Any, tuple[tuple[str, str], ...]]] = {
    "Normal": (D.Normal, (("loc", REAL), ("scale", POSITIVE))),
    "Laplace": (D.Laplace, (("loc", REAL), ("scale", POSITIVE))),
    "Gumbel": (D.Gumbel, (("loc", REAL), ("scale", POSITIVE))),
    "Cauchy": (D.Cauchy, (("loc", REAL), ("scale", POSITIVE))),
    "LogNormal": (D.LogNormal, (("loc", REAL), ("scale", POSITIVE))),
    "HalfNormal": (D.HalfNormal, (("scale", POSITIVE),)),
    "Exponential": (D.Exponential, (("rate", POSITIVE),)),
    "Gamma": (D.Gamma, (("concentration", POSITIVE), ("rate", POSITIVE))),
    "InverseGamma": (D.InverseGamma, (("concentration", POSITIVE), ("rate", POSITIVE))),
    "Weibull": (D.Weibull, (("scale", POSITIVE), ("concentration", POSITIVE))),
    "Beta": (D.Beta, (("concentration1", POSITIVE), ("concentration0", POSITIVE))),
    "Poisson": (D.Poisson, (("rate", POSITIVE),)),
    "Bernoulli": (D.Bernoulli, (("logits", LOGIT),)),
    "Geometric": (D.Geometric, (("logits", LOGIT),)),
    "ContinuousBernoulli": (D.ContinuousBernoulli, (("logits", LOGIT),)),
    "VonMises": (D.VonMises, (("loc", REAL), ("concentration", POSITIVE))),
    "HalfCauchy": (D.HalfCauchy, (("scale", POSITIVE),)),
}


def parameters_of(case: Case, family: str, shape: tuple[int, ...], wide: float = 1.0) -> dict[str, Tensor]:
    """Parameters of a family of scalars: positive ones log-normal of spread ``wide``."""
    drawn = {}
    for name, kind in SCALARS[family][1]:
        noise = case.normal(*shape)
        drawn[name] = torch.exp(wide * noise) if kind == POSITIVE else 2 * noise
    return drawn


def made(family: str, parameters: dict[str, Tensor]) -> D.Distribution:
    # torch's check of an empty Beta is an error of its own
    checked = {} if all(value.numel() for value in parameters.values()) else {"validate_args": False}
    return SCALARS[family][0](**parameters, **checked)


def steps_of(family: str, parameters: dict[str, Tensor]) -> list[Tensor | float]:
    """How far each parameter may move for differences: a part of itself, where it is positive."""
    return [
        0.3 * parameters[name] if kind == POSITIVE else 0.3 * parameters.get("scale", torch.ones(()))
        for name, kind in SCALARS[family][1]
    ]


def half(case: Case) -> torch.dtype:
    return case.choice(torch.float16, torch.bfloat16)


def covariance_factor(case: Case, *batch: int, dims: int) -> Tensor:
    """A triangular factor with a positive diagonal."""
    factor = 0.5 * case.normal(*batch, dims, dims).tril(-1)
    return factor + torch.diag_embed(torch.exp(0.5 * case.normal(*batch, dims)))
