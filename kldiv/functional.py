"""KL divergences of normal, Bernoulli and categorical distributions from their parameters. In nats, unreduced."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from kldiv.kernels import categorical_kl, normal_kl
from kldiv.numerics import broadcast, check_broadcast, expm1mx, widen

__all__ = [
    "bounded_log_var",
    "kl_bernoulli",
    "kl_categorical",
    "kl_normal",
]


def kl_normal(
    mean_p: Tensor,
    log_var_p: Tensor,
    mean_q: Tensor | float | None = None,
    log_var_q: Tensor | float | None = None,
) -> Tensor:
    r"""D_KL(N(mean_p, exp(log_var_p)) || N(mean_q, exp(log_var_q))), per element, in nats.

    .. math:: \tfrac12\left[\varphi(\Delta) + (\mu_p-\mu_q)^2 e^{-\lambda_q}\right],
              \quad \Delta = \lambda_p-\lambda_q, \quad \varphi(u) = e^u - 1 - u

    Args:
        mean_p, log_var_p: :math:`\mu_p, \lambda_p`. Any shapes that broadcast together.
        mean_q, log_var_q: the same of q; ``None`` is that of the standard normal, 0.
    Returns: the broadcast shape, in ``float32`` for half precision and in the widest dtype otherwise. Never negative,
        ``inf`` beyond the dtype's range; relative error below 1e-6 in ``float32`` and 1e-12 in ``float64``.
    Raises: ValueError: if the shapes do not broadcast; the message holds them all.
    Source: Kingma & Welling 2014, appendix B.

    >>> kl_normal(torch.tensor([0.0, 1e-4]), torch.tensor([0.0, 0.0]))
    tensor([0.0000e+00, 5.0000e-09])
    """
    check_broadcast(
        mean_p=mean_p.shape,
        log_var_p=log_var_p.shape,
        mean_q=getattr(mean_q, "shape", None),
        log_var_q=getattr(log_var_q, "shape", None),
    )
    return normal_kl(*widen(mean_p, log_var_p, mean_q, log_var_q))


def kl_bernoulli(logits_p: Tensor, logits_q: Tensor | float | None = None) -> Tensor:
    r"""D_KL(Bernoulli(sigmoid(logits_p)) || Bernoulli(sigmoid(logits_q))), per element, in nats.

    .. math:: p\,\varphi(d_1) + (1-p)\,\varphi(d_0), \quad d_1 = \ln\frac{q}{p} = -\ln(1 + (1-p)(e^{-\delta}-1)),
              \quad d_0 = \ln\frac{1-q}{1-p} = -\ln(1 + p(e^{\delta}-1))

    with :math:`\delta` the difference of the logits, q's less p's, and :math:`\varphi(u) = e^u - 1 - u`.

    Args:
        logits_p, logits_q: :math:`\ln\frac{p}{1-p}`, infinite at 0 and 1. Any shapes that broadcast. ``None`` is 1/2.
    Returns: the broadcast shape, in ``float32`` for half precision and in the widest dtype otherwise. Never negative;
        ``inf`` where p gives mass to an outcome to which q gives none.
    Raises: ValueError: if the shapes do not broadcast; the message holds both.

    >>> kl_bernoulli(torch.tensor([0.0, 1e-4]), torch.tensor([20.0, 0.0]))
    tensor([9.3069e+00, 1.2500e-09])
    """
    if isinstance(logits_q, Tensor):
        check_broadcast(logits_p=logits_p.shape, logits_q=logits_q.shape)
    a, b = broadcast(*widen(logits_p, 0.0 if logits_q is None else logits_q))
    dtype, a, b = a.dtype, a.double(), b.double()  # in float32, the rounding of a = -30 leaves e^a five digits
    certain, excluded = a.isinf(), b.isinf()
    finite_a, finite_b = a.masked_fill(certain, 0), b.masked_fill(excluded, 0)
    delta = finite_b - finite_a
    near = delta.abs() < 1
    step = torch.where(near, delta, 0.0)
    p, not_p = torch.sigmoid(finite_a), torch.sigmoid(-finite_a)
    close = p * expm1mx(-torch.log1p(not_p * torch.expm1(-step)))
    close = close + not_p * expm1mx(-torch.log1p(p * torch.expm1(step)))
    apart = p * (functional.logsigmoid(finite_a) - functional.logsigmoid(finite_b))
    apart = apart + not_p * (functional.logsigmoid(-finite_a) - functional.logsigmoid(-finite_b))
    value = torch.where(near, close, apart.clamp(min=0))  # subnormal numbers have rounded below 0
    # where p is 0 or 1, it is -ln of what q gives to that outcome
    sign = torch.where(a > 0, 1.0, -1.0).to(a.dtype)
    value = torch.where(certain, -functional.logsigmoid(sign * finite_b), value)
    return value.masked_fill(excluded & (a != b), torch.inf).masked_fill(excluded & (a == b), 0).to(dtype)


def kl_categorical(logits_p: Tensor, logits_q: Tensor | None = None, dim: int = -1) -> Tensor:
    r"""D_KL(softmax(logits_p) || softmax(logits_q)) along ``dim``, in nats.

    .. math:: \ln\left(1 + \sum_k p_k\,\varphi(\delta_k - \bar\delta)\right), \quad \bar\delta = \sum_k p_k \delta_k

    with :math:`\delta` the difference of the logits, q's less p's, and :math:`\varphi(u) = e^u - 1 - u`: constants
    added to either's logits drop out, and every term is non-negative.

    Args:
        logits_p, logits_q: of shapes that broadcast, with equally many categories along ``dim``. ``-inf`` is a
            probability of 0, ``None`` the uniform distribution.
        dim: the dimension of the categories.
    Returns: the broadcast shape without ``dim``, in ``float32`` for half precision and in the widest dtype otherwise.
        Never negative; ``inf`` where p gives mass to a category to which q gives none.
    Raises: ValueError: shapes that do not broadcast, or unequal numbers of categories; the message holds both.

    >>> kl_categorical(torch.tensor([0.0, 0.0]), torch.tensor([0.0, -110.0]))
    tensor(54.3069)
    """
    if logits_q is None:
        logits_q = torch.zeros_like(logits_p)
    check_broadcast(logits_p=logits_p.shape, logits_q=logits_q.shape)
    if logits_p.shape[dim] != logits_q.shape[dim]:
        raise ValueError(
            f"logits_p {tuple(logits_p.shape)} has {logits_p.shape[dim]} categories along dim={dim} and logits_q "
            f"{tuple(logits_q.shape)} {logits_q.shape[dim]}: they must be the same"
        )
    logits_p, logits_q = broadcast(*widen(logits_p, logits_q))
    return categorical_kl(logits_p, logits_q, dim)


def bounded_log_var(raw: Tensor, limit: float = 10.0) -> Tensor:
    r"""A log-variance within (-limit, limit) from any output of a network, with a gradient that never vanishes.

    .. math:: \lambda = \frac{r}{1 + |r| / b}, \qquad \frac{d\lambda}{dr} = \frac{1}{(1 + |r| / b)^2}

    Near 0 it is close to r. A clamp has no gradient beyond its ends, so a network that gets there stays there, and a
    tanh has next to none.

    Args:
        raw: r, of any shape.
        limit: b, positive.
    Returns: the shape of ``raw``, in ``float32`` for half precision.
    Raises: ValueError: a limit that is not finite and positive.

    >>> bounded_log_var(torch.tensor([-1e4, 0.5, 10.0]))
    tensor([-9.9900,  0.4762,  5.0000])
    """
    if not (math.isfinite(limit) and limit > 0):
        raise ValueError(f"limit={limit} must be finite and positive")
    (raw,) = widen(raw)
    return raw / (1 + raw.abs() / limit)
