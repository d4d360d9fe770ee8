"""What counts: masks and weights of 0 as booleans, and arguments that hold nothing where they are False."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, OneHotCategorical

from kldiv.distributions import align, factorise, masked_distribution, masked_sample, matched
from kldiv.exact import is_registered_by_user
from kldiv.likelihoods import NegativeLogLikelihood
from kldiv.numerics import check_broadcast

__all__ = [
    "check_sample_weight",
    "counted",
    "masked_group",
    "masked_output",
    "masked_target",
    "shape_of_elements",
]


def check_sample_weight(sample_weight: Tensor, examples: int) -> None:
    """Raises: ValueError: weights of another shape than (N,)."""
    if sample_weight.shape != (examples,):
        raise ValueError(f"sample_weight {tuple(sample_weight.shape)} must have the shape (N,): {examples}")


def counted(
    posterior: Distribution | None, prior: Distribution | None, kl: Tensor | None, mask: Tensor | None, rows: Any
) -> Tensor | None:
    r"""Which latents of a group count, a boolean whose leading dimensions are those of its KL; ``None``: all.

    Args:
        kl: the group's KL where it was given as numbers.
        mask: the latent mask.
        rows: (N,), whether an example counts; or ``None``.
    Raises: ValueError: a mask of another shape than the KL's, or a KL that is not one of each dimension.
    """
    if mask is None:
        return rows if isinstance(rows, Tensor) else None
    shape = kl.shape if kl is not None else _shape_of_kl(posterior, prior, mask)
    _check_mask(mask, shape)
    keep = (mask != 0).expand(shape)
    return keep if rows is None or shape[:1] != rows.shape else keep & align(rows, len(shape))


def _shape_of_kl(posterior: Any, prior: Distribution | None, mask: Tensor) -> torch.Size:
    whole = factorise(posterior)
    if whole is not None and (prior is None or factorise(prior) is not None):
        return whole.batch_shape
    shape = posterior.batch_shape if prior is None else matched(posterior, prior)[0].batch_shape
    if len(shape) < 2:
        raise ValueError(
            f"latent_mask {tuple(mask.shape)} masks latent dimensions, and {type(posterior).__name__} with "
            f"{type(prior).__name__} does not factorise over them: it has one KL for each example. For whole examples "
            "write sample_weight="
        )
    return shape


def _check_mask(mask: Tensor, shape: torch.Size) -> None:
    """Raises: ValueError: a latent mask that does not broadcast to the KL's shape."""
    try:
        fits = check_broadcast(kl=shape, latent_mask=mask.shape) == shape
    except ValueError:
        fits = False
    if not fits:
        how = ""
        if mask.shape == shape[: mask.ndim]:
            how = f": write latent_mask=mask[{', '.join(['...', *['None'] * (len(shape) - mask.ndim)])}]"
        elif mask.ndim > len(shape) and mask.shape[: len(shape)] == shape:
            how = ": this KL is one of each step, write latent_mask=mask[..., 0]"
        raise ValueError(f"latent_mask {tuple(mask.shape)} must broadcast to the KL's shape {tuple(shape)}{how}")


def masked_group(
    posterior: Distribution, prior: Distribution | None, sample: Tensor | None, keep: Tensor
) -> tuple[Distribution, Distribution | None, Tensor | None]:
    """Posterior, prior and sample with standard values where ``keep`` is False."""
    if keep.shape[:1] != posterior.batch_shape[:1]:
        return posterior, prior, sample  # of another number of examples: an error that has its own message
    masked = masked_distribution(posterior, keep)
    if (
        prior is not None
        and not is_registered_by_user(posterior, prior)
        and _is_one_hot(posterior) == _is_one_hot(prior)
    ):
        shape = posterior.batch_shape + posterior.event_shape
        batch = shape[: len(shape) - len(prior.event_shape)]
        if check_broadcast(prior=prior.batch_shape, posterior=batch) == batch:
            prior = masked_distribution(prior, keep, batch)
    if sample is not None and sample.shape[sample.ndim - len(masked.batch_shape + masked.event_shape) :] == (
        masked.batch_shape + masked.event_shape
    ):
        sample = masked_sample(sample, keep, masked)
    return masked, prior, sample


def _is_one_hot(distribution: Any) -> bool | None:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, OneHotCategorical):
        return True
    return False if isinstance(distribution, Categorical) else None


def shape_of_elements(reconstruction: Any, output: Any, target: Tensor) -> torch.Size:
    """The shape that a mask of the target broadcasts to; that of soft labels has no dimension of categories."""
    if not isinstance(reconstruction, NegativeLogLikelihood) or isinstance(output, Distribution):
        return target.shape
    return reconstruction.shape_of_elements(reconstruction.tensors_of(output), target)


def masked_output(output: Any, rows: Tensor) -> Any:
    """A decoder's output, a tensor, a distribution or several, with 0 in the examples that do not count."""
    if isinstance(output, Distribution):
        return masked_distribution(output, rows) if output.batch_shape[:1] == rows.shape else output
    if isinstance(output, (list, tuple)):
        return [masked_output(each, rows) for each in output]
    return masked_target(output, rows) if isinstance(output, Tensor) else output


def masked_target(target: Tensor, rows: Tensor) -> Tensor:
    """A tensor (N, ...) with 0 in the examples that do not count."""
    if target.shape[:1] != rows.shape:
        return target
    return torch.where(align(rows, target.ndim), target, torch.zeros((), dtype=target.dtype, device=target.device))
