"""KL terms as modules: alone they are losses, inside an ELBO they are one term of the bound."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from kldiv.adaptive import parameters_of
from kldiv.copies import detached
from kldiv.distributions import DiagonalNormal, factorise, standard_prior, with_event_dims
from kldiv.divergence import is_registered_by_user, kl_divergence, parameter_dtype
from kldiv.double import has_pathwise_gradient, in_wide
from kldiv.estimators import check_scramble
from kldiv.functional import check_broadcast, kl_normal
from kldiv.monte_carlo import average, check_measures, check_options
from kldiv.reduction import check_reduction, reduce, sum_latent
from kldiv.samplers import Draws, GivenDraws
from kldiv.special import widen


class KLTerm(nn.Module):
    r"""A KL term that is called with distributions, (posterior, prior): what :class:`kldiv.ELBOLoss` is made of.

    A subclass computes :meth:`unreduced`; everything else follows. All are called with (posterior, prior, sample),
    the sample being the one the decoder consumed: a term that draws may use it, a closed form has no need of it.

    Args:
        reduction: ``"batchmean"`` (the sum over everything divided by N; 0 for N = 0), ``"sum"`` or ``"none"``: (N,).
    Raises: ValueError: ``"mean"`` and unknown reductions.
    """

    def __init__(self, reduction: str = "batchmean") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def unreduced(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        r"""Nats as fine as they come: (N, \*latent) where the pair factorises over its dimensions, else (N,).

        A batch of several dependent groups, as that of full-covariance Gaussians (N, G), has (N, G).
        """
        raise NotImplementedError

    def unreduced_with_kl(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What enters a loss, and the KL divergence itself: the same, but for a term that weighs its parts."""
        values = self.unreduced(posterior, prior, sample)
        return values, values

    def forward(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        return reduce(self.per_example(posterior, prior, sample), self.reduction)

    def per_example(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        """Nats per example, (N,)."""
        return sum_latent(self.unreduced(posterior, prior, sample))

    def per_dimension(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        r"""Nats per example and latent dimension, (N, \*latent).

        Raises: ValueError: where the pair does not factorise over its dimensions: it has ``per_example`` alone.
        """
        for name, distribution in (("posterior", posterior), ("prior", prior)):
            if distribution is not None and factorise(distribution) is None:
                raise ValueError(
                    f"the {name}, {type(distribution).__name__} of event shape {tuple(distribution.event_shape)}, does "
                    "not factorise over its dimensions, so there is no KL of one dimension: use per_example"
                )
        return self.unreduced(posterior, prior, sample)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class ExactKLLoss(KLTerm):
    r"""D_KL(posterior || prior) in closed form, in nats: :func:`kldiv.kl_divergence` as a loss.

    Called with ``(posterior, prior=None)``: dimension 0 of the posterior's batch is the example, everything else is
    latent. ``None`` is the standard normal on real supports, uniform for categories.

    Args:
        reduction: ``"batchmean"`` (the sum over everything divided by N; 0 for N = 0), ``"sum"`` or ``"none"``: (N,).
    Raises:
        NotImplementedError: no closed form is known for the two types.
        ValueError: ``prior=None`` on another support; a prior that is larger than the posterior.

    >>> import torch
    >>> ExactKLLoss()(torch.distributions.Normal(torch.ones(4, 2), 1.0))
    tensor(1.)
    """

    def unreduced(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        check_distributions(posterior, prior)
        check_example_dimension(posterior)
        if prior is None and type(posterior) is DiagonalNormal:
            return kl_normal(posterior.mean, posterior.log_var)  # nothing of the standard normal has to be made
        prior = standard_prior(posterior) if prior is None else prior
        if not is_registered_by_user(posterior, prior):
            posterior, prior = matched(posterior, prior)
        try:
            values = kl_divergence(posterior, prior)
        except NotImplementedError as error:
            raise NotImplementedError(f"{error}. In an ELBO: ELBOLoss(..., kl=kldiv.MonteCarloKLLoss())") from error
        return values


class MonteCarloKLLoss(KLTerm):
    r"""D_KL(posterior || prior) as a mean over samples of the posterior, in nats, for any pair of distributions.

    .. math:: \frac1S \sum_s f(z_s), \qquad z_s \sim q, \qquad f = \ln q - \ln p \text{ for } \texttt{"k1"}

    :func:`kldiv.estimate_kl` as a loss: its docstring has what ``value``, ``gradient`` and ``sampler`` choose between.
    The gradient is that of the KL whatever the value, in both distributions and without bias. A pair that factorises is
    estimated dimension by dimension.

    Called with ``(posterior, prior=None, sample=None)``. A ``sample`` of shape (\*samples, \*batch, \*event), the one
    the decoder consumed, saves drawing again and overrides ``num_samples`` and ``sampler``: its draws are taken to be
    independent. One in half precision is rounded, by more than its noise where a posterior is narrow: give the
    posterior ``float32`` parameters, ``DiagonalNormal(mean.float(), log_var.float())``, and draw from that.

    Args:
        num_samples: draws for each example, at least 1; even for ``"antithetic"``.
        value: ``"k1"``, ``"k2"``, ``"k3"`` or ``"analytic_entropy"``.
        gradient: ``"pathwise"``, ``"sticking_the_landing"``, ``"adaptive"`` (three units at least) or ``"score"``
            (two).
        sampler: ``"iid"``, ``"antithetic"`` or ``"sobol"``. There is no standard error here, so Sobol is one scrambled
            net, with a random shift for each example. Powers of two are its best numbers of samples.
        reduction: ``"batchmean"`` (the sum over everything divided by N; 0 for N = 0), ``"sum"`` or ``"none"``: (N,).
    Raises: ValueError: unknown options; a choice that cannot be right, such as ``"score"`` with one draw, or a
        posterior without ``rsample`` whose parameters want a gradient that goes through samples; a sample whose shape
        does not end in the posterior's, or that carries no gradient to a posterior that wants one.
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
        value: str = "k1",
        gradient: str = "pathwise",
        sampler: str = "iid",
        reduction: str = "batchmean",
    ) -> None:
        super().__init__(reduction)
        check_options(num_samples, value, gradient, sampler)
        if sampler == "sobol":
            check_scramble(gradient)
        self.num_samples, self.value, self.gradient, self.sampler = num_samples, value, gradient, sampler

    def unreduced(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        check_distributions(posterior, prior)
        check_example_dimension(posterior)
        if not (sample is None or isinstance(sample, Tensor)):
            raise TypeError(f"the sample is a {type(sample).__name__}, and must be a tensor: posterior.rsample()")
        shape = posterior.batch_shape + posterior.event_shape
        q = standard_prior(posterior, like=sample) if prior is None else prior
        check_measures(posterior, q)
        parameters, dtype = (
            parameters_of(posterior),
            torch.promote_types(parameter_dtype(posterior), parameter_dtype(q)),
        )
        p, q = matched(*in_wide(posterior, q))
        if sample is None:
            reparametrised = self.gradient != "score"
            draws = Draws(p, p.batch_shape, self.num_samples, self.sampler, 1, reparametrised)
        else:
            if sample.shape[max(sample.ndim - len(shape), 0) :] != shape:
                raise ValueError(
                    f"sample has the shape {tuple(sample.shape)} and must end in the posterior's, {tuple(shape)}: "
                    f"batch {tuple(posterior.batch_shape)}, event {tuple(posterior.event_shape)}"
                )
            (sample,) = widen(sample)
            draws = GivenDraws(p, sample.to(torch.promote_types(sample.dtype, parameter_dtype(p))))
        found = average(draws, q, self.value, self.gradient, parameters=parameters, with_error=False)
        return found.value.to(dtype)

    def extra_repr(self) -> str:
        options = ("num_samples", "value", "gradient", "sampler", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in options)


class BalancedKLLoss(KLTerm):
    r"""D_KL(posterior || prior) in nats, its gradient shared out between the two: KL balancing.

    .. math:: \alpha\, D_{KL}(\bar q \,\|\, p) + (1 - \alpha)\, D_{KL}(q \,\|\, \bar p)

    The bars are distributions without gradient, so the value is that of the KL whatever :math:`\alpha`. With more than
    1/2 a learned prior moves to the posterior faster than the posterior is pulled to the prior.

    Called with ``(posterior, prior, sample=None)``. Where nothing of the prior is learned, its share of the gradient is
    lost: the posterior has :math:`1 - \alpha` of it.

    Args:
        prior_weight: :math:`\alpha`, in [0, 1].
        kl: the term that is balanced; ``None`` is :class:`ExactKLLoss`. A Monte Carlo term that is given no sample
            draws twice, and the value is the weighted mean of both.
        reduction: ``"batchmean"`` (the sum over everything divided by N; 0 for N = 0), ``"sum"`` or ``"none"``: (N,).
    Raises:
        ValueError: a ``prior_weight`` outside of [0, 1]; what the term raises.
        TypeError: a distribution of another package, whose parameters cannot be told from the rest.
    Source: Hafner et al. 2021 (DreamerV2), algorithm 2.

    >>> import torch
    >>> parameters = torch.ones(4, 2, requires_grad=True), torch.zeros(4, 2, requires_grad=True)
    >>> posterior, prior = (torch.distributions.Normal(mean, 1.0) for mean in parameters)
    >>> BalancedKLLoss(0.8, reduction="sum")(posterior, prior).backward()
    >>> [mean.grad[0].tolist() for mean in parameters]
    [[0.20000000298023224, 0.20000000298023224], [-0.800000011920929, -0.800000011920929]]
    """

    kl: Any  # a KLTerm

    def __init__(self, prior_weight: float = 0.8, kl: KLTerm | None = None, *, reduction: str = "batchmean") -> None:
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
        return self.unreduced_with_kl(posterior, prior, sample)[0]

    def per_dimension(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        with torch.no_grad():
            self.kl.per_dimension(posterior, prior, None if sample is None else sample.detach())  # where there is one
        return super().per_dimension(posterior, prior, sample)

    def unreduced_with_kl(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        check_distributions(posterior, prior)
        prior = standard_prior(posterior, like=sample) if prior is None else prior
        fixed = None if sample is None else sample.detach()
        of_prior: Tensor = self.kl.unreduced(detached(posterior), prior, fixed)
        of_posterior, kl = self.kl.unreduced_with_kl(posterior, detached(prior), sample)
        # b + w (a - b) is b to the last digit where the two are one number, and NaN where that is infinite
        balanced = torch.lerp(of_posterior, of_prior, self.prior_weight)
        balanced = torch.where(balanced.isnan(), of_posterior + of_prior, balanced)
        return balanced, balanced if kl is of_posterior else kl

    def extra_repr(self) -> str:
        return f"prior_weight={self.prior_weight}, {super().extra_repr()}"


def check_distributions(posterior: object, prior: object) -> None:
    """Raises: TypeError: one of the two is no distribution; the message shows how to make one of tensors."""
    for name, value in (("posterior", posterior), ("prior", prior)):
        if isinstance(value, nn.Module):
            raise TypeError(f"the {name} is a {type(value).__name__}, a module: call it, and pass what it returns")
        if not (isinstance(value, Distribution) or (value is None and name == "prior")):
            raise TypeError(
                f"the {name} is a {type(value).__name__}, and this term takes distributions: write "
                "kldiv.DiagonalNormal(mean, log_var), or use kldiv.GaussianKLLoss()(mean, log_var) on tensors"
            )


def check_example_dimension(posterior: Distribution) -> None:
    """Raises: ValueError: an empty batch shape, so that no dimension is the example."""
    if not posterior.batch_shape:
        raise ValueError(
            f"the posterior has an empty batch shape (event shape {tuple(posterior.event_shape)}), and dimension 0 of "
            "the batch is the example. Add it to the parameters, mean[None], or write posterior.expand((1,))"
        )


def check_sample_gradient(posterior: Distribution, sample: Tensor, what: str) -> None:
    """For a posterior whose parameters want a gradient that goes through its sample.

    Raises: ValueError: a sample that carries none, or cannot; ``what`` names what was to be differentiated.
    """
    name = type(posterior).__name__
    if not has_pathwise_gradient(posterior):
        raise ValueError(
            f"{name} has no reparametrised rsample, and the gradient of {what} goes through the sample: compute it "
            "under torch.no_grad() for its value alone"
        )
    if not sample.requires_grad:
        raise ValueError(
            f"the sample carries no gradient and the parameters of {name} want one, which goes through it: draw the "
            "sample with rsample(), or compute under torch.no_grad()"
        )


def matched(posterior: Distribution, prior: Distribution) -> tuple[Distribution, Distribution]:
    """The two, taken apart into their dimensions where both factorise and else with one event shape.

    Raises: ValueError: a prior larger than the posterior.
    """
    whole_posterior, whole_prior = factorise(posterior), factorise(prior)
    if whole_posterior is not None and whole_prior is not None:
        posterior, prior = whole_posterior, whole_prior
    elif whole_posterior is not None:
        posterior = with_event_dims(whole_posterior, len(prior.event_shape))
    else:
        if whole_prior is not None:  # one normal for all dimensions, say
            shape = check_broadcast(prior=whole_prior.batch_shape, posterior_event=posterior.event_shape)
            prior = whole_prior.expand(shape)
        prior = with_event_dims(prior, len(posterior.event_shape))
    of_posterior, of_prior = (d.batch_shape + d.event_shape for d in (posterior, prior))
    if of_posterior != check_broadcast(posterior=of_posterior, prior=of_prior):
        raise ValueError(
            f"the prior of shape {tuple(of_prior)} must broadcast to the posterior's, {tuple(of_posterior)}, and not "
            "beyond it"
        )
    return posterior, prior
