"""Transforms of the KL before it is weighted, FreeBits and Capacity: modules from (N, \\*latent) to (N, \\*latent).

A statistic of the batch is that of all processes in training mode, and of the process's own batch in eval mode. It is
expanded over N. Latent dimensions that are summed keep size 1.
"""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from kldiv.distributed import world_mean, world_sum
from kldiv.distributions import align
from kldiv.elbo.terms import weighted
from kldiv.reduction import sum_latent

__all__ = [
    "Capacity",
    "FreeBits",
    "Per",
    "transform_groups",
]

Per = Literal["dimension", "group", "example"]


class FreeBits(nn.Module):
    r"""Free bits: a KL below :math:`\lambda` nats costs :math:`\lambda` and has no gradient.

    With ``batch_mean`` the maximum is that of the batch's mean, on the left; without it, that of each example:

    .. math:: \max\left(\lambda, \tfrac1N \sum_n d_{n}\right) \qquad\text{or}\qquad \max(\lambda, d_{n})

    d is the KL of a dimension, of a latent group, or of an example.

    Args:
        nats: :math:`\lambda`, not negative, for each dimension, group or example.
        per: ``"dimension"``; ``"group"``, the sum over the latents of one group; or ``"example"``, the sum over the
            latents of all groups.
        batch_mean: whether the mean over the batch is taken first.
        process_group: the processes whose batches the mean is over; ``None``: the whole world.
    Raises: ValueError: nats that are negative or not finite; an unknown ``per``.

    Called with (N, \*latent). Returns the same shape, latent dimensions of size 1 for ``"group"`` and ``"example"``.

    Source: Kingma et al. 2016, section C.8, groups and batch mean; Pelsmaeker & Aziz 2020 compare the variants.

    >>> FreeBits(0.5)(torch.tensor([[0.2, 1.0], [0.4, 3.0]]))
    tensor([[0.5000, 2.0000],
            [0.5000, 2.0000]])
    """

    def __init__(
        self, nats: float, per: Per = "dimension", batch_mean: bool = True, *, process_group: Any = None
    ) -> None:
        super().__init__()
        if not (math.isfinite(nats) and nats >= 0):
            raise ValueError(f"nats={nats} must be finite and not negative")
        if per not in get_args(Per):
            raise ValueError(f"per={per!r} is none of {', '.join(map(repr, get_args(Per)))}")
        self.nats, self.per, self.batch_mean, self.process_group = nats, per, batch_mean, process_group

    @property
    def joins_groups(self) -> bool:
        """Whether the transform takes the latents of all groups together."""
        return self.per == "example"

    @property
    def is_of_batch(self) -> bool:
        """Whether the result is a statistic of the batch, so that the examples must be weighted before it."""
        return self.batch_mean

    def forward(self, kl: Tensor, keep: Tensor | None = None) -> Tensor:
        """The transformed KL. Where ``keep``, a boolean that broadcasts to it, is False, nothing counts and costs."""
        if self.per != "dimension":
            kl, keep = _summed(kl, keep)
        if not self.batch_mean:
            return _only(kl.clamp(min=self.nats), keep)
        return _only(_batch_mean(kl, keep, self).clamp(min=self.nats).expand(kl.shape), keep)

    def extra_repr(self) -> str:
        return f"nats={self.nats}, per={self.per!r}, batch_mean={self.batch_mean}"


class Capacity(nn.Module):
    r"""Holds the KL at a capacity: the distance of the batch's mean KL from the capacity, times a gain.

    .. math:: \gamma \left|\tfrac1N \sum_n D_n - C\right|

    D_n is the KL of an example, summed over the latents of all groups.

    Args:
        nats: C, a number, or a module called without arguments such as ``LinearWarmup(steps=25000, end=25.0)``.
        gain: :math:`\gamma`, positive. The weight of the ELBO multiplies it.
        process_group: the processes whose batches the mean is over; ``None``: the whole world.
    Raises: ValueError: a capacity that is negative or not finite; a gain that is not positive.

    Called with (N, \*latent). Returns the same with latent dimensions of size 1: one value, expanded over N.

    Source: Burgess et al. 2018, eq. 8.

    >>> Capacity(5.0, gain=10.0)(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[0.],
            [0.]])
    """

    joins_groups = True
    is_of_batch = True
    nats: float | nn.Module

    def __init__(self, nats: float | nn.Module, gain: float, *, process_group: Any = None) -> None:
        super().__init__()
        if not isinstance(nats, nn.Module) and not (math.isfinite(nats) and nats >= 0):
            raise ValueError(f"nats={nats} must be finite and not negative")
        if not (math.isfinite(gain) and gain > 0):
            raise ValueError(f"gain={gain} must be finite and positive")
        self.nats, self.gain, self.process_group = nats, gain, process_group

    def forward(self, kl: Tensor, keep: Tensor | None = None) -> Tensor:
        """The transformed KL. Where ``keep``, a boolean that broadcasts to it, is False, nothing counts and costs."""
        total, keep = _summed(kl, keep)
        capacity = self.nats() if isinstance(self.nats, nn.Module) else self.nats
        return _only((self.gain * (_batch_mean(total, keep, self) - capacity).abs()).expand(total.shape), keep)

    def extra_repr(self) -> str:
        return f"gain={self.gain}" if isinstance(self.nats, nn.Module) else f"nats={self.nats}, gain={self.gain}"


def transform_groups(
    transform: nn.Module, kls: list[Tensor], keeps: list[Tensor | None], sample_weight: Tensor | None
) -> list[Tensor]:
    r"""The transformed and weighted KL: of each latent group, or one tensor where the transform joins the groups.

    Args:
        transform: applied part by part where it is a ``nn.Sequential``.
        kls: the KL of each latent group, (N, \*latent).
        keeps: where each group's latents count, booleans whose leading dimensions are those of the KL, which is 0
            elsewhere; ``None``: everywhere.
        sample_weight: (N,). Weights multiply before the first statistic of the batch, which is then one of the
            weighted examples; without such a statistic they multiply last.
    Raises: ValueError: a part that does not keep the examples; the message holds both shapes.
    """
    transformed, is_weighted = kls, False
    keeps = [None if keep is None else align(keep, kl.ndim) for kl, keep in zip(kls, keeps, strict=True)]
    for part in _parts(transform):
        if not is_weighted and _is_of_batch(part):
            transformed, is_weighted = [weighted(kl, sample_weight) for kl in transformed], True
        if getattr(part, "joins_groups", False) and len(transformed) > 1:
            if any(keep is not None for keep in keeps):
                filled = [_everywhere(kl, keep).flatten(1) for kl, keep in zip(transformed, keeps, strict=True)]
                keeps = [torch.cat(filled, 1)]
            else:
                keeps = [None]
            transformed = [torch.cat([kl.flatten(1) if kl.ndim > 1 else kl[:, None] for kl in transformed], 1)]
        pairs = [_applied(part, kl, keep) for kl, keep in zip(transformed, keeps, strict=True)]
        transformed, keeps = [kl for kl, _ in pairs], [keep for _, keep in pairs]
    return transformed if is_weighted else [weighted(kl, sample_weight) for kl in transformed]


def _applied(part: nn.Module, kl: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What a part makes of a KL, 0 where nothing counts, and where the result counts."""
    result: Tensor = part(kl) if keep is None or not isinstance(part, (FreeBits, Capacity)) else part(kl, keep)
    if result.shape[:1] != kl.shape[:1]:
        raise ValueError(
            f"{type(part).__name__} makes {tuple(result.shape)} of a KL of shape {tuple(kl.shape)}, and a transform "
            "maps (N, ...) to (N, ...): expand a statistic of the batch over N"
        )
    if keep is None:
        return result, None
    if result.shape != kl.shape:
        keep = align(_everywhere(kl, keep).flatten(1).any(1), result.ndim)
    return _only(result, keep), keep


def _everywhere(kl: Tensor, keep: Tensor | None) -> Tensor:
    """Where the KL counts, in its shape, with a latent dimension at least."""
    full = torch.ones_like(kl, dtype=torch.bool) if keep is None else keep.expand(kl.shape)
    return full if full.ndim > 1 else full[:, None]


def _only(values: Tensor, keep: Tensor | None) -> Tensor:
    return values if keep is None else torch.where(keep, values, 0.0)


def _summed(kl: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The sum over latent dimensions, each of size 1, and whether any of them counts."""
    shape = (-1, *[1] * max(kl.ndim - 1, 1))
    return sum_latent(kl).reshape(shape), None if keep is None else _everywhere(kl, keep).flatten(1).any(1).reshape(
        shape
    )


def _parts(transform: nn.Module) -> list[nn.Module]:
    if not isinstance(transform, nn.Sequential):
        return [transform]
    return [part for each in transform for part in _parts(each)]


def _is_of_batch(transform: nn.Module) -> bool:
    """Whether any part of the transform is a statistic of the batch."""
    return any(getattr(part, "is_of_batch", False) for part in transform.modules())


def _batch_mean(kl: Tensor, keep: Tensor | None, transform: Any) -> Tensor:
    """The mean over the batch, in training of all processes; of what counts, where that is not everything."""
    if keep is None:
        if transform.training:
            return world_mean(kl, transform.process_group)
        return kl.sum(0) / max(kl.shape[0], 1)
    total, count = kl.sum(0), keep.expand(kl.shape).sum(0).to(kl.dtype)
    if transform.training:
        total, count = (world_sum(each, transform.process_group) for each in (total, count))
    return total / count.clamp(min=1)
