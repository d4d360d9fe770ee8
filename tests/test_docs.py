import inspect
import re
from inspect import isclass

import pytest
from torch import nn

import kldiv
from docs import closed_forms
from kldiv.exact.registry import CLOSED_FORMS


def test_the_page_of_closed_forms_is_that_of_the_registry():
    assert closed_forms.PAGE.read_text() == closed_forms.page(), "run: python -m docs.closed_forms"


@pytest.mark.parametrize(
    "pair", [p for p, form in CLOSED_FORMS.items() if form.__module__.startswith("kldiv.")], ids=str
)
def test_every_closed_form_has_a_formula_and_a_source(pair):
    text = inspect.getdoc(CLOSED_FORMS[pair])
    assert ".. math::" in text
    assert "Source: " in text


def run(name):
    """The blocks of a page, in one namespace from the first to the last."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", (closed_forms.PAGE.parent / name).read_text(), re.DOTALL):
        exec(block, names)
    return names


def test_the_recipes_of_estimators_run():
    names = run("monte-carlo.md")
    assert names["images"].shape == (16, 64)
    assert names["terms"].loss.isfinite()


def test_the_page_on_the_elbo_runs(capsys):
    pytest.importorskip("torchmetrics", exc_type=ImportError)
    with pytest.warns(UserWarning, match="effective sample size"):  # the model is hardly trained
        names = run("elbo.md")
    assert names["terms"].loss.isfinite()
    assert names["mutual_information"].shape == (32,)
    assert names["table"].reconstruction.isfinite()
    assert re.match(r"-\d+\.\d\d ± 0\.\d\d nats\n", capsys.readouterr().out)


def test_every_piece_of_an_elbo_is_in_the_table_with_tests_that_are_there():
    page = (closed_forms.PAGE.parent / "elbo.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    listed = {re.match(r"\| `(\w+)`", row).group(1) for row in rows}
    pieces = {name for name, value in vars(kldiv).items() if isclass(value) and issubclass(value, nn.Module)}
    bases = {"KLTerm", "NegativeLogLikelihood", "Schedule", "Controller"}
    metrics = {"ActiveUnits", "KLPerDimension", "RateDistortion"}
    assert pieces - bases - {"MixturePrior", "VampPrior"} | metrics <= listed
    for path, *names in (test.split("::") for test in re.findall(r"`(tests/[^`]+)`", page)):
        text = (closed_forms.PAGE.parents[1] / path).read_text()
        assert all(re.search(rf"(?:def|class) {name}\b", text) for name in names), (path, names)
