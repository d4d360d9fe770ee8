"""DistributionNLL: the likelihood of a decoder that gives a torch distribution."""

import copy
from typing import Any

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, Independent, constraints, transform_to

from kldiv.likelihoods.base import NegativeLogLikelihood
from kldiv.likelihoods.targets import Seen, joined
from kldiv.numerics import widen
from kldiv.reduction import sum_latent

__all__ = [
    "DistributionNLL",
]


class DistributionNLL(NegativeLogLikelihood):
    r"""-ln p(target) of a decoder's output that is a ``torch.distributions.Distribution``, in nats.

    .. math:: -\ln p(t)

    Any that has ``log_prob``, such as ``Normal(mean, std)`` or a ``MixtureSameFamily``, whose batch and event shape are
    together those of the target. Dimension 0 is the example; everything else is summed.

    Args:
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
        validate_args: whether the first target is looked at. Later ones are not, whatever the distribution's own
            ``validate_args``, which would synchronise every time.
    Raises:
        TypeError: an output that is no distribution.
        ValueError: a distribution of another shape than the target; a first target outside of its support.

    A mask has the shape of ``log_prob(target)``, that of the target without the dimensions of an event, which may also
    be of size 1; those of ``Independent`` can be masked one by one.

    >>> DistributionNLL()(torch.distributions.Normal(torch.zeros(4, 2), 1.0), torch.zeros(4, 2))
    tensor(1.8379)
    """

    def per_example(
        self, output: Any, target: Tensor, *, mask: Tensor | None = None, element_weight: Tensor | None = None
    ) -> Tensor:
        distribution = _elements_of(output, type(self).__name__)
        if not target.ndim:
            raise ValueError("the target has no dimensions, and dimension 0 is the example: add one, x[None]")
        shape = _check_shapes(distribution, target)
        mask, element_weight = (_of_elements(given, target, shape) for given in (mask, element_weight))
        missing = None
        for name, given in (("mask", mask), ("element_weight", element_weight)):
            if given is not None:
                if joined(given.shape, shape) != shape:
                    raise ValueError(
                        f"{name} {tuple(given.shape)} must broadcast to the shape of log_prob(target), {tuple(shape)}"
                    )
                missing = given == 0 if missing is None else missing | (given == 0)
        if missing is not None:
            missing = missing.expand(shape)
            distribution = _without(distribution.expand(shape), missing)
            inside = _value_inside(distribution, target)
            target = torch.where(_unsqueezed(missing, target.ndim), inside, target)
        if self.wants_to_look(target):
            self._look((distribution,), target, mask, None)
        (nats,) = widen(-_unchecked(distribution).log_prob(target))
        if nats.shape != shape:
            raise ValueError(
                f"log_prob of the target {tuple(target.shape)} under {type(distribution).__name__} has the shape "
                f"{tuple(nats.shape)}, and must have {tuple(shape)}"
            )
        if missing is None:
            return sum_latent(nats)
        if element_weight is not None:
            nats = nats * torch.where(missing, 0.0, element_weight.to(nats.dtype))
        return sum_latent(nats.masked_fill(missing, 0))

    def look_at(self, parameters: tuple[Any, ...], target: Tensor, missing: Tensor | None) -> Seen:
        (distribution,) = parameters
        wide = target.to(torch.promote_types(target.dtype, torch.float32))
        try:
            inside = distribution.support.check(target).all()
        except NotImplementedError:  # it says nothing of its support
            inside = wide.isfinite().all()
        return {"low": wide.amin(), "high": wide.amax(), "inside": inside.to(wide.dtype)}

    def check_target(self, seen: dict[str, float], parameters: tuple[Any, ...], target: Tensor) -> None:
        (distribution,) = parameters
        if not seen["inside"]:
            raise ValueError(
                f"the target has values from {seen['low']:g} to {seen['high']:g}, and not all of them are in the "
                f"support of {type(distribution).__name__}. Scale it, choose another distribution, or write mask= "
                "where elements are missing; validate_args=False lets anything pass"
            )

    def mean(self, output: Any) -> Tensor:
        """The distribution's own mean."""
        mean: Tensor = output.mean
        return mean

    @torch.no_grad()
    def sample(self, output: Any, *, generator: Generator | None = None) -> Tensor:
        """The distribution's own sample, which takes no generator: torch's is seeded from it for the time."""
        if generator is None:
            return _drawn(output)
        seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()
        with torch.random.fork_rng():
            torch.manual_seed(int(seed))
            return _drawn(output)


def _drawn(distribution: Distribution) -> Tensor:
    sample: Tensor = distribution.sample()
    return sample


def _elements_of(output: Any, name: str) -> Distribution:
    """The distribution of single elements, where these are independent."""
    if not isinstance(output, Distribution):
        raise TypeError(
            f"{name} takes a torch distribution as output, not a {type(output).__name__}: "
            f"torch.distributions.Normal(mean, std), say. For tensors write kldiv.GaussianNLL() or another"
        )
    distribution = output
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def _check_shapes(distribution: Distribution, target: Tensor) -> torch.Size:
    """The shape of ``log_prob(target)``."""
    batch, event = distribution.batch_shape, distribution.event_shape
    shape = target.shape[: target.ndim - len(event)]
    if not shape or target.shape[len(shape) :] != event or joined(batch, shape) != shape:
        raise ValueError(
            f"{type(distribution).__name__} has the batch shape {tuple(batch)} and the event shape {tuple(event)}, and "
            f"the target {tuple(target.shape)}: together they must be the target's, the example first"
        )
    return shape


def _of_elements(given: Tensor | None, target: Tensor, shape: torch.Size) -> Tensor | None:
    """A mask of the target, without the dimensions of events where these are of size 1."""
    if given is None or given.ndim != target.ndim or set(given.shape[len(shape) :]) - {1}:
        return given
    return given.reshape(given.shape[: len(shape)])


def _unchecked(distribution: Distribution) -> Distribution:
    """A copy that does not validate what its density is asked for."""
    distribution = copy.copy(distribution)
    distribution._validate_args = False
    return distribution


def _unsqueezed(missing: Tensor, dims: int) -> Tensor:
    return missing.view(*missing.shape, *[1] * (dims - missing.ndim))


def _without(distribution: Distribution, missing: Tensor) -> Distribution:
    """The distribution with plain parameters where elements are missing, whatever its own are there.

    It is itself where it is made of other things than its parameters.
    """
    given = {}
    for name, constraint in distribution.arg_constraints.items():
        if name in _ALTERNATIVES and name not in vars(distribution):
            continue
        if any(other in vars(distribution) for other in _ALTERNATIVES.get(name, ())):
            continue
        value = getattr(distribution, name)
        if isinstance(value, Tensor) and value.shape[: missing.ndim] == missing.shape:
            plain = _plain_value(constraint, value)
            value = value if plain is None else torch.where(_unsqueezed(missing, value.ndim), plain, value)
        given[name] = value
    try:
        return type(distribution)(**given, validate_args=False)
    except (TypeError, ValueError):
        return distribution


# parameters that stand for one another, and those that are taken before each
_ALTERNATIVES: dict[str, tuple[str, ...]] = {
    "logits": (),
    "probs": ("logits",),
    "scale_tril": (),
    "covariance_matrix": ("scale_tril",),
    "precision_matrix": ("scale_tril", "covariance_matrix"),
}


def _plain_value(constraint: Any, like: Tensor) -> Tensor | None:
    """A value that meets a constraint, in the shape of a tensor; ``None`` where none is known."""
    if constraint is constraints.simplex:
        return torch.full_like(like, 1 / like.shape[-1])
    try:
        value: Tensor = transform_to(constraint)(torch.zeros_like(like))
    except NotImplementedError:
        return None
    return value if value.shape == like.shape else None


def _value_inside(distribution: Distribution, target: Tensor) -> Tensor:
    """A value of the support in the shape of the target."""
    try:
        support: Any = distribution.support
    except NotImplementedError:
        support = constraints.real
    plain = _plain_value(support, target) if target.is_floating_point() else None
    return torch.zeros_like(target) if plain is None else plain
