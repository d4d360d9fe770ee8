"""Closed forms, one file a family, and the registry they enter themselves into."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

ClosedForm = Callable[[Any, Any], Tensor]

CLOSED_FORMS: dict[tuple[type, type], ClosedForm] = {}


def register_kl(type_p: type[Distribution], type_q: type[Distribution]) -> Callable[[ClosedForm], ClosedForm]:
    """Decorator: enters ``f(p, q)``, D_KL(p||q) in nats, as the closed form for two types and their subclasses.

    A call of :func:`kldiv.kl_divergence` takes the most specific pair registered here or with torch: the type of p
    decides first, then that of q, and a tie goes to what is registered here. Torch's registry is left as it is.

    Args:
        type_p, type_q: subclasses of ``torch.distributions.Distribution``.
    Raises: TypeError: if one is not.

    >>> import torch
    >>> class Point(torch.distributions.Normal): pass
    >>> @register_kl(Point, torch.distributions.Normal)
    ... def from_a_point(p, q):
    ...     return -q.log_prob(p.loc)
    """
    for kind in (type_p, type_q):
        if not (isinstance(kind, type) and issubclass(kind, Distribution)):
            raise TypeError(f"register_kl takes two subclasses of torch.distributions.Distribution, not {kind!r}")

    def enter(closed_form: ClosedForm) -> ClosedForm:
        CLOSED_FORMS[type_p, type_q] = closed_form
        return closed_form

    return enter


def check_once(p: Distribution, q: Distribution) -> bool:
    """Whether values may be looked at, which waits for the device: not with ``validate_args=False``, nor in a graph.

    What the distributions were given counts, not the default, which torch.compile switches off for the whole process.
    """
    given = all(distribution.__dict__.get("_validate_args", True) for distribution in (p, q))
    return given and not torch.compiler.is_compiling()


def no_form_for_these(p: Distribution, q: Distribution, reason: str = "") -> NotImplementedError:
    """The error for a pair of types that has a closed form for other parameters than these."""
    return NotImplementedError(
        f"D_KL({type(p).__name__} || {type(q).__name__}) has no closed form for {reason or 'these parameters'}"
    )
