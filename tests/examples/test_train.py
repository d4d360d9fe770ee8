import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch._inductor.config

from examples.vae.train import main
from tests.examples.test_mnist import write_mnist
from tests.marks import slow

# runs of a few samples an image, which are for speed
pytestmark = pytest.mark.filterwarnings("ignore:the smallest effective sample size:UserWarning")

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs" / "digits.yaml"
SMALL = ["--trainer.max_epochs", "2", "--importance_samples", "3", "--trainer.enable_progress_bar", "false"]


def fit(runs, *options, config=DIGITS):
    return main(["fit", "--config", str(config), *SMALL, "--runs", str(runs), *map(str, options)])


def metrics(run):
    """The rows but for their times."""
    with (Path(run) / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "epoch_seconds"} for row in csv.DictReader(file)]


def summary(run):
    values = json.loads((Path(run) / "summary.json").read_text())
    values.pop("seconds_per_epoch")
    return values


def weights(run, name="last"):
    return torch.load(Path(run) / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    assert fit(runs, "--trainer.max_epochs", 6) == 0
    return runs / "digits"


def test_what_a_run_leaves(trained):
    files = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    pictures = ("reconstructions", "samples", "traversal", "curves", "kl_per_dimension")
    pictures += ("kl_per_dimension_over_training",)
    assert {f"figures/{name}.png" for name in pictures} <= files
    assert {"config.yaml", "kl_per_dimension.csv", "metrics.csv", "report.html", "summary.json"} <= files
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= files
    assert any(name.startswith("tensorboard/events") for name in files)
    assert not any(name.endswith(".tmp") for name in files)


def test_the_summary(trained):
    values = json.loads((trained / "summary.json").read_text())
    assert values["negative_elbo"] == pytest.approx(values["reconstruction"] + values["kl"], rel=1e-5)
    assert -values["negative_elbo"] < values["log_likelihood"] < 0
    assert 0 < values["log_likelihood_standard_error"] < 1
    assert 0 <= values["active_units"] <= 10
    assert (values["epochs"], values["device"], values["seed"]) == (6, "cpu", 0)
    assert values["seconds_per_epoch"] > 0
    assert "cross-entrop" in values["note"]


def test_the_page_holds_everything_itself(trained):
    page = (trained / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "cross-entrop" in page


def test_training_learns(trained):
    values = [float(row["val/negative_elbo"]) for row in metrics(trained) if row["val/negative_elbo"]]
    assert len(values) == 6
    assert values[-1] < values[0] - 5


def test_best_and_last(trained):
    best, last = (
        torch.load(trained / "checkpoints" / f"{name}.ckpt", weights_only=True)["epoch"] for name in ("best", "last")
    )
    values = [float(row["val/negative_elbo"]) for row in metrics(trained) if row["val/negative_elbo"]]
    assert last == 5
    assert best == values.index(min(values))


def test_a_resumed_run_ends_where_an_undisturbed_one_does(trained, tmp_path):
    assert fit(tmp_path) == 0
    run = tmp_path / "digits"
    assert len(metrics(run)) < len(metrics(trained))
    assert fit(tmp_path, "--trainer.max_epochs", 6, "--ckpt_path", run / "checkpoints" / "last.ckpt") == 0
    assert metrics(run) == metrics(trained)
    assert summary(run) == summary(trained)
    for name in ("best", "last"):
        resumed, undisturbed = weights(run, name), weights(trained, name)
        assert all(torch.equal(resumed[key], undisturbed[key]) for key in undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


COMMAND = [sys.executable, "-m", "examples.vae.train", "fit", "--config", str(DIGITS), *SMALL]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run_command(*options):
    command = [*COMMAND, *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed")
    run_command("--runs", runs, "--trainer.max_epochs", 12)
    return runs / "digits"


@slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_stopped_in_the_middle_continues_to_the_same_numbers(undisturbed, tmp_path, how):
    options = ["--runs", str(tmp_path), "--trainer.max_epochs", "12"]
    process = subprocess.Popen(
        [*COMMAND, *options],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        # a shell starts what it runs in the background with SIGINT ignored, and every child inherits that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    run = tmp_path / "digits"
    last = run / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.2)
    assert process.poll() is None, "the run ended before it was stopped"
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (run / "summary.json").exists()
    assert 0 < len(metrics(run)) < len(metrics(undisturbed))
    if how != signal.SIGKILL:
        assert str(last) in output
    run_command(*options, "--ckpt_path", last)
    assert metrics(run) == metrics(undisturbed)
    assert summary(run) == summary(undisturbed)


def test_mnist_files_and_terms_swapped_from_yaml(tmp_path):
    write_mnist(tmp_path / "data", compress=True, counts={"train": 300, "t10k": 50})
    config = ROOT / "configs" / "mnist.yaml"
    swapped = ["--model.elbo.reconstruction", "kldiv.GaussianNLL", "--model.elbo.reconstruction.learned", "true"]
    swapped += ["--model.elbo.kl", "kldiv.MonteCarloKLLoss", "--model.elbo.kl.num_samples", "3"]
    swapped += ["--model.elbo.weight", "kldiv.LinearWarmup", "--model.elbo.weight.fraction", "0.5"]
    options = ["--data.root", tmp_path / "data", "--data.val_size", 100, "--trainer.log_every_n_steps", 1]
    assert fit(tmp_path / "runs", *options, *swapped, config=config) == 0
    rows = metrics(tmp_path / "runs" / "mnist")
    weight = [float(row["train/weight"]) for row in rows if row["train/weight"]]
    assert weight == pytest.approx([0.0, 0.5, 1.0, 1.0])  # four steps in all, warm after two
    assert summary(tmp_path / "runs" / "mnist")["note"] == ""
    assert "elbo.reconstruction.log_var" in weights(tmp_path / "runs" / "mnist")
    assert "kldiv.MonteCarloKLLoss" in (tmp_path / "runs" / "mnist" / "config.yaml").read_text()


@slow
def test_a_beta_tc_vae_steered_by_geco_is_yaml_alone(tmp_path):
    steered = tmp_path / "steered.yaml"
    steered.write_text(
        "model:\n  elbo:\n    weight:\n      class_path: kldiv.GECO\n"
        "      init_args: {target: 30.0, rate: 0.01, momentum: 0.5, start: 0.1}\n"
    )
    config = ROOT / "configs" / "beta-tc-vae.yaml"
    options = ["--config", steered, "--trainer.max_epochs", 6, "--trainer.log_every_n_steps", 1]
    assert fit(tmp_path / "runs", *options, config=config) == 0
    rows = [row for row in metrics(tmp_path / "runs" / "steered") if row["train/weight"]]
    for before, after in itertools.pairwise(rows):
        worse = float(before["train/reconstruction"]) > 30 + 2
        if worse and float(before["train/weight"]) > 1.1e-4:  # the least it may be
            assert float(after["train/weight"]) < float(before["train/weight"])
    row = rows[-1]
    bound = float(row["train/reconstruction"]) + float(row["train/kl"])
    assert float(row["train/negative_elbo"]) == pytest.approx(bound, rel=1e-5)
    assert float(row["train/loss"]) != pytest.approx(bound, rel=1e-5)


@slow
def test_a_learned_prior_from_yaml(tmp_path):
    prior = [
        "--model.prior",
        "kldiv.MixturePrior",
        "--model.prior.num_components",
        "5",
        "--model.prior.latent_dim",
        "10",
    ]
    assert fit(tmp_path, *prior, "--model.elbo.kl", "kldiv.MonteCarloKLLoss") == 0
    trained = weights(tmp_path / "digits")
    assert trained["prior.mean"].shape == (5, 10)
    assert trained["prior.log_var"].abs().max() > 0.01
    result = summary(tmp_path / "digits")
    # the same for both: one sample's KL to the mixture, and 100 weights
    assert 0 < -result["log_likelihood"] < result["negative_elbo"]
    assert "to the standard normal, which is not the prior" in (tmp_path / "digits" / "report.html").read_text()


@slow
def test_a_new_run_takes_a_new_folder_and_its_resolved_config_gives_it_again(tmp_path):
    assert fit(tmp_path, "--seed_everything", 5) == 0
    assert fit(tmp_path, config=tmp_path / "digits" / "config.yaml") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits", "digits-2"]
    assert metrics(tmp_path / "digits") == metrics(tmp_path / "digits-2")
    assert summary(tmp_path / "digits-2")["seed"] == 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model.nonsense", "3"], "model.nonsense"),
        (["--trainer.max_epokhs", "3"], "max_epokhs"),
        (
            [
                "--model.prior",
                "kldiv.MixturePrior",
                "--model.prior.num_components",
                "5",
                "--model.prior.latent_dim",
                "10",
            ],
            "ELBOLoss(..., kl=kldiv.MonteCarloKLLoss())",
        ),
        (
            [
                "--model.prior",
                "kldiv.MixturePrior",
                "--model.prior.num_components",
                "5",
                "--model.prior.latent_dim",
                "3",
                "--model.elbo.kl",
                "kldiv.MonteCarloKLLoss",
            ],
            "posterior (2, 10), prior (3,)",
        ),
        (["--model.elbo.reconstruction", "kldiv.NoSuchTerm"], "NoSuchTerm"),
        (["--model.encoder.init_args.latent_dim", "7"], "images of shape (1, 8, 8)"),
        (["--model.optimizer.init_args.lr", "-1"], "Invalid learning rate: -1"),
        (["--model.elbo.init_args.reduction", "mean"], "'batchmean', 'sum', 'none'"),
        (
            ["--model.elbo.weight", "kldiv.LinearWarmup", "--model.elbo.weight.fraction", "2"],
            "either steps or fraction",
        ),
        (["--data.root", "data"], "Option 'root' is not accepted"),
        (["--data.init_args.val_size", "0"], "val_size=0"),
        (["--importance_samples", "0"], "importance_samples"),
        (["--ckpt_path", "no/such.ckpt"], "no/such.ckpt does not exist"),
    ],
)
def test_mistakes_are_told_in_a_line_and_leave_nothing(tmp_path, capfd, options, says):
    assert fit(tmp_path, *options) != 0
    error = capfd.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_runs_folder_that_cannot_be_made(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    assert fit(tmp_path / "file" / "runs") != 0
    assert "cannot be made" in capfd.readouterr().err


@slow
def test_compiled_training_learns_and_is_continued(tmp_path):
    compiled = ("--model.compile", "true", "--trainer.max_epochs", "3")
    assert fit(tmp_path / "whole", *compiled) == 0
    values = [float(row["train/loss"]) for row in metrics(tmp_path / "whole" / "digits") if row.get("train/loss")]
    assert values[-1] < 0.8 * values[0]
    assert fit(tmp_path / "part", *compiled[:2], "--trainer.max_epochs", "2") == 0
    last = tmp_path / "part" / "digits" / "checkpoints" / "last.ckpt"
    assert fit(tmp_path / "part", *compiled, "--ckpt_path", last) == 0
    whole, part = (weights(tmp_path / name / "digits") for name in ("whole", "part"))
    torch.testing.assert_close(whole, part, rtol=0, atol=0)
    # the checkpoint is that of a model that is not compiled
    assert fit(tmp_path / "part", "--trainer.max_epochs", "4", "--ckpt_path", last) == 0


def test_a_machine_without_a_compiler_says_so_before_anything_is_written(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    torch.compiler.reset()
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert fit(tmp_path, "--model.compile", "true") == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert "torch.compile does not work here" in error
    assert "--model.compile false" in error
    assert not any(tmp_path.iterdir())


def test_training_that_diverges_says_so(tmp_path, capfd):
    assert fit(tmp_path, "--model.optimizer.init_args.lr", "1e30") != 0
    error = capfd.readouterr().err
    assert "training diverged: the loss is" in error
    assert "Traceback" not in error


def test_a_config_file_with_a_wrong_key(tmp_path, capfd):
    config = tmp_path / "wrong.yaml"
    config.write_text(DIGITS.read_text().replace("hidden", "hiden", 1))
    assert fit(tmp_path / "runs", config=config) != 0
    assert "'hiden'" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "truncated"])
def test_a_damaged_checkpoint_is_named(trained, tmp_path, capfd, content):
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    path.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes()[:9000] if content == "truncated" else content)
    assert fit(tmp_path, "--ckpt_path", path) != 0
    assert f"the checkpoint {path} cannot be read" in capfd.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoints"]


def test_a_checkpoint_with_a_flipped_byte_is_named(trained, tmp_path, capfd):
    content = bytearray((trained / "checkpoints" / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 0xFF  # among the numbers, which torch would read
    path = tmp_path / "flipped.ckpt"
    path.write_bytes(content)
    assert fit(tmp_path / "runs", "--ckpt_path", path) != 0
    assert f"the checkpoint {path} cannot be read (BadZipFile)" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_checkpoint_of_another_optimiser_leaves_the_run_as_it_was(trained, tmp_path, capfd):
    before = (trained / "config.yaml").read_text()
    options = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.init_args.lr", "0.01"]
    assert fit(tmp_path, "--ckpt_path", trained / "checkpoints" / "last.ckpt", *options) != 0
    error = capfd.readouterr().err
    assert "the checkpoint is of another optimiser: SGD" in error
    assert "Traceback" not in error
    assert (trained / "config.yaml").read_text() == before


def test_the_checkpoint_of_another_model_or_of_something_else(trained, tmp_path, capfd):
    last = trained / "checkpoints" / "last.ckpt"
    before = metrics(trained)
    assert fit(tmp_path, "--ckpt_path", last, "--model.encoder.init_args.hidden", "[9]") != 0
    assert "encoder.network.0.bias is (9,)" in capfd.readouterr().err
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.ckpt")
    assert fit(tmp_path, "--ckpt_path", tmp_path / "other.ckpt") != 0
    assert "is no checkpoint of this trainer" in capfd.readouterr().err
    assert metrics(trained) == before


@slow
def test_two_processes_end_like_one(undisturbed, tmp_path):
    options = ["--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp"]
    run_command("--runs", tmp_path, "--trainer.max_epochs", 12, *options)
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    together = tmp_path / "digits"
    assert [row["step"] for row in metrics(undisturbed)] == [row["step"] for row in metrics(together)]
    # the same batches with other noise
    assert summary(together)["negative_elbo"] == pytest.approx(summary(undisturbed)["negative_elbo"], rel=0.015)
