"""The evidence lower bound, composed of a likelihood term, a KL term, a transform and a weight."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from kldiv.distributions import factorise
from kldiv.elbo.controllers import Controller
from kldiv.elbo.schedules import step_schedules
from kldiv.elbo.terms import ELBOTerms, check_likelihood, latent_groups, weighted
from kldiv.elbo.transforms import apply_to_groups, is_of_batch
from kldiv.losses import ExactKLLoss
from kldiv.numerics import check_broadcast
from kldiv.reduction import Reduction, check_reduction, reduce, sum_latent

__all__ = [
    "ELBOLoss",
]


class ELBOLoss(nn.Module):
    r"""The negative evidence lower bound of a variational auto-encoder, as a loss.

    .. math:: -\ln p(x|z) + w \cdot T\left(D_{KL}(q(z|x) \,\|\, p(z))\right)

    Args:
        reconstruction: the likelihood term, called (output, target), such as :class:`kldiv.BernoulliNLL`.
        kl: the KL term, called (posterior, prior); ``None`` is :class:`kldiv.ExactKLLoss`.
        transform: a module from (N, ...) to (N, ...) that shapes the KL before it is summed over latent dimensions,
            such as :class:`kldiv.FreeBits` or a ``nn.Sequential`` of several; with several latent groups each by
            itself, unless it is to join them.
        weight: of the KL in the loss: a number, or a module called without arguments such as
            :class:`kldiv.LinearWarmup`.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
            What the terms were given as their own reduction does not count.
    Raises:
        ValueError: ``"mean"`` and unknown reductions; a weight that is negative or not finite.
        TypeError: a KL term that is called with tensors.
    Source: Kingma & Welling 2014, eq. 10; the weight: Higgins et al. 2017.

    >>> from kldiv import BernoulliNLL, DiagonalNormal
    >>> posterior = DiagonalNormal(torch.ones(2, 4), torch.zeros(2, 4))
    >>> ELBOLoss(BernoulliNLL(), weight=0.5)(torch.zeros(2, 8), torch.ones(2, 8), posterior).kl
    tensor(2.)
    """

    reconstruction: Any  # a module with per_example(output, target)
    kl: Any  # a KLTerm
    transform: nn.Module | None
    weight: float | nn.Module

    def __init__(
        self,
        reconstruction: nn.Module,
        kl: nn.Module | None = None,
        *,
        transform: nn.Module | None = None,
        weight: float | nn.Module = 1.0,
        reduction: Reduction = "batchmean",
    ) -> None:
        super().__init__()
        kl = ExactKLLoss() if kl is None else kl
        if not hasattr(kl, "unreduced_with_kl"):
            raise TypeError(
                f"kl is a {type(kl).__name__}, which is not called with distributions. Inside an ELBO use "
                "kldiv.ExactKLLoss() or another kldiv.KLTerm, and call the ELBO with a distribution: "
                "elbo(output, target, kldiv.DiagonalNormal(mean, log_var))"
            )
        self.reconstruction, self.kl, self.transform = check_likelihood(reconstruction), kl, transform
        self.weight = weight
        self.reduction = check_reduction(reduction)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and not isinstance(value, nn.Module):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"weight={value} must be finite and not negative")
            self._modules.pop("weight", None)  # a schedule gives way to a number
        super().__setattr__(name, value)

    def forward(
        self,
        output: Tensor | Sequence[Tensor],
        target: Tensor,
        posterior: Distribution | Sequence[Distribution],
        prior: Distribution | Sequence[Distribution | None] | None = None,
        *,
        sample: Tensor | Sequence[Tensor | None] | None = None,
        sample_weight: Tensor | None = None,
        target_mask: Tensor | None = None,
        latent_mask: Tensor | Sequence[Tensor | None] | None = None,
    ) -> ELBOTerms:
        r"""The terms of the bound.

        Args:
            output, target: for the likelihood term; dimension 0 of the target is the example.
            posterior, prior: q(z|x) and p(z), or sequences of them, one entry a latent group. ``None``: the standard
                normal, uniform categories.
            sample: the latent sample the decoder consumed, which a Monte Carlo term uses instead of its own; for groups
                a sequence.
            sample_weight: (N,), multiplies every term of an example; at 0 it counts nothing (its KL and its likelihood
                must be finite, for the gradient's sake).
            target_mask: broadcasts to the target; elements at 0 or False count nothing.
            latent_mask: broadcasts to (N, \*latent), for pairs that factorise; latents at 0 or False count nothing
                (their KL must be finite, for the gradient's sake). For groups a sequence.
        Raises:
            TypeError: a posterior that is a tensor. ValueError: shapes that do not fit; the message holds them.
        """
        masked = () if target_mask is None else (target_mask,)
        reconstruction: Tensor = self.reconstruction.per_example(output, target, *masked)
        values, kls, latent_masks = [], [], []
        is_kl = self.transform is None
        for group in latent_groups(posterior, prior=prior, sample=sample, latent_mask=latent_mask):
            value, kl = self._kl_values(**group)
            if value.shape[0] != reconstruction.shape[0]:
                raise ValueError(
                    f"the posterior has {value.shape[0]} examples (KL of shape {tuple(value.shape)}) and the "
                    f"reconstruction {reconstruction.shape[0]}: dimension 0 is the example for both"
                )
            values.append(value)
            kls.append(sum_latent(kl))
            is_kl = is_kl and value is kl
            latent_masks.append(group["latent_mask"])
        weigh = None if sample_weight is None else functools.partial(weighted, sample_weight=sample_weight)
        if weigh is not None:
            reconstruction, kls = weigh(reconstruction), [weigh(kl) for kl in kls]
        kl = sum(kls[1:], kls[0])
        shaped = kl if is_kl else self._shaped(values, latent_masks, weigh)
        if isinstance(self.weight, nn.Module):
            weight: Tensor = self.weight()
            if weight.shape != ():
                raise ValueError(f"{type(self.weight).__name__} gives a weight of shape {tuple(weight.shape)}, not ()")
            if self.training and isinstance(self.weight, Controller):
                self.weight.observe(reconstruction, kl, sample_weight)
        else:
            weight = torch.full((), self.weight, dtype=kl.dtype, device=kl.device)
        of_bound = reduce(kl, self.reduction)
        of_loss = of_bound if shaped is kl else reduce(shaped, self.reduction)
        reconstruction = reduce(reconstruction, self.reduction)
        return ELBOTerms(
            loss=reconstruction + weight * of_loss,
            negative_elbo=reconstruction + of_bound,
            reconstruction=reconstruction,
            kl=of_bound,
            weight=weight,
            kl_per_group=tuple(reduce(each, self.reduction) for each in kls) if len(kls) > 1 else (of_bound,),
        )

    def _shaped(
        self, values: list[Tensor], masks: list[Tensor | None], weigh: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """What the transform makes of the KL of each example, (N,)."""
        if self.transform is None:
            shaped = values if weigh is None else [weigh(value) for value in values]
        else:
            shaped = apply_to_groups(self.transform, values, weigh)
            if len(shaped) == len(values):
                # what is masked costs no free bits either; of a batch's mean, what is masked in all of it
                of_batch = is_of_batch(self.transform)
                for k, (value, mask) in enumerate(zip(values, masks, strict=True)):
                    if mask is not None and shaped[k].shape == value.shape:
                        none = (mask == 0).expand(value.shape)
                        shaped[k] = shaped[k].masked_fill(none.all(0) if of_batch else none, 0)
        each = [sum_latent(value) for value in shaped]
        return sum(each[1:], each[0])

    def step(self) -> None:
        """One optimiser step, for every schedule inside. :func:`kldiv.attach` does it by itself."""
        step_schedules(self)

    def _kl_values(
        self, posterior: Distribution, prior: Distribution | None, sample: Tensor | None, latent_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        r"""The term as it enters the loss, (N, \*latent), and the KL divergence itself."""
        if not isinstance(posterior, Distribution):
            raise TypeError(
                f"the posterior is a {type(posterior).__name__}, and an ELBO takes distributions: "
                "elbo(output, target, kldiv.DiagonalNormal(mean, log_var))"
            )
        values, raw = self.kl.unreduced_with_kl(posterior, prior, sample)
        if latent_mask is None:
            return values, raw
        if factorise(posterior) is None or (prior is not None and factorise(prior) is None):
            raise ValueError(
                f"latent_mask {tuple(latent_mask.shape)} masks latent dimensions, and {type(posterior).__name__} with "
                f"{type(prior).__name__} does not factorise over them. For whole examples write sample_weight="
            )
        whole = factorise(posterior)
        if whole is not None and values.shape != whole.batch_shape:
            raise ValueError(
                f"latent_mask {tuple(latent_mask.shape)} masks latent dimensions, and {type(self.kl).__name__} gives "
                f"no KL of one dimension, but {tuple(values.shape)}. For whole examples write sample_weight="
            )
        if check_broadcast(kl=values.shape, latent_mask=latent_mask.shape) != values.shape:
            raise ValueError(
                f"latent_mask {tuple(latent_mask.shape)} must broadcast to the KL's shape {tuple(values.shape)}"
            )
        masked: Tensor = values.masked_fill(latent_mask == 0, 0)
        return masked, masked if raw is values else raw.masked_fill(latent_mask == 0, 0)

    def extra_repr(self) -> str:
        weight = "" if isinstance(self.weight, nn.Module) else f"weight={self.weight}, "
        return f"{weight}reduction={self.reduction!r}"
