"""Likelihoods of categories: one of K, and counts of K."""

from typing import Any

import torch
from torch import Generator, Tensor

from kldiv.likelihoods.base import NegativeLogLikelihood, Output
from kldiv.likelihoods.targets import Seen, Support, check_support, look_at_target
from kldiv.reduction import Reduction

__all__ = [
    "CategoricalNLL",
    "MultinomialNLL",
]


class CategoricalNLL(NegativeLogLikelihood):
    r"""-ln Categorical(target | softmax(output)) of logits, in nats, summed over everything but the example.

    .. math:: \ln\sum_k e^{l_k} - l_t

    The target holds the categories' numbers from 0, in an integer dtype. One in the output's shape and a floating dtype
    holds probabilities (soft labels), and the term is their cross-entropy :math:`-\sum_k t_k \ln\text{softmax}(l)_k`.

    Args:
        dim: the dimension of the output that holds the categories: -1, as in a sequence of tokens (N, T, K), or 1, as
            in an image (N, K, H, W).
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
        validate_args: whether the first target is looked at.
    Raises: ValueError: an output whose shape without ``dim`` is not the target's; a target of neither integers nor
        probabilities; a first target with a number that is no category's, or with probabilities that do not sum to 1.

    A mask has the shape of the target without ``dim``; of soft labels also with a ``dim`` of size 1.

    >>> CategoricalNLL()(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
    tensor(0.6931)
    >>> CategoricalNLL()(torch.zeros(4, 2), torch.tensor([0.9, 0.1]).expand(4, 2))
    tensor(0.6931)
    """

    def __init__(self, dim: int = -1, *, reduction: Reduction = "batchmean", validate_args: bool = True) -> None:
        super().__init__(reduction, validate_args=validate_args)
        if dim == 0:
            raise ValueError("dim=0 is the example: the categories are in another dimension of the output")
        self.dim = dim

    def check_shapes(self, parameters: tuple[Tensor, ...], target: Tensor) -> None:
        (logits,) = parameters
        if not -logits.ndim <= self.dim < logits.ndim or self.dim % logits.ndim == 0:
            raise ValueError(f"output {tuple(logits.shape)} has no dimension dim={self.dim} for the categories")
        if target.is_floating_point() and target.shape == logits.shape:
            return
        if self._without_categories(logits) != target.shape:
            raise ValueError(
                f"output {tuple(logits.shape)} without its dimension {self.dim}, the categories, and target "
                f"{tuple(target.shape)} must have one shape. CategoricalNLL(dim=1) is for images (N, K, H, W)"
            )
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise ValueError(f"the target is of {target.dtype}, and holds the numbers of categories: target.long()")

    def shape_of_elements(self, parameters: tuple[Tensor, ...], target: Tensor) -> torch.Size:
        return self._without_categories(parameters[0])

    def of_elements(self, given: Tensor | None, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor | None:
        (logits,) = parameters
        soft = target.ndim == logits.ndim
        whole = given is not None and soft and given.ndim == logits.ndim and given.shape[self.dim] == 1
        return given.squeeze(self.dim) if given is not None and whole else given

    def fill(
        self, parameters: tuple[Tensor, ...], target: Tensor, missing: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        (logits,) = parameters
        beside = missing.expand(self._without_categories(logits)).unsqueeze(self.dim)
        of_target = beside if target.ndim == logits.ndim else missing
        return (logits.masked_fill(beside, 0),), target.masked_fill(of_target, 0)

    def look_at(self, parameters: tuple[Any, ...], target: Tensor, missing: Tensor | None) -> Seen:
        (logits,) = parameters
        if target.ndim != logits.ndim:
            return look_at_target(target, missing)
        beside = None if missing is None else missing.expand(self._without_categories(logits)).unsqueeze(self.dim)
        error = (target.sum(self.dim, keepdim=True) - 1).abs()
        error = error if beside is None else error.masked_fill(beside, 0)
        return look_at_target(target, beside) | {"error": error.amax()}

    def check_target(self, seen: dict[str, float], parameters: tuple[Any, ...], target: Tensor) -> None:
        (logits,) = parameters
        name, categories = type(self).__name__, logits.shape[self.dim]
        if target.ndim == logits.ndim:
            check_support(f"{name} with soft labels", Support(0, 1), seen, 1e-2)
            if seen["error"] > 1e-2:  # labels may be in half precision
                raise ValueError(
                    f"the target has the output's shape {tuple(target.shape)}, and its probabilities along "
                    f"dim={self.dim} must sum to 1: they are off by up to {seen['error']:g}. Write "
                    f"x / x.sum({self.dim}, keepdim=True), or kldiv.MultinomialNLL() for counts"
                )
            return
        if seen["low"] < 0 or (categories <= seen["high"] < torch.inf):
            padding = seen["low"] if seen["low"] < 0 else seen["high"]
            raise ValueError(
                f"the target has numbers from {seen['low']:g} to {seen['high']:g}, and the output "
                f"{tuple(logits.shape)} has the categories 0 to {categories - 1}: where {padding:g} is padding write "
                f"mask=target != {padding:g}, target_mask= in an ELBO; numbers from 1 are target - 1"
            )

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        (logits,) = parameters
        log_probs = torch.log_softmax(logits, self.dim)
        if target.ndim == logits.ndim:
            # what has no share counts nothing, though it be impossible
            impossible = (target == 0) & (log_probs == -torch.inf)
            return -(target * log_probs.masked_fill(impossible, 0)).sum(self.dim)
        return -log_probs.gather(self.dim, target.long().unsqueeze(self.dim)).squeeze(self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, {super().extra_repr()}"

    def mean(self, output: Output) -> Tensor:
        """The mean number, for categories in an order such as levels; probabilities are ``output.softmax(dim)``."""
        (logits,) = self.wide(output)
        numbers = torch.arange(logits.shape[self.dim], dtype=logits.dtype, device=logits.device)
        return torch.softmax(logits, self.dim).movedim(self.dim, -1) @ numbers

    @torch.no_grad()
    def sample(self, output: Output, *, generator: Generator | None = None) -> Tensor:
        """Numbers of categories."""
        (logits,) = self.wide(output)
        # the least of exponential variables of these rates
        noise = torch.empty_like(logits).exponential_(generator=generator)
        return (logits - noise.log()).argmax(self.dim)

    def _without_categories(self, values: Tensor) -> torch.Size:
        shape = list(values.shape)
        del shape[self.dim]
        return torch.Size(shape)


class MultinomialNLL(NegativeLogLikelihood):
    r"""-ln Multinomial(target | softmax(output)) of logits, in nats, summed over everything but the example.

    .. math:: -\ln\frac{n!}{\prod_k t_k!} - \sum_k t_k \ln\text{softmax}(l)_k, \qquad n = \sum_k t_k

    Counts of K categories, such as the words of a document or the clicks of a user: K lie in the last dimension, and n
    is the target's own. Computed in ``float64``.

    Args:
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
        validate_args: whether the first target is looked at.
    Raises: ValueError: output and target of unequal shape; a first target that is not of counts.
    Source: Liang et al. 2018 (Mult-VAE), eq. 2, with its constant.

    Output and target are (N, \*event, K). A mask is of whole counts, and broadcasts to (N, \*event, 1).

    >>> MultinomialNLL()(torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]))  # of 2 outcomes in 4
    tensor(0.6931)
    """

    support = Support(low=0, whole=True)

    def check_shapes(self, parameters: tuple[Tensor, ...], target: Tensor) -> None:
        super().check_shapes(parameters, target)
        if target.ndim < 2:
            raise ValueError(
                f"the target {tuple(target.shape)} must be (N, K), counts of K categories: add one, x[None]"
            )

    def shape_of_elements(self, parameters: tuple[Tensor, ...], target: Tensor) -> torch.Size:
        return torch.Size([*target.shape[:-1], 1])

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        (logits,) = parameters
        t, log_probs = target.double(), torch.log_softmax(logits.double(), -1)
        log_probs = log_probs.masked_fill((t == 0) & (log_probs == -torch.inf), 0)
        of_each = torch.lgamma(t + 1) - t * log_probs
        nats = of_each.sum(-1, keepdim=True) - torch.lgamma(t.sum(-1, keepdim=True) + 1)
        return nats.to(target.dtype)

    def mean(self, output: Output, *, total_count: float = 1) -> Tensor:
        """The mean counts of ``total_count`` trials: probabilities, of one."""
        (logits,) = self.wide(output)
        return total_count * torch.softmax(logits, -1)

    @torch.no_grad()
    def sample(self, output: Output, *, total_count: int = 1, generator: Generator | None = None) -> Tensor:
        """Counts of ``total_count`` trials."""
        (logits,) = self.wide(output)
        probs = torch.softmax(logits, -1).flatten(0, -2)
        drawn = torch.multinomial(probs, total_count, replacement=True, generator=generator)
        return (
            torch.zeros_like(probs).scatter_add_(-1, drawn, torch.ones_like(drawn, dtype=probs.dtype)).view_as(logits)
        )
