"""What a conditional model is conditioned on: its rows, and who takes them."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler

__all__ = [
    "map_tensors",
    "pieces",
    "repeated",
    "with_context",
]


def with_context(
    encoder: Callable[..., Any], decoder: Callable[..., Any], prior: Callable[..., Any] | None, is_given: bool
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any] | None]:
    """The three as functions of a context too, which is handed to those that take it.

    Raises: ValueError: a context is given, and none takes it.
    """
    if is_given and not (_takes(encoder, 1) or _takes(decoder, 1) or (prior is not None and _takes(prior, 0))):
        raise ValueError(
            "context= is given, and neither encoder, decoder nor prior takes it: write encoder(x, context), "
            "decoder(z, context) or prior(context), with no default or None"
        )
    calls = [None if part is None else _call(part, n, is_given) for part, n in ((encoder, 1), (decoder, 1), (prior, 0))]
    return calls[0], calls[1], calls[2]  # type: ignore[return-value]


def _call(part: Callable[..., Any], others: int, is_given: bool) -> Callable[..., Any]:
    if not (is_given and _takes(part, others)):
        return lambda *values: part(*values[:others])
    if _is_named(part):
        return lambda *values: part(*values[:others], context=values[others])
    return part


def _parameters(part: Any) -> list[inspect.Parameter]:
    try:
        function = part.forward if isinstance(part, nn.Module) else part
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C
        return []
    inner = _wrapped(part)
    return _parameters(inner) if inner is not None and any(map(_is_any, parameters)) else parameters


def _wrapped(part: Any) -> nn.Module | None:
    """What a module such as DistributedDataParallel or a compiled one hands its arguments to."""
    if not isinstance(part, nn.Module):
        return None
    inner = [part._modules.get(name) for name in ("_orig_mod", "module")]
    return next((module for module in inner if module is not None), None)


def _is_any(parameter: inspect.Parameter) -> bool:
    return parameter.kind is parameter.VAR_POSITIONAL


def _is_named(part: Any) -> bool:
    return any(p.name == "context" and p.kind is not p.POSITIONAL_ONLY for p in _parameters(part))


def _takes(part: Any, others: int) -> bool:
    """Whether it takes a context, called so or behind ``others`` more.

    An argument whose default is something (a temperature, say) is another one.
    """
    parameters = _parameters(part)
    if _is_named(part) or any(map(_is_any, parameters)):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > others and positional[others].default in (inspect.Parameter.empty, None)


def map_tensors(function: Callable[[Tensor], Tensor], context: Any) -> Any:
    """The function of each tensor of a context: a tensor, or a tuple, list or dictionary of contexts.

    Raises: TypeError: anything else but ``None``.
    """
    if context is None:
        return None
    if isinstance(context, Tensor):
        return function(context)
    if isinstance(context, dict):
        return {name: map_tensors(function, each) for name, each in context.items()}
    if isinstance(context, (tuple, list)):
        parts = [map_tensors(function, each) for each in context]
        return type(context)(*parts) if hasattr(context, "_fields") else type(context)(parts)
    raise TypeError(
        f"context holds a {type(context).__name__}, and must be a tensor with a row for each example, a tuple or "
        "dictionary of such, or, with a loader, a function of its batch: context=lambda batch: batch[1]"
    )


def repeated(tensor: Tensor, k: int) -> Tensor:
    """The rows (n, ...) for k samples of each, (k n, ...): those of the first sample come first."""
    return tensor.expand(k, *tensor.shape).flatten(0, 1)


def pieces(data: Any, context: Any, size: int, device: torch.device | None) -> Iterator[tuple[Tensor, Any]]:
    """The examples, ``size`` at a time or fewer, and the rows of the context that go with them, on the device.

    Raises: ValueError: a context of another number of rows than the data, or in order beside a loader that shuffles.
    """
    of_batch = callable(context)
    if context is not None and not of_batch and isinstance(getattr(data, "sampler", None), RandomSampler):
        raise ValueError(
            "the loader shuffles data, and context would stay in order: let the loader give both, and write "
            "context=lambda batch: batch[1]"
        )
    if isinstance(data, Tensor) and not of_batch:
        _check_rows(context, len(data))
    start = 0
    for batch in [data] if isinstance(data, Tensor) else data:
        inputs = batch if isinstance(batch, Tensor) else batch[0]
        if of_batch:
            of_inputs = context(batch)
            _check_rows(of_inputs, len(inputs))
        else:
            of_inputs = _sliced(context, slice(start, start + len(inputs)), None)
            _check_rows(of_inputs, len(inputs), " in this batch")
        start += len(inputs)
        for first in range(0, max(len(inputs), 1), size):
            rows = slice(first, first + size)
            yield _sliced(inputs, rows, device), _sliced(of_inputs, rows, device)
    if context is not None and not of_batch:
        _check_rows(context, start)


def _sliced(context: Any, rows: slice, device: torch.device | None) -> Any:
    def part(tensor: Tensor) -> Tensor:
        tensor = tensor[rows] if tensor.ndim else tensor
        return tensor if device is None else tensor.to(device)

    return map_tensors(part, context)


def _check_rows(context: Any, count: int, where: str = "") -> None:
    def check(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) != count:
            raise ValueError(
                f"context of shape {tuple(tensor.shape)}{where} must have one row for each of {count} examples"
            )
        return tensor

    map_tensors(check, context)
