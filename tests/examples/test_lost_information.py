import re

import pytest
import torch
from torch.distributions import Normal

from examples.lost_information import (
    GRID,
    TEETH,
    TWO_PEAKS,
    WORMS,
    binomial,
    fit_binomial,
    fit_gaussian,
    main,
    uniform,
)
from kldiv.tables import relative_entropy


def test_the_worms():
    assert relative_entropy(WORMS, uniform()).item() == pytest.approx(0.1367, abs=5e-5)
    at_best = binomial(torch.tensor([0.544], dtype=torch.float64).logit())
    assert relative_entropy(WORMS, at_best).item() == pytest.approx(0.4273, abs=5e-5)


@pytest.mark.parametrize("start", [0.1, 0.95])
def test_the_descent_ends_where_the_mean_is_right(start):
    fit = fit_binomial(start)
    assert fit.probabilities[0] == pytest.approx(start)
    # the least KL to an exponential family is at the same mean
    assert fit.probabilities[-1] == pytest.approx((WORMS * TEETH).sum().item() / 10, abs=1e-4)
    assert f"{fit.probabilities[-1]:.3f}" == "0.544"
    assert fit.nats == sorted(fit.nats, reverse=True)


def test_the_forward_fit_has_the_moments_of_the_two_peaks():
    fit = fit_gaussian(relative_entropy)
    assert fit.mean == pytest.approx(TWO_PEAKS.mean.item(), abs=1e-5)
    assert fit.stddev == pytest.approx(TWO_PEAKS.stddev.item(), abs=1e-5)


def test_the_reverse_fit_takes_one_peak():
    forward, reverse = fit_gaussian(relative_entropy), fit_gaussian(lambda p, q: relative_entropy(q, p))
    assert (reverse.mean, reverse.stddev) == pytest.approx((-2.0, 0.8), abs=0.03)
    assert forward.forward < reverse.forward - 1
    assert reverse.reverse < forward.reverse - 0.3
    # started at the lesser peak alone it stays there, and is worse: the best start counts
    lesser = fit_gaussian(lambda p, q: relative_entropy(q, p), starts=(2.0,))
    assert lesser.mean == pytest.approx(2.2, abs=0.03)
    assert lesser.reverse > reverse.reverse


def test_the_grid_is_fine_enough_for_the_integral():
    fit = fit_gaussian(lambda p, q: relative_entropy(q, p))
    q = Normal(torch.tensor(fit.mean, dtype=torch.float64), fit.stddev)
    finer = torch.linspace(-22, 22, 44001, dtype=torch.float64)
    log_q, log_p = q.log_prob(finer), TWO_PEAKS.log_prob(finer)
    integral = torch.trapezoid(log_q.exp() * (log_q - log_p), finer).item()
    assert fit.reverse == pytest.approx(integral, abs=1e-8)
    assert GRID[0] == -GRID[-1]


def test_prints_the_numbers_and_saves_the_pictures(tmp_path, capsys):
    main(["--out", str(tmp_path / "pictures")])
    printed = capsys.readouterr().out
    assert re.search(r"uniform +0\.1367\b", printed)
    assert re.search(r"Binomial\(10, 0\.544\) +0\.4273\b", printed)
    rows = {name: [float(x) for x in numbers.split()] for name, numbers in re.findall(r"(least \S+) +(.*)", printed)}
    assert rows["least D(P||Q)"][2] < rows["least D(Q||P)"][2]
    assert rows["least D(Q||P)"][3] < rows["least D(P||Q)"][3]
    for name in ("worms", "descent", "two_peaks"):
        picture = tmp_path / "pictures" / f"{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert str(picture) in printed
