"""Distributions parametrised as networks emit them, and how a distribution falls apart into its dimensions."""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, OneHotCategorical, constraints
from torch.distributions.utils import broadcast_all

from kldiv.functional import check_broadcast
from kldiv.special import standardise, widen


class DiagonalNormal(Distribution):
    r"""N(mean, diag(exp(log_var))): independent normals, given by the log-variance that a network emits.

    .. math:: \ln p(z) = -\tfrac12 \sum_d \left[\ln 2\pi + \lambda_d + (z_d - \mu_d)^2 e^{-\lambda_d}\right]

    Args:
        mean, log_var: :math:`\mu, \lambda`, of shapes that broadcast together.
        event_dim: how many trailing dimensions make one event; the others are the batch. 0: every element by itself.
        validate_args: as in torch: whether NaN parameters raise.
    Raises: ValueError: shapes that do not broadcast or have fewer than ``event_dim`` dimensions; NaN parameters.

    Samples have the dtype of the parameters; densities are computed in ``float32`` at least.

    >>> DiagonalNormal(torch.zeros(2, 3), torch.zeros(2, 3)).log_prob(torch.zeros(2, 3))
    tensor([-2.7568, -2.7568])
    """

    arg_constraints = {"mean": constraints.real, "log_var": constraints.real}
    has_rsample = True

    def __init__(
        self, mean: Tensor | float, log_var: Tensor | float, event_dim: int = 1, validate_args: bool | None = None
    ) -> None:
        check_broadcast(
            **{name: value.shape for name, value in (("mean", mean), ("log_var", log_var)) if isinstance(value, Tensor)}
        )
        self._mean, self.log_var = broadcast_all(mean, log_var)
        shape = self._mean.shape
        if not 0 <= event_dim <= len(shape):
            raise ValueError(
                f"event_dim={event_dim} with parameters of shape {tuple(shape)}: not between 0 and {len(shape)}. "
                "For a single example add the batch dimension, mean[None]; for independent scalars write event_dim=0"
            )
        self.event_dim = event_dim
        split = len(shape) - event_dim
        super().__init__(shape[:split], shape[split:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def mode(self) -> Tensor:
        return self._mean

    @property
    def stddev(self) -> Tensor:
        return torch.exp(0.5 * self.log_var)

    @property
    def variance(self) -> Tensor:
        return torch.exp(self.log_var)

    @property
    def support(self) -> constraints.Constraint:
        if not self.event_dim:
            return constraints.real
        return constraints.independent(constraints.real, self.event_dim)  # type: ignore[no-untyped-call]

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiagonalNormal":
        shape = torch.Size(batch_shape) + self.event_shape
        new: DiagonalNormal = self._get_checked_instance(DiagonalNormal, _instance)  # type: ignore[no-untyped-call]
        new._mean, new.log_var, new.event_dim = self._mean.expand(shape), self.log_var.expand(shape), self.event_dim
        super(DiagonalNormal, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        mean, log_var = widen(self._mean, self.log_var)
        noise = torch.randn(self._extended_shape(sample_shape), dtype=mean.dtype, device=mean.device)
        return (mean + torch.exp(0.5 * log_var) * noise).to(self._mean.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args and value.numel():  # torch cannot check an empty event
            self._validate_sample(value)
        mean, log_var, value = widen(self._mean, self.log_var, value)
        distance = standardise(value - mean, log_var)
        return self._sum_event(-0.5 * (math.log(2 * math.pi) + log_var + distance * distance))

    def entropy(self) -> Tensor:
        (log_var,) = widen(self.log_var)
        return self._sum_event(0.5 * (1 + math.log(2 * math.pi) + log_var))

    def __repr__(self) -> str:
        return f"DiagonalNormal(batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"

    def _sum_event(self, values: Tensor) -> Tensor:
        return sum_rightmost(values, self.event_dim)


def standard_prior(posterior: Distribution, like: Tensor | None = None) -> Distribution:
    """The prior that ``prior=None`` stands for: standard normal on the reals, uniform over categories.

    Args:
        posterior: its support and event shape decide.
        like: a tensor whose dtype and device the prior takes; otherwise the posterior's mean, or a
            draw where it has none.
    Returns: a distribution with an empty batch shape and the posterior's event shape.
    Raises: ValueError: any other support; the message says what to write.

    >>> standard_prior(DiagonalNormal(torch.ones(8, 2), torch.ones(8, 2))).event_shape
    torch.Size([2])
    """
    base, dims = posterior, 0
    while isinstance(base, Independent):
        base, dims = base.base_dist, dims + base.reinterpreted_batch_ndims
    if isinstance(base, (Categorical, OneHotCategorical)):
        uniform = type(base)(logits=base.logits.new_zeros(base.logits.shape[-1 - dims :]))
        return Independent(uniform, dims, validate_args=False) if dims else uniform
    name = type(posterior).__name__
    try:
        support = posterior.support
    except NotImplementedError:
        shape = ", ".join(map(str, posterior.event_shape))
        raise ValueError(
            f"prior=None is the standard normal on the reals or uniform categories, and {name} does not say what its "
            f"support is. Pass the prior: on the reals DiagonalNormal(torch.zeros({shape}), torch.zeros({shape}))"
        ) from None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is not constraints.real:
        raise ValueError(
            f"prior=None is the standard normal on the reals or uniform categories, and {name} has another support "
            f"({type(support).__name__.lstrip('_')}). Pass the prior: prior={type(base).__name__}(...) or another there"
        )
    if like is None:
        try:
            like = posterior.mean
        except NotImplementedError:
            like = posterior.sample()  # a flow, say: only what it draws tells dtype and device
    zeros = like.new_zeros(posterior.event_shape)
    return DiagonalNormal(zeros, zeros, event_dim=len(posterior.event_shape), validate_args=False)


def independent_dims(distribution: Distribution) -> int:
    """How many trailing event dimensions are independent by construction and can be taken off."""
    if not _is_taken_apart(distribution):
        return 0
    if isinstance(distribution, Independent):
        return int(distribution.reinterpreted_batch_ndims)
    assert isinstance(distribution, DiagonalNormal)
    return distribution.event_dim


def _is_taken_apart(distribution: Distribution) -> bool:
    # a subclass with a density of its own is not what its parts are
    kind = type(distribution)
    return (isinstance(distribution, Independent) and kind.log_prob is Independent.log_prob) or (
        isinstance(distribution, DiagonalNormal) and kind.log_prob is DiagonalNormal.log_prob
    )


def take_off(distribution: Distribution, dims: int) -> Distribution:
    """The distribution with ``dims`` of its :func:`independent_dims` read as batch dimensions."""
    left = independent_dims(distribution) - dims
    if isinstance(distribution, DiagonalNormal):
        return DiagonalNormal(distribution.mean, distribution.log_var, left, validate_args=False)
    if not isinstance(distribution, Independent):
        return distribution
    base: Distribution = distribution.base_dist
    return Independent(base, left, validate_args=False) if left else base


def factorise(distribution: Distribution) -> Distribution | None:
    """The distribution of each variable by itself; ``None`` where an event is more than one independent variable.

    A variable has the event shape (), or that of one one-hot vector.

    >>> factorise(DiagonalNormal(torch.zeros(2, 3), torch.zeros(2, 3))).batch_shape
    torch.Size([2, 3])
    """
    while _is_taken_apart(distribution) and (distribution.event_shape or isinstance(distribution, Independent)):
        distribution = take_off(distribution, independent_dims(distribution))
    whole = isinstance(distribution, (DiagonalNormal, Independent)) and not _is_taken_apart(distribution)
    one_variable = not distribution.event_shape or isinstance(distribution, OneHotCategorical)
    return distribution if one_variable and not whole else None


def with_event_dims(distribution: Distribution, dims: int) -> Distribution:
    """The distribution with ``dims`` event dimensions, trailing batch dimensions joined or independent ones taken off.

    Raises: ValueError: event dimensions to take off that are not independent.
    """
    surplus = len(distribution.event_shape) - dims
    if surplus < 0:
        if isinstance(distribution, DiagonalNormal):
            return DiagonalNormal(distribution.mean, distribution.log_var, dims, validate_args=False)
        return Independent(distribution, -surplus, validate_args=False)
    if surplus > independent_dims(distribution):
        raise ValueError(
            f"{type(distribution).__name__} has the event shape {tuple(distribution.event_shape)}, and its dimensions "
            f"are not independent: {dims} event dimensions cannot be had of it"
        )
    return take_off(distribution, surplus)


def widened(distribution: Distribution, dtype: torch.dtype | None = None) -> Distribution:
    """The distribution with its parameters in ``dtype``; ``None``: half-precision ones in ``float32``, others as are.

    >>> widened(torch.distributions.Normal(torch.zeros(2).half(), 1.0)).loc.dtype
    torch.float32
    """
    wide: dict[str, Any] = {}
    converted: dict[int, Tensor] = {}  # one tensor under two names stays one
    for name, value in distribution.__dict__.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            half = value.dtype in (torch.float16, torch.bfloat16)
            wanted = dtype or (torch.float32 if half else value.dtype)
            if wanted != value.dtype:
                new_value = value.to(wanted)
                # compiled code would be of this very tensor, and compile again for the next
                compiling = torch.compiler.is_compiling()
                wide[name] = new_value if compiling else converted.setdefault(id(value), new_value)
        elif isinstance(value, Distribution) and (inner := widened(value, dtype)) is not value:
            wide[name] = inner
    if not wide:
        return distribution
    new = copy.copy(distribution)
    new.__dict__.update(wide)
    return new


def sum_rightmost(values: Tensor, dims: int) -> Tensor:
    """The sum over the last ``dims`` dimensions."""
    return values.flatten(-dims).sum(-1) if dims else values
