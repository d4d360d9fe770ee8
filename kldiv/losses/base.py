"""KLTerm, the base of every KL term, and the checks of its arguments."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.distributions import Distribution

from kldiv.distributions import check_distributions, factorise
from kldiv.monte_carlo import has_pathwise_gradient
from kldiv.reduction import Reduction, check_reduction, reduce, sum_latent

__all__ = [
    "KLTerm",
    "KLValues",
    "check_posterior",
    "check_sample_gradient",
    "check_sample_type",
]


class KLValues(NamedTuple):
    r"""What a KL term computes, in nats and unreduced: (N, \*latent), or (N,) where the pair does not factorise."""

    kl: Tensor
    """The KL divergence."""
    penalty: Tensor | None = None
    """What enters a loss in place of the KL; ``None``: the KL itself."""

    @property
    def in_loss(self) -> Tensor:
        """What enters a loss."""
        return self.kl if self.penalty is None else self.penalty


class KLTerm(nn.Module):
    r"""The base of KL terms that are called with distributions, (posterior, prior, sample).

    A subclass computes :meth:`unreduced`; everything else follows. ``sample`` is the one the decoder consumed: a Monte
    Carlo term uses it, a closed form ignores it.

    Args:
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises: ValueError: ``"mean"`` and unknown reductions.
    """

    def __init__(self, reduction: Reduction = "batchmean") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def unreduced(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        r"""The term in nats, unreduced: (N, \*latent) where the pair factorises over its dimensions, else (N,).

        Of a posterior whose batch shape is more than (N,), such as full-covariance Gaussians (N, G), that batch shape.
        """
        raise NotImplementedError

    def kl_values(
        self,
        posterior: Distribution,
        prior: Distribution | None = None,
        sample: Tensor | None = None,
        *,
        sample_log_prob: Tensor | None = None,
    ) -> KLValues:
        """The KL divergence, and what enters a loss in its place: for :class:`kldiv.ELBOLoss`.

        They are one and the same here. A term that weighs parts of the KL overrides this and returns both.
        ``sample_log_prob`` is ln q(sample), which a Monte Carlo term uses and a closed form ignores.
        """
        return KLValues(self.unreduced(posterior, prior, sample))

    def forward(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        return reduce(self.per_example(posterior, prior, sample), self.reduction)

    def per_example(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        """Nats per example, (N,)."""
        check_sample_type(sample)
        return sum_latent(self.unreduced(posterior, prior, sample))

    def per_dimension(
        self, posterior: Distribution, prior: Distribution | None = None, sample: Tensor | None = None
    ) -> Tensor:
        r"""Nats per example and latent dimension, (N, \*latent).

        Raises: ValueError: the pair does not factorise over its dimensions; the message names ``per_example``.
        """
        for name, distribution in (("posterior", posterior), ("prior", prior)):
            if distribution is not None and factorise(distribution) is None:
                raise ValueError(
                    f"the {name}, {type(distribution).__name__} of event shape {tuple(distribution.event_shape)}, does "
                    "not factorise over its dimensions, so there is no KL of one dimension: use per_example"
                )
        check_sample_type(sample)
        return self.unreduced(posterior, prior, sample)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


def check_posterior(posterior: Distribution, prior: Distribution | None = None) -> None:
    """Whether a term can be called with the two.

    Raises:
        TypeError: one of them is no distribution; the message shows how to make one of tensors.
        ValueError: an empty batch shape of the posterior, so that no dimension is the example.
    """
    given = {"posterior": posterior} if prior is None else {"posterior": posterior, "prior": prior}
    check_distributions(
        "Write kldiv.DiagonalNormal(mean, log_var), or use kldiv.GaussianKLLoss()(mean, log_var) on tensors", **given
    )
    if not posterior.batch_shape:
        raise ValueError(
            f"the posterior has an empty batch shape (event shape {tuple(posterior.event_shape)}), and dimension 0 of "
            "the batch is the example. Add it to the parameters, mean[None], or write posterior.expand((1,))"
        )


def check_sample_type(sample: object) -> None:
    """Raises: TypeError: a sample that is no tensor."""
    if not (sample is None or isinstance(sample, Tensor)):
        raise TypeError(
            f"the sample is a {type(sample).__name__}, and must be a tensor: posterior.rsample(). Sequences, one entry "
            "a latent group, are for kldiv.ELBOLoss, where the posterior is one too"
        )


def check_sample_gradient(posterior: Distribution, sample: Tensor, what: str) -> None:
    """Whether the gradient of the posterior's parameters can go through the sample.

    Args:
        what: the name of the quantity that is differentiated, for the message.
    Raises: ValueError: a posterior without ``rsample``; a sample without gradient.
    """
    name = type(posterior).__name__
    if not has_pathwise_gradient(posterior):
        raise ValueError(
            f"{name} has no reparametrised rsample, and the gradient of {what} goes through the sample. For discrete "
            'latents write kldiv.MonteCarloKLLoss(2, gradient="score"), or relax them in a kldiv.ELBOLoss: '
            "kldiv.GumbelSoftmax(logits).rsample(). For its value alone compute under torch.no_grad()"
        )
    if not sample.requires_grad:
        raise ValueError(
            f"the sample carries no gradient and the parameters of {name} want one, which goes through it: draw the "
            "sample with rsample(), or compute under torch.no_grad()"
        )
