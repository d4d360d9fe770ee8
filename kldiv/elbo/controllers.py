"""Controllers, GECO and PIDController: weights of the KL that steer it or the reconstruction to a target."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kldiv.distributed import world_sum
from kldiv.elbo.schedules import Stepped
from kldiv.numerics import keep_precision

__all__ = ["GECO", "Controller", "PIDController"]


class Controller(Stepped):
    """A weight that moves with each optimiser step, by the terms of the training batches since the last step.

    :class:`kldiv.ELBOLoss` calls :meth:`observe` in training mode. :meth:`step` takes the mean over the observed
    examples of all processes, and a subclass computes :meth:`moved` from it. The mean is a collective, so every process
    must step. State is ``float32`` at least, whatever dtype the module is moved to.

    Args:
        target: nats per example: a number, or a module called without arguments such as :class:`kldiv.LinearWarmup`.
        measures: ``"reconstruction"`` or ``"kl"``, the term that has the target.
        lowest, highest: the bounds of the weight.
        start: the first weight.
        process_group: the processes whose measurements count; ``None``: the whole world.
    Raises: ValueError: a target that is not finite; bounds that are out of order; a start outside of the bounds.
    """

    weight: Tensor
    target: float | nn.Module

    def __init__(
        self,
        target: float | nn.Module,
        measures: Literal["reconstruction", "kl"],
        lowest: float,
        highest: float,
        start: float,
        process_group: Any,
    ) -> None:
        super().__init__()
        if not isinstance(target, nn.Module) and not math.isfinite(target):
            raise ValueError(f"target={target} must be finite: nats per example")
        if not 0 <= lowest <= highest < math.inf:
            raise ValueError(f"lowest={lowest} and highest={highest} must be weights in order, and finite")
        if not lowest <= start <= highest:
            raise ValueError(f"start={start} is not between lowest={lowest} and highest={highest}")
        self.target, self.measures, self.lowest, self.highest = target, measures, lowest, highest
        self.start, self.process_group = start, process_group
        self.register_buffer("weight", torch.tensor(float(start)))
        # sum and number of examples since the last step; a checkpoint is taken after a step, when both are 0. Not a
        # buffer: DistributedDataParallel would overwrite it with that of rank 0 before each forward pass
        self.observed = torch.zeros(2)

    def forward(self) -> Tensor:
        self.use()
        return self.weight.clone()  # a step changes it in place, and the graph may outlive the step

    @torch.no_grad()
    def observe(self, reconstruction: Tensor, kl: Tensor, sample_weight: Tensor | None = None) -> None:
        """Adds a batch to the observed examples: terms of shape (N,), times the weights of the examples if any."""
        if torch._C._are_functorch_transforms_active():  # their tensors do not outlive them
            return
        values = (reconstruction if self.measures == "reconstruction" else kl).detach()
        count = values.new_full((), float(len(values))) if sample_weight is None else sample_weight.sum()
        batch = torch.stack([values.sum(), count.to(values.dtype)])
        self.observed = self.observed + batch.to(self.observed)

    @torch.no_grad()
    def step(self, taken: Tensor | int = 1) -> None:
        """Moves the weight by the observed mean; not where ``taken`` is 0 or the mean is not finite."""
        super().step(taken)
        total, count = world_sum(self.observed, self.process_group).unbind()
        self.observed = torch.zeros_like(self.observed)
        mean = total / torch.where(count > 0, count, 1.0)
        moves = (count > 0) & mean.isfinite()
        moves = moves & (taken.to(moves.device) != 0 if isinstance(taken, Tensor) else bool(taken))
        target = self.target() if isinstance(self.target, nn.Module) else self.target
        state = {name: getattr(self, name) for name in self.state_names()}
        error = torch.where(moves, mean - target, 0.0)
        for name, value in self.moved(error, state).items():
            state[name].copy_(torch.where(moves, value, state[name]))

    def state_names(self) -> tuple[str, ...]:
        """The buffers that :meth:`moved` moves."""
        raise NotImplementedError

    def moved(self, error: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state after a step in which the measured mean exceeded the target by ``error`` nats."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Controller":
        convert = keep_precision(fn)  # in bfloat16 the integral would not move
        super()._apply(convert, recurse)  # type: ignore[no-untyped-call]
        self.observed = convert(self.observed)
        return self

    def extra_repr(self) -> str:
        target = "" if isinstance(self.target, nn.Module) else f"target={self.target}, "
        return f"{target}lowest={self.lowest}, highest={self.highest}, start={self.start}"


class GECO(Controller):
    r"""Steers the reconstruction to a target: the KL is minimised under the constraint that the target is met.

    .. math:: \ln w \leftarrow \ln w - \nu \bar C, \qquad \bar C \leftarrow \alpha \bar C + (1 - \alpha) (R - R^*)

    R is the mean reconstruction term of the batches since the last step and R* the target, in nats per example. The
    weight of the KL falls while the reconstruction is worse than its target, and rises while it is better.
    :math:`w = 1/\lambda`, with :math:`\lambda` the paper's multiplier of the constraint: our loss is the paper's
    divided by :math:`\lambda`, so that the reconstruction keeps its scale.

    Args:
        target: R*, nats per example: a number, or a module called without arguments.
        rate: :math:`\nu`, positive, per nat and step: an error of 1 / ``rate`` nats changes the weight by a factor e in
            one step.
        momentum: :math:`\alpha`, in [0, 1), of the moving average, which starts at the first error.
        lowest, highest: the bounds of the weight; ``lowest`` is positive.
        start: the first weight.
        process_group: the processes whose measurements count; ``None``: the whole world.
    Raises: ValueError: an argument out of its range.
    Source: Rezende & Viola 2018, algorithm 1.

    >>> weight = GECO(target=80.0, rate=0.01, momentum=0.0)
    >>> weight.observe(torch.tensor([90.0, 110.0]), torch.tensor([20.0, 20.0]))  # 20 nats short of the target
    >>> weight.step(); weight()
    tensor(0.8187)
    """

    average: Tensor

    def __init__(
        self,
        target: float | nn.Module,
        rate: float = 1e-3,
        momentum: float = 0.99,
        *,
        lowest: float = 1e-4,
        highest: float = 1e4,
        start: float = 1.0,
        process_group: Any = None,
    ) -> None:
        super().__init__(target, "reconstruction", lowest, highest, start, process_group)
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"rate={rate} must be finite and positive")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} is not in [0, 1)")
        if not lowest > 0:
            raise ValueError(f"lowest={lowest} must be positive: the weight changes by factors")
        self.rate, self.momentum = rate, momentum
        self.register_buffer("average", torch.full((), torch.nan))

    def state_names(self) -> tuple[str, ...]:
        return "weight", "average"

    def moved(self, error: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        before = torch.where(state["average"].isnan(), error, state["average"])
        average = self.momentum * before + (1 - self.momentum) * error
        # beyond, exp overflows or underflows float32
        factor = torch.exp((-self.rate * average).clamp(-80.0, 80.0))
        return {"weight": (state["weight"] * factor).clamp(self.lowest, self.highest), "average": average}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rate={self.rate}, momentum={self.momentum}"


class PIDController(Controller):
    r"""Steers the KL to a target, as ControlVAE does, by a proportional term that saturates and an integral.

    .. math:: w = \frac{K_p}{1 + e^{\,e}} + I + w_{\min}, \qquad I \leftarrow I - K_i\, e, \qquad e = D^* - D

    D is the mean KL of the batches since the last step and D* the target, in nats per example. The integral stops where
    w reaches one of its bounds. There is no derivative, as in the paper: stochastic gradients make it noise.

    Args:
        target: D*, nats per example: a number, or a module called without arguments such as
            ``LinearWarmup(steps=25000, end=25.0)``.
        proportional: :math:`K_p`, not negative.
        integral: :math:`K_i`, not negative, per nat and step.
        lowest, highest: the bounds of the weight; ``lowest`` is :math:`w_{\min}`.
        start: the first weight, at which the integral starts. ``None``: ``lowest``.
        process_group: the processes whose measurements count; ``None``: the whole world.
    Raises: ValueError: an argument out of its range.
    Source: Shao et al. 2020 (ControlVAE), algorithm 1; the bounds 0 and 1 for text, 1 and above for disentangling.

    >>> weight = PIDController(target=5.0, integral=0.01)
    >>> weight.observe(torch.tensor([90.0, 90.0]), torch.tensor([20.0, 30.0]))  # 20 nats too many
    >>> weight.step(); weight()
    tensor(0.2100)
    """

    integrated: Tensor

    def __init__(
        self,
        target: float | nn.Module,
        proportional: float = 0.01,
        integral: float = 1e-4,
        *,
        lowest: float = 0.0,
        highest: float = 1.0,
        start: float | None = None,
        process_group: Any = None,
    ) -> None:
        start = lowest if start is None else start
        super().__init__(target, "kl", lowest, highest, start, process_group)
        for name, value in (("proportional", proportional), ("integral", integral)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value} must be finite and not negative")
        self.proportional, self.integral = proportional, integral
        self.register_buffer("integrated", torch.tensor(float(start - lowest)))

    def state_names(self) -> tuple[str, ...]:
        return "weight", "integrated"

    def moved(self, error: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        proportional = self.proportional * torch.sigmoid(error)  # error is D - D*
        # anti-windup: beyond a bound it would have to come back before the weight moves
        integrated = (state["integrated"] + self.integral * error).clamp(
            -proportional, self.highest - self.lowest - proportional
        )
        weight = (self.lowest + integrated + proportional).clamp(self.lowest, self.highest)
        return {"weight": weight, "integrated": integrated}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, proportional={self.proportional}, integral={self.integral}"
