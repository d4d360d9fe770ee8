"""Pairs that are infinite by their supports: p has mass where q has none, whatever their parameters."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Cauchy,
    ContinuousBernoulli,
    Exponential,
    FisherSnedecor,
    Gamma,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    LogNormal,
    Normal,
    Pareto,
    StudentT,
    Uniform,
    Weibull,
)

from kldiv.distributions import device_of
from kldiv.exact.registry import register_kl
from kldiv.numerics import check_broadcast

__all__ = [
    "infinite",
]


def infinite(p: Any, q: Any) -> Tensor:
    r"""Infinite: p has mass where q has none, whatever their parameters.

    .. math:: \infty

    Source: Kullback & Leibler 1951.
    """
    shape = check_broadcast(p=p.batch_shape, q=q.batch_shape)
    return torch.full(shape, torch.inf, dtype=torch.float64, device=device_of(p))


_LINE = (Normal, Laplace, Gumbel, Cauchy, StudentT)
_HALF_LINE = (Gamma, Exponential, InverseGamma, LogNormal, HalfNormal, HalfCauchy, Weibull, FisherSnedecor)
_UNIT_INTERVAL = (Beta, ContinuousBernoulli, Kumaraswamy)

# every family of the first column to every family of the second
_WIDER_TO_NARROWER: tuple[tuple[tuple[type, ...], tuple[type, ...]], ...] = (
    (_LINE, (*_HALF_LINE, Pareto, *_UNIT_INTERVAL, Uniform)),
    (_HALF_LINE, (Pareto, *_UNIT_INTERVAL, Uniform)),
    ((Pareto,), (*_UNIT_INTERVAL, Uniform)),
    (_UNIT_INTERVAL, (Pareto,)),
)

for _wider, _narrower in _WIDER_TO_NARROWER:
    for _type_p in _wider:
        for _type_q in _narrower:
            register_kl(_type_p, _type_q)(infinite)
