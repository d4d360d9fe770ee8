"""Looks at values, where these wait for no device: which log-probability is NaN, and why."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from kldiv.distributions import Pair

__all__ = [
    "check_nan",
    "is_read_freely",
]


def is_read_freely(tensor: Tensor) -> bool:
    """Whether a look at the values waits for no device and is possible at all."""
    traced = torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None
    return tensor.device.type == "cpu" and not traced


@torch.no_grad()
def check_nan(pair: Pair, sample: Tensor, log_p: Tensor, log_q: Tensor, values: Tensor) -> None:
    """Whether values are numbers. On an accelerator, compiled and under function transforms they stay what they are.

    Raises: ValueError: one is NaN; the message names the distribution whose log-probability is.
    """
    if not (is_read_freely(values) and values.isnan().any()):
        return
    for role, distribution, log in (("first", pair.p, log_p), ("second", pair.q, log_q)):
        if not (count := int(log.isnan().sum())):
            continue
        found = _nan_parameters(distribution)
        if found:
            reason = f"Its parameters hold NaN: {', '.join(found)}"
        elif sample.isnan().any():
            reason = f"The sample holds NaN, at {int(sample.isnan().sum())} of {sample.numel()} numbers"
        else:
            reason = "Its parameters and the sample are numbers: look at the distribution's log_prob"
        raise ValueError(
            f"the log-probability of {type(distribution).__name__}, the {role} of the two distributions, is NaN for "
            f"{count} of {log.numel()} samples. {reason}"
        )
    count = int((log_p - log_q).isnan().sum())
    if not count:  # the entropy, say
        raise ValueError(f"the values of {type(pair.p).__name__} and {type(pair.q).__name__} are NaN")
    ends = sorted({end for log in (log_p, log_q) for end in log[log.isinf()].tolist()})
    raise ValueError(
        f"the log-probabilities of {type(pair.p).__name__} and of {type(pair.q).__name__} are both infinite "
        f"({', '.join(map(str, ends))}) for {count} of {log_p.numel()} samples: these lie at the end of the support "
        "or beyond it, where a sample is rounded to. Draw it in float64, or leave out sample= and it is drawn for you"
    )


def _nan_parameters(distribution: Any, prefix: str = "") -> list[str]:
    found = []
    for name, value in vars(distribution).items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.isnan().any():
            found.append(prefix + name)
        elif isinstance(value, Distribution):
            found += _nan_parameters(value, f"{prefix}{name}.")
    return found
