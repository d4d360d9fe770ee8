"""Gradients by finite differences in float64, with an error that the differences themselves tell."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.stress.case import Case


def check_gradient(
    case: Case,
    function: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    scales: Sequence[Tensor | float] | None = None,
    rtol: float = 1e-6,
    noise: float = 1e-12,
) -> None:
    """The gradient of a scalar function along a random direction, or along one element, against differences.

    Args:
        function: of float64 tensors like ``tensors``, which want gradients.
        scales: the length of a step for each tensor, over which the function is smooth; ``None``: that of a number near
            1. Positive parameters have themselves.
        noise: the relative error of the function.
    """
    leaves = [tensor.detach().double().requires_grad_() for tensor in tensors]
    if not sum(leaf.numel() for leaf in leaves):
        return
    value = function(*leaves)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else [None] * len(leaves)
    scales = [1.0] * len(leaves) if scales is None else scales
    direction = [torch.randn_like(leaf) for leaf in leaves]
    if case.chance(0.5):  # one element alone, which others cannot hide
        k = case.choice(*[k for k, leaf in enumerate(leaves) if leaf.numel()])
        index = case.rng.randrange(leaves[k].numel())
        direction = [torch.zeros_like(leaf) for leaf in leaves]
        direction[k].view(-1)[index] = 1.0
    direction = [d * torch.as_tensor(s).detach() for d, s in zip(direction, scales, strict=True)]
    parts = [torch.zeros(()) if g is None else (g * d).sum() for g, d in zip(gradients, direction, strict=True)]
    found = sum(part.item() for part in parts)
    expected, error = derivative(function, leaves, direction, abs(value.item()) * noise)
    size = sum(0.0 if g is None else (g * d).abs().sum().item() for g, d in zip(gradients, direction, strict=True))
    case.close("gradient", found, expected, rtol=rtol, atol=10 * error + 1e-10 * size)


def derivative(
    function: Callable[..., Tensor], leaves: Sequence[Tensor], direction: Sequence[Tensor], rounding: float
) -> tuple[float, float]:
    """The derivative along a direction by central differences, extrapolated (Richardson), and its error."""

    @torch.no_grad()
    def at(t: float) -> float:
        return function(*[leaf.detach() + t * d for leaf, d in zip(leaves, direction, strict=True)]).item()

    best, error = 0.0, float("inf")
    for step in (1e-2, 1e-3):
        d1, d2, d4 = ((at(h) - at(-h)) / (2 * h) for h in (step, step / 2, step / 4))
        first, second = (4 * d2 - d1) / 3, (4 * d4 - d2) / 3
        value = (16 * second - first) / 15
        of_this = abs(value - second) + 8 * rounding / step
        if of_this < error:
            best, error = value, of_this
    return best, error
