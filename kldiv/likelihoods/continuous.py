"""Likelihoods of real values: Gaussian, Laplace and Student's t."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from kldiv.distributed import world_sum
from kldiv.likelihoods.base import NegativeLogLikelihood, Output, Prepared
from kldiv.likelihoods.own_parameter import OwnParameter
from kldiv.numerics import keep_precision, standardise, widen
from kldiv.reduction import Reduction, sum_latent

__all__ = [
    "GaussianNLL",
    "LaplaceNLL",
    "LocationScaleNLL",
    "OptimalGaussianNLL",
    "StudentTNLL",
]


class LocationScaleNLL(OwnParameter):
    """What Gaussian, Laplace and Student terms have in common: a location, and the logarithm of a scale.

    The logarithm is the module's own, one for all elements or one for each feature, fixed or learned. Where the decoder
    emits one, its output is the pair (location, logarithm), and this module's own is not used. A subclass names it.
    """

    def with_scale(self, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Location and logarithm of the scale."""
        location, *given = parameters
        _, log_scale = widen(location, given[0] if given else self.own())
        return location, log_scale

    def mean(self, output: Output) -> Tensor:
        """The location."""
        return self.wide(output)[0]

    @torch.no_grad()
    def sample(self, output: Output, *, generator: Generator | None = None) -> Tensor:
        """The location, and noise of the scale."""
        location, log_scale = self.with_scale(self.wide(output))
        noise = self.noise(torch.empty_like(location), generator)
        return location + torch.exp(self.log_deviation(log_scale)) * noise

    def noise(self, like: Tensor, generator: Generator | None) -> Tensor:
        """Draws of location 0 and scale 1, in the shape of an empty tensor that is filled."""
        raise NotImplementedError

    def log_deviation(self, log_scale: Tensor) -> Tensor:
        """The logarithm of what noise of scale 1 is multiplied by."""
        return log_scale


class GaussianNLL(LocationScaleNLL):
    r"""-ln N(target | output, exp(log_var)) in nats, summed over everything but the example.

    .. math:: \tfrac12 \left[\ln 2\pi + \lambda + (t-\mu)^2 e^{-\lambda}\right]

    Args:
        log_var: :math:`\lambda`: a number for all elements or a tensor (K,), one for each feature, the target's last
            dimension; (C, 1, 1) is one for each channel of an image. Fixed, or where the learned one starts.
        learned: whether ``log_var`` is a parameter, (1,) or (K,). Where the decoder emits one for each element, its
            output is the pair ``(mean, log_var)``, and this module's is not used.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
        validate_args: whether the first mask is looked at.
    Raises: ValueError: output and target of unequal shape; a log-variance that is not finite, or not of the target's
        features.
    Source: Kingma & Welling 2014, appendix C.2.

    >>> GaussianNLL()(torch.zeros(4, 2), torch.zeros(4, 2))
    tensor(1.8379)
    """

    own_name = "log_var"
    location_name = "mean"

    def __init__(
        self,
        log_var: float | Tensor = 0.0,
        *,
        learned: bool = False,
        reduction: Reduction = "batchmean",
        validate_args: bool = True,
    ) -> None:
        super().__init__(log_var, learned, reduction, validate_args)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        mean, log_var = self.with_scale(parameters)
        distance = standardise(target - mean, log_var)
        return 0.5 * (math.log(2 * math.pi) + log_var + distance * distance)

    def noise(self, like: Tensor, generator: Generator | None) -> Tensor:
        return like.normal_(generator=generator)

    def log_deviation(self, log_scale: Tensor) -> Tensor:
        return 0.5 * log_scale


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
        validate_args: whether the first mask is looked at.
    Raises: ValueError: output and target of unequal shape; an option out of range. RuntimeError: in eval mode before
        any batch was seen in training mode.
    Source: Rybkin, Daniilidis & Levine 2021 (sigma-VAE).

    Examples that are padding belong in the ``mask``: a ``sample_weight`` of 0 comes too late for the variance. Weights
    of elements weigh in the variance too.

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
        validate_args: bool = True,
    ) -> None:
        super().__init__(reduction, validate_args=validate_args)
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum={momentum} is not in (0, 1]")
        if not math.isfinite(min_log_var):
            raise ValueError(f"min_log_var={min_log_var} is not finite")
        self.momentum, self.min_log_var, self.process_group = momentum, min_log_var, process_group
        self.register_buffer("variance", torch.full((), torch.nan))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        self._has_tracked = False  # known without asking the device
        self.register_load_state_dict_post_hook(_note_what_was_tracked)  # type: ignore[no-untyped-call]

    def per_example(
        self, output: Output, target: Tensor, *, mask: Tensor | None = None, element_weight: Tensor | None = None
    ) -> Tensor:
        given = self.prepared(output, target, mask, element_weight)
        return self._given_variance(given, self._track(given) if self.training else self._tracked())

    def tracked_per_example(
        self, output: Output, target: Tensor, *, mask: Tensor | None = None, element_weight: Tensor | None = None
    ) -> Tensor:
        """Nats per example, (N,), with the tracked variance, whatever the mode: for importance weights."""
        return self._given_variance(self.prepared(output, target, mask, element_weight), self._tracked())

    @torch.no_grad()
    def track(
        self, output: Output, target: Tensor, *, mask: Tensor | None = None, element_weight: Tensor | None = None
    ) -> None:
        """Tracks the variance of a batch that no term is computed of."""
        self._track(self.prepared(output, target, mask, element_weight))

    def mean(self, output: Output) -> Tensor:
        """The output itself."""
        return self.wide(output)[0]

    @torch.no_grad()
    def sample(self, output: Output, *, generator: Generator | None = None) -> Tensor:
        """The output, and noise of the tracked variance."""
        (mean,) = self.wide(output)
        noise = torch.empty_like(mean).normal_(generator=generator)
        return mean + self._tracked().to(mean.dtype).sqrt() * noise

    def _track(self, given: Prepared) -> Tensor:
        """The variance of the batch of all processes, with its gradient, and the tracked one moved towards it."""
        (mean,) = given.parameters
        squares = given.weighed((given.target - mean).square())
        count = squares.new_full((), float(squares.numel()))
        if given.weight is not None:
            count = given.weight.expand(squares.shape).sum()
        elif given.missing is not None:
            count = count - given.missing.expand(squares.shape).sum()
        total, count = world_sum(torch.stack([squares.sum(), count]), self.process_group).unbind()
        variance = (total / torch.where(count > 0, count, 1.0)).clamp(min=math.exp(self.min_log_var))
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

    def _given_variance(self, given: Prepared, variance: Tensor) -> Tensor:
        (mean,) = given.parameters
        variance = variance.to(mean.dtype)
        values = 0.5 * (torch.log(2 * math.pi * variance) + (given.target - mean).square() / variance)
        return sum_latent(given.weighed(values))

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
        log_scale: :math:`\beta`: a number for all elements or a tensor (K,), one for each feature, the target's last
            dimension. Fixed, or where the learned one starts.
        learned: whether ``log_scale`` is a parameter, (1,) or (K,). Where the decoder emits one for each element, its
            output is the pair ``(location, log_scale)``, and this module's is not used.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
        validate_args: whether the first mask is looked at.
    Raises: ValueError: output and target of unequal shape; a logarithm that is not finite, or not of the target's
        features.
    Source: Laplace 1774.

    >>> LaplaceNLL()(torch.zeros(4, 2), torch.zeros(4, 2))
    tensor(1.3863)
    """

    own_name = "log_scale"

    def __init__(
        self,
        log_scale: float | Tensor = 0.0,
        *,
        learned: bool = False,
        reduction: Reduction = "batchmean",
        validate_args: bool = True,
    ) -> None:
        super().__init__(log_scale, learned, reduction, validate_args)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        location, log_scale = self.with_scale(parameters)
        # through its logarithm twice halved: e^-beta alone overflows where the quotient does not
        return math.log(2) + log_scale + standardise(target - location, 2 * log_scale).abs()

    def noise(self, like: Tensor, generator: Generator | None) -> Tensor:
        sign = torch.empty_like(like).uniform_(-1, 1, generator=generator).sign()
        return sign * like.exponential_(generator=generator)


class StudentTNLL(LocationScaleNLL):
    r"""-ln StudentT(target | df, output, exp(log_scale)) in nats, summed over everything but the example.

    .. math:: \ln\frac{\Gamma(\frac\nu2)\sqrt{\nu\pi}}{\Gamma(\frac{\nu+1}2)} + \beta
              + \tfrac{\nu+1}2 \ln\left(1 + \tfrac{(t-\mu)^2}\nu e^{-2\beta}\right)

    Real values with outliers: their gradient falls off instead of growing. ``df`` 1 is a Cauchy distribution, infinity
    a normal one.

    Args:
        df: :math:`\nu`, the degrees of freedom, a positive number.
        log_scale: :math:`\beta`: a number for all elements or a tensor (K,), one for each feature, the target's last
            dimension. Fixed, or where the learned one starts.
        learned: whether ``log_scale`` is a parameter, (1,) or (K,). Where the decoder emits one for each element, its
            output is the pair ``(mean, log_scale)``, and this module's is not used.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
        validate_args: whether the first mask is looked at.
    Raises: ValueError: output and target of unequal shape; degrees of freedom that are not positive; a logarithm that
        is not finite, or not of the target's features.
    Source: Student 1908; Takahashi et al. 2018 (Student-t VAE).

    >>> StudentTNLL(1.0)(torch.zeros(4, 2), torch.zeros(4, 2))  # 2 ln pi
    tensor(2.2895)
    """

    own_name = "log_scale"
    location_name = "mean"

    def __init__(
        self,
        df: float,
        log_scale: float | Tensor = 0.0,
        *,
        learned: bool = False,
        reduction: Reduction = "batchmean",
        validate_args: bool = True,
    ) -> None:
        super().__init__(log_scale, learned, reduction, validate_args)
        if not df > 0:
            raise ValueError(f"df={df} must be positive: 1 is a Cauchy distribution, infinity a normal one")
        self.df = float(df)
        self._log_normaliser = _log_student_normaliser(self.df)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        location, log_scale = self.with_scale(parameters)
        difference = target - location
        if math.isinf(self.df):
            distance = standardise(difference, 2 * log_scale)
            return self._log_normaliser + log_scale + 0.5 * distance * distance
        # ln(1 + r) of r = (t - mu)^2 / (df scale^2), by its logarithm where it would overflow
        log_size = torch.log(torch.where(difference == 0, 1.0, difference).abs())
        log_ratio = 2 * (log_size - log_scale) - math.log(self.df)
        far = (log_ratio > 46) & (difference != 0)
        distance = standardise(torch.where(far, 0.0, difference), 2 * log_scale) / math.sqrt(self.df)
        log_ratio = torch.where(far, log_ratio, 0.0)
        log_term = torch.where(far, log_ratio + torch.log1p(torch.exp(-log_ratio)), torch.log1p(distance * distance))
        return self._log_normaliser + log_scale + 0.5 * (self.df + 1) * log_term

    def mean(self, output: Output) -> Tensor:
        """The location; NaN up to one degree of freedom, where there is no mean."""
        location = self.wide(output)[0]
        return location if self.df > 1 else torch.full_like(location, torch.nan)

    def noise(self, like: Tensor, generator: Generator | None) -> Tensor:
        normal = torch.empty_like(like).normal_(generator=generator)
        if math.isinf(self.df):
            return normal
        chi2 = 2 * torch._standard_gamma(torch.full_like(like, 0.5 * self.df), generator=generator)
        return normal * torch.rsqrt(chi2.clamp(min=torch.finfo(chi2.dtype).tiny) / self.df)

    def extra_repr(self) -> str:
        return f"df={self.df:g}, {super().extra_repr()}"


def _log_student_normaliser(df: float) -> float:
    """ln(Gamma(df/2) sqrt(df pi) / Gamma((df + 1)/2))."""
    x = 0.5 * df
    if x < 30:
        return math.lgamma(x) - math.lgamma(x + 0.5) + 0.5 * math.log(df * math.pi)
    # the difference of the two logarithms is ln(x)/2 less a series in 1/x
    series = 1 / (8 * x) - 1 / (192 * x**3) + 1 / (640 * x**5) - 17 / (14336 * x**7) if math.isfinite(x) else 0.0
    return 0.5 * math.log(2 * math.pi) + series
