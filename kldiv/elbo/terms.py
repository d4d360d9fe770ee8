"""ELBOTerms: what a bound is made of, and the arguments it is called with."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "ELBOTerms",
    "check_likelihood",
    "latent_groups",
    "weighted",
]


class _Terms(NamedTuple):
    loss: Tensor
    negative_elbo: Tensor
    reconstruction: Tensor
    kl: Tensor
    weight: Tensor


class ELBOTerms(_Terms):
    """What an ELBO is made of, in nats: each reduced as its loss was asked to, the weight a tensor of shape ().

    A named tuple (loss, negative_elbo, reconstruction, kl, weight): ``loss`` is reconstruction + weight * transformed
    KL, what is minimised; ``negative_elbo`` reconstruction + KL, whatever weight and transform, comparable between
    runs; ``kl`` the KL divergence as it is.
    """

    kl_per_group: tuple[Tensor, ...] = ()
    """The KL of each latent group, one for each entry of a sequence of posteriors; they add to ``kl``."""

    def detach(self) -> "ELBOTerms":
        """The same values without their graph, for logging."""
        detached = ELBOTerms(*(term.detach() for term in self))
        detached.kl_per_group = tuple(kl.detach() for kl in self.kl_per_group)
        return detached


def check_likelihood(reconstruction: nn.Module) -> nn.Module:
    """The module itself. Raises: TypeError: it is no likelihood term; the message shows one."""
    if not (isinstance(reconstruction, nn.Module) and hasattr(reconstruction, "per_example")):
        raise TypeError(
            f"reconstruction is a {type(reconstruction).__name__}, which has no per_example(output, target): pass "
            "a likelihood term such as kldiv.BernoulliNLL()"
        )
    return reconstruction


def weighted(term: Tensor, sample_weight: Tensor) -> Tensor:
    r"""A term (N, \*latent) times the weights of the examples, (N,): 0 where they are, even of what is not finite.

    Raises: ValueError: weights of another shape.
    """
    if sample_weight.shape != term.shape[:1]:
        raise ValueError(f"sample_weight {tuple(sample_weight.shape)} must have the shape (N,): {term.shape[0]}")
    weights = sample_weight.view(-1, *[1] * (term.ndim - 1))
    return torch.where(weights != 0, term * weights, 0.0)


def latent_groups(posterior: object, **given: object) -> list[dict[str, Any]]:
    """The arguments of each latent group: of a sequence an entry, of ``None`` itself, of anything else the only one.

    Raises: ValueError: sequences that are not as long as that of the posteriors.
    """
    count = len(posterior) if isinstance(posterior, (list, tuple)) else 1
    groups: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, value in {"posterior": posterior, **given}.items():
        entries = [None] * count if value is None else value if isinstance(value, (list, tuple)) else [value]
        if len(entries) != count:
            raise ValueError(f"{name} has {len(entries)} entries and posterior {count}: one for each latent group")
        for group, entry in zip(groups, entries, strict=True):
            group[name] = entry
    return groups
