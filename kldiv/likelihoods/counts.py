"""Likelihoods of counts: Poisson, negative binomial, and the latter with zeros of their own."""

import torch
from torch import Generator, Tensor
from torch.nn import functional

from kldiv.likelihoods.base import NegativeLogLikelihood, Output
from kldiv.likelihoods.own_parameter import OwnParameter, check_parameters
from kldiv.likelihoods.targets import Support
from kldiv.numerics import bregman_lgamma, broadcast, digamma_minus_log, expm1mx, stirling_error
from kldiv.reduction import Reduction

__all__ = [
    "NegativeBinomialNLL",
    "PoissonNLL",
    "ZeroInflatedNegativeBinomialNLL",
]


class PoissonNLL(NegativeLogLikelihood):
    r"""-ln Poisson(target | exp(output)) of log-rates, in nats, summed over everything but the example.

    .. math:: e^l - t l + \ln t! = t\,\varphi(l - \ln t) + \ln t! - t \ln t + t, \qquad \varphi(u) = e^u - 1 - u

    With the constant, and without the cancellation of its large terms.

    Args:
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
        validate_args: whether the first target is looked at.
    Raises: ValueError: output and target of unequal shape; a first target that is not of counts.
    Source: McCullagh & Nelder 1989, section 6.2, for the deviance.

    >>> PoissonNLL()(torch.zeros(4, 1), torch.zeros(4, 1))
    tensor(1.)
    """

    support = Support(low=0, whole=True)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        (log_rate,) = parameters
        some = target > 0
        count = torch.where(some, target, 1.0)
        log_count = torch.log(count)
        counted = count * expm1mx(torch.where(some, log_rate, 0.0) - log_count) + log_count + stirling_error(count)
        return torch.where(some, counted, torch.exp(log_rate))

    def mean(self, output: Output) -> Tensor:
        """The rate."""
        (log_rate,) = self.wide(output)
        return torch.exp(log_rate)

    @torch.no_grad()
    def sample(self, output: Output, *, generator: Generator | None = None) -> Tensor:
        """Counts."""
        return torch.poisson(self.mean(output), generator=generator)


class NegativeBinomialNLL(OwnParameter):
    r"""-ln NegativeBinomial(target | mean, dispersion) in nats, summed over everything but the example.

    .. math:: -\ln\frac{\Gamma(t + \theta)}{\Gamma(\theta)\, t!} + \theta \ln\left(1 + \tfrac\mu\theta\right)
              + t \ln\left(1 + \tfrac\theta\mu\right)

    Counts of mean :math:`\mu` and variance :math:`\mu + \mu^2/\theta`; for large :math:`\theta` a Poisson
    distribution. Computed in ``float64``.

    Args:
        log_dispersion: :math:`\ln\theta`: a number for all elements or a tensor (K,), one for each feature, the
            target's last dimension. Fixed, or where the learned one starts.
        learned: whether it is a parameter, (1,) or (K,).
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
        validate_args: whether the first target is looked at.
    Raises: ValueError: output and target of unequal shape; a dispersion that is not finite, or not of the target's
        features; a first target that is not of counts.
    Source: Lopez et al. 2018 (scVI), with this mean and inverse dispersion.

    The output is the logarithm of the mean, or the pair ``(log_mean, log_dispersion)``, which broadcast to the target.

    >>> NegativeBinomialNLL()(torch.zeros(4, 1), torch.zeros(4, 1))
    tensor(0.6931)
    """

    own_name = "log_dispersion"
    location_name = "log_mean"
    support = Support(low=0, whole=True)

    def __init__(
        self,
        log_dispersion: float | Tensor = 0.0,
        *,
        learned: bool = False,
        reduction: Reduction = "batchmean",
        validate_args: bool = True,
    ) -> None:
        super().__init__(log_dispersion, learned, reduction, validate_args)

    def check_shapes(self, parameters: tuple[Tensor, ...], target: Tensor) -> None:
        if len(parameters) == 1:
            super().check_shapes(parameters, target)
        else:
            check_parameters(("log_mean", "log_dispersion"), parameters, target)

    def with_dispersion(self, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Logarithms of mean and dispersion, ``float64``."""
        log_mean, *given = parameters
        own = given[0] if given else self.own()
        log_mean = log_mean.double()
        return log_mean, own.double() if isinstance(own, Tensor) else torch.full_like(log_mean, own)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        zeros, counted = _negative_binomial(*self.with_dispersion(parameters), target.double())
        dtype = torch.promote_types(parameters[0].dtype, target.dtype)
        return torch.where(target > 0, counted, zeros).to(dtype)

    def mean(self, output: Output) -> Tensor:
        """The mean."""
        log_mean = broadcast(*self.wide(output))[0]
        return torch.exp(log_mean)

    @torch.no_grad()
    def sample(self, output: Output, *, generator: Generator | None = None) -> Tensor:
        """Counts: of a Poisson distribution, whose rate is gamma distributed."""
        parameters = broadcast(*self.wide(output))
        return _sample(*self.with_dispersion(parameters), generator).to(parameters[0].dtype)


class ZeroInflatedNegativeBinomialNLL(NegativeLogLikelihood):
    r"""-ln of a negative binomial distribution with extra zeros, in nats, summed over everything but the example.

    .. math:: -\ln\left[\sigma(l)\,[t = 0] + \sigma(-l)\, \text{NB}(t \mid \mu, \theta)\right]

    With probability :math:`\sigma(l)` the count is 0 whatever the mean, as where a sequencer misses a gene. The rest is
    :class:`NegativeBinomialNLL`. Computed in ``float64``.

    Args:
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
        validate_args: whether the first target is looked at.
    Raises: ValueError: parameters that do not broadcast to the target; a first target that is not of counts.
    Source: Lopez et al. 2018 (scVI).

    The output is ``(log_mean, log_dispersion, logits)``, logits of an extra zero, which broadcast to the target.

    >>> ZeroInflatedNegativeBinomialNLL()((torch.zeros(4, 1),) * 3, torch.zeros(4, 1))  # 1/2 + 1/4
    tensor(0.2877)
    """

    support = Support(low=0, whole=True)

    def parameters_of(self, output: Output) -> tuple[Tensor, ...]:
        if isinstance(output, Tensor) or len(output) != 3:
            met = f"one tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a sequence of {len(output)}"
            raise ValueError(
                f"ZeroInflatedNegativeBinomialNLL takes (log_mean, log_dispersion, logits of an extra zero) as output, "
                f"not {met}"
            )
        return tuple(output)

    def check_shapes(self, parameters: tuple[Tensor, ...], target: Tensor) -> None:
        check_parameters(("log_mean", "log_dispersion", "logits"), parameters, target)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        log_mean, log_dispersion, logits = (parameter.double() for parameter in parameters)
        zeros, counted = _negative_binomial(log_mean, log_dispersion, target.double())
        # sigma(l) + sigma(-l) e^-b is 1 - sigma(-l) (1 - e^-b): the latter is exact where it is nearly 1
        absent = torch.sigmoid(-logits) * -torch.expm1(-zeros)
        near = absent < 0.5
        far = torch.logaddexp(
            functional.logsigmoid(logits.masked_fill(near, 0)),
            functional.logsigmoid(-logits.masked_fill(near, 0)) - zeros.masked_fill(near, 0),
        )
        of_zero = -torch.where(near, torch.log1p(-absent.masked_fill(~near, 0)), far)
        nats = torch.where(target > 0, counted - functional.logsigmoid(-logits), of_zero)
        return nats.to(torch.promote_types(parameters[0].dtype, target.dtype))

    def mean(self, output: Output) -> Tensor:
        """The mean, extra zeros included."""
        log_mean, _, logits = broadcast(*self.wide(output))
        return torch.exp(log_mean + functional.logsigmoid(-logits))

    @torch.no_grad()
    def sample(self, output: Output, *, generator: Generator | None = None) -> Tensor:
        """Counts."""
        log_mean, log_dispersion, logits = broadcast(*self.wide(output))
        counts = _sample(log_mean.double(), log_dispersion.double(), generator).to(log_mean.dtype)
        return counts * torch.bernoulli(torch.sigmoid(-logits), generator=generator)


def _negative_binomial(log_mu: Tensor, log_theta: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of a count of 0, and of a count t above it, of one shape."""
    log_mu, log_theta, t = broadcast(log_mu, log_theta, t)
    some = t > 0
    t = torch.where(some, t, 1.0)
    log_theta = log_theta.clamp(max=600.0)  # beyond, it is the Poisson distribution to the last digit
    theta = torch.exp(log_theta)
    # ln Gamma(t + theta) - ln Gamma(theta): their difference is rounded away where theta is large
    large = theta > 10
    a, b = torch.where(large, theta, 10.0), torch.where(large, 1.0, theta)
    of_large = bregman_lgamma(a + t, a, t) + t * (torch.log(a) + digamma_minus_log(a))
    # Gamma(theta) = Gamma(1 + theta) / theta, which is infinite where theta underflows
    of_small = torch.lgamma(b + t) - torch.lgamma(1 + b) + torch.where(large, 0.0, log_theta)
    log_binomial = torch.where(large, of_large, of_small) - torch.lgamma(t + 1)
    log_odds = log_mu - log_theta.clamp(min=-1e300)
    # ln(1 + e^u) is -logsigmoid(-u): torch's softplus stops at 20
    zeros = -theta * functional.logsigmoid(-log_odds)
    counted = zeros - t * functional.logsigmoid(torch.where(some, log_odds, 0.0)) - log_binomial
    return zeros, counted


def _sample(log_mu: Tensor, log_theta: Tensor, generator: Generator | None) -> Tensor:
    theta = torch.exp(log_theta.clamp(max=600.0)).expand_as(log_mu)
    ratio = torch._standard_gamma(theta.contiguous(), generator=generator) / theta
    return torch.poisson(ratio * torch.exp(log_mu), generator=generator)
