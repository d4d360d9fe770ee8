"""Bounds and log-likelihoods by importance sampling."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from kldiv.distributions import Pair, align, masked_sample
from kldiv.elbo.masks import check_sample_weight, masked_group, masked_target, shape_of_elements
from kldiv.elbo.notices import notices_apply, warn_of_an_unread_sample, warn_of_unreached_posteriors
from kldiv.elbo.terms import ELBOTerms, check_likelihood, latent_groups, weighted
from kldiv.likelihoods import NegativeLogLikelihood
from kldiv.losses import check_posterior, check_sample_gradient
from kldiv.numerics import check_broadcast, widen
from kldiv.priors import standard_prior
from kldiv.reduction import Reduction, check_reduction, reduce

__all__ = [
    "GRADIENTS",
    "Gradient",
    "ImportanceWeightedELBOLoss",
    "LogLikelihood",
    "importance_log_likelihood",
]


Gradient = Literal["pathwise", "dreg", "sticking_the_landing"]

GRADIENTS: tuple[Gradient, ...] = get_args(Gradient)


class LogLikelihood(NamedTuple):
    """A log-likelihood estimated by importance sampling, in nats."""

    value: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor


def importance_log_likelihood(log_weights: Tensor, dim: int = 0) -> LogLikelihood:
    r"""ln p(x), estimated from the log-weights ln p(x, z_k) - ln q(z_k|x) of K samples of q, in nats.

    .. math:: \ln \frac1K \sum_k w_k, \qquad
              \mathrm{se} = \frac1{\bar w}\sqrt{\frac{\sum_k (w_k - \bar w)^2}{K (K-1)}}, \qquad
              \mathrm{ess} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2}

    In expectation the value lies below ln p(x), and rises to it with K. The standard error is that of the delta
    method: sound while the effective sample size is large, too small where a few weights carry the sum.

    Args:
        log_weights: finite or ``-inf``, K along ``dim``; any other dimensions.
        dim: the dimension of the K samples.
    Returns: the three, in the shape of ``log_weights`` without ``dim``. With K = 1 the error is unknown, and
        ``inf``; where all weights are 0 the value is ``-inf``, the error ``inf`` and the effective sample size 0.
    Raises: ValueError: K = 0.
    Source: Burda, Grosse & Salakhutdinov 2016, eq. 8; Kong 1992 for the effective sample size.

    >>> importance_log_likelihood(torch.tensor([-1.0, -1.0])).value
    tensor(-1.)
    """
    if log_weights.ndim == 0 or log_weights.shape[dim] == 0:
        raise ValueError(f"log_weights of shape {tuple(log_weights.shape)} hold no sample along dim={dim}")
    (log_weights,) = widen(log_weights)
    samples = log_weights.shape[dim]
    value = _log_mean_exp(log_weights, dim)
    with torch.no_grad():
        peak = log_weights.amax(dim, keepdim=True)
        impossible = (peak == -torch.inf).squeeze(dim)
        weights = torch.exp(log_weights - peak)  # against the largest: a difference of neighbours is exact
        mean = weights.mean(dim)
        variance = (weights - mean.unsqueeze(dim)).square().sum(dim) / (samples * max(samples - 1, 1))
        standard_error = (variance.sqrt() / mean).masked_fill(impossible, torch.inf)
        if samples == 1:
            standard_error = torch.full_like(standard_error, torch.inf)
        size = (weights.sum(dim).square() / weights.square().sum(dim)).masked_fill(impossible, 0)
    return LogLikelihood(value, standard_error, size)


def _log_mean_exp(log_weights: Tensor, dim: int = 0) -> Tensor:
    """ln of the mean of the weights along ``dim``. Where all are 0 it is ``-inf``, with a gradient of 0."""
    peak = log_weights.detach().amax(dim, keepdim=True)
    # logsumexp of -inf alone has a gradient of NaN
    value = torch.logsumexp(log_weights.masked_fill(peak == -torch.inf, 0), dim) - math.log(log_weights.shape[dim])
    return value.masked_fill((peak == -torch.inf).squeeze(dim), -torch.inf)


class ImportanceWeightedELBOLoss(nn.Module):
    r"""The negative of the importance-weighted bound on ln p(x), in nats, as a loss.

    .. math:: -\ln \frac1K \sum_{k=1}^K w_k, \qquad w_k = \frac{p(x|z_k)\, p(z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x)

    With K = 1 it is the negative ELBO with the KL sampled once; in expectation the bound rises with K, towards
    ln p(x). The weights are made of densities: with a KL in closed form inside them it would be no bound.

    Args:
        reconstruction: the likelihood term, such as :class:`kldiv.BernoulliNLL`. One that fits a variance to the batch
            (:class:`kldiv.OptimalGaussianNLL`) is taken with the variance it has tracked.
        gradient: the value is the same with all.
            ``"pathwise"``: that of the bound, whose signal-to-noise ratio for the encoder falls with K.
            ``"dreg"``, doubly reparametrised: in the encoder's parameters the weights enter squared and the score not
            at all, which has the same expectation and less variance. It costs a further backward pass to the sample.
            ``"sticking_the_landing"``, for K = 1 alone: beyond, it is biased.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises:
        ValueError: ``"mean"`` and unknown options.
        TypeError: a reconstruction that is no likelihood term.
    Source: Burda, Grosse & Salakhutdinov 2016, eq. 8; Tucker et al. 2019 (DReG); Roeder, Wu & Duvenaud 2017.

    >>> from kldiv import BernoulliNLL, DiagonalNormal
    >>> posterior = DiagonalNormal(torch.ones(2, 4), torch.zeros(2, 4))
    >>> sample = posterior.rsample((5,))
    >>> loss = ImportanceWeightedELBOLoss(BernoulliNLL())
    >>> loss.log_weights(torch.zeros(5, 2, 8), torch.ones(2, 8), posterior, sample=sample).shape
    torch.Size([5, 2])
    """

    reconstruction: Any  # a module with per_example(output, target)

    def __init__(
        self, reconstruction: nn.Module, *, gradient: Gradient = "pathwise", reduction: Reduction = "batchmean"
    ) -> None:
        super().__init__()
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient={gradient!r} is none of {', '.join(map(repr, GRADIENTS))}")
        self.reconstruction, self.gradient = check_likelihood(reconstruction), gradient
        self.reduction = check_reduction(reduction)
        self._has_looked = False  # at what the output depends on

    def forward(
        self,
        output: Tensor | Sequence[Tensor],
        target: Tensor,
        posterior: Distribution | Sequence[Distribution],
        prior: Distribution | Sequence[Distribution | None] | None = None,
        *,
        sample: Tensor | Sequence[Tensor],
        sample_weight: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> ELBOTerms:
        r"""The bound and its parts: ``loss`` and ``negative_elbo`` are both the bound's negative, of weight 1.

        ``reconstruction`` and ``kl`` are means over the K samples: they do not add up to the bound.

        Args:
            output: the decoder's, with leading dimensions (K, N).
            target: (N, \*event).
            posterior, prior: q(z|x) and p(z), or sequences of them, one entry a latent group. ``None``: the standard
                normal, uniform categories. Their batch begins with N, or with (K, N) where they depend on the sample of
                another group.
            sample: (K, N, \*latent), the very tensor the decoder consumed; for groups a sequence.
            sample_weight: (N,), multiplies every term of an example.
            target_mask: broadcasts to the target; elements at 0 or False count nothing.
        Raises:
            TypeError: a posterior that is a tensor.
            ValueError: shapes that do not fit; a sample without a gradient where the posterior wants one; with
                ``"sticking_the_landing"``, K > 1; with ``"dreg"``, a posterior that depends on another group's sample,
                or a sample that the output does not depend on.
        """
        rows, consumed = None, output
        if sample_weight is not None:  # an example of weight 0 may hold anything
            check_sample_weight(sample_weight, len(target))
            rows = sample_weight != 0
            output, target = _masked_outputs(output, rows), masked_target(target, rows)
            if isinstance(self.reconstruction, NegativeLogLikelihood):  # whose variance may be that of the batch
                row_mask = align(rows, len(self._shape_of_elements(output, target)))
                kept = row_mask if target_mask is None else target_mask
                target_mask = torch.where(row_mask, kept, torch.zeros_like(kept))
        if self.training and hasattr(self.reconstruction, "track"):
            flat_output, flat_target, mask = self._flattened(output, target, target_mask)
            self.reconstruction.track(flat_output, flat_target, **mask)
        parts = self._parts(output, target, posterior, prior, sample, target_mask, rows)
        if not self._has_looked and notices_apply(self):
            self._notice(consumed, latent_groups(posterior, prior=prior, sample=sample))
        log_weights = parts.log_weights()
        if self.gradient == "sticking_the_landing" and len(log_weights) > 1:
            raise ValueError(
                f"gradient='sticking_the_landing' with K = {len(log_weights)} samples is biased: for K > 1 write "
                "gradient='dreg', which has as little variance"
            )
        bound = _log_mean_exp(log_weights)
        if torch.is_grad_enabled() and log_weights.requires_grad and self.gradient != "pathwise":
            surrogate = _double_surrogate(parts, log_weights) if self.gradient == "dreg" else parts.landing()[0]
            # inf - inf is NaN
            usable = bound.isfinite() & surrogate.isfinite()
            bound = bound.detach() + torch.where(usable, surrogate - surrogate.detach(), 0.0)
        kls = [
            (posterior - prior).mean(0) for posterior, prior in zip(parts.log_posterior, parts.log_prior, strict=True)
        ]
        terms = [-bound, -parts.log_likelihood.mean(0), sum(kls[1:], kls[0]), *kls]
        terms = [term.to(parts.dtype) for term in terms]
        if sample_weight is not None:
            terms = [weighted(term, sample_weight) for term in terms]
        loss, reconstruction, kl, *kl_per_group = (reduce(term, self.reduction) for term in terms)
        return ELBOTerms(loss, loss, reconstruction, kl, loss.new_ones(()), tuple(kl_per_group))

    def _notice(self, output: Any, groups: list[dict[str, Any]]) -> None:
        self._has_looked = warn_of_unreached_posteriors(output, groups)
        if self._has_looked:
            warn_of_an_unread_sample(output, groups)

    def log_weights(
        self,
        output: Tensor | Sequence[Tensor],
        target: Tensor,
        posterior: Distribution | Sequence[Distribution],
        prior: Distribution | Sequence[Distribution | None] | None = None,
        *,
        sample: Tensor | Sequence[Tensor],
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """ln p(x|z_k) + ln p(z_k) - ln q(z_k|x), (K, N), in nats. Arguments are those of the call."""
        parts = self._parts(output, target, posterior, prior, sample, target_mask)
        return parts.log_weights().to(parts.dtype)

    def _parts(
        self,
        output: Any,
        target: Tensor,
        posterior: Any,
        prior: Any,
        sample: Any,
        target_mask: Tensor | None,
        rows: Tensor | None = None,
    ) -> "_Parts":
        groups = latent_groups(posterior, prior=prior, sample=sample)
        samples = [group["sample"] for group in groups]
        for each in samples:
            if not isinstance(each, Tensor):
                raise TypeError(f"the sample is a {type(each).__name__}: pass the tensor that the decoder consumed")
        k = samples[0].shape[0] if samples[0].ndim else 0
        lead = (k, target.shape[0] if target.ndim else 0)
        for each in [*samples, *([output] if isinstance(output, Tensor) else output)]:
            if tuple(each.shape[:2]) != lead or k == 0:
                raise ValueError(
                    f"sample {tuple(samples[0].shape)} and output {_shapes(output)} must begin with (K, N), and the "
                    f"target {tuple(target.shape)} with N: draw posterior.rsample((K,)), and give what the decoder "
                    "makes of it these two dimensions again"
                )
        per_example = getattr(self.reconstruction, "tracked_per_example", self.reconstruction.per_example)
        flat_output, flat_target, mask = self._flattened(output, target, target_mask)
        nll: Tensor = per_example(flat_output, flat_target, **mask)
        parts = _Parts(-nll.view(lead), nll.dtype, samples)
        for group in groups:
            parts.add(group["posterior"], group["prior"], group["sample"], rows)
        return parts

    def _shape_of_elements(self, output: Any, target: Tensor) -> torch.Size:
        """The shape that a mask of the target broadcasts to."""
        first = output[0] if isinstance(output, Tensor) else [each[0] for each in output]  # of K samples
        return shape_of_elements(self.reconstruction, first, target)

    def _flattened(self, output: Any, target: Tensor, mask: Tensor | None) -> tuple[Any, Tensor, dict[str, Tensor]]:
        """Output, target and, by name, the mask, with (K, N) as one dimension, the example."""
        outputs = [output] if isinstance(output, Tensor) else output
        k = outputs[0].shape[0]
        flat = [each.flatten(0, 1) for each in outputs]
        shape = target.shape if mask is None else self._shape_of_elements(output, target)
        if mask is not None and check_broadcast(target=shape, mask=mask.shape) != shape:
            raise ValueError(f"mask {tuple(mask.shape)} must broadcast to the target's shape {tuple(shape)}")

        def repeated(each: Tensor) -> Tensor:
            return each.expand(k, *each.shape).flatten(0, 1)

        given = {} if mask is None else {"mask": repeated(mask.expand(shape))}
        return flat[0] if isinstance(output, Tensor) else flat, repeated(target), given

    def extra_repr(self) -> str:
        return f"gradient={self.gradient!r}, reduction={self.reduction!r}"


class _Parts:
    """The log-densities that the weights are made of, (K, N) each; for prior and posterior one a latent group."""

    def __init__(self, log_likelihood: Tensor, dtype: torch.dtype, samples: list[Tensor]) -> None:
        self.log_likelihood, self.dtype, self.samples = log_likelihood, dtype, samples
        self.log_prior: list[Tensor] = []
        self.log_posterior: list[Tensor] = []
        self.pairs: list[tuple[Pair, Tensor]] = []
        self.conditional = False

    def add(self, posterior: Distribution, prior: Distribution | None, sample: Tensor, rows: Tensor | None) -> None:
        check_posterior(posterior, prior)
        keep = None if rows is None else _kept(posterior, sample, rows)
        if keep is not None:
            posterior, prior, _ = masked_group(posterior, prior, None, keep)
        prior = standard_prior(posterior, like=sample) if prior is None else prior
        shape = tuple(posterior.batch_shape + posterior.event_shape)
        if shape not in (tuple(sample.shape), tuple(sample.shape[1:])):
            raise ValueError(
                f"sample has the shape {tuple(sample.shape)} and must be (K, N, ...) of the posterior's, {shape}: "
                f"batch {tuple(posterior.batch_shape)}, event {tuple(posterior.event_shape)}"
            )
        self.conditional |= shape == tuple(sample.shape)
        pair = Pair.of(posterior, prior)
        if len(prior.batch_shape + prior.event_shape) == sample.ndim > len(shape):
            pair = pair._replace(p=pair.p.expand(sample.shape[:1] + posterior.batch_shape))
        pair = pair.matched()
        self.dtype = torch.promote_types(self.dtype, pair.dtype)
        wide = pair.widen(sample)
        if keep is not None:
            wide = masked_sample(wide, keep, posterior)
        self.log_posterior.append(_per_sample(pair.log_p(wide)))
        self.log_prior.append(_per_sample(pair.log_q(wide)))
        self.pairs.append((pair, wide))
        wanted = pair.parameters or (self.log_posterior[-1].requires_grad and not sample.requires_grad)
        if torch.is_grad_enabled() and wanted:
            check_sample_gradient(posterior, sample, "the bound")

    def log_weights(self) -> Tensor:
        return self.log_likelihood + sum(self.log_prior) - sum(self.log_posterior)

    def landing(self) -> Tensor:
        """The log-weights; the gradient in the posterior's parameters goes through the samples alone."""
        fixed = [_per_sample(pair.log_p(sample.detach())) for pair, sample in self.pairs]
        return self.log_weights() + sum(fixed)


def _double_surrogate(parts: _Parts, log_weights: Tensor) -> Tensor:
    r"""A surrogate with the gradient of DReG, (N,).

    That is :math:`\sum_k \tilde w_k \nabla_\theta \ln w_k` in the parameters of the model, and in those of q
    :math:`\sum_k \tilde w_k^2 \nabla_{z_k} \ln w_k \nabla z_k`. The sum of the first kind has the second's with
    :math:`\tilde w_k` in place of its square; what is missing is put in through the samples, and nothing else that
    depends on them is touched.
    """
    if parts.conditional:
        raise ValueError(
            "gradient='dreg' and a posterior that depends on another group's sample: what it takes off the gradient "
            "would not be the score alone. Write gradient='pathwise'"
        )
    landing = parts.landing()
    normalised = torch.softmax(log_weights.detach(), 0)
    normalised = torch.where(normalised.isnan(), 0.0, normalised)  # all weights 0
    # a weight of 0 counts nothing, though its logarithm is -inf
    surrogate = (normalised * torch.where(normalised > 0, landing, 0.0)).sum(0)
    samples = [sample for sample in parts.samples if sample.requires_grad]
    if not samples:
        return surrogate
    log_likelihood = parts.log_likelihood
    through_decoder: Sequence[Tensor | None] = [None] * len(samples)
    if log_likelihood.requires_grad:
        through_decoder = torch.autograd.grad(log_likelihood.sum(), samples, retain_graph=True, allow_unused=True)
    if all(gradient is None for gradient in through_decoder):
        raise ValueError(
            "gradient='dreg': the output does not depend on the sample that was given. Pass the very tensor that the "
            "decoder consumed, not a view or a copy of it"
        )
    densities = [
        of_prior - of_posterior for of_prior, of_posterior in zip(parts.log_prior, parts.log_posterior, strict=True)
    ]
    rest = torch.autograd.grad([each.sum() for each in densities], samples, retain_graph=True)
    for sample, one, other in zip(samples, through_decoder, rest, strict=True):
        gradient = other if one is None else one + other
        scale = (normalised.square() - normalised).view(*normalised.shape, *[1] * (sample.ndim - 2))
        gradient = torch.where(scale != 0, gradient, 0.0)
        surrogate = surrogate + _per_sample(scale * gradient * sample).sum(0)
    return surrogate


def _masked_outputs(output: Any, rows: Tensor) -> Any:
    """A decoder's output, (K, N, ...), with 0 in the examples that do not count."""
    if isinstance(output, Tensor):
        shape = (1, -1, *[1] * (output.ndim - 2))
        return torch.where(rows.reshape(shape), output, 0.0) if output.ndim > 1 else output
    return [_masked_outputs(each, rows) for each in output]


def _kept(posterior: Distribution, sample: Tensor, rows: Tensor) -> Tensor | None:
    """Which examples of a posterior's batch count: (N,), or (K, N) where it depends on another group's sample."""
    if posterior.batch_shape[:1] == rows.shape:
        return rows
    return rows.expand(len(sample), len(rows)) if posterior.batch_shape[1:2] == rows.shape else None


def _per_sample(values: Tensor) -> Tensor:
    """Values (K, N, ...) summed to (K, N)."""
    return values.flatten(2).sum(2) if values.ndim > 2 else values


def _shapes(output: Tensor | Sequence[Tensor]) -> Any:
    return tuple(output.shape) if isinstance(output, Tensor) else [tuple(each.shape) for each in output]
