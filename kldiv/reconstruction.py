"""Likelihood terms as modules: decoder output and target to nats."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kldiv.functional import check_broadcast
from kldiv.reduction import check_reduction, reduce, sum_latent
from kldiv.special import standardise, widen

Output = Tensor | Sequence[Tensor]


class NegativeLogLikelihood(nn.Module):
    r"""-ln p(target | output) in nats, called with ``(output, target)``: what likelihood terms have in common.

    A subclass computes :meth:`per_element`; everything else follows. Dimension 0 is the example.

    Args:
        reduction: ``"batchmean"`` (the sum over everything divided by N; 0 for N = 0), ``"sum"`` or ``"none"``: (N,).
    Raises: ValueError: ``"mean"`` and unknown reductions.
    """

    def __init__(self, reduction: str = "batchmean") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        """Nats of each element of the target, in its shape. Arguments are ``float32`` or wider and of one shape."""
        raise NotImplementedError

    def parameters_of(self, output: Output) -> tuple[Tensor, ...]:
        """The likelihood's parameters in the decoder's output."""
        if not isinstance(output, Tensor):
            raise TypeError(f"{type(self).__name__} takes one tensor as output, not a {type(output).__name__}")
        return (output,)

    def forward(self, output: Output, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return reduce(self.per_example(output, target, mask), self.reduction)

    def per_example(self, output: Output, target: Tensor, mask: Tensor | None = None) -> Tensor:
        r"""Nats per example, (N,).

        Args:
            output: what the decoder gives, in the shape of the target.
            target: (N, \*event).
            mask: broadcasts to the target; where it is 0 or False the target is missing and counts nothing, NaN or not.
        Raises: ValueError: output and target of unequal shape; a mask that does not broadcast to them.
        """
        parameters = self.parameters_of(output)
        for parameter in parameters:
            if parameter.shape == target.shape:
                continue
            raise ValueError(
                f"output {tuple(parameter.shape)} and target {tuple(target.shape)} must have one shape: nothing "
                "broadcasts here. Reshape one of them, target.view_as(output) say"
            )
        if not target.ndim:
            raise ValueError("output and target have no dimensions, and dimension 0 is the example: add one, x[None]")
        *wide, target = widen(*parameters, target)
        parameters = tuple(wide)
        if mask is None:
            return sum_latent(self.per_element(parameters, target))
        if check_broadcast(target=target.shape, mask=mask.shape) != target.shape:
            raise ValueError(f"mask {tuple(mask.shape)} must broadcast to the target's shape {tuple(target.shape)}")
        missing = mask == 0
        # filled before and after: what is missing may be NaN, in value and in gradient
        filled = tuple(parameter.masked_fill(missing, 0) for parameter in parameters)
        return sum_latent(self.per_element(filled, target.masked_fill(missing, 0)).masked_fill(missing, 0))

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class BernoulliNLL(NegativeLogLikelihood):
    r"""-ln Bernoulli(target | sigmoid(output)) of logits, in nats, summed over everything but the example.

    .. math:: -\left[t \ln\sigma(l) + (1-t) \ln\sigma(-l)\right]

    The output is the logits, not probabilities: no sigmoid at the decoder's end. A density for targets 0 and 1; for
    grey values between them it is the cross-entropy that VAEs on MNIST are compared by, no log-likelihood of the data.

    Args:
        reduction: ``"batchmean"`` (the sum over everything divided by N; 0 for N = 0), ``"sum"`` or ``"none"``: (N,).
    Raises: ValueError: output and target of unequal shape.
    Source: Kingma & Welling 2014, appendix C.1.

    >>> BernoulliNLL()(torch.zeros(4, 3), torch.ones(4, 3))
    tensor(2.0794)
    """

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        (logits,) = parameters
        # torch's binary_cross_entropy_with_logits is (1 - t) l - ln sigmoid(l), which cancels for l << 0
        return -(target * functional.logsigmoid(logits) + (1 - target) * functional.logsigmoid(-logits))


class GaussianNLL(NegativeLogLikelihood):
    r"""-ln N(target | output, exp(log_var)) in nats, summed over everything but the example.

    .. math:: \tfrac12 \left[\ln 2\pi + \lambda + (t-\mu)^2 e^{-\lambda}\right]

    Args:
        log_var: :math:`\lambda`, one for all elements: a fixed number, or where the learned one starts.
        learned: whether ``log_var`` is a parameter. Where the decoder emits one for each element, its output is the
            pair ``(mean, log_var)``, and this module's is not used.
        reduction: ``"batchmean"`` (the sum over everything divided by N; 0 for N = 0), ``"sum"`` or ``"none"``: (N,).
    Raises: ValueError: output and target of unequal shape; a log-variance that is not finite.
    Source: Kingma & Welling 2014, appendix C.2.

    >>> GaussianNLL()(torch.zeros(4, 2), torch.zeros(4, 2))
    tensor(1.8379)
    """

    def __init__(self, log_var: float = 0.0, *, learned: bool = False, reduction: str = "batchmean") -> None:
        super().__init__(reduction)
        if not math.isfinite(log_var):
            raise ValueError(f"log_var={log_var} is not finite")
        self.learned = learned
        self.log_var: float | nn.Parameter = nn.Parameter(torch.tensor(float(log_var))) if learned else float(log_var)

    def parameters_of(self, output: Output) -> tuple[Tensor, ...]:
        if isinstance(output, Tensor):
            return (output,)
        if len(output) != 2:
            raise ValueError(f"GaussianNLL takes mean or (mean, log_var) as output, not a sequence of {len(output)}")
        return tuple(output)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        mean, *given = parameters
        _, log_var = widen(mean, given[0] if given else self.log_var)
        distance = standardise(target - mean, log_var)
        return 0.5 * (math.log(2 * math.pi) + log_var + distance * distance)

    def extra_repr(self) -> str:
        log_var = self.log_var.item() if isinstance(self.log_var, Tensor) else self.log_var
        return f"log_var={log_var:.4g}, learned={self.learned}, {super().extra_repr()}"
