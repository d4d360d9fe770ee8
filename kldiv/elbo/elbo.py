"""ELBOLoss: the evidence lower bound, made of a likelihood term, a KL term, a transform and a weight."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from kldiv.distributions import align, can_be_copied, check_distributions, stop_gradient_unless
from kldiv.elbo.controllers import Controller
from kldiv.elbo.masks import check_sample_weight, counted, masked_group, masked_output, masked_target, shape_of_elements
from kldiv.elbo.notices import check_sample, notices_apply, wanted_tensors, warn_of_unreached_posteriors
from kldiv.elbo.schedules import Stepped, step_schedules
from kldiv.elbo.terms import ELBOTerms, check_likelihood, latent_groups, total, weighted
from kldiv.elbo.transforms import Capacity, FreeBits, transform_groups
from kldiv.elbo.weights import checked_weight, current_weight, is_zero
from kldiv.likelihoods import NegativeLogLikelihood
from kldiv.losses import ExactKLLoss, KLValues
from kldiv.numerics import widen
from kldiv.reduction import Reduction, check_reduction, reduce, sum_latent

__all__ = [
    "ELBOLoss",
]


_INSTEAD = (
    "Write elbo(output, target, kldiv.DiagonalNormal(mean, log_var)), or give the KL itself: "
    "elbo(output, target, None, kl=values), values of shape (N,) or (N, *latent)"
)


class ELBOLoss(nn.Module):
    r"""The negative evidence lower bound of a variational auto-encoder, as a loss.

    .. math:: -\ln p(x|z) + w \cdot T\left(D_{KL}(q(z|x) \,\|\, p(z))\right)

    Args:
        reconstruction: the likelihood term, called (output, target), such as :class:`kldiv.BernoulliNLL`.
        kl: the KL term, called (posterior, prior); ``None`` is :class:`kldiv.ExactKLLoss`.
        transform: T, a module from (N, ...) to (N, ...), such as :class:`kldiv.FreeBits` or a ``nn.Sequential`` of
            several. It is applied before the sum over latent dimensions, to each latent group alone; a transform that
            joins the groups, such as :class:`kldiv.Capacity`, gets them together. A list has one for each latent
            group, or ``None``.
        weight: w, a number, or a module called without arguments such as :class:`kldiv.LinearWarmup`. A list has one
            for each latent group. A KL of weight 0 counts nothing, even if it is infinite.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
            The terms' own reductions do not count.
    Raises:
        ValueError: ``"mean"`` and unknown reductions; a weight that is negative or not finite.
        TypeError: a KL term that is called with tensors; a weight that is a parameter.
    Warns: UserWarning: in the first training call, where the output depends on nothing that the posterior is made of:
        an encoder that learns nothing from the reconstruction.
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
        *misplaced: object,
        transform: nn.Module | Sequence[nn.Module | None] | None = None,
        weight: float | nn.Module | Sequence[float | nn.Module] = 1.0,
        reduction: Reduction = "batchmean",
    ) -> None:
        super().__init__()
        if misplaced:
            raise TypeError(f"ELBOLoss takes the likelihood and the KL term by position: {_by_name(misplaced[0])}")
        kl = ExactKLLoss() if kl is None else kl
        if not hasattr(kl, "kl_values"):
            if isinstance(kl, (Stepped, FreeBits, Capacity)) or not isinstance(kl, nn.Module):
                raise TypeError(f"kl is a {type(kl).__name__}, which is no KL term: {_by_name(kl)}")
            raise TypeError(
                f"kl is a {type(kl).__name__}, which is not called with distributions. Inside an ELBO use "
                "kldiv.ExactKLLoss() or another kldiv.KLTerm, and call the ELBO with a distribution: "
                "elbo(output, target, kldiv.DiagonalNormal(mean, log_var))"
            )
        self.reconstruction, self.kl = check_likelihood(reconstruction), kl
        self.transform = _checked_transform(transform)
        self.weight = weight  # type: ignore[assignment]
        self.reduction = check_reduction(reduction)
        self._has_looked = False  # at what the output depends on

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            value = checked_weight(value)
            if not isinstance(value, nn.Module):
                self._modules.pop("weight", None)  # a number replaces a schedule
        super().__setattr__(name, value)

    def forward(
        self,
        output: Any,
        target: Tensor,
        posterior: Distribution | Sequence[Distribution | None] | None,
        prior: Distribution | Sequence[Distribution | None] | None = None,
        *,
        sample: Tensor | Sequence[Tensor | None] | None = None,
        sample_weight: Tensor | None = None,
        target_mask: Tensor | None = None,
        latent_mask: Tensor | Sequence[Tensor | None] | None = None,
        element_weight: Tensor | None = None,
        kl: Tensor | Sequence[Tensor | None] | None = None,
        sample_log_prob: Tensor | Sequence[Tensor | None] | None = None,
    ) -> ELBOTerms:
        r"""The terms of the bound. For several latent groups, posterior, prior, sample and latent mask are sequences.

        What is masked or weighs 0 counts nothing, in value and gradient, whatever it holds: infinite, or NaN.

        Args:
            output, target: for the likelihood term; dimension 0 of the target is the example.
            posterior, prior: q(z|x) and p(z). ``None``: the standard normal, or uniform categories.
            sample: the latent sample the decoder consumed. A Monte Carlo term uses it instead of drawing its own.
            sample_weight: (N,), multiplies every term of an example.
            target_mask: broadcasts to the target. Elements at 0 or False count nothing.
            latent_mask: broadcasts to the KL of a group: to (N, \*latent) for pairs that factorise, and to (N, T) for
                one distribution at each of T steps. Latents at 0 or False count nothing.
            element_weight: broadcasts to the target, and multiplies its elements' terms.
            kl: a KL that is known, in nats, (N,) or (N, \*latent), in place of the term's. The posterior may then be
                ``None``.
            sample_log_prob: ln q(sample), for a Monte Carlo term and a flow that knows it.
        Raises:
            TypeError: a posterior that is a tensor.
            ValueError: shapes that do not fit; the message holds them. In training, a sample without a gradient where
                the posterior's parameters want one.
        """
        rows = None
        if sample_weight is not None:
            check_sample_weight(sample_weight, len(target))
            rows = sample_weight != 0
        groups = latent_groups(
            posterior, kl, prior=prior, sample=sample, latent_mask=latent_mask, sample_log_prob=sample_log_prob
        )
        if (sample is not None or not self._has_looked) and notices_apply(self):
            self._notice(output, groups)
        reconstruction = self._reconstruction(output, target, target_mask, element_weight, rows)  # (N,)

        weights, zeros, gates = self._weights(len(groups), reconstruction)
        if rows is None and latent_mask is None:
            keeps: list[Tensor | None] = [None] * len(groups)
        else:
            keeps = [counted(g["posterior"], g["prior"], g["kl"], g["latent_mask"], rows) for g in groups]
        values = [
            self._kl_values(group, keep, gates[k % len(gates)])
            for k, (group, keep) in enumerate(zip(groups, keeps, strict=True))
        ]  # (N, *latent) each
        _check_examples(values, reconstruction)

        reconstruction = weighted(reconstruction, sample_weight)
        kl_per_group = [weighted(sum_latent(each.kl), sample_weight) for each in values]  # (N,) each
        kl_of_all = total(kl_per_group)
        transformed = self._transformed(values, keeps, sample_weight)
        if weights is None:
            weights = [current_weight(self.weight, kl_of_all)]
        elif self.training:
            self._observe(reconstruction, kl_per_group, sample_weight)

        reconstruction, kl_of_all = reduce(reconstruction, self.reduction), reduce(kl_of_all, self.reduction)
        if len(weights) == 1:
            in_loss = [kl_of_all if transformed is None else reduce(total(transformed), self.reduction)]
        elif transformed is not None and len(transformed) != len(weights):
            raise ValueError("weight has one entry for each latent group, and the transform joins the groups")
        else:
            in_loss = [reduce(each, self.reduction) for each in (transformed or kl_per_group)]
        loss = reconstruction
        for part_of_loss, weight, zero in zip(in_loss, weights, zeros, strict=True):
            if zero is None:
                loss = loss + torch.where(weight != 0, weight * part_of_loss, 0.0)
            else:
                loss = loss + (self._without_value(groups, part_of_loss) if zero else weight * part_of_loss)
        return ELBOTerms(
            loss=loss,
            negative_elbo=reconstruction + kl_of_all,
            reconstruction=reconstruction,
            kl=kl_of_all,
            weight=weights[0] if len(weights) == 1 else torch.stack(weights),
            kl_per_group=(kl_of_all,)
            if len(groups) == 1
            else tuple(reduce(each, self.reduction) for each in kl_per_group),
        )

    def step(self) -> None:
        """One optimiser step, for every schedule inside. After :func:`kldiv.attach` nobody has to call it."""
        step_schedules(self)

    def _notice(self, output: Any, groups: list[dict[str, Any]]) -> None:
        if not _scores(self):
            for group in groups:
                if isinstance(group["sample"], Tensor) and isinstance(group["posterior"], Distribution):
                    check_sample(group["sample"], group["posterior"])
        if not self._has_looked:
            self._has_looked = warn_of_unreached_posteriors(output, groups)

    def _reconstruction(
        self, output: Any, target: Tensor, mask: Tensor | None, element_weight: Tensor | None, rows: Tensor | None
    ) -> Tensor:
        """-ln p(x|z) of each example, (N,)."""
        if mask is None and element_weight is None and rows is None:
            plain: Tensor = self.reconstruction.per_example(output, target)
            return plain
        given = {} if element_weight is None else {"element_weight": element_weight}
        ours = isinstance(self.reconstruction, NegativeLogLikelihood)
        if rows is not None and ours:  # which also leaves them out of a variance of the batch
            row_mask = align(rows, len(shape_of_elements(self.reconstruction, output, target)))
            mask = row_mask if mask is None else torch.where(row_mask, mask, torch.zeros_like(mask))
        elif rows is not None:
            output, target = masked_output(output, rows), masked_target(target, rows)
        if mask is not None:  # a likelihood of the user's own may take none
            given["mask"] = mask
        nll: Tensor = self.reconstruction.per_example(output, target, **given)
        return nll

    def _weights(self, groups: int, like: Tensor) -> tuple[list[Tensor] | None, list[bool | None], list[Tensor | None]]:
        """What the modules give now, one for all groups or one for each, whether it is 0, and gates for gradients.

        The first is ``None`` for a number: a tensor of the KL's dtype is made of it later.
        """
        weight = self.weight
        if not isinstance(weight, nn.Module):
            return None, [weight == 0], [None]
        parts = list(weight) if isinstance(weight, nn.ModuleList) else [weight]
        if isinstance(weight, nn.ModuleList) and len(parts) != groups:
            raise ValueError(f"weight has {len(parts)} entries and posterior {groups}: one for each latent group")
        weights = [current_weight(part, like) for part in parts]
        zeros = [is_zero(part, value) for part, value in zip(parts, weights, strict=True)]
        unknown = torch.is_grad_enabled() and None in zeros
        gates = [value != 0 if unknown and zero is None else None for value, zero in zip(weights, zeros, strict=True)]
        return weights, zeros, gates

    def _kl_values(self, group: dict[str, Any], keep: Tensor | None, gate: Tensor | None) -> KLValues:
        r"""The KL of a latent group, (N, \*latent), 0 where it is masked.

        Args:
            keep: where the latents count; ``None``: everywhere.
            gate: whether the KL's gradient counts; ``None``: it does.
        """
        if group["kl"] is not None:
            values = _known(group["kl"])
            if gate is not None:
                values = KLValues(values.kl, stop_gradient_unless(gate, values.kl))
        else:
            posterior, prior, sample = group["posterior"], group["prior"], group["sample"]
            if not isinstance(posterior, Distribution):
                check_distributions(_INSTEAD, posterior=posterior)
            if gate is not None:
                posterior, prior, sample = (stop_gradient_unless(gate, each) for each in (posterior, prior, sample))
            if keep is not None:
                posterior, prior, sample = masked_group(posterior, prior, sample, keep)
            log_prob = group["sample_log_prob"]
            if log_prob is None:
                values = self.kl.kl_values(posterior, prior, sample)
            else:
                values = self.kl.kl_values(posterior, prior, sample, sample_log_prob=log_prob)
        if keep is None or group["latent_mask"] is None:
            return values
        shape = values.in_loss.shape
        if shape != keep.shape:
            raise ValueError(
                f"latent_mask {tuple(group['latent_mask'].shape)} masks latent dimensions, and "
                f"{type(self.kl).__name__} gives no KL of one dimension, but {tuple(shape)}. For whole examples write "
                "sample_weight="
            )
        masked = ~keep
        penalty = None if values.penalty is None else values.penalty.masked_fill(masked, 0)
        return KLValues(values.kl.masked_fill(masked, 0), penalty)

    def _transformed(
        self, values: list[KLValues], keeps: list[Tensor | None], sample_weight: Tensor | None
    ) -> list[Tensor] | None:
        """The KL as it enters the loss, (N,) each, weighted by example; ``None`` where it is the KL itself."""
        in_loss, transform = [each.in_loss for each in values], self.transform
        if isinstance(transform, nn.ModuleList):
            if len(transform) != len(values):
                raise ValueError(
                    f"transform has {len(transform)} entries and posterior {len(values)}: one for each latent group"
                )
            each_alone = zip(transform, in_loss, keeps, strict=True)
            transformed = [transform_groups(t, [kl], [keep], sample_weight)[0] for t, kl, keep in each_alone]
        elif transform is not None:
            transformed = transform_groups(transform, in_loss, keeps, sample_weight)
        elif all(each.penalty is None for each in values):
            return None
        else:
            transformed = [weighted(each, sample_weight) for each in in_loss]
        return [sum_latent(each) for each in transformed]

    def _observe(self, reconstruction: Tensor, kls: list[Tensor], sample_weight: Tensor | None) -> None:
        """In training mode a controller notes the terms, (N,) each."""
        if isinstance(self.weight, Controller):
            self.weight.observe(reconstruction, total(kls), sample_weight)
        elif isinstance(self.weight, nn.ModuleList):
            for part, kl in zip(self.weight, kls, strict=True):
                if isinstance(part, Controller):
                    part.observe(reconstruction, kl, sample_weight)

    def _without_value(self, groups: list[dict[str, Any]], in_loss: Tensor) -> Tensor | float:
        """0, with a gradient of 0 for all that the KL depends on: optimisers and DDP count on one."""
        if not in_loss.requires_grad:
            return 0.0
        distributions = [group[name] for group in groups for name in ("posterior", "prior")]
        known = all(each is None or can_be_copied(each) for each in distributions)
        known = known and all(group["kl"] is None for group in groups)
        parameters = [*self.kl.parameters(), *([] if self.transform is None else self.transform.parameters())]
        tensors = [*wanted_tensors(distributions), *parameters] if known else [in_loss]
        never = torch.zeros((), dtype=torch.bool, device=in_loss.device)
        return sum((torch.where(never, each, 0.0).sum().to(in_loss.dtype) for each in tensors), in_loss.new_zeros(()))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if not isinstance(self.weight, nn.Module):  # a schedule's count says nothing to a number
            unexpected_keys[:] = [key for key in unexpected_keys if not key.startswith(f"{prefix}weight.")]

    def extra_repr(self) -> str:
        weight = "" if isinstance(self.weight, nn.Module) else f"weight={self.weight}, "
        return f"{weight}reduction={self.reduction!r}"


def _by_name(value: object) -> str:
    """How to write an argument that was given by position."""
    kind = type(value).__name__
    if isinstance(value, (Stepped, int, float)):
        return f"write weight={value if isinstance(value, (int, float)) else f'kldiv.{kind}(...)'}"
    if isinstance(value, str):
        return f"write reduction={value!r}"
    if isinstance(value, nn.Module):
        return f"write transform=kldiv.{kind}(...)" if isinstance(value, (FreeBits, Capacity)) else "write transform="
    return f"{kind} is none of transform=, weight= and reduction="


def _checked_transform(transform: Any) -> nn.Module | None:
    """The transform, or a ``nn.ModuleList`` of those of the groups.

    Raises: TypeError: one that is no module.
    """
    if isinstance(transform, (list, tuple)):
        return nn.ModuleList([_checked_transform(each) or nn.Identity() for each in transform])
    if not (transform is None or isinstance(transform, nn.Module)):
        raise TypeError(f"transform is a {type(transform).__name__}, and must be a module such as kldiv.FreeBits(0.1)")
    return transform


def _scores(term: Any) -> bool:
    """Whether a bound or a term has the score gradient, which needs none through the sample."""
    gradient = getattr(term, "gradient", None)
    return gradient in ("score", "disarm") or (hasattr(term, "kl") and _scores(term.kl))


def _known(kl: Any) -> KLValues:
    """A KL that was given as numbers."""
    if not (isinstance(kl, Tensor) and kl.is_floating_point() and kl.ndim):
        what = f"of shape () and {kl.dtype}" if isinstance(kl, Tensor) else f"a {type(kl).__name__}"
        raise TypeError(f"kl= is {what}, and must be nats of each example, a tensor (N,) or (N, *latent)")
    (wide,) = widen(kl)
    return KLValues(wide)


def _check_examples(values: list[KLValues], reconstruction: Tensor) -> None:
    """Raises: ValueError: a posterior of another number of examples than the reconstruction."""
    for each in values:
        if each.kl.shape[0] != reconstruction.shape[0]:
            raise ValueError(
                f"the posterior has {each.kl.shape[0]} examples (KL of shape {tuple(each.kl.shape)}) and the "
                f"reconstruction {reconstruction.shape[0]}: dimension 0 is the example for both"
            )
