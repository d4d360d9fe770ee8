"""GumbelSoftmax: one-hot categories with samples that carry a gradient."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import OneHotCategorical
from torch.nn import functional

from kldiv.numerics import widen

__all__ = [
    "GumbelSoftmax",
]


class GumbelSoftmax(OneHotCategorical):
    r"""One-hot categories whose ``rsample`` is relaxed, so that a decoder's gradient reaches the logits.

    .. math:: z = \operatorname{softmax}\left((\text{logits} + g) / \tau\right), \qquad g \sim \text{Gumbel}(0, 1)

    Everything but ``rsample`` is that of the categories themselves: its KL to a categorical prior is the exact one, in
    closed form. Densities of relaxations are not used: their ratio gives neither that KL nor a bound of it.

    Args:
        logits: of shape (\*batch, K).
        temperature: :math:`\tau`, positive: a number, or a tensor such as a schedule's value,
            ``LinearWarmup(steps=10_000, start=1.0, end=0.5)()``. Samples near 0 are nearly one-hot, their gradients
            noisy; large ones are nearly uniform.
        hard: whether samples are one-hot all the same, with the gradient of the relaxed ones (straight through).
        validate_args: as in torch.
    Raises: ValueError: a temperature that is not positive and finite. TypeError: torch's order of arguments, with the
        temperature first.
    Source: Jang, Gu & Poole 2017; Maddison, Mnih & Teh 2017.

    One variable of K categories is one row of logits. For bits, each of a logit l, write
    ``GumbelSoftmax(torch.stack([torch.zeros_like(l), l], -1))``, whose samples have the bit in ``[..., 1]``: ``l`` by
    itself, of shape (N, 20), is one variable of 20 categories.

    A relaxed sample is not drawn from this distribution: Monte Carlo terms refuse gradients through it, and
    ``log_prob`` takes what ``sample()`` draws.

    >>> posterior = GumbelSoftmax(torch.zeros(8, 4, 3), temperature=0.5)
    >>> posterior.rsample().shape, posterior.batch_shape
    (torch.Size([8, 4, 3]), torch.Size([8, 4]))
    """

    has_rsample = True

    def __init__(
        self,
        logits: Tensor,
        temperature: float | Tensor = 1.0,
        hard: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        if not (isinstance(logits, Tensor) and logits.ndim):
            what = f"of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise TypeError(
                f"logits is {what}, and must be a tensor (*batch, K). The order is not that of torch's relaxed "
                "distributions: write GumbelSoftmax(logits, temperature=0.5)"
            )
        if isinstance(temperature, Tensor) and temperature.ndim and temperature.shape == logits.shape[:-1]:
            raise ValueError(
                f"temperature {tuple(temperature.shape)} must broadcast to the logits, {tuple(logits.shape)}: write "
                "temperature[..., None]"
            )
        if not isinstance(temperature, Tensor) and not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature={temperature} must be positive and finite")
        super().__init__(logits=logits, validate_args=validate_args)
        self.temperature, self.hard = temperature, hard

    def expand(self, batch_shape: Any, _instance: Any = None) -> "GumbelSoftmax":
        new: GumbelSoftmax = self._get_checked_instance(GumbelSoftmax, _instance)  # type: ignore[no-untyped-call]
        new.temperature, new.hard = self.temperature, self.hard
        expanded: GumbelSoftmax = super().expand(torch.Size(batch_shape), _instance=new)  # type: ignore[no-untyped-call]
        return expanded

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        (logits,) = widen(self.logits)
        logits = logits.expand(self._extended_shape(sample_shape))
        relaxed = functional.gumbel_softmax(logits, self.temperature, self.hard)  # type: ignore[arg-type]
        return relaxed.to(self.logits.dtype)

    def __repr__(self) -> str:
        return (
            f"GumbelSoftmax(batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}, "
            f"temperature={self.temperature}, hard={self.hard})"
        )
