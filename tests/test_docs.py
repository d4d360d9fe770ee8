import inspect
import re

import pytest

from docs import closed_forms
from kldiv.exact import CLOSED_FORMS


def test_the_page_of_closed_forms_is_that_of_the_registry():
    assert closed_forms.PAGE.read_text() == closed_forms.page(), "run: python -m docs.closed_forms"


@pytest.mark.parametrize(
    "pair", [p for p, form in CLOSED_FORMS.items() if form.__module__.startswith("kldiv.")], ids=str
)
def test_every_closed_form_has_a_formula_and_a_source(pair):
    text = inspect.getdoc(CLOSED_FORMS[pair])
    assert ".. math::" in text
    assert "Source: " in text


def test_the_recipes_run():
    """Page by page, each in one namespace from its first block to its last."""
    page = (closed_forms.PAGE.parent / "monte-carlo.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 9
    assert names["images"].shape == (16, 64)
    assert names["terms"].loss.isfinite()
