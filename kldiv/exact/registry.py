"""The registry of closed forms: ours and torch's."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions import kl as torch_kl

__all__ = [
    "CLOSED_FORMS",
    "ClosedForm",
    "check_once",
    "find_closed_form",
    "is_registered_by_user",
    "no_form_for_these",
    "register_kl",
    "register_with_torch",
]


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
    """Whether parameter values may be read, which waits for the device.

    Not with ``validate_args=False`` given to either constructor, and not while compiling. The default does not count:
    torch.compile switches it off for the whole process.
    """
    given = all(distribution.__dict__.get("_validate_args", True) for distribution in (p, q))
    return given and not torch.compiler.is_compiling()


def no_form_for_these(p: Distribution, q: Distribution, reason: str = "") -> NotImplementedError:
    """The error for a pair of types whose closed form does not hold for these parameters."""
    return NotImplementedError(
        f"D_KL({type(p).__name__} || {type(q).__name__}) has no closed form for {reason or 'these parameters'}"
    )


def register_with_torch() -> None:
    """Registers the pairs with one of our own distributions with torch too: its ``kl_divergence`` gives the same."""
    for types, closed_form in CLOSED_FORMS.items():
        if any(kind.__module__.startswith("kldiv.") for kind in types):
            torch_kl.register_kl(*types)(closed_form)  # type: ignore[no-untyped-call]


def find_closed_form(type_p: type, type_q: type) -> ClosedForm | None:
    """The function of the most specific pair in our registry and torch's; ``None`` where neither has one."""
    if (own := CLOSED_FORMS.get((type_p, type_q))) is not None:
        return own
    for left in type_p.__mro__:
        for right in type_q.__mro__:
            for registry in (CLOSED_FORMS, torch_kl._KL_REGISTRY):  # ours first: it keeps ties
                if (left, right) in registry:
                    closed_form: ClosedForm = registry[left, right]
                    return closed_form
    return None


def is_registered_by_user(p: Distribution, q: Distribution) -> bool:
    """Whether a user registered the closed form of the pair: then it is not split into dimensions."""
    closed_form = find_closed_form(type(p), type(q))
    return closed_form is not None and closed_form.__module__.split(".")[0] not in ("kldiv", "torch")
