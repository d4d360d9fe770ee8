"""Metrics of a posterior over a data set, as torchmetrics: ActiveUnits, KLPerDimension, RateDistortion.

They are streamed in batches, and give the same value for any number of processes.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from kldiv.elbo import ELBOTerms
from kldiv.losses import ExactKLLoss, check_posterior

__all__ = [
    "ActiveUnits",
    "KLPerDimension",
    "RateDistortion",
]


try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError("kldiv.metrics needs torchmetrics: pip install torchmetrics") from error


class _MeanOverExamples(Metric):
    r"""The mean of values (N, \*latent) over all examples. The first update fixes the latent shape."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    total: Tensor  # (1, *latent) from the first update on, () before
    weight: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("total", "weight"):  # float64 from the first update on
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")
        self._set_aside = torch.Size()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Adds a batch, and returns the value for this batch alone."""
        # torchmetrics resets the state meanwhile; the batch must still have the latent shape of earlier ones
        self._set_aside = self.total.shape
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._set_aside = torch.Size()

    def compute(self) -> Tensor:
        return _latent(self.total / self.weight)

    def _check_latent(self, values: Tensor) -> None:
        for seen in (self.total.shape, self._set_aside):
            if seen and seen[1:] != values.shape[1:]:
                raise ValueError(
                    f"the latent shape is {tuple(values.shape[1:])}, and that of earlier updates {tuple(seen[1:])}: "
                    "reset() begins anew, another metric watches another posterior"
                )


class ActiveUnits(_MeanOverExamples):
    r"""The number of active latent dimensions: the variance of their mean over the data exceeds a threshold.

    .. math:: \left|\left\{u : \operatorname{Var}_x\left(E_{q(u|x)}[u]\right) > \text{threshold}\right\}\right|

    The variance over examples is unbiased, with the divisor N - 1. Its error is about 1e-15 times the square of the
    mean.

    Args:
        threshold: a variance, in the latent's unit squared.
        kwargs: those of ``torchmetrics.Metric``.
    Raises: ValueError: a threshold that is negative or not finite.

    ``update(posterior, sample_weight=None)`` takes a distribution, or the posterior means as a tensor (N, \*latent),
    and weights (N,) of the examples, 0 for padding, which counts nothing even where it is NaN. With weights their sum
    stands for N. ``compute()``: an integer tensor of shape (); 0 before the second example. Where there are several
    processes each must have been given a batch, of examples of weight 0 if need be.

    Source: Burda, Grosse & Salakhutdinov 2016, section 5.3.

    >>> metric = ActiveUnits()
    >>> metric.update(torch.tensor([[1.0, 0.0], [-1.0, 0.1]]))
    >>> metric.update(torch.tensor([[0.5, 0.1], [0.0, 0.0]]))
    >>> metric.compute(), metric.variances()
    (tensor(1), tensor([0.7292, 0.0033], dtype=torch.float64))
    """

    squares: Tensor

    def __init__(self, threshold: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not (math.isfinite(threshold) and threshold >= 0):
            raise ValueError(f"threshold={threshold} must be finite and not negative: it is a variance")
        self.threshold = threshold
        self.add_state("squares", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, posterior: Distribution | Tensor, sample_weight: Tensor | None = None) -> None:
        r"""Adds N examples.

        Args:
            posterior: q(z|x), or its means, (N, \*latent).
            sample_weight: (N,), 0 for padding.
        Raises: ValueError: another latent shape than before; weights of another shape than (N,).
        """
        mean = _wide(_mean(posterior))
        self._check_latent(mean)
        weight = _weight(sample_weight, mean)
        self.total = self.total + _weighted_sum(mean, weight)
        self.squares = self.squares + _weighted_sum(mean.square(), weight)
        self.weight = self.weight + weight.sum()

    def compute(self) -> Tensor:
        return (self._variances() > self.threshold).sum()

    def variances(self) -> Tensor:
        r"""The variance of each posterior mean over all examples of all processes, (\*latent); NaN for fewer than two.

        It is a collective, as ``compute()``: call it on all processes.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._variances()

    def _variances(self) -> Tensor:
        deviations = (self.squares - self.total.square() / self.weight).clamp(min=0)
        return _latent(torch.where(self.weight > 1, deviations / (self.weight - 1), torch.nan))

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}"


class KLPerDimension(_MeanOverExamples):
    r"""D_KL(posterior || prior) of each latent dimension, the mean over all examples, in nats.

    Args:
        kl: a term with ``per_dimension(posterior, prior, sample)``; ``None``: :class:`kldiv.ExactKLLoss`.
        kwargs: those of ``torchmetrics.Metric``.
    Raises: TypeError: a term that is called with tensors, or no KL term.

    ``update(posterior, prior=None, sample=None, sample_weight=None)`` takes the arguments of the term, and the weights
    (N,) of the examples: 0 for padding, which counts nothing even if it is NaN. ``compute()`` has the shape (\*latent),
    or () for a single number, as torchmetrics returns it; NaN before the first example. With several processes each
    must get a batch, if need be of examples of weight 0.

    >>> metric = KLPerDimension()
    >>> metric.update(torch.distributions.Normal(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), 1.0))
    >>> metric.compute()
    tensor([1.2500, 0.0000], dtype=torch.float64)
    """

    def __init__(self, kl: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kl: Any = ExactKLLoss() if kl is None else kl
        # a term of tensors has no unreduced(posterior, prior, sample)
        if not (hasattr(self.kl, "unreduced") and hasattr(self.kl, "per_dimension")):
            raise TypeError(
                f"kl is a {type(kl).__name__}, which has no KL of one dimension of two distributions: pass "
                "kldiv.ExactKLLoss() or another kldiv.KLTerm, and update(kldiv.DiagonalNormal(mean, log_var))"
            )

    def update(
        self,
        posterior: Distribution,
        prior: Distribution | None = None,
        sample: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> None:
        r"""Adds N examples.

        Args:
            posterior, prior, sample: q(z|x), p(z) and z, as the term takes them.
            sample_weight: (N,), 0 for padding.
        Raises: ValueError: a pair that does not factorise over its dimensions; another latent shape than before;
            weights of another shape than (N,).
        """
        kl = _wide(self.kl.per_dimension(posterior, prior, sample))
        self._check_latent(kl)
        weight = _weight(sample_weight, kl)
        self.total = self.total + _weighted_sum(kl, weight)
        self.weight = self.weight + weight.sum()


class RateDistortion(Metric):
    r"""Rate, distortion and their sum, the negative ELBO: means over all examples, in nats.

    The rate is D_KL(posterior || prior), and the distortion the negative log-likelihood of the data given the latent.
    The weight of the KL in the loss does not matter.

    Args:
        kwargs: those of ``torchmetrics.Metric``.

    ``update(terms, count=None, sample_weight=None)`` takes the terms of :class:`kldiv.ELBOLoss`. Terms per example come
    with the weights (N,) of the examples: 0 for padding, which counts nothing even if it is NaN. Means over a batch
    come with ``count``, its number of examples. (Sums, of ``reduction="sum"``, look like means and are wrong here.)
    ``compute()`` returns a dictionary of ``"rate"``, ``"distortion"`` and ``"negative_elbo"``, each of shape (); NaN
    before the first example.

    Source: Alemi et al. 2018, "Fixing a Broken ELBO", where the distortion is D and the rate R.

    >>> from kldiv import BernoulliNLL, DiagonalNormal, ELBOLoss
    >>> posterior = DiagonalNormal(torch.ones(2, 4), torch.zeros(2, 4))
    >>> metric = RateDistortion()
    >>> metric.update(ELBOLoss(BernoulliNLL())(torch.zeros(2, 8), torch.ones(2, 8), posterior), count=2)
    >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
    {'rate': 2.0, 'distortion': 5.545, 'negative_elbo': 7.545}
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    rate: Tensor
    distortion: Tensor
    weight: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("rate", "distortion", "weight"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, terms: ELBOTerms, count: float | None = None, sample_weight: Tensor | None = None) -> None:
        """Adds N examples.

        Args:
            terms: of an ELBO, (N,) each with ``reduction="none"``, else the means over a batch.
            count: examples in the batch, for means.
            sample_weight: (N,), 0 for padding, for terms per example.
        Raises:
            TypeError: ``terms`` are not those of an ELBO.
            ValueError: means without a count, or with weights; a count that is not N; weights of another shape.
        """
        if not isinstance(terms, ELBOTerms):
            raise TypeError(f"terms is a {type(terms).__name__}: pass what kldiv.ELBOLoss gives, elbo(output, x, q)")
        rate, distortion = _wide(terms.kl), _wide(terms.reconstruction)
        if rate.ndim:
            if count is not None and count != len(rate):
                raise ValueError(f"count={count} and terms of {len(rate)} examples: count goes with batch means alone")
            weight = _weight(sample_weight, rate)
        else:
            if count is None or not (math.isfinite(count) and count >= 0):
                raise ValueError(
                    f"count={count}: the terms are means over a batch, and a mean over all examples needs to know how "
                    "many it has. Write update(terms, count=len(x)), or ELBOLoss(..., reduction='none')"
                )
            if sample_weight is not None:
                raise ValueError(
                    f"sample_weight {tuple(sample_weight.shape)} with terms that are means over a batch: weigh terms "
                    "of ELBOLoss(..., reduction='none')"
                )
            rate, distortion = rate[None], distortion[None]
            weight = torch.full_like(rate, count)
        self.rate = self.rate + _weighted_sum(rate, weight)[0]
        self.distortion = self.distortion + _weighted_sum(distortion, weight)[0]
        self.weight = self.weight + weight.sum()

    def compute(self) -> dict[str, Tensor]:
        rate, distortion = self.rate / self.weight, self.distortion / self.weight
        return {"rate": rate, "distortion": distortion, "negative_elbo": rate + distortion}


def _mean(posterior: Distribution | Tensor) -> Tensor:
    if isinstance(posterior, Tensor):
        if posterior.ndim < 2:
            raise ValueError(
                f"the posterior means have the shape {tuple(posterior.shape)}, and dimension 0 is the example, the "
                "others are latent. Add one: mean[None] for a single example, mean[:, None] for one latent dimension"
            )
        return posterior
    check_posterior(posterior)
    try:
        return posterior.mean
    except NotImplementedError as error:
        raise NotImplementedError(
            f"{type(posterior).__name__} knows no mean: pass the tensor of posterior means, (N, *latent)"
        ) from error


def _wide(values: Tensor) -> Tensor:
    values = values.detach()
    return values.float() if values.device.type == "mps" else values.double()  # Apple's GPUs have no float64


def _weight(sample_weight: Tensor | None, values: Tensor) -> Tensor:
    """The weights of the examples, (N,), in the dtype of the values (N, ...)."""
    if sample_weight is None:
        return values.new_ones(len(values))
    if sample_weight.shape != values.shape[:1]:
        raise ValueError(f"sample_weight {tuple(sample_weight.shape)} must have the shape (N,): {len(values)}")
    return sample_weight.detach().to(values)


def _weighted_sum(values: Tensor, weight: Tensor) -> Tensor:
    r"""Values (N, \*latent), summed to (1, \*latent)."""
    weight = weight.view(-1, *[1] * (values.ndim - 1))
    # 0 * NaN is NaN
    return torch.where(weight != 0, values * weight, 0.0).sum(0, keepdim=True)


def _latent(values: Tensor) -> Tensor:
    return values[0] if values.ndim else values
