"""ELBOTerms, the result of a bound, and what the bounds do alike: latent groups, weights of examples."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "ELBOTerms",
    "check_likelihood",
    "latent_groups",
    "total",
    "weighted",
]


class ELBOTerms(NamedTuple):
    """The terms of an ELBO, in nats, each reduced as its loss was asked to."""

    loss: Tensor
    """reconstruction + weight * transformed KL: what is minimised."""
    negative_elbo: Tensor
    """reconstruction + KL, whatever the weight and the transform: comparable between runs."""
    reconstruction: Tensor
    """-ln p(x|z)."""
    kl: Tensor
    """The KL divergence itself, neither transformed nor weighted."""
    weight: Tensor
    """The weight of the KL in the loss, of shape (), or (G,) where each of G latent groups has its own."""
    kl_per_group: tuple[Tensor, ...] = ()
    """The KL of each latent group, one for each entry of a sequence of posteriors. Their sum is ``kl``."""

    def detach(self) -> "ELBOTerms":
        """The same values without their graph, for logging."""
        return ELBOTerms(
            self.loss.detach(),
            self.negative_elbo.detach(),
            self.reconstruction.detach(),
            self.kl.detach(),
            self.weight.detach(),
            tuple(kl.detach() for kl in self.kl_per_group),
        )


def check_likelihood(reconstruction: nn.Module) -> nn.Module:
    """The module itself.

    Raises: TypeError: it is not a likelihood term; the message shows one.
    """
    if not (isinstance(reconstruction, nn.Module) and hasattr(reconstruction, "per_example")):
        raise TypeError(
            f"reconstruction is a {type(reconstruction).__name__}, which has no per_example(output, target): pass "
            "a likelihood term such as kldiv.BernoulliNLL()"
        )
    return reconstruction


def weighted(term: Tensor, sample_weight: Tensor | None) -> Tensor:
    r"""A term (N, \*latent) times the weights of the examples, (N,): 0 where a weight is 0, even if the term is NaN.

    ``None`` weighs nothing. Raises: ValueError: weights of another shape.
    """
    if sample_weight is None:
        return term
    if sample_weight.shape != term.shape[:1]:
        raise ValueError(f"sample_weight {tuple(sample_weight.shape)} must have the shape (N,): {term.shape[0]}")
    weights = sample_weight.view(-1, *[1] * (term.ndim - 1))
    return torch.where(weights != 0, term * weights, 0.0)


def total(terms: Sequence[Tensor]) -> Tensor:
    """The sum of one term or more: of one the term itself, without an operation."""
    return sum(terms[1:], terms[0])


def latent_groups(posterior: object, kl: object = None, **given: object) -> list[dict[str, Any]]:
    """The arguments of each latent group, by name.

    A sequence has one entry for each group. ``None`` is ``None`` for each, and anything else belongs to the only one.

    Args:
        posterior, kl: the first of them that is a sequence tells how many groups there are.
    Raises: ValueError: a sequence whose length is not that of the posteriors.
    """
    everything = {"posterior": posterior, "kl": kl, **given}
    if not any(isinstance(value, (list, tuple)) for value in everything.values()):
        return [everything]
    first = posterior if isinstance(posterior, (list, tuple)) else kl
    count = len(first) if isinstance(first, (list, tuple)) else 1
    groups: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, value in everything.items():
        entries = [None] * count if value is None else value if isinstance(value, (list, tuple)) else [value]
        if len(entries) != count:
            raise ValueError(f"{name} has {len(entries)} entries and posterior {count}: one for each latent group")
        for group, entry in zip(groups, entries, strict=True):
            group[name] = entry
    return groups
