"""What the latents do while a model trains: active units, and the KL of each dimension as a table and a heat map."""

import io
import math
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.image import imread

from examples.vae.data import Batch
from examples.vae.evaluate import ACTIVE
from examples.vae.figures import kl_over_training
from examples.vae.model import VAE
from kldiv.metrics import ActiveUnits, KLPerDimension, RateDistortion

SHARE = 0.03
"""Of the time, what drawing may take before the end."""

FIRST_DRAWING = 5.0
"""Seconds into a fit: a short one is drawn once, at its end."""


class Row(NamedTuple):
    """A validation, in nats per example."""

    step: int
    """As in ``metrics.csv``."""
    epoch: int
    active_units: int
    rate: float
    distortion: float
    kl: list[float]
    """One for each latent dimension."""


class LatentDiagnostics(Callback):
    """Logs active units, rate and distortion, and keeps a row for each validation of a fit, over resumes too.

    With a run's ``folder`` it writes ``kl_per_dimension.csv`` after each validation, and draws
    ``figures/kl_per_dimension_over_training.png`` at the end and, where that takes little of the time, before. The KL
    is that to the standard normal, whatever the prior: a learned one has no KL of one dimension.
    """

    folder: Path | None = None
    """Of the run; ``None`` writes nothing."""

    def __init__(self) -> None:
        self.history: list[Row] = []
        self._lines: list[str] = []  # of the table, so that a row is formatted once
        self._active_units = ActiveUnits(ACTIVE)
        self._kl = KLPerDimension()
        self._rate_distortion = RateDistortion()
        self._may_draw_at = math.inf
        self._drawn: Row | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: VAE) -> None:
        self._may_draw_at = time.perf_counter() + FIRST_DRAWING

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: VAE) -> None:
        for metric in (self._active_units, self._kl, self._rate_distortion):
            metric.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: VAE,
        outputs: dict[str, Any],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking:
            return
        weight = None if batch.weight is None else batch.weight > 0
        self._active_units.update(outputs["posterior"], weight)
        self._kl.update(outputs["posterior"], sample_weight=weight)
        terms = outputs["terms"]
        if pl_module.elbo.reduction == "sum":
            count = len(batch.image)
            terms = terms._replace(kl=terms.kl / count, reconstruction=terms.reconstruction / count)
        # means over equal shares, padding and all, which average to the mean over the true count
        self._rate_distortion.update(terms, count=batch.count / trainer.world_size)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: VAE) -> None:
        if trainer.sanity_checking:
            return
        active_units, rate_distortion = self._active_units.compute(), self._rate_distortion.compute()
        kl = self._kl.compute().reshape(-1).tolist()
        logged = {"active_units": active_units.float(), "rate": rate_distortion["rate"]}
        logged["distortion"] = rate_distortion["distortion"]
        pl_module.log_dict({f"val/{name}": value.float() for name, value in logged.items()})
        if trainer.state.fn != TrainerFn.FITTING:
            return
        step = trainer.global_step - 1
        if self.history and self.history[-1].step == step:
            self.history.pop()
        self.history.append(
            Row(
                step,
                trainer.current_epoch,
                int(active_units),
                rate_distortion["rate"].item(),
                rate_distortion["distortion"].item(),
                kl,
            )
        )
        if trainer.is_global_zero and self.folder is not None:
            self._write(self.folder / "kl_per_dimension.csv")
        if time.perf_counter() >= self._may_draw_at:
            self._draw(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: VAE) -> None:
        if self.history and self._drawn is not self.history[-1]:
            self._draw(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        # one tensor: a long run's lists of numbers would take longer to save than its weights
        rows = [[*row[:-1], *row.kl] for row in self.history]
        return {"history": torch.tensor(rows, dtype=torch.float64)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [
            Row(int(step), int(epoch), int(active), rate, distortion, kl)
            for step, epoch, active, rate, distortion, *kl in state_dict["history"].tolist()
        ]
        self._lines = []

    def _write(self, path: Path) -> None:
        del self._lines[len(self.history) - 1 :]
        for row in self.history[len(self._lines) :]:
            self._lines.append(",".join(map(str, (row.step, row.epoch, *row.kl))) + "\n")
        head = ",".join(("step", "epoch", *(f"z{dim + 1}" for dim in range(len(self.history[-1].kl))))) + "\n"
        _replace(path, (head + "".join(self._lines)).encode())

    def _draw(self, trainer: Trainer, pl_module: VAE) -> None:
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not trainer.is_global_zero or (self.folder is None and not boards):
            return
        begin = time.perf_counter()
        figure = kl_over_training(
            [row.step + 1 for row in self.history],
            torch.tensor([row.kl for row in self.history]),
            [row.active_units for row in self.history],
            "" if pl_module.prior is None else "KL to the standard normal, which is not the prior",
        )
        png = io.BytesIO()
        figure.savefig(png, dpi=150, format="png")
        if self.folder is not None:
            path = self.folder / "figures" / "kl_per_dimension_over_training.png"
            path.parent.mkdir(exist_ok=True)
            _replace(path, png.getvalue())
        for board in boards:
            png.seek(0)
            board.experiment.add_image(
                "kl_per_dimension", imread(png), global_step=self.history[-1].step, dataformats="HWC"
            )
        self._drawn = self.history[-1]
        end = time.perf_counter()
        self._may_draw_at = end + (end - begin) / SHARE


def _replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(".tmp")
    new.write_bytes(content)
    os.replace(new, path)
