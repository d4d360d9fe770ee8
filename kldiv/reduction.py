"""Reductions: from nats per example, (N,), to a loss.

``"batchmean"``, the default, is the sum over everything divided by N, and 0 for N = 0; ``"sum"`` is the sum over
everything; ``"none"`` leaves (N,). N is the number of examples, dimension 0: latent dimensions and pixels are always
summed, never averaged.
"""

from typing import Literal, get_args

from torch import Tensor

__all__ = [
    "REDUCTIONS",
    "Reduction",
    "check_reduction",
    "reduce",
    "sum_latent",
]

Reduction = Literal["batchmean", "sum", "none"]

REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)


def check_reduction(reduction: str) -> Reduction:
    """``reduction`` itself, where it is one of :data:`REDUCTIONS`.

    Raises: ValueError: for any other, and for ``"mean"`` with what to write instead.
    """
    if reduction == "mean":
        raise ValueError(
            "reduction='mean' would average over latent dimensions (or pixels), and a mean over latent dimensions is "
            "no KL divergence: its weight would change with their number. Write reduction='batchmean' for the sum over "
            "everything divided by the number of examples, or reduction='none' and reduce the (N,) values yourself."
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r} is none of {', '.join(map(repr, REDUCTIONS))}")
    return reduction


def sum_latent(values: Tensor) -> Tensor:
    r"""Values (N, \*latent), or (N, \*event), summed to (N,)."""
    return values.flatten(1).sum(1) if values.ndim > 1 else values


def reduce(per_example: Tensor, reduction: Reduction) -> Tensor:
    """Nats per example, (N,), to a loss: (), or (N,) with ``"none"``.

    >>> import torch
    >>> reduce(torch.tensor([1.0, 3.0]), "batchmean"), reduce(torch.tensor([]), "batchmean")
    (tensor(2.), tensor(0.))
    """
    if reduction == "batchmean":
        return per_example.sum() / max(per_example.shape[0], 1)
    return per_example if check_reduction(reduction) == "none" else per_example.sum()
