"""Normal distributions, given by standard deviations or by log-variances."""

import torch
from torch import Tensor
from torch.distributions import Normal

from kldiv.exact import register_kl
from kldiv.functional import kl_normal


@register_kl(Normal, Normal)
def kl_normal_normal(p: Normal, q: Normal) -> Tensor:
    return kl_normal_parameters(p.loc, log_variance(p.scale), q.loc, log_variance(q.scale))


def kl_normal_parameters(mean_p: Tensor, log_var_p: Tensor, mean_q: Tensor, log_var_q: Tensor) -> Tensor:
    """:func:`kldiv.functional.kl_normal` of log-variances that may be wider than what they come from."""
    dtype = torch.promote_types(torch.promote_types(mean_p.dtype, mean_q.dtype), torch.float32)
    return kl_normal(mean_p, log_var_p, mean_q, log_var_q).to(dtype)


def log_variance(scale: Tensor) -> Tensor:
    # float64: the digits a logarithm rounds off in float32 are those in which two close scales differ
    return 2 * torch.log(scale.double())
