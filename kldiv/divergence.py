"""kl_divergence(p, q): finds the closed form for two distributions, ours or torch's."""

from typing import Any

from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal
from torch.distributions import kl as torch_kl

from kldiv.distributions import DiagonalNormal, independent_dims, sum_rightmost, take_off, widened
from kldiv.exact import CLOSED_FORMS, ClosedForm, register_kl
from kldiv.exact.normal import kl_normal_parameters, log_variance
from kldiv.functional import check_broadcast, kl_normal

__all__ = ["kl_divergence", "register_kl"]


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    r"""D_KL(p||q), exactly, in nats: the expectation of ln p - ln q under the first argument.

    Args:
        p, q: distributions whose batch shapes broadcast together, of one event shape. In a VAE the posterior comes
            first and the prior second.
    Returns: the broadcast batch shape.
    Raises:
        NotImplementedError: no closed form is known for the two types; the message names both.
        TypeError: p or q is no distribution.
        ValueError: batch shapes that do not broadcast or event shapes that differ; the message holds both.

    >>> import torch
    >>> kl_divergence(Normal(torch.tensor([0.0, 1e-4]), 1.0), Normal(0.0, 1.0))
    tensor([0.0000e+00, 5.0000e-09])
    """
    for name, given in (("p", p), ("q", q)):
        if not isinstance(given, Distribution):
            raise TypeError(
                f"kl_divergence(p, q) takes two distributions, and {name} is a {type(given).__name__}. For tensors of "
                "means and log-variances write kldiv.functional.kl_normal, or wrap them: "
                "kldiv.DiagonalNormal(mean, log_var)"
            )
    batch_shape = check_broadcast(**{"p.batch_shape": p.batch_shape, "q.batch_shape": q.batch_shape})
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"p has the event shape {tuple(p.event_shape)} and q {tuple(q.event_shape)} (batch shapes "
            f"{tuple(p.batch_shape)} and {tuple(q.batch_shape)}): one event must be the same for both. "
            "torch.distributions.Independent(distribution, dims) makes trailing batch dimensions part of the event"
        )
    closed_form = find_closed_form(type(p), type(q))
    if closed_form is None:
        raise NotImplementedError(_no_closed_form(p, q))
    if closed_form.__module__ == torch_kl.__name__:
        # torch's closed forms compute in the dtype they are given, and some forget to broadcast
        p, q = (d if d.batch_shape == batch_shape else d.expand(batch_shape) for d in (widened(p), widened(q)))
        if isinstance(p, Categorical) and isinstance(q, Categorical) and p.logits.shape != q.logits.shape:
            raise ValueError(f"p has {p.logits.shape[-1]} categories and q {q.logits.shape[-1]}: they must be the same")
    try:
        value = closed_form(p, q)
    except NotImplementedError as error:  # some pairs have a form for some parameters only
        raise NotImplementedError(str(error) or _no_closed_form(p, q)) from error
    return value if value.shape == batch_shape else value.expand(batch_shape)


def find_closed_form(type_p: type, type_q: type) -> ClosedForm | None:
    """The function of the most specific pair in our registry and torch's; ``None`` where neither has one."""
    for left in type_p.__mro__:
        for right in type_q.__mro__:
            for registry in (CLOSED_FORMS, torch_kl._KL_REGISTRY):  # ours first: it keeps ties
                if (left, right) in registry:
                    closed_form: ClosedForm = registry[left, right]
                    return closed_form
    return None


def is_registered_by_user(p: Distribution, q: Distribution) -> bool:
    """Whether the closed form of the pair is neither ours nor torch's: then the two are not to be taken apart."""
    closed_form = find_closed_form(type(p), type(q))
    return closed_form is not None and closed_form.__module__.split(".")[0] not in ("kldiv", "torch")


def _no_closed_form(p: Distribution, q: Distribution) -> str:
    types = f"{type(p).__name__}, {type(q).__name__}"
    estimate = "Estimate it, kldiv.MonteCarloKLLoss(num_samples=64)(p, q), or register" if p.has_rsample else "Register"
    return (
        f"no closed form of D_KL({type(p).__name__} || {type(q).__name__}) is known. {estimate} one: "
        f"@kldiv.register_kl({types})"
    )


def _of_independent_dimensions(p: Any, q: Any) -> Tensor:
    dims = min(independent_dims(p), independent_dims(q))
    wrapped_in_vain = any(isinstance(d, Independent) and not d.reinterpreted_batch_ndims for d in (p, q))
    if dims == 0 and not wrapped_in_vain:
        raise NotImplementedError(_no_closed_form(p, q))
    return sum_rightmost(kl_divergence(take_off(p, dims), take_off(q, dims)), dims)


def _of_diagonal_normals(p: DiagonalNormal, q: DiagonalNormal) -> Tensor:
    return sum_rightmost(kl_normal(p.mean, p.log_var, q.mean, q.log_var), p.event_dim)


def _of_diagonal_normal_and_normal(p: DiagonalNormal, q: Normal) -> Tensor:
    return kl_normal_parameters(p.mean, p.log_var, q.loc, log_variance(q.scale))


def _of_normal_and_diagonal_normal(p: Normal, q: DiagonalNormal) -> Tensor:
    return kl_normal_parameters(p.loc, log_variance(p.scale), q.mean, q.log_var)


register_kl(Independent, Independent)(_of_independent_dimensions)

# pairs with a type of our own are torch's to find as well: torch.distributions.kl_divergence gives the same
_PAIRS: dict[tuple[type[Distribution], type[Distribution]], ClosedForm] = {
    (DiagonalNormal, DiagonalNormal): _of_diagonal_normals,
    (DiagonalNormal, Normal): _of_diagonal_normal_and_normal,
    (Normal, DiagonalNormal): _of_normal_and_diagonal_normal,
    (DiagonalNormal, Independent): _of_independent_dimensions,
    (Independent, DiagonalNormal): _of_independent_dimensions,
}
for _types, _closed_form in _PAIRS.items():
    register_kl(*_types)(_closed_form)
    torch_kl.register_kl(*_types)(_closed_form)  # type: ignore[no-untyped-call]
