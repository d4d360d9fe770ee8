"""What a bound says, once, of an encoder that learns nothing from the reconstruction."""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from kldiv.monte_carlo import has_pathwise_gradient

__all__ = [
    "check_sample",
    "notices_apply",
    "wanted_tensors",
    "warn_of_an_unread_sample",
    "warn_of_unreached_posteriors",
]


_ADVICE = (
    'Give the decoder a sample drawn with rsample(). For discrete latents write gradient="score", or relax them: '
    "kldiv.GumbelSoftmax(logits).rsample()"
)


def notices_apply(module: nn.Module) -> bool:
    """Whether a bound looks at gradients at all: in training, in eager mode, outside of function transforms."""
    return (
        module.training
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def wanted_tensors(value: Any, depth: int = 8) -> list[Tensor]:
    """The tensors that want a gradient, in tensors, distributions, modules and what holds them."""
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    if isinstance(value, (list, tuple)):
        parts: Iterable[Any] = value
    elif isinstance(value, nn.Module):
        parts = value.parameters()
    elif isinstance(value, dict):
        parts = value.values()
    elif depth and (isinstance(value, (Distribution, Transform)) or hasattr(value, "__dict__")):
        if isinstance(value, type) or (callable(value) and not isinstance(value, Transform)):
            return []
        parts = [part for name, part in vars(value).items() if name not in ("_inv", "_cached_x_y")]
    else:
        return []
    return [tensor for part in parts for tensor in wanted_tensors(part, depth - 1)] if depth else []


def check_sample(sample: Tensor | None, posterior: Any) -> None:
    """Raises: ValueError: a sample without a gradient, of a posterior whose parameters want one."""
    if sample is None or sample.requires_grad or not wanted_tensors(posterior):
        return
    name = type(posterior).__name__
    if has_pathwise_gradient(posterior):
        how = "Draw it with posterior.rsample(), and do not detach it"
    else:
        how = (
            f'{name} has no rsample() that carries one. For discrete latents write gradient="score", or relax them: '
            "kldiv.GumbelSoftmax(logits).rsample()"
        )
    raise ValueError(
        f"the sample carries no gradient and the parameters of {name} want one: the encoder would learn nothing from "
        f"the reconstruction. {how}"
    )


def warn_of_unreached_posteriors(output: Any, groups: list[dict[str, Any]]) -> bool:
    """Warns where the output reaches none of the leaves that a posterior's parameters reach.

    A group whose sample another group's prior or posterior depends on learns through that one.

    Returns: whether there was anything to look at: a posterior whose parameters want a gradient.
    """
    posteriors = [wanted_tensors(group["posterior"]) for group in groups]
    if not any(posteriors):
        return False
    leaves = _leaves(wanted_tensors(output))
    waiting = [k for k, tensors in enumerate(posteriors) if tensors]
    alive = {k for k in waiting if _reaches(posteriors[k], leaves)}
    if alive:  # what these depend on learns too
        while newly := {k for k in alive if k in waiting}:
            waiting = [k for k in waiting if k not in newly]
            for k in newly:
                leaves.update(_leaves(posteriors[k] + wanted_tensors(groups[k]["prior"])))
            alive = {k for k in waiting if _reaches(posteriors[k], leaves)}
    if waiting:
        k = waiting[0]
        which = f"posterior {k}" if len(groups) > 1 else "the posterior"
        warnings.warn(
            f"the output depends on no parameter that {which}, a {type(groups[k]['posterior']).__name__}, depends on: "
            f"its encoder learns nothing from the reconstruction. {_ADVICE}",
            stacklevel=6,
        )
    return True


def warn_of_an_unread_sample(output: Any, groups: list[dict[str, Any]]) -> None:
    """Warns where the output does not depend on a group's sample, nor on what that is a view or a copy of.

    Of several groups, it is enough that another group's posterior or prior depends on it.
    """
    of_output = _reached([output])
    for k, group in enumerate(groups):
        if not group["sample"].requires_grad:
            continue
        origins = _origins(group["sample"])
        if origins & of_output:
            continue
        others = [other[name] for j, other in enumerate(groups) if j != k for name in ("posterior", "prior")]
        if others and origins & _reached(others):
            continue
        warnings.warn(
            "the output does not depend on the sample that was given: the weights are those of no bound, and the "
            "gradient is wrong. Pass the very tensor that the decoder consumed: z = posterior.rsample((K,)); "
            "loss(decoder(z), x, posterior, sample=z)",
            stacklevel=6,
        )
        return


def _reached(values: Any) -> set[Any]:
    """The nodes of the graphs behind the values, and the identities of those that are leaves."""
    tensors = wanted_tensors(values)
    return {*_nodes(tensors), *_leaves(tensors)}


def _nodes(tensors: list[Tensor]) -> Iterator[Any]:
    """Every node of the graphs behind the tensors, once."""
    stack = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)


def _leaves(tensors: list[Tensor]) -> dict[int, Tensor]:
    """The leaves that want a gradient and that the tensors depend on, by their identity."""
    found = {id(tensor): tensor for tensor in tensors if tensor.grad_fn is None}
    for node in _nodes(tensors):
        variable = getattr(node, "variable", None)
        if variable is not None:
            found[id(variable)] = variable
    return found


def _reaches(tensors: list[Tensor], leaves: dict[int, Tensor]) -> bool:
    if any(id(tensor) in leaves for tensor in tensors):
        return True
    return any(id(getattr(node, "variable", None)) in leaves for node in _nodes(tensors))


_ONLY_MOVES = (
    "View",
    "Reshape",
    "Alias",
    "Clone",
    "Copy",
    "Expand",
    "Permute",
    "Transpose",
    "TBackward",
    "Squeeze",
    "Slice",
    "Select",
    "Split",
    "Unbind",
    "Stack",
    "Cat",
    "Index",
    "Contiguous",
    "Flatten",
)
"""Names of nodes that hand their values on as they are."""


def _origins(sample: Tensor) -> set[Any]:
    """The nodes that computed the sample's values: those behind views, copies and casts, and these themselves."""
    if sample.grad_fn is None:
        return {id(sample)}
    found: set[Any] = set()
    stack: list[Any] = [sample.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in found:
            continue
        found.add(node)
        if any(name in node.name() for name in _ONLY_MOVES):
            stack.extend(following for following, _ in node.next_functions)
    return found
