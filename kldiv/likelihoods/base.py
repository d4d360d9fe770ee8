"""NegativeLogLikelihood: what every likelihood term has."""

from collections.abc import Sequence

from torch import Tensor, nn

from kldiv.numerics import check_broadcast, widen
from kldiv.reduction import Reduction, check_reduction, reduce, sum_latent

__all__ = [
    "NegativeLogLikelihood",
    "Output",
]


Output = Tensor | Sequence[Tensor]


class NegativeLogLikelihood(nn.Module):
    r"""-ln p(target | output) in nats, called with ``(output, target)``: what likelihood terms have in common.

    A subclass computes :meth:`per_element`; everything else follows. Dimension 0 is the example.

    Args:
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises: ValueError: ``"mean"`` and unknown reductions.
    """

    def __init__(self, reduction: Reduction = "batchmean") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        """Nats of each element of the target, in its shape. Arguments are ``float32`` or wider and of one shape."""
        raise NotImplementedError

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

    def forward(self, output: Output, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return reduce(self.per_example(output, target, mask), self.reduction)

    def per_example(self, output: Output, target: Tensor, mask: Tensor | None = None) -> Tensor:
        r"""Nats per example, (N,).

        Args:
            output: what the decoder gives, in the shape of the target.
            target: (N, \*event).
            mask: broadcasts to the target; where it is 0 or False the target is missing and counts nothing, NaN or not.
        Raises: ValueError: output and target of unequal shape; a mask that does not broadcast to them.
        """
        parameters, target, missing = self.prepared(output, target, mask)
        if missing is None:
            return self.per_example_of(parameters, target)
        return sum_latent(self.per_element(parameters, target).masked_fill(missing, 0))

    def per_example_of(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        """Nats of each example, (N,), without missing elements. Overridden where there is a shorter way."""
        return sum_latent(self.per_element(parameters, target))

    def prepared(
        self, output: Output, target: Tensor, mask: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
        """Parameters and target, ``float32`` at least and 0 where missing, and the mask of what is missing."""
        parameters = self.parameters_of(output)
        if not target.ndim:
            raise ValueError("the target has no dimensions, and dimension 0 is the example: add one, x[None]")
        self.check_shapes(parameters, target)
        *wide, target = widen(*parameters, target)
        parameters = tuple(wide)
        if mask is None:
            return parameters, target, None
        if check_broadcast(target=target.shape, mask=mask.shape) != target.shape:
            raise ValueError(f"mask {tuple(mask.shape)} must broadcast to the target's shape {tuple(target.shape)}")
        missing = mask == 0
        # filled here and in the result: a missing value may be NaN, and so would its gradient
        return self.fill(parameters, missing), target.masked_fill(missing, 0), missing

    def fill(self, parameters: tuple[Tensor, ...], missing: Tensor) -> tuple[Tensor, ...]:
        """The parameters with 0 where the target is missing."""
        return tuple(parameter.masked_fill(missing, 0) for parameter in parameters)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
