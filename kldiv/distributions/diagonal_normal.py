"""DiagonalNormal: independent normals, parametrised as a network emits them."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all

from kldiv.numerics import check_broadcast, standardise, sum_rightmost, widen

__all__ = [
    "DiagonalNormal",
]


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
        self,
        mean: Tensor | float,
        log_var: Tensor | float | None = None,
        event_dim: int = 1,
        validate_args: bool | None = None,
        **misnamed: object,
    ) -> None:
        if log_var is None or misnamed:
            raise TypeError(_what_to_write(misnamed))
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


def _what_to_write(misnamed: dict[str, object]) -> str:
    """What would work in place of arguments that a DiagonalNormal does not have."""
    written = {
        **dict.fromkeys(("scale", "std", "stddev", "sigma"), "log_var=2 * {}.log()"),
        **dict.fromkeys(("var", "variance", "covariance"), "log_var={}.log()"),
        **dict.fromkeys(("logvar", "log_variance"), "log_var={}"),
        **dict.fromkeys(("log_scale", "log_std", "log_sigma"), "log_var=2 * {}"),
    }
    for name in misnamed:
        if name in written:
            also = ""
            if "scale" in name or name[0] == "s":
                also = ", or torch.distributions.Independent(torch.distributions.Normal(mean, scale), 1)"
            return (
                f"DiagonalNormal takes the log-variance that a network emits, not {name}=: write "
                f"DiagonalNormal(mean, {written[name].format(name)}){also}"
            )
    found = f"got {', '.join(f'{name}=' for name in misnamed)}" if misnamed else "log_var is missing"
    return f"{found}: write DiagonalNormal(mean, log_var, event_dim=1)"
