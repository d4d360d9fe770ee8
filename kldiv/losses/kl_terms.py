"""KL terms of distributions: ExactKLLoss, MonteCarloKLLoss, BalancedKLLoss."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from kldiv.distributions import (
    DiagonalNormal,
    GivenSample,
    Pair,
    check_measures,
    detached,
    matched,
)
from kldiv.exact import is_registered_by_user, kl_divergence
from kldiv.functional import kl_normal
from kldiv.losses.base import KLTerm, KLValues, check_posterior, check_sample_type
from kldiv.monte_carlo import (
    Draws,
    GivenDraws,
    Gradient,
    Plan,
    Sampler,
    Value,
    average,
    before_transforms,
    check_options,
    check_scramble,
)
from kldiv.numerics import sum_rightmost
from kldiv.priors import standard_prior
from kldiv.reduction import Reduction, reduce, sum_latent

__all__ = [
    "BalancedKLLoss",
    "ExactKLLoss",
    "MonteCarloKLLoss",
]


class ExactKLLoss(KLTerm):
    r"""D_KL(posterior || prior) in closed form, in nats: :func:`kldiv.kl_divergence` as a loss.

    Called with ``(posterior, prior=None)``. Dimension 0 of the posterior's batch is the example, everything else is
    latent. ``None``: the standard normal on real supports, uniform for categories.

    Args:
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises:
        NotImplementedError: no closed form is known for the two types.
        ValueError: ``prior=None`` on another support; a prior whose shape does not broadcast to the posterior's.

    >>> import torch
    >>> ExactKLLoss()(torch.distributions.Normal(torch.ones(4, 2), 1.0))
    tensor(1.)
    """

    def unreduced(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        check_posterior(posterior, prior)
        if prior is None and type(posterior) is DiagonalNormal:
            return kl_normal(posterior.mean, posterior.log_var)  # no standard normal is built
        prior = standard_prior(posterior) if prior is None else prior
        if not is_registered_by_user(posterior, prior):
            posterior, prior = matched(posterior, prior)
        try:
            values = kl_divergence(posterior, prior)
        except NotImplementedError as error:
            check_measures(posterior, prior)  # no term compares two of different kinds
            raise NotImplementedError(f"{error}. In an ELBO: ELBOLoss(..., kl=kldiv.MonteCarloKLLoss())") from error
        return values


class MonteCarloKLLoss(KLTerm):
    r"""D_KL(posterior || prior) as a mean over samples of the posterior, in nats, for any pair of distributions.

    .. math:: \frac1S \sum_s f(z_s), \qquad z_s \sim q, \qquad f = \ln q - \ln p \text{ for } \texttt{"k1"}

    :func:`kldiv.estimate_kl` as a loss, whose docstring explains ``value``, ``gradient`` and ``sampler``. The gradient
    is an unbiased one of the KL in both distributions, whatever the value. A pair that factorises is estimated
    dimension by dimension.

    Called with ``(posterior, prior=None, sample=None, *, sample_log_prob=None)``.

    - ``sample`` is the one the decoder consumed, of shape (\*samples, \*batch, \*event): it is used instead of drawing
      again, ``num_samples`` and ``sampler`` do not count, and its draws are taken to be independent. A flow gets the
      very tensor, for it may know its inverse for that alone. In half precision a sample is rounded, by more than its
      noise if the posterior is narrow: draw from ``DiagonalNormal(mean.float(), log_var.float())``.
    - ``sample_log_prob`` is ln q(sample), of shape (\*samples, \*batch), where a flow knows it as it samples: the
      posterior's density is then not evaluated. It goes with ``"pathwise"``, and with ``"score"`` for a sample without
      gradient.

    Args:
        num_samples: draws for each example, at least 1; an even number for ``"antithetic"``.
        value: ``"k1"``, ``"k2"``, ``"k3"`` or ``"analytic_entropy"``.
        gradient: ``"pathwise"``, ``"sticking_the_landing"``, ``"adaptive"`` (three units at least) or ``"score"``
            (two).
        sampler: ``"iid"``, ``"antithetic"`` or ``"sobol"``. Sobol is one scrambled net with a random shift for each
            example; powers of two are its best numbers of samples.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises: ValueError: unknown options; a gradient that the draws cannot give, such as ``"score"`` with one draw, or
        any other for a posterior without ``rsample``; a sample whose shape does not end in the posterior's; a sample
        without gradient where the posterior's parameters want one.
    Source: Kingma & Welling 2014, eq. 6; Roeder et al. 2017; Buchholz et al. 2018.

    >>> import torch
    >>> posterior = torch.distributions.Normal(torch.ones(4, 2), torch.ones(4, 2))
    >>> MonteCarloKLLoss(num_samples=4, sampler="sobol").per_dimension(posterior).shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        num_samples: int = 1,
        *,
        value: Value = "k1",
        gradient: Gradient = "pathwise",
        sampler: Sampler = "iid",
        reduction: Reduction = "batchmean",
    ) -> None:
        super().__init__(reduction)
        check_options(num_samples, value, gradient, sampler)
        if sampler == "sobol":
            check_scramble(gradient)
        self.num_samples, self.value, self.gradient, self.sampler = num_samples, value, gradient, sampler

    def unreduced(
        self,
        posterior: Distribution,
        prior: Distribution | None = None,
        sample: Tensor | None = None,
        *,
        sample_log_prob: Tensor | None = None,
    ) -> Tensor:
        return self._estimate(posterior, prior, sample, sample_log_prob)

    def kl_values(
        self,
        posterior: Distribution,
        prior: Distribution | None = None,
        sample: Tensor | None = None,
        *,
        sample_log_prob: Tensor | None = None,
    ) -> KLValues:
        # a mask may yet hide a NaN
        return KLValues(self._estimate(posterior, prior, sample, sample_log_prob, names_nan=False))

    def forward(
        self,
        posterior: Distribution,
        prior: Distribution | None = None,
        sample: Tensor | None = None,
        *,
        sample_log_prob: Tensor | None = None,
    ) -> Tensor:
        return reduce(self.per_example(posterior, prior, sample, sample_log_prob=sample_log_prob), self.reduction)

    def per_example(
        self,
        posterior: Distribution,
        prior: Distribution | None = None,
        sample: Tensor | None = None,
        *,
        sample_log_prob: Tensor | None = None,
    ) -> Tensor:
        """Nats per example, (N,)."""
        return sum_latent(self.unreduced(posterior, prior, sample, sample_log_prob=sample_log_prob))

    def per_dimension(
        self,
        posterior: Distribution,
        prior: Distribution | None = None,
        sample: Tensor | None = None,
        *,
        sample_log_prob: Tensor | None = None,
    ) -> Tensor:
        r"""Nats per example and latent dimension, (N, \*latent).

        Raises: ValueError: the pair does not factorise over its dimensions, or ``sample_log_prob`` is that of whole
            events; the message names ``per_example``.
        """
        if sample_log_prob is None:
            return super().per_dimension(posterior, prior, sample)
        if posterior.event_shape:
            raise ValueError(
                f"sample_log_prob is that of events of shape {tuple(posterior.event_shape)}, so there is no KL of one "
                "dimension: use per_example, or leave it out"
            )
        return self.unreduced(posterior, prior, sample, sample_log_prob=sample_log_prob)

    def _estimate(
        self,
        posterior: Distribution,
        prior: Distribution | None,
        sample: Tensor | None,
        sample_log_prob: Tensor | None,
        names_nan: bool = True,
    ) -> Tensor:
        check_posterior(posterior, prior)
        if not (sample is None or isinstance(sample, Tensor)):
            raise TypeError(f"the sample is a {type(sample).__name__}, and must be a tensor: posterior.rsample()")
        prior = standard_prior(posterior, like=sample) if prior is None else prior
        plan = Plan(self.value, self.gradient, with_error=False, names_nan=names_nan)
        whole = Pair.of(posterior, prior)
        if sample_log_prob is not None:
            self._check_log_prob(posterior, sample, sample_log_prob)
            # the log-probability is that of the posterior's events, after all transforms
            pair = whole = whole.matched(apart=not posterior.event_shape)
        else:
            whole = whole.matched()
            pair = whole.before_shared_transforms()
        draws: Draws
        if sample is None:
            reparametrised = self.gradient != "score"
            draws = Draws(pair.p, pair.p.batch_shape, self.num_samples, self.sampler, 1, reparametrised)
        else:
            shape = posterior.batch_shape + posterior.event_shape
            if sample.shape[max(sample.ndim - len(shape), 0) :] != shape:
                raise ValueError(
                    f"sample has the shape {tuple(sample.shape)} and must end in the posterior's, {tuple(shape)}: "
                    f"batch {tuple(posterior.batch_shape)}, event {tuple(posterior.event_shape)}"
                )
            if pair.transforms_left:
                before = before_transforms(pair, posterior, sample)
                pair, sample = (whole, sample) if before is None else (pair, before)
            draws = GivenDraws(pair.p, pair.widen(sample))
            if sample_log_prob is not None or not (pair.p_can_be_copied and pair.q_can_be_copied):
                known = sample_log_prob
                if known is not None:
                    known = sum_rightmost(known, len(pair.p.event_shape) - len(posterior.event_shape))
                    known = known.reshape(draws.units, 1, *pair.p.batch_shape)
                pair = pair._replace(given=GivenSample(draws.sample, sample, known))
                plan = plan._replace(chunk_size=max(draws.units, 1))
        return average(pair, draws, plan).value.to(pair.dtype)

    def _check_log_prob(self, posterior: Distribution, sample: Tensor | None, sample_log_prob: Tensor) -> None:
        """Raises: TypeError, ValueError: what is no log-probability of the sample; a gradient that needs more."""
        if not isinstance(sample_log_prob, Tensor):
            raise TypeError(
                f"sample_log_prob is a {type(sample_log_prob).__name__}, and must be a tensor: ln q(sample), as "
                "posterior.log_prob(sample) would give it"
            )
        if sample is None:
            raise ValueError("sample_log_prob is ln q(sample): pass the sample too, (posterior, prior, sample, ...)")
        shape = sample.shape[: sample.ndim - len(posterior.event_shape)]
        if sample_log_prob.shape != shape:
            raise ValueError(
                f"sample_log_prob has the shape {tuple(sample_log_prob.shape)}, and for a sample of shape "
                f"{tuple(sample.shape)} of events {tuple(posterior.event_shape)} it must be {tuple(shape)}"
            )
        wanted, through_sample = sample_log_prob.requires_grad, sample.requires_grad
        needs_more = {"pathwise": False, "score": wanted and through_sample}.get(
            self.gradient, wanted or through_sample
        )
        if torch.is_grad_enabled() and needs_more:
            raise ValueError(
                f"gradient={self.gradient!r} needs ln q at the sample without its gradient, which sample_log_prob has "
                "not: leave it out, and the posterior is evaluated; or gradient='pathwise' would do"
            )

    def extra_repr(self) -> str:
        options = ("num_samples", "value", "gradient", "sampler", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in options)


class BalancedKLLoss(KLTerm):
    r"""KL balancing: D_KL(posterior || prior) in nats, with weights for the gradients of posterior and prior.

    .. math:: \alpha\, D_{KL}(\bar q \,\|\, p) + (1 - \alpha)\, D_{KL}(q \,\|\, \bar p)

    q is the posterior and p the prior; a bar stops the gradient. The value is that of the KL for every :math:`\alpha`.
    With :math:`\alpha > 1/2` a learned prior moves to the posterior faster than the posterior moves to the prior.

    Called with ``(posterior, prior, sample=None)``. If the prior is not learned, its part of the gradient is lost: the
    posterior gets :math:`1 - \alpha` of its gradient all the same.

    Args:
        prior_weight: :math:`\alpha`, in [0, 1].
        kl: the term that is balanced; ``None``: :class:`ExactKLLoss`. Without a sample a Monte Carlo term draws twice,
            and the value is the weighted mean of both.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises:
        ValueError: a ``prior_weight`` outside of [0, 1]; whatever the term raises.
        TypeError: a distribution of another package: its parameters are not known, so it cannot be detached.
    Source: Hafner et al. 2021 (DreamerV2), algorithm 2.

    >>> import torch
    >>> parameters = torch.ones(4, 2, requires_grad=True), torch.zeros(4, 2, requires_grad=True)
    >>> posterior, prior = (torch.distributions.Normal(mean, 1.0) for mean in parameters)
    >>> BalancedKLLoss(0.8, reduction="sum")(posterior, prior).backward()
    >>> [mean.grad[0].tolist() for mean in parameters]
    [[0.20000000298023224, 0.20000000298023224], [-0.800000011920929, -0.800000011920929]]
    """

    kl: Any  # a KLTerm

    def __init__(
        self, prior_weight: float = 0.8, kl: KLTerm | None = None, *, reduction: Reduction = "batchmean"
    ) -> None:
        super().__init__(reduction)
        if not 0 <= prior_weight <= 1:
            raise ValueError(f"prior_weight={prior_weight} is not in [0, 1]")
        if not (kl is None or isinstance(kl, KLTerm)):
            raise TypeError(
                f"kl is a {type(kl).__name__}, which is not called with distributions: pass kldiv.ExactKLLoss() or "
                "another kldiv.KLTerm"
            )
        self.prior_weight, self.kl = prior_weight, ExactKLLoss() if kl is None else kl

    def unreduced(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        return self.kl_values(posterior, prior, sample).in_loss

    def per_dimension(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        check_sample_type(sample)
        with torch.no_grad():  # raises where the term has no KL of one dimension
            self.kl.per_dimension(posterior, prior, None if sample is None else sample.detach())
        return super().per_dimension(posterior, prior, sample)

    def kl_values(
        self,
        posterior: Distribution,
        prior: Distribution | None = None,
        sample: Tensor | None = None,
        *,
        sample_log_prob: Tensor | None = None,
    ) -> KLValues:
        check_posterior(posterior, prior)
        check_sample_type(sample)
        given = {} if sample_log_prob is None else {"sample_log_prob": sample_log_prob}
        fixed = {name: value.detach() for name, value in given.items()}
        prior = standard_prior(posterior, like=sample) if prior is None else prior
        fixed_sample = None if sample is None else sample.detach()
        to_prior: Tensor = self.kl.unreduced(detached(posterior), prior, fixed_sample, **fixed)
        values: KLValues = self.kl.kl_values(posterior, detached(prior), sample, **given)
        to_posterior = values.in_loss
        # lerp gives b exactly where both are b, and NaN where both are infinite
        balanced = torch.lerp(to_posterior, to_prior, self.prior_weight)
        balanced = torch.where(balanced.isnan(), to_posterior + to_prior, balanced)
        return KLValues(balanced) if values.penalty is None else KLValues(values.kl, penalty=balanced)

    def extra_repr(self) -> str:
        return f"prior_weight={self.prior_weight}, {super().extra_repr()}"
