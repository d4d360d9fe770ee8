"""Likelihood terms of categories, counts and pixels in levels."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kldiv.likelihoods.base import NegativeLogLikelihood, Output
from kldiv.numerics import bregman_lgamma, digamma_minus_log, expm1mx, stirling_error
from kldiv.reduction import Reduction

__all__ = [
    "CategoricalNLL",
    "DiscretizedLogisticMixtureNLL",
    "NegativeBinomialNLL",
    "PoissonNLL",
    "bits_per_dimension",
]


class CategoricalNLL(NegativeLogLikelihood):
    r"""-ln Categorical(target | softmax(output)) of logits, in nats, summed over everything but the example.

    .. math:: \ln\sum_k e^{l_k} - l_t

    Args:
        dim: the dimension of the output that holds the categories: -1, as in a sequence of tokens (N, T, K), or 1, as
            in an image (N, K, H, W).
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises: ValueError: an output whose shape without ``dim`` is not the target's; a target that is not of integers.

    The target holds the categories' numbers from 0, in an integer dtype.

    >>> CategoricalNLL()(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
    tensor(0.6931)
    """

    def __init__(self, dim: int = -1, *, reduction: Reduction = "batchmean") -> None:
        super().__init__(reduction)
        if dim == 0:
            raise ValueError("dim=0 is the example: the categories are in another dimension of the output")
        self.dim = dim

    def check_shapes(self, parameters: tuple[Tensor, ...], target: Tensor) -> None:
        (logits,) = parameters
        if not -logits.ndim <= self.dim < logits.ndim:
            raise ValueError(f"output {tuple(logits.shape)} has no dimension dim={self.dim} for the categories")
        shape = list(logits.shape)
        del shape[self.dim]
        if torch.Size(shape) != target.shape:
            raise ValueError(
                f"output {tuple(logits.shape)} without its dimension {self.dim}, the categories, and target "
                f"{tuple(target.shape)} must have one shape. CategoricalNLL(dim=1) is for images (N, K, H, W)"
            )
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise ValueError(f"the target is of {target.dtype}, and holds the numbers of categories: target.long()")

    def fill(self, parameters: tuple[Tensor, ...], missing: Tensor) -> tuple[Tensor, ...]:
        (logits,) = parameters
        shape = list(logits.shape)
        del shape[self.dim]
        return (logits.masked_fill(missing.expand(shape).unsqueeze(self.dim), 0),)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        (logits,) = parameters
        index = target.long().unsqueeze(self.dim)
        return -torch.log_softmax(logits, self.dim).gather(self.dim, index).squeeze(self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, {super().extra_repr()}"


class PoissonNLL(NegativeLogLikelihood):
    r"""-ln Poisson(target | exp(output)) of log-rates, in nats, summed over everything but the example.

    .. math:: e^l - t l + \ln t! = t\,\varphi(l - \ln t) + \ln t! - t \ln t + t, \qquad \varphi(u) = e^u - 1 - u

    With the constant, and without the cancellation of its large terms.

    Args:
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises: ValueError: output and target of unequal shape.
    Source: McCullagh & Nelder 1989, section 6.2, for the deviance.

    >>> PoissonNLL()(torch.zeros(4, 1), torch.zeros(4, 1))
    tensor(1.)
    """

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        (log_rate,) = parameters
        some = target > 0
        count = torch.where(some, target, 1.0)
        log_count = torch.log(count)
        counted = count * expm1mx(torch.where(some, log_rate, 0.0) - log_count) + log_count + stirling_error(count)
        return torch.where(some, counted, torch.exp(log_rate))


class NegativeBinomialNLL(NegativeLogLikelihood):
    r"""-ln NegativeBinomial(target | mean, dispersion) in nats, summed over everything but the example.

    .. math:: -\ln\frac{\Gamma(t + \theta)}{\Gamma(\theta)\, t!} + \theta \ln\left(1 + \tfrac\mu\theta\right)
              + t \ln\left(1 + \tfrac\theta\mu\right)

    Counts of mean :math:`\mu` and variance :math:`\mu + \mu^2/\theta`; for large :math:`\theta` a Poisson
    distribution. Computed in ``float64``.

    Args:
        log_dispersion: :math:`\ln\theta`, one for all elements: a fixed number, or where the learned one starts.
        learned: whether it is a parameter.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises: ValueError: output and target of unequal shape; a dispersion that is not finite.
    Source: Lopez et al. 2018 (scVI), with this mean and inverse dispersion.

    The output is the logarithm of the mean, or the pair ``(log_mean, log_dispersion)``.

    >>> NegativeBinomialNLL()(torch.zeros(4, 1), torch.zeros(4, 1))
    tensor(0.6931)
    """

    def __init__(
        self, log_dispersion: float = 0.0, *, learned: bool = False, reduction: Reduction = "batchmean"
    ) -> None:
        super().__init__(reduction)
        if not math.isfinite(log_dispersion):
            raise ValueError(f"log_dispersion={log_dispersion} is not finite")
        self.learned = learned
        self.log_dispersion: float | nn.Parameter = (
            nn.Parameter(torch.tensor(float(log_dispersion))) if learned else float(log_dispersion)
        )

    def parameters_of(self, output: Output) -> tuple[Tensor, ...]:
        if isinstance(output, Tensor):
            return (output,)
        if len(output) != 2:
            raise ValueError(
                "NegativeBinomialNLL takes log_mean or (log_mean, log_dispersion) as output, not a sequence of "
                f"{len(output)}"
            )
        return tuple(output)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        log_mean, *given = parameters
        t, log_mu = target.double(), log_mean.double()
        own = given[0] if given else self.log_dispersion
        log_theta = (own if isinstance(own, Tensor) else torch.full_like(log_mu, own)).double().expand_as(log_mu)
        theta = torch.exp(log_theta)
        # ln Gamma(t + theta) - ln Gamma(theta): their difference is rounded away where theta is large
        large = theta > 10
        a, b = torch.where(large, theta, 10.0), torch.where(large, 1.0, theta)
        of_large = bregman_lgamma(a + t, a, t) + t * (torch.log(a) + digamma_minus_log(a))
        of_small = torch.lgamma(b + t) - torch.lgamma(b)
        log_odds = log_mu - log_theta
        log_binomial = torch.where(large, of_large, of_small) - torch.lgamma(t + 1)
        # ln(1 + e^u) is -logsigmoid(-u): torch's softplus stops at 20
        nats = -theta * functional.logsigmoid(-log_odds) - t * functional.logsigmoid(log_odds) - log_binomial
        return nats.to(torch.promote_types(log_mean.dtype, target.dtype))

    def extra_repr(self) -> str:
        value = self.log_dispersion
        value = value.item() if isinstance(value, Tensor) else value
        return f"log_dispersion={value:.4g}, learned={self.learned}, {super().extra_repr()}"


class DiscretizedLogisticMixtureNLL(NegativeLogLikelihood):
    r"""-ln of a mixture of logistic distributions in bins, for images in levels, in nats, summed over a whole image.

    .. math:: -\ln\sum_k \pi_k \left[\sigma\left(\tfrac{t + \delta - \mu_k}{s_k}\right)
              - \sigma\left(\tfrac{t - \delta - \mu_k}{s_k}\right)\right], \qquad \delta = \frac1{2 (L - 1)}

    The first and last of L levels have all that is below and above them, so that the probabilities of all levels sum to
    1. Each element has a mixture of its own: the channels of a pixel are independent given z.

    Args:
        num_components: K, at least 1.
        levels: L, at least 2: the target is level/(L - 1), in [0, 1].
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises: ValueError: an output that is not of three times K times the target's channels; sizes out of range.
    Source: Salimans et al. 2017 (PixelCNN++), section 2.1; Kingma et al. 2016 for one component.

    For a target (N, C, \*rest) the output is one tensor (N, 3 * K * C, \*rest), as a convolution makes it: weights as
    logits, means (in units of the target) and log-scales, each of K times C channels.

    >>> term = DiscretizedLogisticMixtureNLL(2, levels=4)
    >>> output = torch.randn(1, 6, 1).expand(4, 6, 1)
    >>> round(torch.exp(-term.per_example(output, torch.arange(4.0).view(4, 1, 1) / 3)).sum().item(), 5)
    1.0
    """

    def __init__(self, num_components: int, levels: int = 256, *, reduction: Reduction = "batchmean") -> None:
        super().__init__(reduction)
        if num_components < 1 or levels < 2:
            raise ValueError(f"num_components={num_components} must be at least 1 and levels={levels} at least 2")
        self.num_components, self.levels = num_components, levels

    def check_shapes(self, parameters: tuple[Tensor, ...], target: Tensor) -> None:
        (output,) = parameters
        expected = (
            (target.shape[0], 3 * self.num_components * target.shape[1], *target.shape[2:]) if target.ndim > 1 else ()
        )
        if output.shape != expected:
            raise ValueError(
                f"output {tuple(output.shape)} must be (N, 3 * {self.num_components} * C, ...) for the target "
                f"{tuple(target.shape)}, (N, C, ...): logits, means and log-scales of {self.num_components} components"
            )

    def fill(self, parameters: tuple[Tensor, ...], missing: Tensor) -> tuple[Tensor, ...]:
        return parameters

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        (output,) = parameters
        # in float64: the bins of narrow components are far out in their tails
        shape = (len(target), 3, self.num_components, *target.shape[1:])
        logits, mean, log_scale = output.double().reshape(shape).unbind(1)
        t, half = target.double().unsqueeze(1), 0.5 / (self.levels - 1)
        inverse = torch.exp(-log_scale)
        upper, lower = (t - mean + half) * inverse, (t - mean - half) * inverse
        below, above = functional.logsigmoid(upper), functional.logsigmoid(-lower)
        # sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - e^(b - a))
        inside = below + above + torch.log(-torch.expm1(-2 * half * inverse))
        level = t * (self.levels - 1)
        log_mass = torch.where(level < 0.5, below, torch.where(level > self.levels - 1.5, above, inside))
        return -torch.logsumexp(torch.log_softmax(logits, 1) + log_mass, 1).to(target.dtype)

    def extra_repr(self) -> str:
        return f"num_components={self.num_components}, levels={self.levels}, {super().extra_repr()}"


def bits_per_dimension(nats: Tensor, dims: int) -> Tensor:
    """Nats of a whole example in bits of one dimension of it: nats / (dims ln 2).

    Args:
        nats: any shape.
        dims: pixels times channels, at least 1.
    Raises: ValueError: ``dims`` below 1.

    >>> bits_per_dimension(torch.tensor(784 * math.log(2)), 784)
    tensor(1.)
    """
    if dims < 1:
        raise ValueError(f"dims={dims}: an example has at least one dimension")
    return nats / (dims * math.log(2))
