"""Centers of a density: medians, means and modes, or quantiles of draws."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily, TransformedDistribution, VonMises

from kldiv.distributions import single_transforms

__all__ = [
    "along",
    "centers_of",
    "expanded",
    "in_vmap",
    "sample_quantiles",
]


def centers_of(distribution: Any, zeros: Tensor) -> Tensor | None:
    """The median, mean or mode of a density or of each component, (centers, *batch); ``None`` where none is known."""
    if isinstance(distribution, Independent):
        return centers_of(distribution.base_dist, zeros)
    if isinstance(distribution, MixtureSameFamily):
        component = distribution.component_distribution
        each = centers_of(component, zeros[..., None].expand(component.batch_shape))
        return None if each is None else each.movedim(-1, 1).flatten(0, 1)
    if isinstance(distribution, VonMises):
        return torch.remainder(distribution.loc + math.pi, 2 * math.pi)[None] - math.pi
    if type(distribution) is TransformedDistribution:
        centers = centers_of(distribution.base_dist, zeros)
        for transform in single_transforms(distribution.transforms):
            centers = None if centers is None else transform(centers)
        return centers
    found: list[Tensor] = []
    with contextlib.suppress(NotImplementedError):
        found.append(zeros + distribution.icdf(zeros + 0.5))
    for name in ("mean", "mode") if not found else ():
        with contextlib.suppress(NotImplementedError):
            found.append(zeros + getattr(distribution, name))
    return torch.where(found[0].isfinite(), found[0], found[-1])[None] if found else None


def sample_quantiles(distribution: Distribution, zeros: Tensor) -> Tensor:
    """32 quantiles of 1024 draws, (32, *batch). The same each time; the global generators are left as they are."""
    cuda = zeros.device.type == "cuda"
    with torch.random.fork_rng(devices=[zeros.device] if cuda else []):
        torch.default_generator.manual_seed(0)
        if cuda:
            torch.cuda.default_generators[zeros.device.index].manual_seed(0)
        try:
            draws = distribution.sample(torch.Size([1024]))
        except NotImplementedError:
            return zeros[None]
    return draws.double().sort(0).values[16::32]


def expanded(distribution: Distribution, batch_shape: torch.Size) -> Distribution:
    """The distribution of this batch shape, where it can be expanded."""
    if distribution.batch_shape != batch_shape:
        with contextlib.suppress(NotImplementedError):  # its log_prob may broadcast all the same
            distribution = distribution.expand(batch_shape)
    return distribution


def in_vmap(tensor: Tensor) -> bool:
    """Whether a tensor is inside ``torch.func.vmap``."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False


def along(values: Sequence[float], zeros: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """The values along a new first dimension."""
    return torch.tensor(values, dtype=dtype, device=zeros.device).view(-1, *[1] * zeros.dim())
