"""A slice of ``make stress``, and that it catches a formula that is off by 1e-4."""

import pytest

from tests.stress import closed_forms
from tests.stress.case import run_case
from tests.stress.properties import PROPERTIES
from tests.stress.running import State, run, run_chunk

# the others compare the closed forms with themselves: their batches, their gradients, their half precision
AGAINST_AN_ORACLE = [name for name in PROPERTIES if "family" in name or "families" in name or "ends" in name]


@pytest.mark.parametrize("name", AGAINST_AN_ORACLE)
def test_a_wrong_value_is_caught(name, monkeypatch):
    right = closed_forms.kl_divergence
    monkeypatch.setattr(closed_forms, "kl_divergence", lambda p, q: right(p, q) * (1 + 1e-4))
    assert any(run_case(name, seed).failure for seed in range(20))


def test_a_slice_holds():
    chunk = run_chunk(0)
    assert chunk.cases.total() == 50
    assert chunk.unchecked.total() < 5
    assert not chunk.failures


def test_no_chunk_is_left_out(tmp_path):
    state = run(150, 1, tmp_path / "state.json")
    assert state.done == {0, 1, 2}


def test_a_state_goes_on_where_it_stopped(tmp_path):
    state = State(tmp_path / "state.json")
    state.add(run_chunk(0, size=2))
    state.save()
    again = State(tmp_path / "state.json")
    assert (again.cases, again.unchecked, again.failures) == (state.cases, state.unchecked, state.failures)
    assert again.done == {0}


def test_a_case_without_a_truth_is_not_counted_as_checked(monkeypatch):
    monkeypatch.setattr(closed_forms, "true_kl", lambda p, q: closed_forms.mp.nan)
    outcome = run_case("closed form, ends of the range", 0)
    assert outcome == (False, None)
