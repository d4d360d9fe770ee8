"""What numerical integration asks of a distribution: its support, where its mass is, and its density in ``float64``."""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    Kumaraswamy,
    MixtureSameFamily,
    Transform,
    TransformedDistribution,
    VonMises,
    Weibull,
)
from torch.distributions.transforms import (
    ComposeTransform,
    ExpTransform,
    IndependentTransform,
    SigmoidTransform,
)


class Support(NamedTuple):
    """An interval, and the ends of further intervals inside it. A number is an end that never moves."""

    lower: Tensor | float
    upper: Tensor | float
    inner: tuple[Tensor, ...] = ()


def support_of(distribution: Any) -> Support:
    if isinstance(distribution, VonMises):  # torch says real, for an angle may be given modulo 2 pi
        return Support(-math.pi, math.pi)
    if isinstance(distribution, Independent):
        return support_of(distribution.base_dist)
    if isinstance(distribution, MixtureSameFamily):
        component = distribution.component_distribution
        part = support_of(component)
        lower, upper, *inner = (
            end.expand(component.batch_shape) if isinstance(end, Tensor) else end
            for end in (part.lower, part.upper, *part.inner)
        )
        return Support(
            lower.amin(-1) if isinstance(lower, Tensor) else lower,
            upper.amax(-1) if isinstance(upper, Tensor) else upper,
            tuple(end for ends in (lower, upper, *inner) if isinstance(ends, Tensor) for end in ends.unbind(-1)),
        )
    if inspect.getattr_static(type(distribution), "support") is vars(TransformedDistribution)["support"]:
        # that is the codomain of its last transform, which may be more than it reaches
        support = support_of(distribution.base_dist)
        for transform in _single(distribution.transforms):
            support = _image(transform, support)
        return support
    try:
        return _interval(distribution.support)
    except NotImplementedError:
        return Support(-math.inf, math.inf)


def _interval(constraint: object) -> Support:
    lower, upper = getattr(constraint, "lower_bound", -math.inf), getattr(constraint, "upper_bound", math.inf)
    lower, upper = (end.double() if isinstance(end, Tensor) else float(end) for end in (lower, upper))
    return Support(lower, upper)


def _single(transforms: Sequence[Transform]) -> Iterator[Transform]:
    for transform in transforms:
        if isinstance(transform, ComposeTransform):
            yield from _single(transform.parts)
        elif isinstance(transform, IndependentTransform):
            yield transform.base_transform
        else:
            yield transform


def _image(transform: Transform, support: Support) -> Support:
    if _interval(transform.domain) == support:
        return _interval(transform.codomain)
    images = []
    for end in (support.lower, support.upper, *support.inner):
        # an infinite end does not move, and 0 * inf would be its derivative
        if isinstance(end, Tensor):
            image = transform(torch.where(end.isfinite(), end, 0.5))
            images.append(torch.where(end.isfinite(), image, transform(end).detach()))
        else:
            image = transform(torch.tensor(end, dtype=torch.float64))
            images.append(image if math.isfinite(end) else image.detach())
    first, last, *inner = images
    return Support(torch.minimum(first, last), torch.maximum(first, last), tuple(inner))


def without_common_transforms(pair: list[Any]) -> list[Any]:
    """Two distributions of the same divergence: where 1 - x runs out of numbers, the logit of x does not."""
    while all(type(d).log_prob is TransformedDistribution.log_prob and d.transforms for d in pair):
        last = [d.transforms[-1] for d in pair]
        if not isinstance(last[0], (ExpTransform, SigmoidTransform)) or type(last[0]) is not type(last[1]):
            break
        pair = [
            TransformedDistribution(d.base_dist, d.transforms[:-1], validate_args=False)
            if d.transforms[:-1]
            else d.base_dist
            for d in pair
        ]
    return pair


def centers_of(distribution: Any, zeros: Tensor) -> Tensor | None:
    """Where a density may be narrow: a median, mean or mode, and that of each component. (centers, *batch)."""
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
        for transform in _single(distribution.transforms):
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
    """32 quantiles of 1024 draws, (32, *batch): the same each time, with the global generators left as they are."""
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


def inside(support: Support, points: Tensor, zeros: Tensor) -> Tensor:
    """The points, and others in place of those that are no inner points of the support."""
    lower, upper = as_tensor(support.lower, zeros), as_tensor(support.upper, zeros)
    above = torch.where(lower.isfinite(), lower + 1, torch.where(upper.isfinite(), upper - 1, zeros))
    other = torch.where(lower.isfinite() & upper.isfinite(), 0.5 * (lower + upper), above)
    return torch.where(points.isfinite() & (points > lower) & (points < upper), points, other)


def log_density(distribution: Any, x: Tensor) -> Tensor:
    """ln p(x) inside of the support."""
    if type(distribution) in _LOG_DENSITIES:
        return _LOG_DENSITIES[type(distribution)](distribution, x)
    log: Tensor
    if type(distribution).log_prob is MixtureSameFamily.log_prob:
        component, x = distribution.component_distribution, x[..., None]
        lower, upper, _ = support_of(component)
        if isinstance(lower, Tensor) or isinstance(upper, Tensor):
            # a component is not asked outside of its support, where torch may answer all the same
            on = (x > lower) & (x < upper)
            zeros = x.new_zeros(component.batch_shape)
            inner = inside(Support(lower, upper), zeros, zeros)
            log = torch.where(on, log_density(component, torch.where(on, x, inner)), -math.inf)
        else:
            log = log_density(component, x)
        return torch.logsumexp(log + torch.log_softmax(distribution.mixture_distribution.logits, -1), -1)
    log = distribution.log_prob(x)
    return log


def _log_density_of_kumaraswamy(distribution: Kumaraswamy, x: Tensor) -> Tensor:
    a, b, log = distribution.concentration1, distribution.concentration0, x.log()
    return a.log() + b.log() + (a - 1) * log + (b - 1) * (-torch.expm1(a * log)).log()


def _log_density_of_von_mises(distribution: VonMises, x: Tensor) -> Tensor:
    half, kappa = torch.sin(0.5 * (x - distribution.loc)), distribution.concentration
    return -2 * kappa * half * half - torch.log(2 * math.pi * torch.special.i0e(kappa))


def _log_density_of_weibull(distribution: Weibull, x: Tensor) -> Tensor:
    scale, k = distribution.scale, distribution.concentration
    log = (x / scale).log()
    return (k / scale).log() + (k - 1) * log - torch.exp(k * log)


def _log_density_of_generalized_pareto(distribution: Any, x: Tensor) -> Tensor:
    scale: Tensor = distribution.scale
    concentration: Tensor = distribution.concentration
    z = (x - distribution.loc) / scale
    straight = concentration.abs() < 1e-15
    c = torch.where(straight, 1.0, concentration)
    return -scale.log() - (1 + concentration) * torch.where(straight, z, torch.log1p(c * z) / c)


# where torch's own rounds more than it must, or to zero, or takes no float64
_LOG_DENSITIES: dict[type, Callable[[Any, Tensor], Tensor]] = {
    Kumaraswamy: _log_density_of_kumaraswamy,
    VonMises: _log_density_of_von_mises,
    Weibull: _log_density_of_weibull,
    # newer than the oldest torch that is supported
    getattr(torch.distributions, "GeneralizedPareto", type(None)): _log_density_of_generalized_pareto,
}


def expanded(distribution: Distribution, batch_shape: torch.Size) -> Distribution:
    if distribution.batch_shape != batch_shape:
        with contextlib.suppress(NotImplementedError):  # its log_prob may broadcast all the same
            distribution = distribution.expand(batch_shape)
    return distribution


def in_vmap(tensor: Tensor) -> bool:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False


def as_tensor(value: Tensor | float, zeros: Tensor) -> Tensor:
    return value.to(zeros).expand(zeros.shape) if isinstance(value, Tensor) else torch.full_like(zeros, value)


def along(values: Sequence[float], zeros: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """The values along a new first dimension."""
    return torch.tensor(values, dtype=dtype, device=zeros.device).view(-1, *[1] * zeros.dim())
