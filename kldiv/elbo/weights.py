"""The weight of the KL in the loss: a number or a module, one for all latent groups or one for each."""

import math
import numbers
from typing import Any

import torch
from torch import Tensor, nn

from kldiv.elbo.controllers import Controller
from kldiv.elbo.schedules import CyclicalWarmup, Warmup

__all__ = [
    "Number",
    "checked_weight",
    "current_weight",
    "is_zero",
]


class Number(nn.Module):
    """A fixed weight among those of several latent groups."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> float:
        return self.value

    def extra_repr(self) -> str:
        return f"{self.value}"


def checked_weight(weight: Any) -> float | nn.Module:
    """The weight as a bound keeps it: a number, a module, or a ``nn.ModuleList`` with one for each latent group.

    Raises:
        TypeError: a tensor that wants a gradient, or what is neither a number nor a module.
        ValueError: a number that is negative or not finite.
    """
    if isinstance(weight, nn.ModuleList):
        return weight
    if isinstance(weight, (list, tuple)):
        parts = [checked_weight(each) for each in weight]
        return nn.ModuleList([part if isinstance(part, nn.Module) else Number(part) for part in parts])
    if isinstance(weight, nn.Module):
        return weight
    if isinstance(weight, Tensor):
        if weight.requires_grad:
            raise TypeError(
                f"weight is a {type(weight).__name__} that wants a gradient, and the loss falls with the weight: it "
                "would only learn to be 0. For a weight that adapts write weight=kldiv.GECO(target). To have the "
                "gradient all the same, write a module whose forward() returns the parameter, of shape ()"
            )
        if weight.numel() != 1:
            raise ValueError(
                f"weight has the shape {tuple(weight.shape)}, and must be one number: for one of each latent group "
                "write a list, weight=[1.0, 0.5]"
            )
        weight = weight.item()
    if not isinstance(weight, numbers.Real) or isinstance(weight, str):
        raise TypeError(
            f"weight is a {type(weight).__name__}, and must be a number or a module such as kldiv.LinearWarmup(1000)"
        )
    number = float(weight)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"weight={number} must be finite and not negative")
    return number


def current_weight(weight: float | nn.Module, like: Tensor) -> Tensor:
    """The weight now, of shape ().

    Raises: ValueError: a module that gives anything but one number.
    """
    value = weight() if isinstance(weight, nn.Module) else weight
    if isinstance(value, Tensor):
        if value.shape != ():
            raise ValueError(f"{type(weight).__name__} gives a weight of shape {tuple(value.shape)}, not ()")
        return value
    if type(value) is not float and not isinstance(value, numbers.Real):
        raise TypeError(
            f"{type(weight).__name__} gives a {type(value).__name__} as weight, not a number or a tensor ()"
        )
    return torch.full((), float(value), dtype=like.dtype, device=like.device)


def is_zero(weight: float | nn.Module, value: Tensor) -> bool | None:
    """Whether a weight is 0, without waiting for a device; ``None`` where that is not known.

    Args:
        value: what the weight is now.
    """
    if not isinstance(weight, nn.Module):
        return weight == 0
    if value.requires_grad or _is_positive(weight):  # a learned weight has a gradient at 0 too
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or value.device.type != "cpu":
        return None
    return bool(value == 0)


def _is_positive(weight: Any) -> bool:
    if isinstance(weight, Controller):
        return weight.lowest > 0
    if isinstance(weight, (Warmup, CyclicalWarmup)):
        starts = weight.start > 0 or (weight.start == 0 and isinstance(weight, Warmup) and weight.has_moved)
        return starts and weight.end > 0
    return isinstance(weight, Number) and weight.value > 0
