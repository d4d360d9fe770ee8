"""Normal distributions, given by standard deviations or by log-variances."""

import torch
from torch import Tensor
from torch.distributions import Normal

from kldiv.exact import register_kl
from kldiv.functional import kl_normal
from kldiv.special import expm1mx


@register_kl(Normal, Normal)
def kl_normal_normal(p: Normal, q: Normal) -> Tensor:
    # float64 inside: the digits a logarithm rounds off in float32 are those in which two close scales differ
    scale_p, scale_q = p.scale.double(), q.scale.double()
    excess = (scale_p - scale_q) / scale_q
    near = excess.abs() < 0.5
    log_ratio = torch.where(near, torch.log1p(torch.where(near, excess, 0.0)), torch.log(scale_p) - torch.log(scale_q))
    distance = (p.loc.double() - q.loc.double()) / scale_q
    value = 0.5 * (expm1mx(2 * log_ratio) + distance * distance)
    return value.to(result_dtype(p.loc, q.loc))


def kl_normal_parameters(mean_p: Tensor, log_var_p: Tensor, mean_q: Tensor, log_var_q: Tensor) -> Tensor:
    """:func:`kldiv.functional.kl_normal` of log-variances that may be wider than what they come from."""
    return kl_normal(mean_p, log_var_p, mean_q, log_var_q).to(result_dtype(mean_p, mean_q))


def result_dtype(of_p: Tensor, of_q: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(of_p.dtype, of_q.dtype), torch.float32)


def log_variance(scale: Tensor) -> Tensor:
    return 2 * torch.log(scale.double())
