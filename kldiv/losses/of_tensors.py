"""KL terms of the tensors that an encoder returns: means and log-variances, or logits."""

from torch import Tensor, nn

from kldiv.functional import kl_categorical, kl_normal
from kldiv.kernels import gaussian_kl
from kldiv.reduction import Reduction, check_reduction, reduce, sum_latent

__all__ = [
    "CategoricalKLLoss",
    "GaussianKLLoss",
]


class GaussianKLLoss(nn.Module):
    r"""D_KL(N(mean, exp(log_var)) || N(prior_mean, exp(prior_log_var))) of tensors, in nats.

    Args:
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises: ValueError: ``"mean"`` and unknown reductions.

    Called with ``(mean, log_var, prior_mean=None, prior_log_var=None)``: the first two of one shape (N, \*latent),
    the prior's of shapes that broadcast to it, ``None`` standing for the standard normal. Other shapes raise
    ``ValueError``.

    Source: Kingma & Welling 2014, appendix B.

    >>> import torch
    >>> GaussianKLLoss()(torch.ones(4, 2), torch.zeros(4, 2))
    tensor(1.)
    """

    def __init__(self, reduction: Reduction = "batchmean") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def forward(
        self, mean: Tensor, log_var: Tensor, prior_mean: Tensor | None = None, prior_log_var: Tensor | None = None
    ) -> Tensor:
        if prior_mean is None and prior_log_var is None and self.reduction != "none":
            _check_posterior(mean, log_var)
            return gaussian_kl(mean, log_var, max(len(mean), 1) if self.reduction == "batchmean" else 1)
        return reduce(self.per_example(mean, log_var, prior_mean, prior_log_var), self.reduction)

    def per_example(
        self, mean: Tensor, log_var: Tensor, prior_mean: Tensor | None = None, prior_log_var: Tensor | None = None
    ) -> Tensor:
        """Nats per example, (N,)."""
        return sum_latent(self.per_dimension(mean, log_var, prior_mean, prior_log_var))

    def per_dimension(
        self, mean: Tensor, log_var: Tensor, prior_mean: Tensor | None = None, prior_log_var: Tensor | None = None
    ) -> Tensor:
        r"""Nats per example and latent dimension, (N, \*latent)."""
        _check_posterior(mean, log_var)
        values = kl_normal(mean, log_var, prior_mean, prior_log_var)
        if values.shape != mean.shape:
            shapes = [tuple(t.shape) if isinstance(t, Tensor) else t for t in (prior_mean, prior_log_var)]
            raise ValueError(
                f"prior_mean {shapes[0]} and prior_log_var {shapes[1]} must broadcast to the posterior's shape "
                f"{tuple(mean.shape)}, and not beyond it"
            )
        return values

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


def _check_posterior(mean: Tensor, log_var: Tensor) -> None:
    if mean.shape != log_var.shape:
        raise ValueError(
            f"mean {tuple(mean.shape)} and log_var {tuple(log_var.shape)} must have one shape, (N, ...): only a "
            "prior's parameters broadcast. Write log_var.expand_as(mean) if one variance is meant for all"
        )
    if mean.ndim < 2:
        raise ValueError(
            f"mean has the shape {tuple(mean.shape)}, and dimension 0 is the example, the others are latent. Add "
            "one: mean[None] and log_var[None] for a single example, mean[:, None] and log_var[:, None] for one "
            "latent dimension"
        )


class CategoricalKLLoss(nn.Module):
    r"""D_KL(Categorical(logits) || Categorical(prior_logits)) of tensors, in nats.

    Args:
        dim: the dimension of the categories: -1, the last, or another than 0, which is the example; 1 for maps of
            logits (N, K, H, W).
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``, see :mod:`kldiv.reduction`.
    Raises: ValueError: ``"mean"`` and unknown reductions; ``dim=0``. TypeError: a ``dim`` that is no whole number.

    Called with ``(logits, prior_logits=None)``: logits of shape (N, \*latent, K), with the categories in the last
    dimension or in ``dim``; the prior's of a shape that broadcasts to it with as many categories; ``None`` stands for
    the uniform distribution. Other shapes raise ``ValueError``.

    Source: Jang, Gu & Poole 2017, section 3.

    >>> import torch
    >>> CategoricalKLLoss()(torch.tensor([[[50.0, 0.0]], [[0.0, 0.0]]]))  # the mean of ln 2 and 0
    tensor(0.3466)
    """

    def __init__(self, dim: int = -1, reduction: Reduction = "batchmean") -> None:
        super().__init__()
        if isinstance(dim, str):
            raise TypeError(f"dim={dim!r} is no dimension: write CategoricalKLLoss(reduction={dim!r})")
        if not isinstance(dim, int):
            raise TypeError(f"dim={dim!r} is a {type(dim).__name__}, and must be the dimension of the categories: -1")
        if dim == 0:
            raise ValueError("dim=0 is the example: write the dimension of the categories, dim=1 for (N, K, H, W)")
        self.dim = dim
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, prior_logits: Tensor | None = None) -> Tensor:
        return reduce(self.per_example(logits, prior_logits), self.reduction)

    def per_example(self, logits: Tensor, prior_logits: Tensor | None = None) -> Tensor:
        """Nats per example, (N,)."""
        return sum_latent(self.per_dimension(logits, prior_logits))

    def per_dimension(self, logits: Tensor, prior_logits: Tensor | None = None) -> Tensor:
        r"""Nats per example and categorical variable, (N, \*latent)."""
        if logits.ndim < 2:
            raise ValueError(
                f"logits have the shape {tuple(logits.shape)}, and dimension 0 is the example, the last that of the "
                "categories. Add one: logits[None] for a single example"
            )
        dim = self.dim if self.dim < 0 else self.dim - logits.ndim  # from behind, as shapes broadcast
        if not -logits.ndim < dim < 0:
            raise ValueError(
                f"dim={self.dim} and logits of shape {tuple(logits.shape)}: dimension 0 is the example, and the "
                f"categories are in one of 1 to {logits.ndim - 1}"
            )
        if prior_logits is not None and prior_logits.ndim < -dim:
            written = (*prior_logits.shape, *[1] * (-dim - 1)) if prior_logits.ndim == 1 else "(K, ...)"
            raise ValueError(
                f"prior_logits {tuple(prior_logits.shape)} have no dimension of categories where logits "
                f"{tuple(logits.shape)} have it, dim={self.dim}: write prior_logits.reshape{written}"
            )
        values = kl_categorical(logits, prior_logits, dim)
        if values.shape != logits.shape[:dim] + (logits.shape[dim + 1 :] if dim < -1 else ()):
            shape = None if prior_logits is None else tuple(prior_logits.shape)
            raise ValueError(
                f"prior_logits {shape} must broadcast to the posterior's shape {tuple(logits.shape)}, and not beyond it"
            )
        return values

    def extra_repr(self) -> str:
        return f"dim={self.dim}, reduction={self.reduction!r}"
