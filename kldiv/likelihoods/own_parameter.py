"""OwnParameter: likelihoods with a scale or dispersion of their own, which a decoder may emit instead."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kldiv.likelihoods.base import NegativeLogLikelihood, Output
from kldiv.likelihoods.targets import joined
from kldiv.reduction import Reduction

__all__ = [
    "OwnParameter",
    "check_parameters",
]


class OwnParameter(NegativeLogLikelihood):
    """A location from the decoder, and a logarithm of the module's own, fixed or learned.

    The logarithm is one for all elements, or one for each feature, the last dimension. Where the decoder emits it, its
    output is the pair (location, logarithm), and the module's own is not used. A subclass names the two.

    A learned one has the shape (1,) or (K,): sharded training (FSDP) refuses parameters without dimensions.
    """

    own_name: str
    location_name = "location"

    def __init__(self, value: float | Tensor, learned: bool, reduction: Reduction, validate_args: bool) -> None:
        super().__init__(reduction, validate_args=validate_args)
        if not (_all_finite(value) if isinstance(value, Tensor) else math.isfinite(value)):
            raise ValueError(f"{self.own_name}={value} is not finite")
        given = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(float(value))
        given = given if given.is_floating_point() else given.to(torch.get_default_dtype())
        self.learned = learned
        if learned:
            setattr(self, self.own_name, nn.Parameter(given if given.ndim else given[None]))
        elif given.ndim:
            # an option, as a number is: no part of a checkpoint
            self.register_buffer(self.own_name, given, persistent=False)
        else:
            setattr(self, self.own_name, float(value))

    def own(self) -> Any:
        """The module's own logarithm: a number, or a tensor."""
        return getattr(self, self.own_name)

    def parameters_of(self, output: Output) -> tuple[Tensor, ...]:
        if isinstance(output, Tensor):
            return (output,)
        if len(output) != 2:
            raise ValueError(
                f"{type(self).__name__} takes {self.location_name} or the pair ({self.location_name}, {self.own_name}) "
                f"as output, not a sequence of {len(output)}"
            )
        return tuple(output)

    def check_shapes(self, parameters: tuple[Tensor, ...], target: Tensor) -> None:
        location, *given = parameters
        super().check_shapes((location,), target)
        if given:
            check_parameters((self.own_name,), given, target)
            return
        own = self.own()
        if isinstance(own, Tensor) and own.numel() != 1:
            features = target.shape[1:]
            if len(own.shape) > len(features) or joined(own.shape, features) != features:
                raise ValueError(
                    f"{self.own_name} {tuple(own.shape)} has one for each feature, and the target "
                    f"{tuple(target.shape)} has other features, {tuple(features)}: write one for each of its last "
                    "dimension, or (C, 1, 1) for the channels of images"
                )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        name, own = prefix + self.own_name, self.own()
        if isinstance(own, nn.Parameter) and isinstance(loaded := state_dict.get(name), Tensor) and not loaded.ndim:
            # checkpoints from when it had no dimensions
            state_dict[name] = loaded.expand(own.shape).clone()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        own = self.own()
        if isinstance(own, Tensor):
            own = own.item() if own.numel() == 1 and not own.is_meta else f"tensor{tuple(own.shape)}"
        shown = own if isinstance(own, str) else f"{own:.4g}"
        return f"{self.own_name}={shown}, learned={self.learned}, {super().extra_repr()}"


def _all_finite(values: Tensor) -> bool:
    return values.is_meta or bool(values.isfinite().all())


def check_parameters(names: tuple[str, ...], parameters: Sequence[Tensor], target: Tensor) -> None:
    """Raises: ValueError: parameters that do not broadcast to the target."""
    for name, parameter in zip(names, parameters, strict=True):
        if joined(parameter.shape, target.shape) != target.shape:
            raise ValueError(
                f"{name} {tuple(parameter.shape)} in the output must broadcast to the target's shape "
                f"{tuple(target.shape)}"
            )
