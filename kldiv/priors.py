"""Learned priors: modules that return a distribution, the mixture of normals and the VampPrior."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    OneHotCategorical,
    constraints,
)

from kldiv.distributions import DiagonalNormal, DiagonalNormalMixture, factorise, log_variance, with_event_dims
from kldiv.numerics import widen

__all__ = [
    "MixturePrior",
    "VampPrior",
    "standard_prior",
]


class MixturePrior(nn.Module):
    r"""A mixture of diagonal normals with learned weights, means and log-variances, as a prior.

    .. math:: p(z) = \sum_k \pi_k\, N(z; \mu_k, \operatorname{diag} e^{\lambda_k})

    Called without arguments it returns a :class:`kldiv.DiagonalNormalMixture` of batch shape () and event shape (D,).

    Args:
        num_components, latent_dim: K and D, at least 1.
    Raises: ValueError: sizes below 1.

    The parameters are ``logits`` (K,), ``mean`` (K, D) and ``log_var`` (K, D). They start from equal weights, unit
    variances and means drawn from N(0, 1): apart, as equal components would have equal gradients and stay equal.

    Source: Jiang et al. 2017 (VaDE); Tomczak & Welling 2018, where it is what the VampPrior is compared with.

    >>> prior = MixturePrior(10, 4)
    >>> prior().log_prob(torch.zeros(8, 4)).shape
    torch.Size([8])
    """

    def __init__(self, num_components: int, latent_dim: int) -> None:
        super().__init__()
        _check_size(num_components=num_components, latent_dim=latent_dim)
        self.num_components, self.latent_dim = num_components, latent_dim
        self.logits = nn.Parameter(torch.empty(num_components))
        self.mean = nn.Parameter(torch.empty(num_components, latent_dim))
        self.log_var = nn.Parameter(torch.empty(num_components, latent_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the means anew and puts the others back to 0."""
        nn.init.zeros_(self.logits)
        nn.init.normal_(self.mean)
        nn.init.zeros_(self.log_var)

    def forward(self) -> DiagonalNormalMixture:
        components = DiagonalNormal(self.mean, self.log_var, validate_args=False)
        (logits,) = widen(self.logits)  # Categorical subtracts their logsumexp, in their dtype
        return DiagonalNormalMixture(_categorical(logits), components, validate_args=False)

    def extra_repr(self) -> str:
        return f"num_components={self.num_components}, latent_dim={self.latent_dim}"


class VampPrior(nn.Module):
    r"""The mixture of the encoder's posteriors at K learned pseudo-inputs, as a prior.

    .. math:: p(z) = \frac1K \sum_k q(z|u_k), \qquad \ln p(z) = \ln\sum_k q(z|u_k) - \ln K

    Called without arguments it returns a distribution of batch shape () whose event is the latent: a
    :class:`kldiv.DiagonalNormalMixture` where the encoder returns :class:`kldiv.DiagonalNormal` or ``Normal``, and
    ``torch.distributions.MixtureSameFamily`` of whatever else it returns. Gradients reach the pseudo-inputs and the
    encoder.

    Args:
        num_components: K, at least 1.
        encoder: any callable from inputs (K, \*input_shape) to a distribution of batch shape (K, ...): a module, or a
            method of the model.
        input_shape: the shape of one input.
        data: (n, \*input_shape) with n of K at least: the pseudo-inputs start from K of these, chosen at random without
            replacement. ``None``: from the uniform distribution on [low, high].
        low, high: what a pseudo-input may be; ``-math.inf`` and ``math.inf`` are allowed with ``data``.
    Raises:
        TypeError: when called: the encoder returns something else than a distribution.
        ValueError: sizes below 1; low not below high; data too few, of another shape, or outside of [low, high]; when
            called: a distribution whose batch does not begin with K.

    **The bounds.** ``pseudo_inputs`` are the parameter ``raw_pseudo_inputs`` clamped to [low, high]. The gradient goes
    through the clamp, but for a step that would take a raw value further out: one at the bound comes back when it
    should, and none is lost.

    **The encoder** is used, not owned: its parameters are not among those of the prior, nor in its ``state_dict``; give
    the optimiser the model's. ``copy.deepcopy`` of a model that has both binds the copy of the prior to the copy of
    the encoder. A lambda or a function in a function stays bound to the original, and pickle refuses it.

    **Batch normalisation** in the encoder sees a batch of K pseudo-inputs and nothing else: in training mode they are
    normalised among themselves, not as data are, and they change the running statistics. Use another norm (layer,
    group), or call the prior with the encoder in eval mode.

    Source: Tomczak & Welling 2018, "VAE with a VampPrior", arXiv:1705.07120.

    >>> import kldiv
    >>> hidden, decoder = nn.Linear(6, 4), nn.Linear(2, 6)
    >>> def encoder(x):
    ...     return kldiv.DiagonalNormal(*hidden(x).chunk(2, -1))
    >>> x = torch.rand(32, 6)
    >>> prior = VampPrior(3, encoder, (6,), data=x)
    >>> elbo = kldiv.ELBOLoss(kldiv.BernoulliNLL(), kl=kldiv.MonteCarloKLLoss())
    >>> posterior = encoder(x)
    >>> z = posterior.rsample()
    >>> elbo(decoder(z), x, posterior, prior(), sample=z).loss.backward()
    >>> prior.raw_pseudo_inputs.grad.shape
    torch.Size([3, 6])
    """

    def __init__(
        self,
        num_components: int,
        encoder: Callable[[Tensor], Any],
        input_shape: int | Sequence[int],
        *,
        data: Tensor | None = None,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        _check_size(num_components=num_components)
        shape = torch.Size([input_shape] if isinstance(input_shape, int) else input_shape)
        if not callable(encoder):
            raise TypeError(f"the encoder is a {type(encoder).__name__}: pass a module, or the model's method, to call")
        if not low < high:
            raise ValueError(f"low={low} must be below high={high}")
        self.num_components, self.input_shape, self.low, self.high = num_components, shape, float(low), float(high)
        self._encoder = (encoder,)  # a module that is an attribute would be registered a second time
        start = self._from_noise() if data is None else self._from_data(data)
        self.raw_pseudo_inputs = nn.Parameter(start)

    @property
    def pseudo_inputs(self) -> Tensor:
        r"""The pseudo-inputs, (K, \*input_shape), inside of [low, high]."""
        inside: Tensor = _Clamp.apply(self.raw_pseudo_inputs, self.low, self.high)
        return inside

    def forward(self) -> MixtureSameFamily:
        inputs = self.pseudo_inputs
        posterior = self._encoder[0](inputs)
        if not isinstance(posterior, Distribution):
            raise TypeError(
                f"the encoder returned a {type(posterior).__name__}, and VampPrior takes one that returns a "
                "distribution: return kldiv.DiagonalNormal(mean, log_var)"
            )
        if posterior.batch_shape[:1] != (self.num_components,):
            raise ValueError(
                f"the encoder made of inputs {tuple(inputs.shape)} a {type(posterior).__name__} of batch shape "
                f"{tuple(posterior.batch_shape)} and event shape {tuple(posterior.event_shape)}: its batch must begin "
                f"with the number of components, {self.num_components}"
            )
        dims = len(posterior.batch_shape) + len(posterior.event_shape) - 1
        weights = _categorical(*widen(inputs.new_zeros(self.num_components)))
        normal = factorise(posterior)
        if type(normal) is Normal:
            scale = normal.scale
            normal = DiagonalNormal(normal.loc, log_variance(scale).to(scale.dtype), 0, validate_args=False)
        if isinstance(normal, DiagonalNormal):
            components = DiagonalNormal(normal.mean, normal.log_var, dims, validate_args=False)
            return DiagonalNormalMixture(weights, components, validate_args=False)
        return MixtureSameFamily(weights, with_event_dims(posterior, dims), validate_args=False)

    def extra_repr(self) -> str:
        return (
            f"num_components={self.num_components}, input_shape={tuple(self.input_shape)}, low={self.low}, "
            f"high={self.high}"
        )

    def _from_noise(self) -> Tensor:
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"low={self.low}, high={self.high} leaves nothing to draw from: pass data=")
        return torch.empty(self.num_components, *self.input_shape).uniform_(self.low, self.high)

    def _from_data(self, data: Tensor) -> Tensor:
        if data.shape[1:] != self.input_shape or not data.ndim or len(data) < self.num_components:
            raise ValueError(
                f"data has the shape {tuple(data.shape)} and must be (n, {', '.join(map(str, self.input_shape))}) with "
                f"n of {self.num_components} at least, the number of components"
            )
        if not ((data >= self.low) & (data <= self.high)).all():  # NaN is not inside either
            raise ValueError(
                f"data lies between {data.min().item():g} and {data.max().item():g}, not inside of "
                f"low={self.low}, high={self.high}: pass the bounds of your inputs, low=..., high=..."
            )
        chosen = torch.randperm(len(data))[: self.num_components].to(data.device)
        start = data.detach()[chosen]
        return start if start.is_floating_point() else start.to(torch.get_default_dtype())


class _Clamp(torch.autograd.Function):
    """To [low, high], with the gradient of the identity but where it points further out."""

    generate_vmap_rule = True

    @staticmethod
    def forward(raw: Tensor, low: float, high: float) -> Tensor:
        return raw.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        raw, ctx.low, ctx.high = inputs
        ctx.save_for_backward(raw)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (raw,) = ctx.saved_tensors
        # descent moves against the gradient
        outwards = ((raw < ctx.low) & (gradient > 0)) | ((raw > ctx.high) & (gradient < 0))
        return gradient.masked_fill(outwards, 0.0), None, None


def _categorical(logits: Tensor) -> Categorical:
    return Categorical(logits=logits, validate_args=False)


def _check_size(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1")


def standard_prior(posterior: Distribution, like: Tensor | None = None) -> Distribution:
    """The prior that ``prior=None`` stands for: standard normal on the reals, uniform over categories.

    Args:
        posterior: its support and event shape decide.
        like: a tensor whose dtype and device the prior takes; otherwise the posterior's mean, or a
            draw where it has none.
    Returns: a distribution with an empty batch shape and the posterior's event shape; of categories, with the
        posterior's batch shape without its first dimension, the example.
    Raises: ValueError: any other support; the message says what to write.

    >>> standard_prior(DiagonalNormal(torch.ones(8, 2), torch.ones(8, 2))).event_shape
    torch.Size([2])
    """
    base, dims = posterior, 0
    while isinstance(base, Independent):
        base, dims = base.base_dist, dims + base.reinterpreted_batch_ndims
    if isinstance(base, (Categorical, OneHotCategorical)):
        # one example's: the posterior's shape without N
        of_one = base.logits.shape[min(1, base.logits.ndim - 1 - dims) :]
        uniform = type(base)(logits=base.logits.new_zeros(of_one))
        return Independent(uniform, dims, validate_args=False) if dims else uniform
    name = type(posterior).__name__
    try:
        support = posterior.support
    except NotImplementedError:
        shape = ", ".join(map(str, posterior.event_shape))
        raise ValueError(
            f"prior=None is the standard normal on the reals or uniform categories, and {name} does not say what its "
            f"support is. Pass the prior: on the reals DiagonalNormal(torch.zeros({shape}), torch.zeros({shape}))"
        ) from None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is not constraints.real:
        raise ValueError(
            f"prior=None is the standard normal on the reals or uniform categories, and {name} has another support "
            f"({type(support).__name__.lstrip('_')}). Pass the prior: prior={type(base).__name__}(...) or another there"
        )
    if like is None:
        try:
            like = posterior.mean
        except NotImplementedError:
            like = posterior.sample()  # a flow, say: only what it draws tells dtype and device
    zeros = like.new_zeros(posterior.event_shape)
    return DiagonalNormal(zeros, zeros, event_dim=len(posterior.event_shape), validate_args=False)
