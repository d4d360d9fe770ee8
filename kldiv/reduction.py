"""The last line of every term: from nats per example to what is asked for."""

from torch import Tensor

__all__ = [
    "REDUCTIONS",
    "check_reduction",
    "reduce",
    "sum_latent",
]


REDUCTIONS = ("batchmean", "sum", "none")


def check_reduction(reduction: str) -> str:
    """``reduction`` itself, where it is one of ours.

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
    """Values of shape (N, ...) summed to (N,): everything but the example is latent (or an event)."""
    return values.flatten(1).sum(1) if values.ndim > 1 else values


def reduce(per_example: Tensor, reduction: str) -> Tensor:
    """Nats per example, shape (N,), to a loss.

    Args:
        per_example: (N,).
        reduction: ``"batchmean"``: the sum divided by N, and 0 for N = 0; ``"sum"``; ``"none"``: (N,) as it is.

    >>> import torch
    >>> reduce(torch.tensor([1.0, 3.0]), "batchmean"), reduce(torch.tensor([]), "batchmean")
    (tensor(2.), tensor(0.))
    """
    if check_reduction(reduction) == "none":
        return per_example
    total = per_example.sum()
    return total / max(per_example.shape[0], 1) if reduction == "batchmean" else total
