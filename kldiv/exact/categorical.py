"""Categorical, one-hot and multinomial distributions."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Multinomial, OneHotCategorical

from kldiv.distributions import given, log_chance
from kldiv.exact.registry import register_kl
from kldiv.functional import kl_categorical
from kldiv.tables import relative_entropy

__all__ = [
    "kl_categoricals",
    "kl_multinomial",
]


@register_kl(Categorical, Categorical)
@register_kl(OneHotCategorical, OneHotCategorical)
@register_kl(Categorical, OneHotCategorical)
@register_kl(OneHotCategorical, Categorical)
def kl_categoricals(p: Distribution, q: Distribution) -> Tensor:
    r"""Of two tables of probabilities, from logits or from probabilities, as they were given.

    .. math:: \sum_k p_k \ln\frac{p_k}{q_k}

    Source: Kullback & Leibler 1951.
    """
    return _kl_categories(p, q)


@register_kl(Multinomial, Multinomial)
def kl_multinomial(p: Multinomial, q: Multinomial) -> Tensor:
    r"""That of one categorical trial, times their number; infinite between unequal numbers of trials.

    .. math:: n \sum_k p_k \ln\frac{p_k}{q_k}

    Source: the chain rule, Kullback 1959, theorem 2.1.
    """
    value = _kl_categories(p, q)
    if p.total_count != q.total_count:
        return torch.full_like(value, torch.inf)
    return value * p.total_count if p.total_count else torch.zeros_like(value)


def _kl_categories(p: Any, q: Any) -> Tensor:
    (kind_p, value_p), (kind_q, value_q) = (given(d) for d in (p, q))
    if value_p.shape[-1] != value_q.shape[-1]:
        raise ValueError(f"p has {value_p.shape[-1]} categories and q {value_q.shape[-1]}: they must be the same")
    if kind_p == kind_q == "probs":
        return relative_entropy(value_p, value_q, validate=False)
    logits_p, logits_q = (
        value if kind == "logits" else log_chance(value) for kind, value in ((kind_p, value_p), (kind_q, value_q))
    )
    return kl_categorical(logits_p, logits_q)
