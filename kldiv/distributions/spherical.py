"""Distributions on the unit sphere: the power spherical, with reparametrised samples, and the uniform."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Gamma, constraints

from kldiv.numerics import check_broadcast, digamma_minus_log, stirling_error, widen

__all__ = [
    "HypersphericalUniform",
    "PowerSpherical",
    "sphere",
]


class _Sphere(constraints.Constraint):
    """Vectors of norm one in the last dimension, as near as half precision keeps it."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        (wide,) = widen(value)
        tolerance = 2e-3 if wide.dtype == value.dtype else 1e-2
        off: Tensor = (torch.linalg.vector_norm(wide, dim=-1) - 1).abs()
        return off <= tolerance


sphere = _Sphere()


class PowerSpherical(Distribution):
    r"""The power spherical distribution on the unit sphere of R^d, about a mean direction.

    .. math:: p(x) = \frac{\Gamma(2b + \kappa)}{4^b \pi^b\, \Gamma(b + \kappa)}
              \left(\frac{1 + \mu^\top x}{2}\right)^\kappa, \qquad b = \frac{d - 1}{2}

    against the surface measure, of the whole sphere :math:`2 \pi^{d/2} / \Gamma(d/2)`. Under it
    :math:`(1 + \mu^\top x)/2` is Beta(b + kappa, b), and the rest of x is uniform.

    Args:
        loc: :math:`\mu`, of shape (*, d), d at least 2: unit vectors. Only their directions are read: the rounding of
            their norms does not matter, and gradients are tangent to the sphere.
        concentration: :math:`\kappa`, not negative, of a shape that broadcasts with (*); 0 is the uniform distribution.
        validate_args: as in torch: whether invalid parameters, and values off the sphere, raise.
    Raises: ValueError: d below 2; shapes that do not broadcast; vectors not of norm 1; a negative or NaN concentration.
    Source: De Cao & Aziz 2020, The Power Spherical distribution, section 2.

    Samples have the dtype of ``loc``; densities and entropies are computed in ``float32`` at least.

    >>> PowerSpherical(torch.tensor([1.0, 0.0, 0.0]), 2.0).log_prob(torch.eye(3))
    tensor([-1.4324, -2.8187, -2.8187])
    """

    arg_constraints = {"loc": sphere, "concentration": constraints.nonnegative}
    support = sphere
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor | float, validate_args: bool | None = None) -> None:
        if not loc.dim() or loc.shape[-1] < 2:
            raise ValueError(
                f"loc of shape {tuple(loc.shape)}: its last dimension holds unit vectors of two components or more. "
                "The circle is d = 2, loc=torch.stack([angle.cos(), angle.sin()], -1)"
            )
        if not isinstance(concentration, Tensor):
            _, concentration = widen(loc, concentration)
        if loc.ndim > 1 and concentration.shape == (*loc.shape[:-1], 1):
            raise ValueError(
                f"concentration {tuple(concentration.shape)} is one for each vector of loc {tuple(loc.shape)}, and "
                f"must have the shape {tuple(loc.shape[:-1])}: write concentration.squeeze(-1)"
            )
        batch_shape = check_broadcast(**{"loc[..., 0]": loc.shape[:-1], "concentration": concentration.shape})
        self.loc = loc.expand(batch_shape + loc.shape[-1:])
        self.concentration = concentration.expand(batch_shape)
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        direction, concentration = self._direction_and_concentration()
        return (direction * (concentration / (2 * self._b + concentration))[..., None]).to(self.loc.dtype)

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        direction, concentration = self._direction_and_concentration()
        alpha, total = self._b + concentration, 2 * self._b + concentration
        along = 4 * (alpha / total) * (self._b / total) / (total + 1)  # of mu.x
        across = 2 * (alpha / total) / (total + 1)
        square = direction * direction
        return (along[..., None] * square + across[..., None] * (1 - square)).to(self.loc.dtype)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PowerSpherical":
        batch_shape = torch.Size(batch_shape)
        new: PowerSpherical = self._get_checked_instance(PowerSpherical, _instance)  # type: ignore[no-untyped-call]
        new.loc, new.concentration = (
            self.loc.expand(batch_shape + self.event_shape),
            self.concentration.expand(batch_shape),
        )
        super(PowerSpherical, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        r""":math:`x = t \mu + \sqrt{1 - t^2}\, v` with v uniform among the unit vectors orthogonal to mu.

        .. math:: t = 2z - 1, \quad z = \frac{g}{g + h} \sim \mathrm{Beta}(b + \kappa, b), \quad
                  g \sim \mathrm{Gamma}(b + \kappa),\ h \sim \mathrm{Gamma}(b)

        Gradients to the concentration are those of torch's reparametrised Gamma, and differentiable once.
        """
        shape = self._extended_shape(sample_shape)
        direction, _ = self._direction_and_concentration()
        # the pair of gammas, and not a beta: 1 - z keeps its digits, and torch's gradient of the beta is off by
        # 30 % in float32 at a concentration of 1e6, by 3 % in float64 at 1e8, and NaN beyond
        alpha = (self._b + self.concentration.double()).expand(shape[:-1])
        towards = Gamma(alpha, torch.ones_like(alpha), validate_args=False).rsample()
        away = Gamma(torch.full_like(alpha, self._b), torch.ones_like(alpha), validate_args=False).sample()
        total = towards + away
        cosine = (1 - 2 * away / total).to(direction.dtype)[..., None]
        sine = (2 * torch.sqrt(towards * away) / total).to(direction.dtype)[..., None]
        across = _uniform_direction(torch.Size((*shape[:-1], shape[-1] - 1)), direction)
        return (cosine * direction + sine * _tangent(direction, across)).to(self.loc.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        loc, concentration, value = widen(self.loc, self.concentration, value)
        opposite, same = _half_chords(loc, value)
        # (1 + mu.x)/2 is the one, and 1 less the other: the smaller of the two has all its digits
        near = opposite < same
        # a chord of 0 passes no gradient on: 0 * inf, or infinite in no direction
        far_part = torch.xlogy(concentration, torch.where(near, 1.0, torch.where(same > 0, same, 0.0)))
        near_part: Tensor = torch.special.xlog1py(concentration, -torch.where(near, opposite, 0.0))
        return near_part + far_part + self._log_normaliser().to(value.dtype)

    def entropy(self) -> Tensor:
        alpha, dtype = self._b + self.concentration.double(), widen(self.loc, self.concentration)[0].dtype
        # minus the mean of ln z under Beta(alpha, b)
        surprise = digamma_minus_log(alpha + self._b) - digamma_minus_log(alpha) + torch.log1p(self._b / alpha)
        return (self.concentration.double() * surprise - self._log_normaliser()).to(dtype)

    def __repr__(self) -> str:
        return f"PowerSpherical(batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"

    @property
    def _b(self) -> float:
        return 0.5 * (self.event_shape[0] - 1)

    def _log_normaliser(self) -> Tensor:
        # ln Gamma(alpha + b) - ln Gamma(alpha) - b ln(4 pi), the difference with Stirling's leading part taken out
        b, alpha = self._b, self._b + self.concentration.double()
        stirling = b * (torch.log(alpha + b) - 1) + alpha * torch.log1p(b / alpha)
        return stirling + stirling_error(alpha + b) - stirling_error(alpha) - b * math.log(4 * math.pi)

    def _direction_and_concentration(self) -> tuple[Tensor, Tensor]:
        loc, concentration = widen(self.loc, self.concentration)
        return loc / torch.linalg.vector_norm(loc, dim=-1, keepdim=True), concentration


class HypersphericalUniform(Distribution):
    r"""The uniform distribution on the unit sphere of R^d: :class:`PowerSpherical` of any ``loc``, concentration 0.

    .. math:: p(x) = \frac{\Gamma(d/2)}{2 \pi^{d/2}}

    Args:
        dim: d, at least 2.
        batch_shape: of so many equal distributions.
        dtype, device: of the samples; densities and entropies are ``float32`` at least.
        validate_args: as in torch: whether values off the sphere raise.
    Raises: ValueError: a ``dim`` below 2.

    >>> HypersphericalUniform(3).entropy()
    tensor(2.5310)
    """

    arg_constraints = {}
    support = sphere
    has_rsample = True

    def __init__(
        self,
        dim: int,
        batch_shape: Any = (),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if dim < 2:
            raise ValueError(
                f"dim={dim}: the sphere needs two dimensions or more; the circle is HypersphericalUniform(2)"
            )
        self.dim = dim
        self._origin = torch.zeros(dim, dtype=dtype, device=device)
        super().__init__(torch.Size(batch_shape), torch.Size([dim]), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self._origin.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        return torch.full_like(self._origin, 1 / self.dim).expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "HypersphericalUniform":
        new = self._get_checked_instance(HypersphericalUniform, _instance)  # type: ignore[no-untyped-call]
        assert isinstance(new, HypersphericalUniform)
        new.dim, new._origin = self.dim, self._origin
        super(HypersphericalUniform, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        (origin,) = widen(self._origin)
        return _uniform_direction(self._extended_shape(sample_shape), origin).to(self._origin.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = check_broadcast(value=value.shape[:-1], batch_shape=self.batch_shape)
        return widen(self._origin, value)[1].new_full(shape, -self._log_area)

    def entropy(self) -> Tensor:
        return widen(self._origin)[0].new_full(self.batch_shape, self._log_area)

    def __repr__(self) -> str:
        return f"HypersphericalUniform({self.dim}, batch_shape={tuple(self.batch_shape)})"

    @property
    def _log_area(self) -> float:
        return math.log(2) + 0.5 * self.dim * math.log(math.pi) - math.lgamma(0.5 * self.dim)


def _half_chords(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`(1 - \cos\theta)/2` and :math:`(1 + \cos\theta)/2` of the angle between x and y, without cancellation.

    .. math:: \frac{|x \mp y|^2 - (|x| - |y|)^2}{4 |x| |y|}

    The norms matter to the second order only, for vectors that were rounded to the sphere.
    """
    norm_x, norm_y = torch.linalg.vector_norm(x, dim=-1), torch.linalg.vector_norm(y, dim=-1)
    radial, scale = (norm_x - norm_y).square(), 4 * norm_x * norm_y
    return ((x - y).square().sum(-1) - radial) / scale, ((x + y).square().sum(-1) - radial) / scale


def _uniform_direction(shape: torch.Size, like: Tensor) -> Tensor:
    noise = torch.randn(shape, dtype=like.dtype, device=like.device)
    # randn gives exact zeros now and then, and a vector of zeros has no direction
    noise = torch.where(noise == 0, 1e-10, noise)
    length: Tensor = torch.linalg.vector_norm(noise, dim=-1, keepdim=True)
    return noise / length


def _tangent(direction: Tensor, across: Tensor) -> Tensor:
    r"""A unit vector of R^(d-1) turned into one orthogonal to the direction, by an isometry of the two spaces.

    It is minus the reflection that takes :math:`e_1` to :math:`-s\mu`, with s the sign of :math:`\mu_1`: of the two
    reflections between the axis and the direction the one that is nowhere singular, in value or gradient.

    .. math:: (0, w) \mapsto \left(s\, m^\top w,\ \frac{m^\top w}{1 + |\mu_1|} m - w\right),
              \quad \mu = (\mu_1, m)
    """
    first, rest = direction[..., :1], direction[..., 1:]
    sign = torch.where(first >= 0, 1.0, -1.0).to(first.dtype)
    dot = (rest * across).sum(-1, keepdim=True)
    return torch.cat([sign * dot, dot / (1 + sign * first) * rest - across], -1)
