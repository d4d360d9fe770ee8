"""What a run writes down while it goes: metrics.csv, and how long its training epochs took."""

import csv
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class MetricsCSV(Logger):
    """A CSV file to which every row is written at once, and which a resumed run continues.

    Lightning's own keeps rows in memory between saves and drops earlier ones on resume.

    Args:
        path: of the file. Columns are ``step`` (optimiser steps before the row), ``epoch`` and the metrics.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        columns, rows = read_metrics(self.path)
        if set(row) <= set(columns):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, columns, lineterminator="\n").writerow(row)
            return
        head = [name for name in ("step", "epoch") if name in columns or name in row]
        self._write(head + [name for name in dict.fromkeys([*columns, *row]) if name not in head], [*rows, row])

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved configuration has a file of its own."""

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops the rows from that optimiser step on, which a run resumed there will write again."""
        columns, rows = read_metrics(self.path)
        if columns:
            self._write(columns, [row for row in rows if int(row["step"]) < step])

    def _write(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        new = self.path.with_suffix(".tmp")
        with new.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(new, self.path)


def read_metrics(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a metrics file; a last row that was cut off in writing is left out."""
    if not path.is_file():
        return [], []
    lines = path.read_text().splitlines(keepends=True)
    reader = csv.DictReader(line for line in lines if line.endswith("\n"))
    return list(reader.fieldnames or []), list(reader)


class EpochClock(Callback):
    """Times the training epochs without their validation, over resumes too, and logs them as ``epoch_seconds``."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._elapsed = 0.0
        self._since: float | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._elapsed = 0.0
        self._start(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(pl_module)
        self.seconds.append(self._elapsed)
        step = trainer.global_step - 1
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, "epoch_seconds": self._elapsed}, step=step)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": list(self.seconds)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = list(state_dict["seconds"])

    def _start(self, module: LightningModule) -> None:
        self._since = self._now(module)

    def _stop(self, module: LightningModule) -> None:
        if self._since is not None:
            self._elapsed += self._now(module) - self._since
        self._since = None

    @staticmethod
    def _now(module: LightningModule) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        return time.perf_counter()
