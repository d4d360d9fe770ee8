"""ln(sinh(x/2) / (x/2)) and its first two derivatives: what a continuous Bernoulli distribution is normalised by."""

import torch
from torch import Tensor

from kldiv.numerics.special import polynomial

__all__ = [
    "log_sinc",
    "log_sinc_first",
    "log_sinc_second",
    "log_sinc_tail",
    "log_sinc_tail_first",
]


# the coefficients of x^2k, k = 1, 2, ...: B_2k / (2k (2k)!)
_LOG_SINC = (
    1 / 24,
    -1 / 2880,
    1 / 181440,
    -1 / 9676800,
    1 / 479001600,
    -691 / 15692092416000,
    1 / 1046139494400,
    -3617 / 170729965486080000,
    43867 / 91963695909076992000,
    -174611 / 16057153253965824000000,
)
# of the derivatives: of x^(2k - 1), and of x^(2k - 2)
_LOG_SINC_FIRST = tuple(2 * k * c for k, c in enumerate(_LOG_SINC, 1))
_LOG_SINC_SECOND = tuple(2 * k * (2 * k - 1) * c for k, c in enumerate(_LOG_SINC, 1))


def log_sinc(x: Tensor) -> Tensor:
    """ln(sinh(x/2) / (x/2)): the log-normaliser of a continuous Bernoulli distribution, less x/2."""
    x = x.abs()
    small = x < 0.5
    v, w = torch.where(small, x, 0.0), torch.where(small, 1.0, x)
    square = v * v
    series = square * polynomial(square, _LOG_SINC)
    return torch.where(small, series, 0.5 * w + torch.log(-torch.expm1(-w)) - torch.log(w))


def log_sinc_tail(x: Tensor) -> Tensor:
    """log_sinc(x) - \\|x\\|/2, which grows as a logarithm only."""
    size = x.abs()
    small = size < 0.5
    w = torch.where(small, 1.0, size)
    return torch.where(small, log_sinc(torch.where(small, size, 0.0)) - 0.5 * size, _log_tail(w))


def _log_tail(w: Tensor) -> Tensor:
    return torch.log(-torch.expm1(-w)) - torch.log(w)


def log_sinc_tail_first(x: Tensor) -> Tensor:
    """The derivative of :func:`log_sinc_tail`: that of :func:`log_sinc` less half the sign; at 0, less 1/2."""
    sign = torch.where(x < 0, -1.0, 1.0).to(x.dtype)
    size = x.abs()
    small = size < 0.5
    v, w = torch.where(small, x, 0.0), torch.where(small, 1.0, size)
    return torch.where(small, log_sinc_first(v) - 0.5 * sign, sign * (torch.exp(-w) / -torch.expm1(-w) - 1 / w))


def log_sinc_first(x: Tensor) -> Tensor:
    """The derivative of :func:`log_sinc`: the mean of a continuous Bernoulli distribution, less 1/2."""
    small = x.abs() < 0.5
    v, w = torch.where(small, x, 0.0), torch.where(small, 1.0, x)
    series = polynomial(v * v, _LOG_SINC_FIRST)
    return torch.where(small, series * v, 0.5 / torch.tanh(0.5 * w) - 1 / w)


def log_sinc_second(x: Tensor) -> Tensor:
    """The second derivative of :func:`log_sinc`: the variance of a continuous Bernoulli distribution."""
    x = x.abs()
    small = x < 1
    v, w = torch.where(small, x, 0.0), torch.where(small, 2.0, x)
    series = polynomial(v * v, _LOG_SINC_SECOND)
    # 1 / (4 sinh^2(w/2)), which does not overflow
    decay = torch.exp(-w) / torch.expm1(-w).square()
    return torch.where(small, series, 1 / (w * w) - decay)
