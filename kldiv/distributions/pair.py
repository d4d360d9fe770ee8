"""Pair: p and q of D_KL(p||q), the posterior and the prior in a VAE, and what every comparison asks of them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent

from kldiv.distributions.density import log_prob
from kldiv.distributions.missed_mass import mass_off_support
from kldiv.distributions.parameters import parameter_dtype, parameters_of
from kldiv.distributions.parts import factorise, independent_dims, take_off, with_event_dims
from kldiv.distributions.precision import can_be_copied, give_exact_logits, in_double, widened
from kldiv.distributions.shared_transforms import before_shared_transforms
from kldiv.distributions.support import has_density_everywhere, reaches_beyond
from kldiv.numerics import check_broadcast, widen

__all__ = [
    "GivenSample",
    "Pair",
    "check_distributions",
    "check_measures",
    "matched",
    "result_dtype",
]


class GivenSample(NamedTuple):
    """A sample of p that was given, and what is known of it."""

    shaped: Tensor
    """The sample as estimators see it, of a shape and dtype of theirs."""
    tensor: Tensor
    """The very tensor: a flow may know its inverse for that alone."""
    log_p: Tensor | None = None
    """ln p of it, where that is known."""


class Pair(NamedTuple):
    """p and q as samples of p compare them. :meth:`of` makes one."""

    p: Distribution
    q: Distribution
    dtype: torch.dtype
    """Of the result: the widest of all parameters, ``float32`` at least."""
    parameters: list[Tensor]
    """The tensors that p was made of and that want a gradient; none of another package's."""
    p_can_be_copied: bool
    """Whether all parts of p are torch's or ours: its density takes ``float64`` and its support is known."""
    q_can_be_copied: bool
    transforms_left: int = 0
    """How many transforms at the end of p and of q, the same in both, have been left off."""
    given: "GivenSample | None" = None
    """The sample that was given, where it has to be kept as it is."""

    @classmethod
    def of(cls, p: Distribution, q: Distribution) -> "Pair":
        """The two in ``float64``, without validation, where both can be copied; else what can, in ``float32`` at least.

        A sample rounded to ``float32`` is another sample where a posterior is narrow, and it leaves the support at the
        ends.

        Raises: ValueError: a discrete and a continuous distribution, or categories of unequal number.
        """
        check_measures(p, q)
        copied = can_be_copied(p), can_be_copied(q)
        dtype, parameters = result_dtype(p, q), parameters_of(p) if copied[0] else []
        if all(copied):
            made: dict[int, Tensor] = {}  # a tensor that both hold is one tensor in the copies
            p, q = _in_double(p, made), _in_double(q, made)
        else:
            p, q = (widened(d) if known else d for d, known in zip((p, q), copied, strict=True))
        return cls(p, q, dtype, parameters, *copied)

    def by_dimension(self) -> "Pair":
        """The pair with what is independent in both, dimension by dimension, read as batch dimensions."""
        scalars_p, scalars_q = factorise(self.p), factorise(self.q)
        if scalars_p is not None and scalars_q is not None and scalars_p.event_shape == scalars_q.event_shape:
            return self._replace(p=scalars_p, q=scalars_q)
        dims = min(independent_dims(self.p), independent_dims(self.q))
        return self._replace(p=take_off(self.p, dims), q=take_off(self.q, dims))

    def matched(self, apart: bool = True) -> "Pair":
        """The pair with one event shape: see :func:`matched`."""
        p, q = matched(self.p, self.q, apart)
        return self._replace(p=p, q=q)

    def before_shared_transforms(self) -> "Pair":
        """The pair before the invertible transforms that both end with: by invariance the divergence is the same.

        A map that saturates rounds what it is given: near 1 a number has few digits left of 1 - x.

        Source: invariance, Kullback & Leibler 1951, theorem 4.1.
        """
        p, q, count = before_shared_transforms(self.p, self.q)
        return self._replace(p=p, q=q, transforms_left=count) if count else self

    def log_p(self, x: Tensor) -> Tensor:
        """ln p(x), ``-inf`` off the support of p where that is known."""
        if self.given is not None and self.given.log_p is not None:
            return self.given.log_p
        return log_prob(self.p, x, True) if self.p_can_be_copied else self._log_of_unknown(self.p, x)

    def log_q(self, x: Tensor) -> Tensor:
        """ln q(x), ``-inf`` off the support of q where that is known."""
        return log_prob(self.q, x, True) if self.q_can_be_copied else self._log_of_unknown(self.q, x)

    def _log_of_unknown(self, distribution: Distribution, x: Tensor) -> Tensor:
        """Of another package's distribution: at the very tensor that was given, in the dtype that it takes."""
        shape = x.shape[: x.ndim - len(distribution.event_shape)]
        is_given = self.given is not None and x is self.given.shaped
        if self.given is not None and is_given:
            x = self.given.tensor
        try:
            log = log_prob(distribution, x, False)
        except KeyError as error:
            raise ValueError(
                f"{type(distribution).__name__} has no density at this sample (KeyError: {error}). If its inverse is "
                "only remembered, pass the very tensor that its rsample() has returned last, and choose "
                "gradient='pathwise', which takes no copy of it"
            ) from error
        except RuntimeError as error:
            log = _in_another_dtype(distribution, x, error)
        return log.reshape(shape) if is_given else log

    def reaches_beyond(self) -> Tensor | bool:
        r"""Whether p has mass off the support of q, by their ends, () or (\*batch): then the divergence is inf."""
        return self.p_can_be_copied and self.q_can_be_copied and reaches_beyond(self.p, self.q)

    def missed_mass(self) -> Tensor | float:
        r"""The mass of q off the support of p, (\*batch) or 0. A support that is not told is taken to be everywhere.

        Raises: ValueError: p tells a support, and the mass of q off it is not known.
        """
        mass: Tensor | float | None
        if self.p_can_be_copied and self.q_can_be_copied:
            mass = mass_off_support(self.p, self.q)
        else:
            mass = 0.0 if has_density_everywhere(self.p) else None
        if mass is None:
            raise ValueError(
                f"value='k3' misses the mass of {type(self.q).__name__} where {type(self.p).__name__} has none, which "
                "is not known here: its mean would be less than the KL by that. value='k1' would do"
            )
        return mass

    def widen(self, sample: Tensor) -> Tensor:
        """A sample that was given, in the precision in which p is computed."""
        (sample,) = widen(sample)
        return sample.to(torch.promote_types(sample.dtype, parameter_dtype(self.p)))


def check_distributions(instead: str, **given: object) -> None:
    """Whether the named arguments are distributions.

    Args:
        instead: a sentence that says what to write where one is not.
    Raises: TypeError: one is not; the message names it and its type.
    """
    for name, value in given.items():
        if isinstance(value, Distribution):
            continue
        kind = type(value).__name__
        if isinstance(value, nn.Module):
            raise TypeError(f"{name} is a {kind}, a module: call it, and pass what it returns")
        raise TypeError(f"{name} is a {kind}, and must be a distribution. {instead}")


def result_dtype(p: Distribution, q: Distribution) -> torch.dtype:
    """The widest dtype of the parameters of both, ``float32`` at least."""
    return torch.promote_types(parameter_dtype(p), parameter_dtype(q))


def check_measures(p: Distribution, q: Distribution) -> None:
    """Raises: ValueError: a discrete and a continuous distribution, or categories of unequal number."""
    kinds = [_kind(distribution) for distribution in (p, q)]
    if None not in kinds and kinds[0] != kinds[1]:
        raise ValueError(
            f"p, {type(p).__name__}, is {kinds[0]} and q, {type(q).__name__}, is {kinds[1]}: their densities are of "
            "two kinds and have no ratio"
        )


def matched(posterior: Distribution, prior: Distribution, apart: bool = True) -> tuple[Distribution, Distribution]:
    """The two, taken apart into their dimensions where both factorise and else with one event shape.

    Args:
        apart: ``False``: the posterior's events stay whole.
    Raises: ValueError: a prior larger than the posterior; two of different kinds whose shapes do not fit either.
    """
    try:
        return _matched(posterior, prior, apart)
    except ValueError:
        check_measures(posterior, prior)  # a better reason, where there is one
        raise


def _matched(posterior: Distribution, prior: Distribution, apart: bool) -> tuple[Distribution, Distribution]:
    scalars, prior_scalars = factorise(posterior), factorise(prior)
    if not apart and posterior.event_shape:
        scalars = None
    if scalars is not None and prior_scalars is not None:
        posterior, prior = scalars, prior_scalars
    elif scalars is not None:
        posterior = with_event_dims(scalars, len(prior.event_shape))
    else:
        if prior_scalars is not None and not prior_scalars.event_shape:  # one normal for all dimensions, say
            shape = check_broadcast(prior=prior_scalars.batch_shape, posterior_event=posterior.event_shape)
            prior = prior_scalars.expand(shape)
        prior = with_event_dims(prior, len(posterior.event_shape))
    shape, prior_shape = (d.batch_shape + d.event_shape for d in (posterior, prior))
    if shape != check_broadcast(posterior=shape, prior=prior_shape):
        raise ValueError(
            f"the prior of shape {tuple(prior_shape)} must broadcast to the posterior's, {tuple(shape)}, and not "
            "beyond it"
        )
    return posterior, prior


def _in_double(distribution: Distribution, made: dict[int, Tensor]) -> Distribution:
    if torch.compiler.is_compiling():
        return widened(distribution, torch.float64)
    copied: Distribution = in_double(distribution, [], made)
    give_exact_logits(copied)
    return copied


def _in_another_dtype(distribution: Distribution, x: Tensor, error: RuntimeError) -> Tensor:
    """ln of the density where a network inside takes another dtype than that of the sample.

    Raises: RuntimeError: the error, if it is not about that.
    """
    if not any(word in str(error).lower() for word in ("dtype", "scalar type", "input type")):
        raise error
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        if dtype != x.dtype:
            try:
                return log_prob(distribution, x.to(dtype), False)
            except RuntimeError:
                continue
    raise error


def _kind(distribution: Any) -> str | None:
    """What the distribution's values are, in words; ``None`` where it is not known."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, Categorical):
        return f"of {distribution._num_events} categories"
    if not can_be_copied(distribution):
        return None
    try:
        return "discrete" if distribution.support.is_discrete else "continuous"
    except NotImplementedError:
        return None
