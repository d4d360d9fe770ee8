"""NegativeLogLikelihood: what every likelihood term has."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution

from kldiv.likelihoods.targets import Seen, Support, can_look, check_mask, check_support, look_at_mask, look_at_target
from kldiv.numerics import check_broadcast, widen
from kldiv.reduction import Reduction, check_reduction, reduce, sum_latent

__all__ = [
    "NegativeLogLikelihood",
    "Output",
    "Prepared",
]


Output = Tensor | Sequence[Tensor]


class Prepared(NamedTuple):
    """What a term is computed of: ``float32`` at least, and 0 where the target is missing."""

    parameters: tuple[Tensor, ...]
    target: Tensor
    missing: Tensor | None
    """Where elements count nothing: they are masked, or weigh 0."""
    weight: Tensor | None
    """The weights of elements."""

    def weighed(self, values: Tensor) -> Tensor:
        """Values of each element times their weights, and 0 where they are missing."""
        if self.weight is not None:
            values = values * self.weight
        return values if self.missing is None else values.masked_fill(self.missing, 0)


class NegativeLogLikelihood(nn.Module):
    r"""-ln p(target | output) in nats, called with ``(output, target)``: what likelihood terms have in common.

    A subclass computes :meth:`per_element`, and :meth:`mean` and :meth:`sample` where they are needed; everything else
    follows. Dimension 0 is the example.

    Args:
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
        validate_args: whether the target is looked at on the first call, which synchronises with its device once.
    Raises: ValueError: ``"mean"`` and unknown reductions.
    """

    support = Support()
    """The values that a target may have; the first call checks it."""
    validate_args = True
    _looked = False

    def __init__(self, reduction: Reduction = "batchmean", *, validate_args: bool = True) -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)
        self.validate_args = validate_args

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        """Nats of each element of the target, in its shape. Arguments are ``float32`` or wider and of one shape."""
        raise NotImplementedError

    def mean(self, output: Output) -> Tensor:
        """The mean of the target given the decoder's output, in the target's shape."""
        raise NotImplementedError(
            f"{type(self).__name__} has no mean(output): define that method, the mean of the target given the "
            "decoder's output"
        )

    def sample(self, output: Output, *, generator: Generator | None = None) -> Tensor:
        """A target drawn given the decoder's output, in the target's shape, without a gradient."""
        raise NotImplementedError(
            f"{type(self).__name__} has no sample(output, *, generator=None): define that method, a draw of the target "
            "given the decoder's output"
        )

    def parameters_of(self, output: Output) -> tuple[Tensor, ...]:
        """The likelihood's parameters in the decoder's output."""
        if not isinstance(output, Tensor):
            raise TypeError(f"{type(self).__name__} takes one tensor as output, not a {type(output).__name__}")
        return (output,)

    def check_shapes(self, parameters: tuple[Tensor, ...], target: Tensor) -> None:
        """Raises: ValueError: parameters that are not of the target's shape."""
        for parameter in parameters:
            if parameter.shape != target.shape:
                raise ValueError(
                    f"output {tuple(parameter.shape)} and target {tuple(target.shape)} must have one shape: nothing "
                    "broadcasts here. Reshape one of them, target.view_as(output) say"
                )

    def forward(
        self,
        output: Output,
        target: Tensor,
        *unnamed: Tensor,
        mask: Tensor | None = None,
        element_weight: Tensor | None = None,
    ) -> Tensor:
        if unnamed:
            raise TypeError(
                f"{type(self).__name__} is called (output, target), and has {len(unnamed)} tensor more: a mask is "
                "mask=..., weights of elements are element_weight=..., and a scale beside a mean belongs in the "
                "output, the pair (mean, log_var)"
            )
        return reduce(self.per_example(output, target, mask=mask, element_weight=element_weight), self.reduction)

    def per_example(
        self, output: Output, target: Tensor, *, mask: Tensor | None = None, element_weight: Tensor | None = None
    ) -> Tensor:
        r"""Nats per example, (N,).

        Args:
            output: what the decoder gives, in the shape of the target.
            target: (N, \*event).
            mask: boolean, or 0 and 1; broadcasts to the target. Where it is 0 or False the target is missing: target
                and output count nothing, NaN or not.
            element_weight: broadcasts to the target and multiplies its elements. What weighs 0 is missing.
        Raises: ValueError: output and target of unequal shape; a mask or weights that do not broadcast to them; on the
            first call, a target outside of the support and a mask of other numbers.
        """
        prepared = self.prepared(output, target, mask, element_weight)
        if mask is None and element_weight is None:
            return self.per_example_of(prepared.parameters, prepared.target)
        return self.per_example_of_kept(prepared)

    def per_example_of(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        """Nats of each example, (N,), without missing elements. Overridden where there is a shorter way."""
        return sum_latent(self.per_element(parameters, target))

    def per_example_of_kept(self, given: Prepared) -> Tensor:
        """Nats of each example, (N,), of the elements that are not missing. Overridden where there is a shorter way."""
        return sum_latent(given.weighed(self.per_element(given.parameters, given.target)))

    def prepared(
        self, output: Output, target: Tensor, mask: Tensor | None, element_weight: Tensor | None = None
    ) -> Prepared:
        """Parameters and target, checked and wide, without what is missing."""
        parameters = self.tensors_of(output)
        if not target.ndim:
            raise ValueError("the target has no dimensions, and dimension 0 is the example: add one, x[None]")
        self.check_shapes(parameters, target)
        *wide, target = widen(*parameters, target)
        parameters = tuple(wide)
        missing = None
        if mask is not None or element_weight is not None:
            shape = self.shape_of_elements(parameters, target)
            mask, element_weight = (self.of_elements(given, parameters, target) for given in (mask, element_weight))
            for name, given in (("mask", mask), ("element_weight", element_weight)):
                if given is not None and check_broadcast(target=shape, **{name: given.shape}) != shape:
                    raise ValueError(f"{name} {tuple(given.shape)} must broadcast to the target's shape {tuple(shape)}")
            missing = _either(mask, element_weight)
        if self.wants_to_look(target):
            self._look(parameters, target, mask, missing)
        if missing is None:
            return Prepared(parameters, target, None, None)
        # filled here and in the result: a missing value may be NaN, and so would its gradient
        weight = None if element_weight is None else torch.where(missing, 0.0, element_weight.to(target.dtype))
        return Prepared(*self.fill(parameters, target, missing), missing, weight)

    def tensors_of(self, output: Output) -> tuple[Tensor, ...]:
        """The likelihood's parameters. Raises: TypeError: an output of anything but tensors."""
        found: Any = self.parameters_of(output) if not isinstance(output, Distribution) else (output,)
        for each in found:
            if isinstance(each, Distribution):
                raise TypeError(
                    f"the output is a distribution, {type(each).__name__}, and {type(self).__name__} takes the "
                    "decoder's tensors: write kldiv.DistributionNLL()(output, target)"
                )
            if not isinstance(each, Tensor):
                raise TypeError(f"{type(self).__name__} takes tensors as output, not a {type(each).__name__}")
        return tuple(found)

    def wide(self, output: Output) -> tuple[Tensor, ...]:
        """The likelihood's parameters in one dtype, ``float32`` at least."""
        return widen(*self.tensors_of(output))

    def of_elements(self, given: Tensor | None, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor | None:
        """A mask or weights that broadcast to the target, so that they broadcast to the elements."""
        return given

    def shape_of_elements(self, parameters: tuple[Tensor, ...], target: Tensor) -> torch.Size:
        """The shape of :meth:`per_element`, to which masks broadcast."""
        return target.shape

    def fill(
        self, parameters: tuple[Tensor, ...], target: Tensor, missing: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Parameters and target with 0 where the target is missing."""
        filled = tuple(parameter.expand(target.shape).masked_fill(missing, 0) for parameter in parameters)
        return filled, target.masked_fill(missing, 0)

    def wants_to_look(self, target: Tensor) -> bool:
        """Whether this is the first target whose values can be had."""
        # compilers first: they would compile anew when the term has looked
        return not torch.compiler.is_compiling() and self.validate_args and not self._looked and can_look(target)

    def _look(self, parameters: tuple[Any, ...], target: Tensor, mask: Tensor | None, missing: Tensor | None) -> None:
        """The first look at a target: one synchronisation, however much is asked."""
        with torch.no_grad():
            asked = self.look_at(parameters, target, missing)
            if mask is not None:
                asked |= look_at_mask(mask, target)
            seen = dict(zip(asked, torch.stack(list(asked.values())).tolist(), strict=True)) if asked else {}
        check_mask(seen.get("mask", -torch.inf))
        self.check_target(seen, parameters, target)
        self._looked = True

    def look_at(self, parameters: tuple[Any, ...], target: Tensor, missing: Tensor | None) -> Seen:
        """What :meth:`check_target` wants to know of the target's values."""
        return {} if self.support == Support() else look_at_target(target, missing)

    def check_target(self, seen: dict[str, float], parameters: tuple[Any, ...], target: Tensor) -> None:
        """Raises: ValueError: a target outside of the support."""
        if self.support != Support():
            # 1 + 1e-7 comes from resizing an image
            check_support(type(self).__name__, self.support, seen, 8 * torch.finfo(target.dtype).eps)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}" + ("" if self.validate_args else ", validate_args=False")


def _either(mask: Tensor | None, element_weight: Tensor | None) -> Tensor | None:
    """Where an element is masked or weighs 0."""
    found = [given == 0 for given in (mask, element_weight) if given is not None]
    return found[0] if len(found) == 1 else found[0] | found[1]
