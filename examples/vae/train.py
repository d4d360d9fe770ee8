"""Trains the VAE: python -m examples.vae.train fit --config configs/digits.yaml"""

import logging
import os
import signal
import sys
import warnings
import zipfile
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

import kldiv
from examples.vae import InputError
from examples.vae.data import InMemoryImages
from examples.vae.diagnostics import LatentDiagnostics
from examples.vae.model import VAE
from examples.vae.recording import EpochClock, MetricsCSV
from examples.vae.report import table, write_report


class TrainCLI(LightningCLI):
    """LightningCLI that gives every run a folder, and ends it with a report."""

    datamodule: InMemoryImages
    model: VAE

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--runs", default="runs", help="Folder of the runs' folders.")
        parser.add_argument(
            "--importance_samples", type=PositiveInt, default=100, help="Samples a test image for the log-likelihood."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        self.checkpoint: dict[str, Any] | None = None
        path = self.config.get(str(self.config.get("subcommand")), {}).get("ckpt_path")
        if path is not None:
            self.checkpoint = read_checkpoint(Path(path))

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(condensed(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options = self._get(self.config_init, "trainer", default={})
        given = options.get("callbacks") or []
        callbacks = [*given] if isinstance(given, list) else [given]
        if not any(isinstance(callback, LatentDiagnostics) for callback in callbacks):
            callbacks.append(LatentDiagnostics())
        callbacks += [EpochClock(), Farewell()]
        if options.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(TQDMProgressBar(refresh_rate=20))  # each refresh waits for the device
        if options.get("enable_checkpointing") is not False:
            at_epoch_end: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
            callbacks.append(ModelCheckpoint(filename="best", monitor="val/negative_elbo", **at_epoch_end))
            callbacks.append(ModelCheckpoint(filename="last", **at_epoch_end))
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def after_instantiate_classes(self) -> None:
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        self.model.seed = self.datamodule.seed = self.seed

    def before_fit(self) -> None:
        # whatever can be wrong with what was given is found before anything is written
        self.datamodule.setup("fit")
        self._check_model()
        if self.trainer.fast_dev_run:
            return
        self.run = self._run_folder()
        metrics = MetricsCSV(self.run / "metrics.csv")
        steps = 0 if self.checkpoint is None else self.checkpoint["global_step"]
        metrics.rewind(steps)
        boards = TensorBoardLogger(self.run, name="tensorboard", version="", purge_step=steps)
        self.trainer.loggers = [metrics, boards]
        device = self.trainer.strategy.root_device
        begin = "Training" if self.checkpoint is None else f"Continuing after step {steps}"
        rank_zero_only(print)(f"{begin} on {device}, into {self.run}", flush=True)
        for callback in self.trainer.callbacks:
            if isinstance(callback, LatentDiagnostics):
                callback.folder = self.run
        for callback in self.trainer.checkpoint_callbacks:
            # resolved: on resume a callback compares it with the one it saved before it trusts its best score
            callback.dirpath = str((self.run / "checkpoints").resolve())

    def after_fit(self) -> None:
        if self.trainer.fast_dev_run or not self.trainer.is_global_zero:
            return
        epoch = self.trainer.current_epoch
        best = next((c.best_model_path for c in self.trainer.checkpoint_callbacks if c.monitor), "")
        if best:
            state = torch.load(best, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["state_dict"])
            epoch = state["epoch"] + 1
        device = self.trainer.strategy.root_device
        clock = next(c for c in self.trainer.callbacks if isinstance(c, EpochClock))
        facts = {
            "epochs": self.trainer.current_epoch,
            "best_epoch": epoch,
            "seconds_per_epoch": sum(clock.seconds) / max(len(clock.seconds), 1),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "seed": self.seed,
        }
        images = self.datamodule.splits["test"][0].to(device)
        print(f"Evaluating on {len(images)} test images", flush=True)
        summary = write_report(self.model.to(device), images, self.run, self._option("importance_samples"), facts)
        print(f"\n{table(summary)}\n\n{self.run / 'report.html'}")

    def _check_model(self) -> None:
        if self.checkpoint is not None:
            ours, theirs = self.model.state_dict(), self.checkpoint["state_dict"]
            for name in sorted(set(ours) | set(theirs)):
                shapes = [tuple(state[name].shape) if name in state else "missing" for state in (ours, theirs)]
                if shapes[0] != shapes[1]:
                    raise InputError(
                        f"the checkpoint is of another model: {name} is {shapes[0]} in the configuration and "
                        f"{shapes[1]} in {self._option('ckpt_path')}"
                    )
        try:
            with torch.no_grad():
                images = self.datamodule.splits["train"][0][:2]
                posterior = self.model.encoder(images)
                sample = posterior.rsample()
                self.model.elbo.reconstruction.per_example(self.model.decoder(sample), images)
                prior = self.model.prior_of(posterior)
                self.model.elbo.kl.unreduced(posterior, prior, self.model.reused(sample))
                kldiv.ExactKLLoss().per_dimension(posterior)  # of the diagnostics
            optimizer = self.model.optimizer(self.model.parameters())
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            shape = tuple(self.datamodule.splits["train"][0].shape[1:])
            raise InputError(f"the model cannot be trained on images of shape {shape}: {error}") from error
        if self.model.is_compiled:
            try:
                torch.compile(torch.exp)(torch.zeros(2, device=self.trainer.strategy.root_device))
            except Exception as error:  # each backend has its own
                reason = condensed(str(error)).split(" Set TORCH")[0]
                raise InputError(
                    f"torch.compile does not work here: {reason}. Train with --model.compile false"
                ) from error
        if self.checkpoint is not None:
            ours, theirs = (
                [sorted(group) for group in state["param_groups"]]
                for state in (optimizer.state_dict(), self.checkpoint["optimizer_states"][0])
            )
            if ours != theirs:
                raise InputError(
                    f"the checkpoint is of another optimiser: {type(optimizer).__name__} has the options {ours} and "
                    f"{self._option('ckpt_path')} {theirs}"
                )

    def _run_folder(self) -> Path:
        path = self._option("ckpt_path")
        if path is not None and Path(path).resolve().parent.name == "checkpoints":
            run = Path(path).parent.parent
        else:
            run = new_run_folder(Path(self._option("runs")), self._name())
        if rank_zero_only.rank == 0:
            config = self.config[self.subcommand].clone()
            config.pop("config", None)
            config["ckpt_path"] = None
            parser = self._parser(self.subcommand)
            if not os.access(run, os.W_OK):
                raise InputError(f"the folder of the run, {run}, is not writable")
            parser.save(config, run / "config.yaml", overwrite=True, multifile=False, skip_validation=True)
        return run

    def _name(self) -> str:
        given = self._option("config") or []
        path = Path(str(given[-1])) if given else Path("vae")
        return path.resolve().parent.name if path.name == "config.yaml" else path.stem

    def _option(self, name: str) -> Any:
        return self.config[self.subcommand].get(name)


class Farewell(Callback):
    """Says how to go on with a run that was stopped."""

    @rank_zero_only
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt | SystemExit):
            last = next((c.best_model_path for c in trainer.checkpoint_callbacks if not c.monitor), "")
            print(
                f"\nStopped. Continue with the same command and --ckpt_path {last}"
                if last
                else "\nStopped before the first checkpoint."
            )


def condensed(message: str) -> str:
    """An error of jsonargparse in a line: of the types that a value may have, those that say what is wrong with it."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if "Errors:" in lines:
        end = next((n for n, line in enumerate(lines) if line.startswith("Given value type")), len(lines))
        told = [line for line in lines[lines.index("Errors:") + 1 : end] if line != "- Expected a <class 'NoneType'>"]
        lines = [lines[0].split(" Does not validate")[0], *(line.removeprefix("- ") for line in told)]
    return " ".join(lines)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of this trainer. Raises: InputError: a file that is missing, damaged or something else."""
    if not path.is_file():
        raise InputError(f"the checkpoint {path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:  # torch reads numbers without a look at their check sums
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(damaged)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise InputError(f"the checkpoint {path} cannot be read: {error.strerror}") from error
    except Exception as error:  # torch, pickle and zipfile raise a dozen kinds
        raise InputError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}): it is damaged or none"
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "global_step", "optimizer_states"} <= set(checkpoint):
        raise InputError(f"{path} is no checkpoint of this trainer")
    return checkpoint


def new_run_folder(runs: Path, name: str) -> Path:
    """``runs/name``, or the first of ``runs/name-2``, ``runs/name-3``, ... that no other run has; made on rank 0."""
    if rank_zero_only.rank != 0:
        return runs / name  # nothing is written by other processes
    number = 1
    while True:
        folder = runs / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise InputError(f"the folder {folder} for the run cannot be made: {error.strerror}") from error


def make_cli(args: Sequence[str] | None = None, *, run: bool = True) -> TrainCLI:
    """The command line, run at once or (``run=False``) only instantiated: trainer, model and data."""
    if not torch.cuda.is_available():
        # as Lightning sets it, every step of an optimiser looks for NVIDIA's library, for some tenths of a millisecond
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    return TrainCLI(
        VAE,
        InMemoryImages,
        subclass_mode_data=True,
        save_config_callback=None,
        seed_everything_default=0,
        trainer_defaults={
            "accelerator": "auto",
            "devices": 1,
            "num_sanity_val_steps": 0,
            "logger": False,
        },
        args=None if args is None else list(args),
        parser_kwargs={"exit_on_error": False},
        run=run,
    )


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit status."""
    # Lightning's hints about devices, loggers and data loaders; what a run is and does is told by ourselves
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    try:
        make_cli(args)
    except ArgumentError as error:
        print(f"error: {condensed(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except SIGTERMException:
        return 128 + signal.SIGTERM  # the shell's convention; Lightning would end with 0
    except (InputError, MisconfigurationException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
