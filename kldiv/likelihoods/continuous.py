"""Likelihoods of real values: Gaussian and Laplace."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kldiv.distributed import world_sum
from kldiv.likelihoods.base import NegativeLogLikelihood, Output
from kldiv.numerics import keep_precision, standardise, widen
from kldiv.reduction import Reduction, sum_latent

__all__ = [
    "GaussianNLL",
    "LaplaceNLL",
    "LocationScaleNLL",
    "OptimalGaussianNLL",
]


class LocationScaleNLL(NegativeLogLikelihood):
    """What Gaussian and Laplace terms have in common: a location from the decoder, and the logarithm of a scale.

    The logarithm is one number for all elements, fixed or a parameter. Where the decoder emits one for each element,
    its output is the pair (location, logarithm), and this module's own is not used. A subclass names it.
    """

    log_name: str

    def __init__(self, log_scale: float, learned: bool, reduction: Reduction) -> None:
        super().__init__(reduction)
        if not math.isfinite(log_scale):
            raise ValueError(f"{self.log_name}={log_scale} is not finite")
        self.learned = learned
        setattr(self, self.log_name, nn.Parameter(torch.tensor(float(log_scale))) if learned else float(log_scale))

    def parameters_of(self, output: Output) -> tuple[Tensor, ...]:
        if isinstance(output, Tensor):
            return (output,)
        if len(output) != 2:
            raise ValueError(
                f"{type(self).__name__} takes a location or the pair (location, {self.log_name}) as output, not a "
                f"sequence of {len(output)}"
            )
        return tuple(output)

    def with_scale(self, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Location and logarithm of the scale."""
        location, *given = parameters
        _, log_scale = widen(location, given[0] if given else getattr(self, self.log_name))
        return location, log_scale

    def extra_repr(self) -> str:
        value = getattr(self, self.log_name)
        value = value.item() if isinstance(value, Tensor) else value
        return f"{self.log_name}={value:.4g}, learned={self.learned}, {super().extra_repr()}"


class GaussianNLL(LocationScaleNLL):
    r"""-ln N(target | output, exp(log_var)) in nats, summed over everything but the example.

    .. math:: \tfrac12 \left[\ln 2\pi + \lambda + (t-\mu)^2 e^{-\lambda}\right]

    Args:
        log_var: :math:`\lambda`, one for all elements: a fixed number, or where the learned one starts.
        learned: whether ``log_var`` is a parameter. Where the decoder emits one for each element, its output is the
            pair ``(mean, log_var)``, and this module's is not used.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises: ValueError: output and target of unequal shape; a log-variance that is not finite.
    Source: Kingma & Welling 2014, appendix C.2.

    >>> GaussianNLL()(torch.zeros(4, 2), torch.zeros(4, 2))
    tensor(1.8379)
    """

    log_name = "log_var"

    def __init__(self, log_var: float = 0.0, *, learned: bool = False, reduction: Reduction = "batchmean") -> None:
        super().__init__(log_var, learned, reduction)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        mean, log_var = self.with_scale(parameters)
        distance = standardise(target - mean, log_var)
        return 0.5 * (math.log(2 * math.pi) + log_var + distance * distance)


class OptimalGaussianNLL(NegativeLogLikelihood):
    r"""-ln N(target | output, variance) in nats with the variance that minimises the batch's term.

    .. math:: \tfrac12 \left[\ln 2\pi\sigma^2 + (t-\mu)^2/\sigma^2\right],
              \qquad \sigma^2 = \frac1{|B|} \sum_{B} (t-\mu)^2

    In training mode the variance is that of the batch B, of all its elements and all processes, with its gradient; it
    is tracked. In eval mode it is the one that was tracked, so that the value is a likelihood of the data, which one
    with a variance fitted to these very data is not.

    Args:
        momentum: of the tracked variance, in (0, 1]: it moves by so much of the difference, and in the first batches by
            1/n, a plain mean.
        min_log_var: the logarithm of the least variance, for reconstructions without error.
        process_group: the processes whose batches the variance is of; ``None``: the whole world.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises: ValueError: output and target of unequal shape; an option out of range. RuntimeError: in eval mode before
        any batch was seen in training mode.
    Source: Rybkin, Daniilidis & Levine 2021 (sigma-VAE).

    Examples that are padding belong in the ``mask``: a weight of 0 comes too late for the variance.

    >>> term = OptimalGaussianNLL()
    >>> term(torch.zeros(4, 2), torch.full((4, 2), 2.0))  # two elements of variance 4
    tensor(4.2242)
    """

    variance: Tensor
    batches: Tensor

    def __init__(
        self,
        momentum: float = 0.01,
        *,
        min_log_var: float = -20.0,
        process_group: Any = None,
        reduction: Reduction = "batchmean",
    ) -> None:
        super().__init__(reduction)
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum={momentum} is not in (0, 1]")
        if not math.isfinite(min_log_var):
            raise ValueError(f"min_log_var={min_log_var} is not finite")
        self.momentum, self.min_log_var, self.process_group = momentum, min_log_var, process_group
        self.register_buffer("variance", torch.full((), torch.nan))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        self._has_tracked = False  # known without asking the device
        self.register_load_state_dict_post_hook(_note_what_was_tracked)  # type: ignore[no-untyped-call]

    def per_example(self, output: Output, target: Tensor, mask: Tensor | None = None) -> Tensor:
        (mean,), target, missing = self.prepared(output, target, mask)
        variance = self._track(mean, target, missing) if self.training else self._tracked()
        return self._given_variance(mean, target, missing, variance)

    def tracked_per_example(self, output: Output, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Nats per example, (N,), with the tracked variance, whatever the mode: for importance weights."""
        (mean,), target, missing = self.prepared(output, target, mask)
        return self._given_variance(mean, target, missing, self._tracked())

    @torch.no_grad()
    def track(self, output: Output, target: Tensor, mask: Tensor | None = None) -> None:
        """Tracks the variance of a batch that no term is computed of."""
        (mean,), target, missing = self.prepared(output, target, mask)
        self._track(mean, target, missing)

    def _track(self, mean: Tensor, target: Tensor, missing: Tensor | None) -> Tensor:
        """The variance of the batch of all processes, with its gradient, and the tracked one moved towards it."""
        squares = (target - mean).square()
        count = squares.new_full((), float(squares.numel()))
        if missing is not None:
            squares = squares.masked_fill(missing, 0)
            count = count - missing.expand(squares.shape).sum()
        total, count = world_sum(torch.stack([squares.sum(), count]), self.process_group).unbind()
        variance = (total / count.clamp(min=1)).clamp(min=math.exp(self.min_log_var))
        with torch.no_grad():
            usable = (count > 0) & variance.isfinite()  # not of a batch that overflowed, nor of padding alone
            self.batches += usable
            moved = torch.clamp(1 / self.batches.clamp(min=1).to(variance.dtype), min=self.momentum)
            before = torch.where(self.batches == 1, variance, self.variance.to(variance.dtype))
            self.variance.copy_(torch.where(usable, before + moved * (variance - before), self.variance))
            self._has_tracked = True
        return variance

    def _tracked(self) -> Tensor:
        if not (torch.compiler.is_compiling() or self._has_tracked):
            raise RuntimeError("OptimalGaussianNLL has seen no batch in training mode, and has no variance yet")
        return self.variance

    def _given_variance(self, mean: Tensor, target: Tensor, missing: Tensor | None, variance: Tensor) -> Tensor:
        variance = variance.to(mean.dtype)
        values = 0.5 * (torch.log(2 * math.pi * variance) + (target - mean).square() / variance)
        return sum_latent(values if missing is None else values.masked_fill(missing, 0))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "OptimalGaussianNLL":
        super()._apply(keep_precision(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, min_log_var={self.min_log_var}, {super().extra_repr()}"


def _note_what_was_tracked(term: OptimalGaussianNLL, _: object) -> None:
    term._has_tracked = int(term.batches) > 0


class LaplaceNLL(LocationScaleNLL):
    r"""-ln Laplace(target | output, exp(log_scale)) in nats, summed over everything but the example.

    .. math:: \ln 2 + \beta + |t-\mu| e^{-\beta}

    The absolute error as a likelihood: its minimum over :math:`\mu` is the median.

    Args:
        log_scale: :math:`\beta`, one for all elements: a fixed number, or where the learned one starts.
        learned: whether ``log_scale`` is a parameter. Where the decoder emits one for each element, its output is the
            pair ``(location, log_scale)``, and this module's is not used.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises: ValueError: output and target of unequal shape; a logarithm that is not finite.
    Source: Laplace 1774.

    >>> LaplaceNLL()(torch.zeros(4, 2), torch.zeros(4, 2))
    tensor(1.3863)
    """

    log_name = "log_scale"

    def __init__(self, log_scale: float = 0.0, *, learned: bool = False, reduction: Reduction = "batchmean") -> None:
        super().__init__(log_scale, learned, reduction)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        location, log_scale = self.with_scale(parameters)
        # through its logarithm twice halved: e^-beta alone overflows where the quotient does not
        return math.log(2) + log_scale + standardise(target - location, 2 * log_scale).abs()
