import csv

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import kldiv
from examples.vae import diagnostics
from examples.vae.data import Digits
from examples.vae.diagnostics import LatentDiagnostics
from examples.vae.figures import kl_over_training
from examples.vae.model import Encoder
from examples.vae.train import main, make_cli
from tests.examples.test_train import DIGITS, fit, metrics, run_command, weights
from tests.marks import slow, sweep

# runs of a few samples an image, which are for speed
pytestmark = pytest.mark.filterwarnings("ignore:the smallest effective sample size:UserWarning")

LEARNED_PRIOR = ["--model.prior", "kldiv.MixturePrior", "--model.prior.num_components", "5"]
LEARNED_PRIOR += ["--model.prior.latent_dim", "10", "--model.elbo.kl", "kldiv.MonteCarloKLLoss"]


def table(run):
    with (run / "kl_per_dimension.csv").open() as file:
        head, *rows = csv.reader(file)
    return head, np.array(rows, dtype=float)


def history(run):
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    diagnosed = LatentDiagnostics()
    diagnosed.load_state_dict(state["callbacks"]["LatentDiagnostics"])
    return diagnosed.history


def last_posterior(run, **options):
    """q(z|x) of the validation images, by the last checkpoint."""
    encoder = Encoder((1, 8, 8), (256,), 10)
    state = weights(run)
    encoder.load_state_dict({name.removeprefix("encoder."): v for name, v in state.items() if "encoder." in name})
    return encoder(Digits(**options).load()["val"][0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    assert fit(runs, "--trainer.max_epochs", 4, "--trainer.num_sanity_val_steps", 1) == 0
    return runs / "digits"


def test_the_table_is_that_of_the_validation_images(trained):
    head, rows = table(trained)
    assert head == ["step", "epoch", *(f"z{dim}" for dim in range(1, 11))]
    logged = [row for row in metrics(trained) if row["val/active_units"]]
    assert rows[:, 0].tolist() == [int(row["step"]) for row in logged]
    assert rows[:, 1].tolist() == [0, 1, 2, 3]
    q = last_posterior(trained)
    kl = 0.5 * (q.log_var.exp() + q.mean**2 - 1 - q.log_var).mean(0)
    np.testing.assert_allclose(rows[-1, 2:], kl.detach(), rtol=1e-4, atol=1e-6)
    assert float(logged[-1]["val/active_units"]) == (q.mean.var(0) > 0.01).sum()
    for row, values in zip(logged, rows, strict=True):
        assert float(row["val/kl"]) == pytest.approx(values[2:].sum(), rel=1e-5)


def test_rate_and_distortion_are_kept(trained):
    logged = [row for row in metrics(trained) if row["val/active_units"]]
    for row, kept in zip(logged, history(trained), strict=True):
        assert kept.rate == pytest.approx(float(row["val/kl"]), rel=1e-6)
        assert kept.distortion == pytest.approx(float(row["val/reconstruction"]), rel=1e-6)
        assert kept.active_units == float(row["val/active_units"])


@slow
def test_with_sums_as_a_loss_they_are_still_means(trained, tmp_path):
    assert fit(tmp_path, "--model.elbo.init_args.reduction", "sum", "--trainer.max_epochs", 1) == 0
    (row,) = history(tmp_path / "digits")
    assert row.rate == pytest.approx(sum(row.kl), rel=1e-5)
    assert 10 < row.distortion < 60


@slow
def test_a_resumed_run_continues_the_table(trained, tmp_path):
    run = tmp_path / "digits"
    assert fit(tmp_path, "--trainer.max_epochs", 2) == 0
    with (run / "kl_per_dimension.csv").open("a") as file:  # of a validation after the checkpoint, cut off
        file.write("62,2,0.1,0.")
    assert fit(tmp_path, "--trainer.max_epochs", 4, "--ckpt_path", run / "checkpoints" / "last.ckpt") == 0
    assert (run / "kl_per_dimension.csv").read_bytes() == (trained / "kl_per_dimension.csv").read_bytes()
    assert history(run) == history(trained)


def test_the_picture_is_on_the_board_and_on_the_page(trained):
    board = EventAccumulator(str(trained / "tensorboard")).Reload()
    assert [image.step for image in board.Images("kl_per_dimension")] == [table(trained)[1][-1, 0]]
    page = (trained / "report.html").read_text()
    assert page.index("<figcaption>KL of each latent") < page.index("<figcaption>The same over training")


@slow
def test_it_is_drawn_while_it_trains_but_not_often(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(diagnostics, "kl_over_training", lambda *args: drawn.append(args) or kl_over_training(*args))
    monkeypatch.setattr(diagnostics, "FIRST_DRAWING", 0.0)
    monkeypatch.setattr(diagnostics, "SHARE", 1e9)
    assert fit(tmp_path, "--trainer.max_epochs", 3) == 0
    assert [args[0] for args in drawn] == [[21], [21, 42], [21, 42, 63]]
    drawn.clear()
    monkeypatch.setattr(diagnostics, "SHARE", 1e-9)
    assert fit(tmp_path, "--trainer.max_epochs", 3) == 0
    assert [args[0] for args in drawn] == [[21], [21, 42, 63]]
    assert not any(tmp_path.rglob("*.tmp"))


@slow
def test_of_a_learned_prior_the_picture_says_to_what(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        diagnostics, "kl_over_training", lambda *args: titles.append(args[3]) or kl_over_training(*args)
    )
    assert fit(tmp_path, *LEARNED_PRIOR) == 0
    assert titles == ["KL to the standard normal, which is not the prior"]
    q = last_posterior(tmp_path / "digits")
    expected = kldiv.GaussianKLLoss().per_dimension(q.mean, q.log_var).mean(0).detach()
    np.testing.assert_allclose(table(tmp_path / "digits")[1][-1, 2:], expected, rtol=1e-4, atol=1e-6)


@slow
def test_two_processes_and_a_padded_batch_give_the_table_of_one(tmp_path):
    """A learning rate of 0, for the noise of training is another in each process; 201 images in batches of 64."""
    options = ["--trainer.max_epochs", 1, "--model.optimizer.init_args.lr", 0.0, "--trainer.accelerator", "cpu"]
    options += ["--data.init_args.val_size", 201, "--data.init_args.eval_batch_size", 64]
    run_command("--runs", tmp_path / "one", *options)
    run_command("--runs", tmp_path / "two", *options, "--trainer.devices", 2, "--trainer.strategy", "ddp")
    one, two = tmp_path / "one" / "digits", tmp_path / "two" / "digits"
    q = last_posterior(one, val_size=201)
    np.testing.assert_allclose(table(one)[1][0, 2:], kldiv.ExactKLLoss().per_dimension(q).mean(0).detach(), rtol=1e-4)
    np.testing.assert_allclose(table(two)[1], table(one)[1], rtol=1e-5)
    ((of_one,), (of_two,)) = history(one), history(two)
    assert of_two.active_units == of_one.active_units == (q.mean.var(0) > 0.01).sum()
    assert of_two.rate == pytest.approx(of_one.rate, rel=1e-5)
    assert of_two.distortion == pytest.approx(of_one.distortion, rel=0.01)  # with other noise


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = ["--trainer.enable_progress_bar", "false", "--runs", str(tmp_path / "runs")]
    assert main(["fit", "--config", str(DIGITS), *quiet, "--trainer.fast_dev_run", "true"]) == 0
    cli = make_cli(["--config", str(DIGITS), *quiet, "--trainer.enable_checkpointing", "false"], run=False)
    cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    variances = cli.model.encoder(cli.datamodule.splits["val"][0]).mean.var(0)
    assert cli.trainer.callback_metrics["val/active_units"] == (variances > 0.01).sum()
    (diagnosed,) = (c for c in cli.trainer.callbacks if isinstance(c, LatentDiagnostics))
    assert diagnosed.history == []
    assert not list(tmp_path.iterdir())


def test_a_callback_from_the_configuration_is_the_only_one():
    cli = make_cli(
        ["--config", str(DIGITS), "--trainer.callbacks", "examples.vae.diagnostics.LatentDiagnostics"], run=False
    )
    assert sum(isinstance(callback, LatentDiagnostics) for callback in cli.trainer.callbacks) == 1


def test_state_of_no_validations():
    diagnosed = LatentDiagnostics()
    diagnosed.load_state_dict(diagnosed.state_dict())
    assert diagnosed.history == []


class TestHeatMap:
    def test_the_last_largest_is_on_top_and_columns_end_at_their_validations(self):
        kl = torch.tensor([[0.5, 0.001, 1.0], [0.7, 2.0, 0.003]])
        above, axes, _ = kl_over_training([10, 40], kl, [3, 2], "title").axes
        assert above.get_title() == "title"
        assert [label.get_text() for label in axes.get_yticklabels()] == ["$z_{2}$", "$z_{1}$", "$z_{3}$"]
        mesh = axes.collections[0]
        torch.testing.assert_close(torch.tensor(mesh.get_array()), kl.T[[1, 0, 2]])
        assert mesh.get_coordinates()[0, :, 0].tolist() == [0, 10, 40]
        assert axes.yaxis_inverted()
        black = [mesh.to_rgba(value)[:3] == (0, 0, 0) for value in (0.0, 0.0099, 0.0101, 2.0)]
        assert black == [True, True, False, False]
        assert above.lines[0].get_ydata().tolist() == [3, 3, 2]

    def test_the_first_steps_do_not_take_all_colours(self):
        kl = torch.full((200, 3), 0.5)
        kl[0] = 40.0
        assert kl_over_training(range(1, 201), kl, [3] * 200).axes[1].collections[0].norm.vmax == 0.5
        kl[-1, 0] = 30.0
        assert kl_over_training(range(1, 201), kl, [3] * 200).axes[1].collections[0].norm.vmax == 30

    @pytest.mark.parametrize("dims", sweep([1, 10, 50, 200], [1, 200]))
    @pytest.mark.parametrize("validations", sweep([1, 2, 150], [1, 150]))
    def test_any_size_can_be_drawn(self, dims, validations, tmp_path):
        kl = torch.rand(validations, dims)
        figure = kl_over_training(range(7, 7 * validations + 1, 7), kl, [dims] * validations)
        figure.savefig(tmp_path / "map.png")
        assert (tmp_path / "map.png").stat().st_size > 1000

    @pytest.mark.parametrize("value", sweep([0.0, 1e-9, 1e6, torch.nan, torch.inf], [0.0, torch.nan]))
    def test_any_value_can_be_drawn(self, value, tmp_path):
        kl_over_training([5, 9], torch.full((2, 3), value), [0, 0]).savefig(tmp_path / "map.png")
