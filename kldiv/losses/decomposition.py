"""The decomposition of the KL into mutual information, total correlation and dimension-wise KL, and its KL term."""

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from kldiv.distributed import world_gather, world_rank, world_size
from kldiv.distributions import (
    DiagonalNormal,
    Pair,
    can_be_copied,
    converted,
    factorise,
    matched,
    result_dtype,
    widened,
)
from kldiv.kernels import log_mixtures, log_normal_mixtures
from kldiv.losses.base import KLTerm, KLValues, check_posterior, check_sample_gradient, check_sample_type
from kldiv.monte_carlo import has_pathwise_gradient
from kldiv.numerics import widen
from kldiv.priors import standard_prior
from kldiv.reduction import Reduction, sum_latent

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "KLDecomposition",
    "TotalCorrelationKLLoss",
    "decompose_kl",
]


Estimator = Literal["stratified", "weighted"]

ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


class KLDecomposition(NamedTuple):
    """Three parts of the KL, (N,) each, in nats; their sum is ln q(z|x) - ln p(z), the KL sampled once."""

    mutual_information: Tensor
    """ln q(z|x) - ln q(z): what z says of which example it is."""
    total_correlation: Tensor
    """ln q(z) - sum_d ln q(z_d): how far the dimensions are from independent."""
    dimension_wise: Tensor
    """sum_d ln q(z_d) - ln p(z): how far each dimension's marginal is from the prior."""


def decompose_kl(
    sample: Tensor,
    posterior: Distribution,
    prior: Distribution | None = None,
    *,
    dataset_size: int,
    estimator: Estimator = "stratified",
    all_processes: bool = False,
    process_group: Any = None,
) -> KLDecomposition:
    r"""ln q(z|x) - ln p(z) of each example's sample as the sum of three parts, in nats.

    .. math:: \underbrace{\ln\frac{q(z|x)}{q(z)}}_{\text{mutual information}}
              + \underbrace{\ln\frac{q(z)}{\prod_d q(z_d)}}_{\text{total correlation}}
              + \underbrace{\sum_d \ln\frac{q(z_d)}{p(z_d)}}_{\text{dimension-wise KL}},
              \qquad q(z) = \frac1N \sum_{n=1}^N q(z|x_n)

    q(z) and each q(z_d) are sums over the data set, estimated from the batch of B: :math:`\sum_j W_{ij}\, q(z_i|x_j)`.
    With ``"stratified"``, W is 1/N at j = i, where z comes from; :math:`(N-M)/(NM)` at the example after it, M being
    B - 1; and 1/M elsewhere. It is unbiased for q(z), a batch being drawn without replacement. With ``"weighted"``, W
    is 1/(NB) everywhere: a lower bound in expectation, by many nats. Either way the logarithm of an estimate of few
    terms is too low, so that mutual information comes out too large by tenths of a nat and total correlation by more.

    Args:
        sample: z, of the posterior's shape (B, \*latent): one draw for each example.
        posterior: q(z|x), which factorises over its dimensions.
        prior: p(z), which factorises too; ``None`` is the standard normal, uniform for categories.
        dataset_size: N, the number of examples that batches are drawn from; at least B.
        estimator: ``"stratified"`` or ``"weighted"``.
        all_processes: whether q(z) is estimated from the batches of all processes, equally large, with gradients
            through the gathering: every process must call.
        process_group: the processes whose batches are gathered; ``None``: the whole world.
    Returns: three tensors (B,). In a batch of one, mutual information and total correlation are 0.
    Raises:
        ValueError: a pair that does not factorise; a sample of another shape than the posterior's; a ``dataset_size``
            below the batch; an unknown estimator.
        TypeError: with ``all_processes``, a posterior that is not of torch's or ours.
    Source: Chen et al. 2018 (beta-TC-VAE), sections 3 and C, for the decomposition and both estimators.

    >>> posterior = DiagonalNormal(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), torch.zeros(2, 2))
    >>> parts = decompose_kl(posterior.mean, posterior, dataset_size=2)
    >>> parts.mutual_information
    tensor([0.6928, 0.6928])
    """
    check_posterior(posterior, prior)
    check_sample_type(sample)
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator={estimator!r} is none of {', '.join(map(repr, ESTIMATORS))}")
    prior = standard_prior(posterior, like=sample) if prior is None else prior
    posterior, prior = _factors(posterior, prior)
    shape = posterior.batch_shape + posterior.event_shape
    if sample.shape != shape:
        raise ValueError(
            f"sample has the shape {tuple(sample.shape)} and must have the posterior's, {tuple(shape)}: one draw for "
            "each example, posterior.rsample()"
        )
    dtype = torch.promote_types(result_dtype(posterior, prior), sample.dtype)
    pair = Pair.of(posterior, prior)
    is_normal = type(posterior) in (DiagonalNormal, Normal)
    if is_normal:  # whose densities are right in the precision that they are given in
        pair, sample = pair._replace(p=posterior), sample.to(dtype)
    else:
        sample = pair.widen(sample.to(dtype))
    everyone = _gathered(pair.p, process_group) if all_processes else pair.p
    rows, batch = posterior.batch_shape[0], everyone.batch_shape[0]
    if dataset_size < batch:
        raise ValueError(
            f"dataset_size={dataset_size} is less than the batch of {batch}: it is the number of training examples"
        )
    first = world_rank(process_group) * rows if all_processes else 0
    log_weights = _log_weights(batch, dataset_size, estimator)

    of_prior = sum_latent(pair.log_q(sample))
    conditional = sum_latent(pair.log_p(sample))
    if not sample.shape[1:].numel():  # no latents: nothing to tell examples by
        return KLDecomposition(*[conditional.to(dtype)] * 3)
    if is_normal:
        z, mean, log_var = (_flat(t.to(sample.dtype)) for t in (sample, *_mean_and_log_var(everyone)))
        aggregate, marginals = log_normal_mixtures(z, mean, log_var, first, log_weights)
    else:
        crossed = pair._replace(p=everyone).log_p(sample[:, None])  # ln q(z_id|x_j), (rows, batch, *latent)
        crossed = crossed.flatten(2) if crossed.ndim > 2 else crossed[..., None]
        aggregate, marginals = log_mixtures(crossed, first, log_weights)
    parts = conditional - aggregate, aggregate - marginals, marginals - of_prior
    return KLDecomposition(*(part.to(dtype) for part in parts))


class TotalCorrelationKLLoss(KLTerm):
    r"""The three parts of the KL, each with its weight, in nats: the KL term of the beta-TC-VAE.

    .. math:: \alpha\, \text{mutual information} + \beta\, \text{total correlation} + \gamma\, \text{dimension-wise KL}

    :func:`decompose_kl` has the parts. They are estimated from one sample and the batch, better from a larger batch: in
    training mode from that of all processes, in eval mode from the process's own.

    Called with ``(posterior, prior=None, sample=None)``; ``sample`` is the one the decoder consumed. Inside an
    :class:`kldiv.ELBOLoss` the weighted sum enters ``loss``, and the KL itself enters ``kl`` and ``negative_elbo``.

    Args:
        dataset_size: the number of training examples.
        mutual_information, total_correlation, dimension_wise: the weights; with 1 for all it is the KL, sampled once.
        estimator: ``"stratified"`` or ``"weighted"``.
        process_group: the processes whose batches are gathered; ``None``: the whole world.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises: ValueError: as :func:`decompose_kl`; a weight that is not finite; a sample without a gradient, or a
        posterior that cannot give one, where the posterior's parameters want it.
    Source: Chen et al. 2018, eq. 2 and 4.

    >>> posterior = DiagonalNormal(torch.zeros(4, 2), torch.zeros(4, 2))
    >>> TotalCorrelationKLLoss(1000, total_correlation=6.0)(posterior).shape
    torch.Size([])
    """

    def __init__(
        self,
        dataset_size: int,
        *,
        mutual_information: float = 1.0,
        total_correlation: float = 1.0,
        dimension_wise: float = 1.0,
        estimator: Estimator = "stratified",
        process_group: Any = None,
        reduction: Reduction = "batchmean",
    ) -> None:
        super().__init__(reduction)
        if dataset_size < 1:
            raise ValueError(f"dataset_size={dataset_size}: the number of training examples, at least 1")
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator={estimator!r} is none of {', '.join(map(repr, ESTIMATORS))}")
        self.dataset_size, self.estimator, self.process_group = dataset_size, estimator, process_group
        self.mutual_information, self.total_correlation = mutual_information, total_correlation
        self.dimension_wise = dimension_wise
        for name in KLDecomposition._fields:
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)} must be finite")

    def unreduced(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        return self.kl_values(posterior, prior, sample).in_loss

    def kl_values(
        self,
        posterior: Distribution,
        prior: Distribution | None = None,
        sample: Tensor | None = None,
        *,
        sample_log_prob: Tensor | None = None,
    ) -> KLValues:
        check_posterior(posterior, prior)
        if sample is None:
            wide = widened(posterior)  # torch draws few families in half precision
            sample = wide.rsample() if has_pathwise_gradient(wide) else wide.sample()
        parts = decompose_kl(
            sample,
            posterior,
            prior,
            dataset_size=self.dataset_size if self.training else max(self.dataset_size, len(sample)),
            estimator=self.estimator,
            all_processes=self.training,
            process_group=self.process_group,
        )
        if torch.is_grad_enabled() and parts.mutual_information.requires_grad:
            check_sample_gradient(posterior, sample, "the decomposition")
        weights = (getattr(self, name) for name in KLDecomposition._fields)
        weighted = sum((w * part for w, part in zip(weights, parts, strict=True)), torch.zeros_like(parts[0]))
        return KLValues(sum(parts[1:], parts[0]), penalty=weighted)

    def per_dimension(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        """Raises: ValueError: total correlation belongs to all dimensions together, so there is no KL of one."""
        raise ValueError(
            "TotalCorrelationKLLoss has no KL of one dimension, for total correlation is of all of them: use "
            "per_example, or kldiv.ExactKLLoss().per_dimension"
        )

    def extra_repr(self) -> str:
        options = ("dataset_size", *KLDecomposition._fields, "estimator", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in options)


def _factors(posterior: Distribution, prior: Distribution) -> tuple[Distribution, Distribution]:
    """Both, as distributions of single variables."""
    for name, distribution in (("posterior", posterior), ("prior", prior)):
        if factorise(distribution) is None:
            raise ValueError(
                f"the {name}, {type(distribution).__name__} of event shape {tuple(distribution.event_shape)}, does not "
                "factorise over its dimensions, and the decomposition is into the KL of each and what is between them"
            )
    return matched(posterior, prior)


def _log_weights(batch: int, dataset_size: int, estimator: Estimator) -> tuple[float, float, float]:
    """ln W at an example itself, at the one after it, and elsewhere. W sums to 1, or to 1/N if ``"weighted"``."""
    if batch <= 1:
        return 0.0, 0.0, 0.0
    if estimator == "weighted":
        return (-math.log(dataset_size * batch),) * 3
    others = batch - 1
    after = math.log((dataset_size - others) / (dataset_size * others))
    return -math.log(dataset_size), after, -math.log(others)


def _flat(values: Tensor) -> Tensor:
    """(N, ...) as (N, latent)."""
    return values.flatten(1) if values.ndim > 1 else values[:, None]


def _mean_and_log_var(posterior: Any) -> tuple[Tensor, Tensor]:
    if isinstance(posterior, DiagonalNormal):
        mean, log_var = widen(posterior.mean, posterior.log_var)
        return mean, log_var
    mean, scale = widen(posterior.loc, posterior.scale)
    return mean, 2 * torch.log(scale)


def _gathered(posterior: Distribution, process_group: Any) -> Distribution:
    """The distribution of the batches of all processes."""
    if world_size(process_group) == 1:
        return posterior
    if not can_be_copied(posterior):
        raise TypeError(
            f"{type(posterior).__name__} is of another package: its batches in other processes cannot be gathered. "
            "Write it as a distribution of torch or kldiv, or call with all_processes=False"
        )
    rows = posterior.batch_shape[0]

    def gather(tensor: Tensor) -> Tensor:
        of_batch = tensor.ndim >= len(posterior.batch_shape) and tensor.shape[0] == rows
        return world_gather(tensor, process_group) if of_batch else tensor

    new: Distribution = converted(posterior.expand(posterior.batch_shape), gather)
    _set_rows(new, rows, rows * world_size(process_group))
    return new


def _set_rows(distribution: Any, before: int, after: int) -> None:
    shape = distribution.batch_shape
    if shape[:1] == (before,):
        distribution._batch_shape = torch.Size([after, *shape[1:]])
    for value in vars(distribution).values():
        if isinstance(value, Distribution):
            _set_rows(value, before, after)
