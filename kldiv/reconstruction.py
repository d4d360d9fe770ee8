"""Likelihood terms as modules: decoder output and target to nats."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kldiv.exact.continuous_bernoulli import log_sinc
from kldiv.functional import check_broadcast
from kldiv.kernels import fused
from kldiv.kernels.bernoulli import bernoulli_nll, traced_bernoulli_nll
from kldiv.reduction import check_reduction, reduce, sum_latent
from kldiv.special import keep_precision, standardise, widen
from kldiv.world import world_sum

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

    def check_shapes(self, parameters: tuple[Tensor, ...], target: Tensor) -> None:
        """Raises: ValueError: parameters that are not of the target's shape."""
        for parameter in parameters:
            if parameter.shape != target.shape:
                raise ValueError(
                    f"output {tuple(parameter.shape)} and target {tuple(target.shape)} must have one shape: nothing "
                    "broadcasts here. Reshape one of them, target.view_as(output) say"
                )

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
        parameters, target, missing = self.prepared(output, target, mask)
        if missing is None:
            return self.per_example_of(parameters, target)
        return sum_latent(self.per_element(parameters, target).masked_fill(missing, 0))

    def per_example_of(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        """Nats of each example, (N,), nothing of it missing: for a subclass that has them by a shorter way."""
        return sum_latent(self.per_element(parameters, target))

    def prepared(
        self, output: Output, target: Tensor, mask: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
        """Parameters and target in ``float32`` at least, 0 where the target is missing, and where that is."""
        parameters = self.parameters_of(output)
        if not target.ndim:
            raise ValueError("the target has no dimensions, and dimension 0 is the example: add one, x[None]")
        self.check_shapes(parameters, target)
        *wide, target = widen(*parameters, target)
        parameters = tuple(wide)
        if mask is None:
            return parameters, target, None
        if check_broadcast(target=target.shape, mask=mask.shape) != target.shape:
            raise ValueError(f"mask {tuple(mask.shape)} must broadcast to the target's shape {tuple(target.shape)}")
        missing = mask == 0
        # filled before and after: what is missing may be NaN, in value and in gradient
        return self.fill(parameters, missing), target.masked_fill(missing, 0), missing

    def fill(self, parameters: tuple[Tensor, ...], missing: Tensor) -> tuple[Tensor, ...]:
        """The parameters with 0 where the target is missing."""
        return tuple(parameter.masked_fill(missing, 0) for parameter in parameters)

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
        return _bernoulli_nll(logits, target)

    def per_example_of(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        (logits,) = parameters
        if target.ndim > 1 and fused(logits, target):
            return bernoulli_nll(logits, target, _bernoulli_nll)
        return super().per_example_of(parameters, target)


def _bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return traced_bernoulli_nll(logits, target)
    # torch's binary_cross_entropy_with_logits is (1 - t) l - ln sigmoid(l), which cancels for l << 0
    return -(target * functional.logsigmoid(logits) + (1 - target) * functional.logsigmoid(-logits))


class LocationScaleNLL(NegativeLogLikelihood):
    """What Gaussian and Laplace terms have in common: a location from the decoder, and a scale by its logarithm.

    The logarithm is one for all elements, a fixed number or a parameter; where the decoder emits one for each element,
    its output is the pair of location and logarithm, and this module's is not used. A subclass names it.
    """

    log_name: str

    def __init__(self, log_scale: float, learned: bool, reduction: str) -> None:
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
        reduction: ``"batchmean"`` (the sum over everything divided by N; 0 for N = 0), ``"sum"`` or ``"none"``: (N,).
    Raises: ValueError: output and target of unequal shape; a log-variance that is not finite.
    Source: Kingma & Welling 2014, appendix C.2.

    >>> GaussianNLL()(torch.zeros(4, 2), torch.zeros(4, 2))
    tensor(1.8379)
    """

    log_name = "log_var"

    def __init__(self, log_var: float = 0.0, *, learned: bool = False, reduction: str = "batchmean") -> None:
        super().__init__(log_var, learned, reduction)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        mean, log_var = self.with_scale(parameters)
        distance = standardise(target - mean, log_var)
        return 0.5 * (math.log(2 * math.pi) + log_var + distance * distance)


class OptimalGaussianNLL(NegativeLogLikelihood):
    r"""-ln N(target | output, variance) in nats with the variance that makes the batch's term least.

    .. math:: \tfrac12 \left[\ln 2\pi\sigma^2 + (t-\mu)^2/\sigma^2\right],
              \qquad \sigma^2 = \frac1{|B|} \sum_{B} (t-\mu)^2

    In training mode the variance is that of the batch B, of all its elements and all processes, with its gradient; it
    is tracked. In eval mode it is the one that was tracked, so that the value is a likelihood of the data, which one
    with a variance fitted to these very data is not.

    Args:
        momentum: of the tracked variance, in (0, 1]: it moves by so much of the difference, and in the first batches by
            1/n, a plain mean.
        min_log_var: the logarithm of the least variance, for reconstructions without error.
        group: the process group; ``None``: the whole world.
        reduction: ``"batchmean"`` (the sum over everything divided by N; 0 for N = 0), ``"sum"`` or ``"none"``: (N,).
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
        self, momentum: float = 0.01, *, min_log_var: float = -20.0, group: Any = None, reduction: str = "batchmean"
    ) -> None:
        super().__init__(reduction)
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum={momentum} is not in (0, 1]")
        if not math.isfinite(min_log_var):
            raise ValueError(f"min_log_var={min_log_var} is not finite")
        self.momentum, self.min_log_var, self.group = momentum, min_log_var, group
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
        total, count = world_sum(torch.stack([squares.sum(), count]), self.group).unbind()
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
        reduction: ``"batchmean"`` (the sum over everything divided by N; 0 for N = 0), ``"sum"`` or ``"none"``: (N,).
    Raises: ValueError: output and target of unequal shape; a logarithm that is not finite.
    Source: Laplace 1774.

    >>> LaplaceNLL()(torch.zeros(4, 2), torch.zeros(4, 2))
    tensor(1.3863)
    """

    log_name = "log_scale"

    def __init__(self, log_scale: float = 0.0, *, learned: bool = False, reduction: str = "batchmean") -> None:
        super().__init__(log_scale, learned, reduction)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        location, log_scale = self.with_scale(parameters)
        # through its logarithm twice halved: e^-beta alone overflows where the quotient does not
        return math.log(2) + log_scale + standardise(target - location, 2 * log_scale).abs()


class ContinuousBernoulliNLL(NegativeLogLikelihood):
    r"""-ln ContinuousBernoulli(target | sigmoid(output)) of logits, in nats, summed over everything but the example.

    .. math:: -\eta t + \ln\frac{e^\eta - 1}{\eta} = |\eta| y - \ln|\eta| + \ln(1 - e^{-|\eta|}),
              \qquad y = \begin{cases}1 - t & \eta > 0\\ t & \eta < 0\end{cases}

    A density on [0, 1], so grey values have a likelihood, which the Bernoulli's cross-entropy is not. It may be
    negative: densities exceed 1.

    Args:
        reduction: ``"batchmean"`` (the sum over everything divided by N; 0 for N = 0), ``"sum"`` or ``"none"``: (N,).
    Raises: ValueError: output and target of unequal shape.
    Source: Loaiza-Ganem & Cunningham 2019.

    >>> ContinuousBernoulliNLL()(torch.zeros(4, 3), torch.rand(4, 3))
    tensor(0.)
    """

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        (logits,) = parameters
        size = logits.abs()
        near = size < 0.5
        v, w = torch.where(near, logits, 0.0), torch.where(near, 1.0, size)
        far = w * torch.where(logits > 0, 1 - target, target) - torch.log(w) + torch.log(-torch.expm1(-w))
        return torch.where(near, v * (0.5 - target) + log_sinc(v), far)
