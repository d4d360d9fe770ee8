"""Schedules: the weight of the KL as a function of the optimiser's steps, and attach, which counts them."""

import math
import warnings
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

__all__ = [
    "CosineWarmup",
    "CyclicalWarmup",
    "LinearWarmup",
    "Schedule",
    "Stepped",
    "Warmup",
    "attach",
    "step_schedules",
]


class Stepped(nn.Module):
    """A number that changes with the optimiser's steps. Batches and forward calls do not count.

    Called without arguments, it gives the current value, a tensor of shape (). :meth:`step` counts one step, in a
    buffer that ``state_dict`` saves. A subclass computes :meth:`forward` and calls :meth:`use` there.

    Warns: UserWarning: it is used in training and never stepped. It warns at the hundredth use, or at the end of
        training mode after ten.
    """

    steps_taken: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps_taken", torch.zeros((), dtype=torch.long))
        self.is_stepped = False
        self._unstepped_uses = 0
        self._counted: tuple[int, int] | None = None

    def step(self, taken: Tensor | int = 1) -> None:
        """Counts one optimiser step; none where ``taken`` is 0, on any device."""
        self.is_stepped = True
        self.steps_taken += taken.to(self.steps_taken.device) if isinstance(taken, Tensor) else taken
        if (
            not (torch.compiler.is_compiling() or isinstance(taken, Tensor) or self.steps_taken.is_inference())
            and taken > 0
        ):
            self._counted = id(self.steps_taken), self.steps_taken._version

    @property
    def has_moved(self) -> bool:
        """Whether steps were taken for certain: known without asking the device, and unknown once the count is set."""
        if torch.compiler.is_compiling() or self._counted is None:
            return False
        return self._counted == (id(self.steps_taken), self.steps_taken._version)

    def use(self) -> None:
        """Counts a use in training, for the warning. Compiled code counts none."""
        if torch.compiler.is_compiling() or self.is_stepped or not (self.training and torch.is_grad_enabled()):
            return
        self._unstepped_uses += 1
        if self._unstepped_uses == 100:  # more batches than anyone accumulates gradients over
            self._warn()

    def train(self, mode: bool = True) -> "Stepped":
        if self.training and not mode and not self.is_stepped and 10 <= self._unstepped_uses < 100:
            self._warn()
        super().train(mode)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        before = len(missing_keys)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        # a checkpoint of before there was this schedule, or of another kind of weight: what it lacks stays as it is
        lacking = [key for key in missing_keys[before:] if key.startswith(prefix)]
        missing_keys[:] = [key for key in missing_keys if key not in lacking]
        if prefix:
            unexpected_keys[:] = [key for key in unexpected_keys if not key.startswith(prefix)]
        if f"{prefix}steps_taken" in lacking:
            warnings.warn(
                f"the checkpoint has no {prefix}steps_taken: {type(self).__name__} begins at its start. To go on from "
                "another step write steps_taken.fill_(n)",
                stacklevel=2,
            )

    def _warn(self) -> None:
        uses, self.is_stepped = self._unstepped_uses, True  # warn once
        warnings.warn(
            f"{type(self).__name__} was used {uses} times in training and never stepped, so it stays where it began. "
            "Write kldiv.attach(elbo, optimizer) once, or elbo.step() after each optimizer.step()",
            stacklevel=3,
        )


class Schedule(Stepped):
    """A function of the optimiser's steps. A subclass computes :meth:`value`, a function of the progress.

    Args:
        steps: the steps that the schedule takes, at least 1.
        fraction: instead of ``steps``, the part of the whole run that the schedule takes, in (0, 1]. The length of the
            run comes from :func:`attach` or :attr:`total_steps`.
    Raises:
        ValueError: both or neither of the two, or one out of its range.
        RuntimeError: when called, with a ``fraction`` and without the length of the run.
    """

    def __init__(self, steps: int | None = None, *, fraction: float | None = None) -> None:
        super().__init__()
        name = type(self).__name__
        if (steps is None) == (fraction is None):
            raise ValueError(f"{name} takes either steps or fraction: {name}(steps=5000) or {name}(fraction=0.2)")
        if steps is not None and steps < 1:
            part = f". For a part of the run write fraction={steps}" if 0 < steps < 1 else ""
            raise ValueError(f"steps={steps}: at least one step{part}")
        if fraction is not None and not 0 < fraction <= 1:
            raise ValueError(f"fraction={fraction} is not in (0, 1]")
        self.steps, self.fraction = steps, fraction
        self.total_steps: int | None = None

    def value(self, progress: Tensor) -> Tensor:
        """The value at a progress: 0 is the start of the schedule, 1 its end, and more than 1 after the end."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        self.use()
        return self.value(self.steps_taken.float() / self.duration)

    @property
    def duration(self) -> float:
        """The steps that the schedule takes."""
        if self.fraction is None:
            assert self.steps is not None
            return self.steps
        if self.total_steps is None:
            raise RuntimeError(
                f"{type(self).__name__}(fraction={self.fraction}) needs the length of the run: "
                "kldiv.attach(elbo, optimizer, total_steps=...), or write steps= instead"
            )
        return self.fraction * self.total_steps

    def get_extra_state(self) -> Tensor:
        return torch.tensor(-1 if self.total_steps is None else self.total_steps)

    def set_extra_state(self, state: Any) -> None:
        if self.total_steps is None and int(state) > 0:  # the length that attach() was given comes first
            self.total_steps = int(state)

    def extra_repr(self) -> str:
        return f"steps={self.steps}" if self.fraction is None else f"fraction={self.fraction}"


class Warmup(Schedule):
    """From ``start`` to ``end``. A subclass computes :meth:`rise`, the part of the way that is gone, from 0 to 1."""

    def __init__(
        self, steps: int | None = None, *, fraction: float | None = None, start: float = 0.0, end: float = 1.0
    ) -> None:
        super().__init__(steps, fraction=fraction)
        self.start, self.end = start, end

    def rise(self, progress: Tensor) -> Tensor:
        """The part of the way that is gone at a progress, which may be more than 1."""
        raise NotImplementedError

    def value(self, progress: Tensor) -> Tensor:
        return self.start + (self.end - self.start) * self.rise(progress)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, start={self.start}, end={self.end}"


class LinearWarmup(Warmup):
    r"""From ``start`` to ``end`` on a straight line, then ``end``.

    .. math:: s + (e - s) \min(n / \text{steps}, 1)

    n counts the optimiser's steps.

    Args:
        steps, fraction: the length, see :class:`Schedule`: one of the two.
        start, end: the first and the last value.
    Raises: ValueError: both or neither of ``steps`` and ``fraction``, or one out of its range.
    Source: Bowman et al. 2016; Sønderby et al. 2016, section 3.3.

    >>> warmup = LinearWarmup(steps=4)
    >>> warmup.step(); warmup()
    tensor(0.2500)
    """

    def rise(self, progress: Tensor) -> Tensor:
        return progress.clamp(max=1.0)


class CosineWarmup(Warmup):
    r"""From ``start`` to ``end`` on half a period of a cosine, level at both ends, then ``end``.

    .. math:: s + (e - s)\, \tfrac12 \left[1 - \cos\left(\pi \min(n / \text{steps}, 1)\right)\right]

    n counts the optimiser's steps.

    Args:
        steps, fraction: the length, see :class:`Schedule`: one of the two.
        start, end: the first and the last value.
    Raises: ValueError: both or neither of ``steps`` and ``fraction``, or one out of its range.
    Source: Loshchilov & Hutter 2017, eq. 5, for the shape.

    >>> warmup = CosineWarmup(steps=4)
    >>> warmup.step(); warmup()
    tensor(0.1464)
    """

    def rise(self, progress: Tensor) -> Tensor:
        # sin(u / 2) ** 2 is (1 - cos u) / 2 without cancellation near 0
        return torch.sin(0.5 * math.pi * progress.clamp(max=1.0)).square()


class CyclicalWarmup(Schedule):
    r"""Several linear warm-ups in a row: each rises from ``start`` to ``end``, then stays level.

    .. math:: s + (e - s) \min(\tau / R, 1), \qquad \tau = \operatorname{frac}(C\, n / \text{steps})

    n counts the optimiser's steps; C is the number of cycles and R the part of each that rises. After all ``steps``
    the value stays at ``end``.

    Args:
        steps, fraction: the length of all cycles together, see :class:`Schedule`: one of the two.
        cycles: C, at least 1.
        rise: R, in (0, 1].
        start, end: the value at the beginning and at the end of each cycle.
    Raises: ValueError: both or neither of ``steps`` and ``fraction``, or an argument out of its range.
    Source: Fu et al. 2019, with C = 4 and R = 0.5.

    >>> warmup = CyclicalWarmup(steps=8, cycles=2)
    >>> warmup.step(5); warmup()
    tensor(0.5000)
    """

    def __init__(
        self,
        steps: int | None = None,
        *,
        fraction: float | None = None,
        cycles: int = 4,
        rise: float = 0.5,
        start: float = 0.0,
        end: float = 1.0,
    ) -> None:
        super().__init__(steps, fraction=fraction)
        if cycles < 1:
            raise ValueError(f"cycles={cycles}: at least one")
        if not 0 < rise <= 1:
            raise ValueError(f"rise={rise} is not in (0, 1]")
        self.cycles, self.rise, self.start, self.end = cycles, rise, start, end

    def value(self, progress: Tensor) -> Tensor:
        within = torch.where(progress < 1, (self.cycles * progress).frac(), 1.0)
        return self.start + (self.end - self.start) * (within / self.rise).clamp(max=1.0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, cycles={self.cycles}, rise={self.rise}, start={self.start}, end={self.end}"


def step_schedules(module: nn.Module) -> None:
    """One optimiser step for every schedule and controller in the module."""
    for part in module.modules():
        if isinstance(part, Stepped):
            part.step()


# for each optimiser and schedule, the attachment that steps it: the last one
_stepped_by: WeakKeyDictionary[Optimizer, WeakKeyDictionary[nn.Module, object]] = WeakKeyDictionary()


def attach(elbo: nn.Module, optimizer: Optimizer, total_steps: float | None = None) -> RemovableHandle:
    """Every schedule and controller in ``elbo`` counts each step of ``optimizer`` from now on.

    One line makes schedules right under gradient accumulation, validation and skipped steps. In Lightning it stands in
    ``configure_optimizers``, with ``total_steps=self.trainer.estimated_stepping_batches``. Do not call ``elbo.step()``
    as well. A schedule attached twice to one optimiser counts its steps once; attached to two optimisers, it counts the
    steps of both.

    Args:
        elbo: an :class:`kldiv.ELBOLoss`, or any module with schedules in it.
        optimizer: the optimiser whose steps count, or what wraps it, as Accelerate does.
        total_steps: the steps of the whole run, for schedules given as a ``fraction``. Infinite means unknown.
    Returns: a handle; its ``remove()`` ends the counting.
    Raises: ValueError: ``total_steps`` below 1. TypeError: what is no optimiser.
    Warns: UserWarning: a learned parameter of a likelihood, a KL term or a weight in ``elbo`` that no optimiser which
        is attached has.
    """
    optimizer = _unwrapped(optimizer)
    if total_steps is not None and math.isinf(total_steps):  # Lightning's, for a run without an end
        total_steps = None
    if total_steps is not None and total_steps < 1:
        raise ValueError(f"total_steps={total_steps}: a run has at least one step")
    owners, attachment = _stepped_by.setdefault(optimizer, WeakKeyDictionary()), object()
    for part in elbo.modules():
        if isinstance(part, Stepped):
            part.is_stepped = True
            owners[part] = attachment
        if isinstance(part, Schedule) and total_steps is not None:
            part.total_steps = int(total_steps)

    _warn_of_what_nobody_learns(elbo, optimizer)

    def count(optimizer: Optimizer, *_: Any) -> None:
        # a fused optimiser under a gradient scaler skips a step in its kernel, and sets this flag
        skipped = getattr(optimizer, "found_inf", None)
        taken = 1 if skipped is None else (skipped == 0).long().squeeze()
        for part in elbo.modules():
            if isinstance(part, Stepped) and owners.setdefault(part, attachment) is attachment:
                part.step(taken)

    return optimizer.register_step_post_hook(count)


def _unwrapped(optimizer: Any) -> Optimizer:
    """The optimiser itself, of one that Accelerate or Lightning has wrapped."""
    while not hasattr(optimizer, "_optimizer_step_post_hooks") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not (isinstance(optimizer, Optimizer) and hasattr(optimizer, "_optimizer_step_post_hooks")):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}, and must be a torch.optim.Optimizer: "
            "kldiv.attach(elbo, torch.optim.Adam(model.parameters()))"
        )
    return optimizer


# for each module whose schedules were attached, the optimisers that it was attached to
_attached_to: WeakKeyDictionary[nn.Module, WeakSet[Optimizer]] = WeakKeyDictionary()


def _warn_of_what_nobody_learns(elbo: nn.Module, optimizer: Optimizer) -> None:
    """Warns of parameters of a bound's own parts: of a likelihood or a KL term, a weight or a transform."""
    optimizers = _attached_to.setdefault(elbo, WeakSet())
    optimizers.add(optimizer)
    learned = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    parts = [
        (name, part)
        for name, part in elbo.named_modules()
        if hasattr(part, "per_example") or hasattr(part, "kl_values") or isinstance(part, Stepped)
    ]
    for name, part in parts:
        for own, parameter in part.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in learned:
                path = f"{name}.{own}" if name else own
                warnings.warn(
                    f"the parameter {path} of {type(part).__name__} is in no optimiser and will not be learned. Give "
                    "the optimiser the parameters of the ELBO too: "
                    "torch.optim.Adam([*model.parameters(), *elbo.parameters()])",
                    stacklevel=3,
                )
                return
