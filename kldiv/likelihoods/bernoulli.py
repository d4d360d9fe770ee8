"""Likelihoods of values in [0, 1]: Bernoulli and continuous Bernoulli."""

import torch
from torch import Generator, Tensor

from kldiv.kernels import bernoulli_nll, bernoulli_nll_per_example
from kldiv.likelihoods.base import NegativeLogLikelihood, Output, Prepared
from kldiv.likelihoods.targets import Support
from kldiv.numerics import log_sinc, log_sinc_first

__all__ = [
    "BernoulliNLL",
    "ContinuousBernoulliNLL",
]


class BernoulliNLL(NegativeLogLikelihood):
    r"""-ln Bernoulli(target | sigmoid(output)) of logits, in nats, summed over everything but the example.

    .. math:: -\left[t \ln\sigma(l) + (1-t) \ln\sigma(-l)\right]

    The output is the logits, not probabilities: no sigmoid at the decoder's end. A density for targets 0 and 1; for
    grey values between them it is the cross-entropy that VAEs on MNIST are compared by, no log-likelihood of the data.

    Args:
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
        validate_args: whether the first target is looked at.
    Raises: ValueError: output and target of unequal shape; a first target that is not in [0, 1].
    Source: Kingma & Welling 2014, appendix C.1.

    >>> BernoulliNLL()(torch.zeros(4, 3), torch.ones(4, 3))
    tensor(2.0794)
    """

    support = Support(0, 1)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        (logits,) = parameters
        return bernoulli_nll(logits, target)

    def per_example_of(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        (logits,) = parameters
        return bernoulli_nll_per_example(logits, target)

    def fill(
        self, parameters: tuple[Tensor, ...], target: Tensor, missing: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        (logits,) = parameters
        # a 0 that is certain: 0 nats and a gradient of 0, to the last bit
        return (logits.masked_fill(missing, -1e4),), target.masked_fill(missing, 0)

    def per_example_of_kept(self, given: Prepared) -> Tensor:
        return super().per_example_of_kept(given) if given.weight is not None else self.per_example_of(*given[:2])

    def mean(self, output: Output) -> Tensor:
        """The probability of a 1."""
        (logits,) = self.wide(output)
        return torch.sigmoid(logits)

    @torch.no_grad()
    def sample(self, output: Output, *, generator: Generator | None = None) -> Tensor:
        """Zeros and ones."""
        return torch.bernoulli(self.mean(output), generator=generator)


class ContinuousBernoulliNLL(NegativeLogLikelihood):
    r"""-ln ContinuousBernoulli(target | sigmoid(output)) of logits, in nats, summed over everything but the example.

    .. math:: -\eta t + \ln\frac{e^\eta - 1}{\eta} = |\eta| y - \ln|\eta| + \ln(1 - e^{-|\eta|}),
              \qquad y = \begin{cases}1 - t & \eta > 0\\ t & \eta < 0\end{cases}

    A density on [0, 1], so grey values have a likelihood, which the Bernoulli's cross-entropy is not. It may be
    negative: densities exceed 1.

    Args:
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
        validate_args: whether the first target is looked at.
    Raises: ValueError: output and target of unequal shape; a first target that is not in [0, 1].
    Source: Loaiza-Ganem & Cunningham 2019.

    >>> ContinuousBernoulliNLL()(torch.zeros(4, 3), torch.rand(4, 3))
    tensor(0.)
    """

    support = Support(0, 1)

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        (logits,) = parameters
        size = logits.abs()
        near = size < 0.5
        v, w = torch.where(near, logits, 0.0), torch.where(near, 1.0, size)
        far = w * torch.where(logits > 0, 1 - target, target) - torch.log(w) + torch.log(-torch.expm1(-w))
        return torch.where(near, v * (0.5 - target) + log_sinc(v), far)

    def mean(self, output: Output) -> Tensor:
        r""":math:`1/(1 - e^{-\eta}) - 1/\eta`, in (0, 1)."""
        (logits,) = self.wide(output)
        return 0.5 + log_sinc_first(logits)

    @torch.no_grad()
    def sample(self, output: Output, *, generator: Generator | None = None) -> Tensor:
        """By the inverse of the distribution function."""
        (logits,) = self.wide(output)
        u = torch.empty_like(logits).uniform_(generator=generator)
        size = logits.abs()
        # of a positive logit the mirror image: ln(1 + u (e^-h - 1)) / -h lies near 0
        drawn = torch.log1p(u * torch.expm1(-size)) / -size.clamp(min=1e-30)
        drawn = torch.where(size < 1e-5, u, drawn).clamp(0, 1)
        return torch.where(logits > 0, 1 - drawn, drawn)
