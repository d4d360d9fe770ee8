"""The incomplete gamma function, differentiable in its shape too, and the exponential integral."""

import torch
from torch import Tensor

from kldiv.log_gamma import EULER, stirling_error
from kldiv.special import broadcast, expm1mx, gauss_legendre, kl_term


def gamma_tail(shape: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""The regularised incomplete gamma function P, differentiable in both arguments, and its density.

    .. math:: P(a, x) = \frac1{\Gamma(a)}\int_0^x t^{a-1}e^{-t}dt
              = P(a + n, x) + \sum_{k<n}\frac{x^{a+k}e^{-x}}{\Gamma(a+k+1)}, \qquad \frac{x^a e^{-x}}{\Gamma(a + 1)}

    Torch's own has no derivative in the shape, and ten digits. Here the integral is over :math:`w = \ln(t/a)`, in which
    the density is all but normal, by a Gauss-Legendre rule.

    Args:
        shape, x: positive and non-negative, ``float64``; shapes that broadcast.
    """
    shape, x = broadcast(shape, x)
    some = x > 0
    x = torch.where(some, x, 1.0)
    shifts = torch.arange(_SHIFT, dtype=x.dtype, device=x.device)
    shapes = shape[..., None] + shifts
    densities = torch.exp(-kl_term(shapes, x[..., None]) - stirling_error(shapes)) / shapes
    # beyond these bounds less than e^-40 is left
    large = shape + _SHIFT
    reach = torch.sqrt(80 / large)
    low = -(reach + 80 / (3 * large))
    high = torch.clamp(torch.log(x) - torch.log(large), max=reach).clamp(min=low)
    nodes, weights = (torch.tensor(values, dtype=x.dtype, device=x.device) for values in (_NODES, _WEIGHTS))
    w = low[..., None] + (high - low)[..., None] * nodes
    mass = (torch.exp(-large[..., None] * expm1mx(w) - stirling_error(large)[..., None]) * weights).sum(-1) * (
        high - low
    )
    return torch.where(some, mass + densities.sum(-1), 0.0), torch.where(some, densities[..., 0], 0.0)


def exponential_integral(y: Tensor) -> Tensor:
    r""":math:`E_1(e^y) = \int_{e^y}^\infty \frac{e^{-t}}t dt`, elementwise, in ``float64``; about -y for negative y.

    >>> exponential_integral(torch.tensor([-100.0, 0.0, 100.0], dtype=torch.float64))
    tensor([99.4228,  0.2194,  0.0000], dtype=torch.float64)
    """
    near = y < 0.6931
    few = torch.exp(torch.where(near, y, 0.0))
    many = torch.exp(torch.where(near, 1.0, y).clamp(max=7.0))
    fraction = torch.zeros_like(y)
    for k in range(_FRACTION_TERMS, 0, -1):
        fraction = k * k / (many + 2 * k + 1 - fraction)
    return torch.where(near, _power_series(few) - EULER - y, torch.exp(-many) / (many + 1 - fraction))


def _power_series(x: Tensor) -> Tensor:
    # Ein(x) = sum of (-1)^(k+1) x^k / (k k!)
    total, power = torch.zeros_like(x), torch.ones_like(x)
    for k in range(1, _SERIES_TERMS + 1):
        power = power * (-x / k)
        total = total - power / k
    return total


_SERIES_TERMS = 28
_FRACTION_TERMS = 40
_SHIFT = 20
_NODES, _WEIGHTS = gauss_legendre(64)
