"""Closed forms of the KL divergence on tensors: means, log-variances. Elementwise, in nats, no reduction."""

import torch
from torch import Tensor

from kldiv.special import exact_difference, expm1mx, standardise, widen


def kl_normal(
    mean_p: Tensor,
    log_var_p: Tensor,
    mean_q: Tensor | float | None = None,
    log_var_q: Tensor | float | None = None,
) -> Tensor:
    r"""D_KL(N(mean_p, exp(log_var_p)) || N(mean_q, exp(log_var_q))), per element, in nats.

    .. math:: \tfrac12\left[\varphi(\Delta) + (\mu_p-\mu_q)^2 e^{-\lambda_q}\right],
              \quad \Delta = \lambda_p-\lambda_q, \quad \varphi(u) = e^u - 1 - u

    Args:
        mean_p, log_var_p: :math:`\mu_p, \lambda_p`. Any shapes that broadcast together.
        mean_q, log_var_q: the same of q; ``None`` is that of the standard normal, 0.
    Returns: the broadcast shape, in ``float32`` for half precision and in the widest dtype otherwise. Never negative,
        ``inf`` beyond the dtype's range; relative error below 1e-6 in ``float32`` and 1e-12 in ``float64``.
    Raises: ValueError: if the shapes do not broadcast; the message holds them all.
    Source: Kingma & Welling 2014, appendix B.

    >>> kl_normal(torch.tensor([0.0, 1e-4]), torch.tensor([0.0, 0.0]))
    tensor([0.0000e+00, 5.0000e-09])
    """
    given = {"mean_p": mean_p, "log_var_p": log_var_p, "mean_q": mean_q, "log_var_q": log_var_q}
    check_broadcast(**{name: value.shape for name, value in given.items() if isinstance(value, Tensor)})
    names = [name for name, value in given.items() if value is not None]
    wide = dict(zip(names, widen(*(value for value in given.values() if value is not None)), strict=True))

    mean, log_var = wide["mean_p"], wide["log_var_p"]
    if "mean_q" in wide:
        mean = mean - wide["mean_q"]
    if "log_var_q" in wide:
        ratio, error = exact_difference(log_var, wide["log_var_q"])
        # one step of Taylor's series; the clamp keeps 0 * inf away where the first term is infinite already
        top = 88.72 if ratio.dtype == torch.float32 else 709.7
        spread = expm1mx(ratio) + error * torch.expm1(ratio.clamp(max=top))
        distance = standardise(mean, wide["log_var_q"])
    else:
        spread, distance = expm1mx(log_var), mean
    return 0.5 * (spread + distance * distance)


def check_broadcast(**shapes: torch.Size) -> torch.Size:
    """The shape to which the named shapes broadcast.

    Raises: ValueError: if they do not; the message names each with its shape.

    >>> check_broadcast(mean=torch.Size([3, 1]), log_var=torch.Size([4]))
    torch.Size([3, 4])
    """
    joint: list[int] = []
    for shape in shapes.values():
        longer, shorter = (joint, list(shape)) if len(joint) >= len(shape) else (list(shape), joint)
        joint = list(longer)
        for axis in range(-len(shorter), 0):
            if longer[axis] != shorter[axis] and 1 not in (longer[axis], shorter[axis]):
                raise ValueError(
                    "the shapes do not broadcast: " + ", ".join(f"{name} {tuple(s)}" for name, s in shapes.items())
                )
            joint[axis] = shorter[axis] if longer[axis] == 1 else longer[axis]
    return torch.Size(joint)
