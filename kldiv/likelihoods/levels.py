"""Likelihoods of images in levels, and their unit, bits of one dimension."""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

from kldiv.likelihoods.base import NegativeLogLikelihood, Output
from kldiv.likelihoods.targets import Support
from kldiv.reduction import Reduction

__all__ = [
    "DiscretizedLogisticMixtureNLL",
    "bits_per_dimension",
]


class DiscretizedLogisticMixtureNLL(NegativeLogLikelihood):
    r"""-ln of a mixture of logistic distributions in bins, for images in levels, in nats, summed over a whole image.

    .. math:: -\ln\sum_k \pi_k \left[\sigma\left(\tfrac{t + \delta - \mu_k}{s_k}\right)
              - \sigma\left(\tfrac{t - \delta - \mu_k}{s_k}\right)\right], \qquad \delta = \frac1{2 (L - 1)}

    The first and last of L levels have all that is below and above them, so that the probabilities of all levels sum to
    1. Each element has a mixture of its own: the channels of a pixel are independent given z. With ``conditional`` a
    whole pixel has one mixture, in which the mean of a channel moves with the values of the channels before it:
    :math:`\mu_c + \sum_{j<c} \tanh(a_{cj})\, t_j`.

    Args:
        num_components: K, at least 1.
        levels: L, at least 2: the target is level/(L - 1), in [0, 1].
        conditional: whether the channels of a pixel depend on each other.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
        validate_args: whether the first target is looked at.
    Raises: ValueError: an output of another number of channels; sizes out of range; a first target that is not in
        [0, 1].
    Source: Salimans et al. 2017 (PixelCNN++), sections 2.1 and 2.2; Kingma et al. 2016 for one component.

    For a target (N, C, \*rest) the output is one tensor (N, 3 * K * C, \*rest), as a convolution makes it: weights as
    logits, means (in units of the target) and log-scales, each of K times C channels. With ``conditional`` they are K
    logits, K times C means, as many log-scales, and K times C(C - 1)/2 coefficients a, in the order (1, 0), (2, 0),
    (2, 1): 10 K for three channels. A mask is then of whole pixels, (N, 1, \*rest).

    >>> term = DiscretizedLogisticMixtureNLL(2, levels=4)
    >>> output = torch.randn(1, 6, 1).expand(4, 6, 1)
    >>> round(torch.exp(-term.per_example(output, torch.arange(4.0).view(4, 1, 1) / 3)).sum().item(), 5)
    1.0
    """

    support = Support(0, 1)

    def __init__(
        self,
        num_components: int,
        levels: int = 256,
        *,
        conditional: bool = False,
        reduction: Reduction = "batchmean",
        validate_args: bool = True,
    ) -> None:
        super().__init__(reduction, validate_args=validate_args)
        if num_components < 1 or levels < 2:
            raise ValueError(f"num_components={num_components} must be at least 1 and levels={levels} at least 2")
        self.num_components, self.levels, self.conditional = num_components, levels, conditional

    def check_shapes(self, parameters: tuple[Tensor, ...], target: Tensor) -> None:
        (output,) = parameters
        k, channels = self.num_components, target.shape[1] if target.ndim > 1 else 0
        wanted = _channels_of_pixels(k, channels) if self.conditional else 3 * k * channels
        if target.ndim < 2 or output.shape != (target.shape[0], wanted, *target.shape[2:]):
            form = f"(N, {k} * (1 + 2 C + C (C - 1) / 2), ...)" if self.conditional else f"(N, 3 * {k} * C, ...)"
            raise ValueError(
                f"output {tuple(output.shape)} must be {form} for the target {tuple(target.shape)}, (N, C, ...): "
                f"logits, means and log-scales of {k} components{', and coefficients' if self.conditional else ''}"
            )

    def shape_of_elements(self, parameters: tuple[Tensor, ...], target: Tensor) -> torch.Size:
        return torch.Size([len(target), 1, *target.shape[2:]]) if self.conditional else target.shape

    def fill(
        self, parameters: tuple[Tensor, ...], target: Tensor, missing: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        (output,) = parameters
        filled = target.masked_fill(missing, 0)
        if self.conditional:
            return (output.masked_fill(missing, 0),), filled
        shape = (len(target), -1, *target.shape[1:])
        return (output.reshape(shape).masked_fill(missing.expand(target.shape)[:, None], 0).view_as(output),), filled

    def per_element(self, parameters: tuple[Tensor, ...], target: Tensor) -> Tensor:
        (output,) = parameters
        # in float64: the bins of narrow components are far out in their tails
        logits, mean, log_scale, coefficients = self._split(output.double(), target.shape[1])
        t = target.double().unsqueeze(1)
        if self.conditional:
            log_mass = self._log_mass(t, _conditioned(mean, coefficients, t), log_scale).sum(2, keepdim=True)
        else:
            log_mass = self._log_mass(t, mean, log_scale)
        return -torch.logsumexp(torch.log_softmax(logits, 1) + log_mass, 1).to(target.dtype)

    def mean(self, output: Output) -> Tensor:
        """The mean level/(L - 1). Of conditional channels, given the means of those before."""
        (given,) = self.wide(output)
        logits, mean, log_scale, coefficients = self._split(given.double(), self._channels(given))
        if self.conditional:
            means: list[Tensor] = []
            for c in range(mean.shape[2]):
                moved = _mean_of_channel(mean, coefficients, means, c)
                means.append(self._mean_of_levels(moved, log_scale[:, :, c]))
            of_components = torch.stack(means, 2)
        else:
            of_components = self._mean_of_levels(mean, log_scale)
        return (torch.softmax(logits, 1) * of_components).sum(1).to(given.dtype)

    @torch.no_grad()
    def sample(self, output: Output, *, generator: Generator | None = None) -> Tensor:
        """Levels/(L - 1), channel by channel where they are conditional."""
        (given,) = self.wide(output)
        logits, mean, log_scale, coefficients = self._split(given.double(), self._channels(given))
        # the least of exponential variables of these rates
        index = (logits - torch.empty_like(logits).exponential_(generator=generator).log()).argmax(1, keepdim=True)

        def chosen(values: Tensor) -> Tensor:
            shape = list(values.shape)
            shape[1] = 1
            return values.gather(1, index.expand(shape))

        mean, log_scale = chosen(mean), chosen(log_scale)
        u = torch.empty_like(mean).uniform_(1e-12, 1 - 1e-12, generator=generator)
        noise = torch.exp(log_scale) * (u.log() - torch.log1p(-u))
        if not self.conditional:
            return self._nearest_level(mean + noise).squeeze(1).to(given.dtype)
        coefficients = chosen(coefficients)
        drawn: list[Tensor] = []
        for c in range(mean.shape[2]):
            drawn.append(self._nearest_level(_mean_of_channel(mean, coefficients, drawn, c) + noise[:, :, c]))
        return torch.stack(drawn, 2).squeeze(1).to(given.dtype)

    def _channels(self, output: Tensor) -> int:
        """The target's channels."""
        size, k = output.shape[1], self.num_components
        if not self.conditional:
            return size // (3 * k)
        return next((c for c in range(1, size + 1) if _channels_of_pixels(k, c) >= size), 1)

    def _split(self, output: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""Logits, means, log-scales and coefficients, (N, K, C, \*rest) each; a pixel's logits have a C of 1."""
        k, rest = self.num_components, output.shape[2:]
        if not self.conditional:
            logits, mean, log_scale = output.reshape(len(output), 3, k, channels, *rest).unbind(1)
            return logits, mean, log_scale, output[:, :0]
        sizes = [1, channels, channels, channels * (channels - 1) // 2]
        parts = torch.split(output, [k * size for size in sizes], 1)
        logits, mean, log_scale, coefficients = (
            part.reshape(len(output), k, size, *rest) for part, size in zip(parts, sizes, strict=True)
        )
        return logits, mean, log_scale, torch.tanh(coefficients)

    def _log_mass(self, t: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
        """The log-probability of a level under each component."""
        half = 0.5 / (self.levels - 1)
        inverse = torch.exp(-log_scale)
        upper, lower = (t - mean + half) * inverse, (t - mean - half) * inverse
        below, above = functional.logsigmoid(upper), functional.logsigmoid(-lower)
        # sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - e^(b - a))
        inside = below + above + torch.log(-torch.expm1(-2 * half * inverse))
        level = t * (self.levels - 1)
        return torch.where(level < 0.5, below, torch.where(level > self.levels - 1.5, above, inside))

    def _mean_of_levels(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        # a sum of the probabilities to lie above each edge between two levels
        inverse, total = torch.exp(-log_scale), torch.zeros_like(mean)
        for edge in range(self.levels - 1):
            total = total + torch.sigmoid((mean - (edge + 0.5) / (self.levels - 1)) * inverse)
        return total / (self.levels - 1)

    def _nearest_level(self, values: Tensor) -> Tensor:
        return (values.clamp(0, 1) * (self.levels - 1)).round() / (self.levels - 1)

    def extra_repr(self) -> str:
        return (
            f"num_components={self.num_components}, levels={self.levels}, conditional={self.conditional}, "
            f"{super().extra_repr()}"
        )


def _channels_of_pixels(components: int, channels: int) -> int:
    """The channels of the output where those of a pixel are conditional."""
    return components * (1 + 2 * channels + channels * (channels - 1) // 2)


def _conditioned(mean: Tensor, coefficients: Tensor, t: Tensor) -> Tensor:
    """The means of all channels, given the values t of those before."""
    before = list(t.unbind(2))
    return torch.stack([_mean_of_channel(mean, coefficients, before, c) for c in range(mean.shape[2])], 2)


def _mean_of_channel(mean: Tensor, coefficients: Tensor, before: list[Tensor], channel: int) -> Tensor:
    first = channel * (channel - 1) // 2
    moved = mean[:, :, channel]
    for j in range(channel):
        moved = moved + coefficients[:, :, first + j] * before[j]
    return moved


def bits_per_dimension(nats: Tensor, dims: int, bin_width: float = 1.0) -> Tensor:
    r"""Nats of a whole example in bits of one dimension of it: nats / (dims ln 2) - log2(bin_width).

    Nats of a density count no bits by themselves: they change with the unit of the data. A level's probability is about
    the density times the width of its bin, so a density on [0, 1] of images of 256 levels has 8 bits more.

    Args:
        nats: any shape.
        dims: pixels times channels, at least 1.
        bin_width: the distance of two levels in the units of a density: 1/256 for an image of 256 levels on [0, 1];
            1 for probabilities, as :class:`DiscretizedLogisticMixtureNLL` and :class:`CategoricalNLL` give.
    Raises: ValueError: ``dims`` below 1; a width that is not positive.
    Source: Theis, van den Oord & Bethge 2016, section 3.1.

    >>> bits_per_dimension(torch.tensor(784 * math.log(2)), 784)
    tensor(1.)
    >>> bits_per_dimension(torch.tensor(0.0), 784, bin_width=1 / 256)
    tensor(8.)
    """
    if dims < 1:
        raise ValueError(f"dims={dims}: an example has at least one dimension")
    if not 0 < bin_width < math.inf:
        raise ValueError(f"bin_width={bin_width} must be positive: 1 / 256 for an image of 256 levels on [0, 1]")
    return nats / (dims * math.log(2)) - math.log2(bin_width)
