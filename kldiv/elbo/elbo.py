"""ELBOLoss: the evidence lower bound, made of a likelihood term, a KL term, a transform and a weight."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from kldiv.distributions import check_distributions, factorise
from kldiv.elbo.controllers import Controller
from kldiv.elbo.schedules import step_schedules
from kldiv.elbo.terms import ELBOTerms, check_likelihood, latent_groups, total, weighted
from kldiv.elbo.transforms import transform_groups
from kldiv.losses import ExactKLLoss, KLValues
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
        transform: T, a module from (N, ...) to (N, ...), such as :class:`kldiv.FreeBits` or a ``nn.Sequential`` of
            several. It is applied before the sum over latent dimensions, to each latent group alone; a transform that
            joins the groups, such as :class:`kldiv.Capacity`, gets them together.
        weight: w, a number, or a module called without arguments such as :class:`kldiv.LinearWarmup`.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
            The terms' own reductions do not count.
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
        if not hasattr(kl, "kl_values"):
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
            self._modules.pop("weight", None)  # a number replaces a schedule
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
        r"""The terms of the bound. For several latent groups, posterior, prior, sample and latent mask are sequences.

        Args:
            output, target: for the likelihood term; dimension 0 of the target is the example.
            posterior, prior: q(z|x) and p(z). ``None``: the standard normal, or uniform categories.
            sample: the latent sample the decoder consumed. A Monte Carlo term uses it instead of drawing its own.
            sample_weight: (N,), multiplies every term of an example. An example of weight 0 counts nothing; its KL and
                its likelihood must be finite, or the gradient is NaN.
            target_mask: broadcasts to the target. Elements at 0 or False count nothing.
            latent_mask: broadcasts to (N, \*latent), for pairs that factorise. Latents at 0 or False count nothing;
                their KL must be finite, or the gradient is NaN.
        Raises:
            TypeError: a posterior that is a tensor.
            ValueError: shapes that do not fit; the message holds them.
        """
        reconstruction = self._reconstruction(output, target, target_mask)  # (N,)
        groups = latent_groups(posterior, prior=prior, sample=sample, latent_mask=latent_mask)
        values = [self._kl_values(**group) for group in groups]  # (N, *latent) each
        _check_examples(values, reconstruction)

        reconstruction = weighted(reconstruction, sample_weight)
        kl_per_group = [weighted(sum_latent(each.kl), sample_weight) for each in values]  # (N,) each
        kl = total(kl_per_group)
        transformed = self._transformed(values, groups, sample_weight)
        weight = self._current_weight(reconstruction, kl, sample_weight)

        reconstruction, kl = reduce(reconstruction, self.reduction), reduce(kl, self.reduction)
        in_loss = kl if transformed is None else reduce(transformed, self.reduction)
        return ELBOTerms(
            loss=reconstruction + weight * in_loss,
            negative_elbo=reconstruction + kl,
            reconstruction=reconstruction,
            kl=kl,
            weight=weight,
            kl_per_group=(kl,) if len(groups) == 1 else tuple(reduce(each, self.reduction) for each in kl_per_group),
        )

    def step(self) -> None:
        """One optimiser step, for every schedule inside. After :func:`kldiv.attach` nobody has to call it."""
        step_schedules(self)

    def _reconstruction(self, output: Tensor | Sequence[Tensor], target: Tensor, mask: Tensor | None) -> Tensor:
        """-ln p(x|z) of each example, (N,)."""
        given = {} if mask is None else {"mask": mask}  # a likelihood of the user's own may take no mask
        nll: Tensor = self.reconstruction.per_example(output, target, **given)
        return nll

    def _kl_values(
        self, posterior: Distribution, prior: Distribution | None, sample: Tensor | None, latent_mask: Tensor | None
    ) -> KLValues:
        r"""The KL of a latent group, (N, \*latent), 0 where it is masked."""
        check_distributions("Write elbo(output, target, kldiv.DiagonalNormal(mean, log_var))", posterior=posterior)
        values: KLValues = self.kl.kl_values(posterior, prior, sample)
        if latent_mask is None:
            return values
        self._check_latent_mask(latent_mask, values, posterior, prior)
        masked = latent_mask == 0
        penalty = None if values.penalty is None else values.penalty.masked_fill(masked, 0)
        return KLValues(values.kl.masked_fill(masked, 0), penalty)

    def _check_latent_mask(
        self, mask: Tensor, values: KLValues, posterior: Distribution, prior: Distribution | None
    ) -> None:
        """Raises: ValueError: a mask of another shape than the KL's, or a KL that is not one of each dimension."""
        whole = factorise(posterior)
        if whole is None or (prior is not None and factorise(prior) is None):
            raise ValueError(
                f"latent_mask {tuple(mask.shape)} masks latent dimensions, and {type(posterior).__name__} with "
                f"{type(prior).__name__} does not factorise over them. For whole examples write sample_weight="
            )
        shape = values.in_loss.shape
        if shape != whole.batch_shape:
            raise ValueError(
                f"latent_mask {tuple(mask.shape)} masks latent dimensions, and {type(self.kl).__name__} gives no KL "
                f"of one dimension, but {tuple(shape)}. For whole examples write sample_weight="
            )
        if check_broadcast(kl=shape, latent_mask=mask.shape) != shape:
            raise ValueError(f"latent_mask {tuple(mask.shape)} must broadcast to the KL's shape {tuple(shape)}")

    def _transformed(
        self, values: list[KLValues], groups: list[dict[str, Any]], sample_weight: Tensor | None
    ) -> Tensor | None:
        """The KL as it enters the loss, (N,), weighted by example; ``None`` where it is the KL itself."""
        if self.transform is not None:
            in_loss, masks = [each.in_loss for each in values], [group["latent_mask"] for group in groups]
            return total([sum_latent(each) for each in transform_groups(self.transform, in_loss, masks, sample_weight)])
        if all(each.penalty is None for each in values):
            return None
        return total([weighted(sum_latent(each.in_loss), sample_weight) for each in values])

    def _current_weight(self, reconstruction: Tensor, kl: Tensor, sample_weight: Tensor | None) -> Tensor:
        """The weight of the KL, (). In training mode a controller notes the terms, (N,) each."""
        if not isinstance(self.weight, nn.Module):
            return torch.full((), self.weight, dtype=kl.dtype, device=kl.device)
        weight: Tensor = self.weight()
        if weight.shape != ():
            raise ValueError(f"{type(self.weight).__name__} gives a weight of shape {tuple(weight.shape)}, not ()")
        if self.training and isinstance(self.weight, Controller):
            self.weight.observe(reconstruction, kl, sample_weight)
        return weight

    def extra_repr(self) -> str:
        weight = "" if isinstance(self.weight, nn.Module) else f"weight={self.weight}, "
        return f"{weight}reduction={self.reduction!r}"


def _check_examples(values: list[KLValues], reconstruction: Tensor) -> None:
    """Raises: ValueError: a posterior of another number of examples than the reconstruction."""
    for each in values:
        if each.kl.shape[0] != reconstruction.shape[0]:
            raise ValueError(
                f"the posterior has {each.kl.shape[0]} examples (KL of shape {tuple(each.kl.shape)}) and the "
                f"reconstruction {reconstruction.shape[0]}: dimension 0 is the example for both"
            )
