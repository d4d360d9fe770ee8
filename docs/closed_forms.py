"""Writes docs/closed-forms.md from the registry: every pair with its formula and source.

python -m docs.closed_forms
"""

import inspect
import re
import sys
import textwrap
from pathlib import Path

import kldiv
from kldiv.exact.registry import CLOSED_FORMS, ClosedForm
from kldiv.exact.two_families import infinite

PAGE = Path(__file__).with_name("closed-forms.md")

HEAD = """# Closed forms

What `kldiv.kl_divergence(p, q)` knows, {pairs} pairs of types, made from the registry by `python -m docs.closed_forms`.
A subclass has the form of its parent, and `Independent` that of its parts, one dimension at a time. Torch's own
registry is asked too, and the most specific pair of both wins.

Formulas are written as they are computed: without cancellation where p and q are close. Throughout,
$\\varphi(u) = e^u - 1 - u$, and $B_f(a, b) = f(a) - f(b) - f'(b)(a - b)$ is the Bregman divergence of a convex f.
"""


def ours() -> list[tuple[tuple[type, type], ClosedForm]]:
    """The pairs that the package itself has registered, by the names of p and q."""
    pairs = sorted(CLOSED_FORMS.items(), key=lambda entry: [kind.__name__ for kind in entry[0]])
    return [(pair, form) for pair, form in pairs if hasattr(sys.modules.get(form.__module__), form.__name__)]


def page() -> str:
    """The text of the page."""
    groups: dict[tuple[str, str], list[tuple[type, type]]] = {}
    forms: dict[tuple[str, str], ClosedForm] = {}
    for pair, form in ours():
        key = (form.__module__, form.__name__)
        groups.setdefault(key, []).append(pair)
        forms[key] = form
    count = sum(len(pairs) for pairs in groups.values())
    parts = [HEAD.format(pairs=count)]
    last = (infinite.__module__, infinite.__name__)
    parts += [
        _entry(forms[key], groups[key]) for key in sorted(groups, key=lambda key: (key == last, _heading(groups[key])))
    ]
    return "\n".join(parts)


def _entry(form: ClosedForm, pairs: list[tuple[type, type]]) -> str:
    text = inspect.cleandoc(form.__doc__ or "")
    body, _, source = text.partition("Source:")
    prose, formula = _split(body)
    summary, _, rest = prose.partition("\n\n")
    lines = [f"## {_heading(pairs)}", "", _inline(summary.replace("\n", " "))]
    if formula:
        lines += ["", "```math", formula, "```"]
    if rest.strip():
        lines += ["", _inline(rest.strip())]
    lines += ["", f"Source: {' '.join(source.split())}", ""]
    return "\n".join(lines)


def _heading(pairs: list[tuple[type, type]]) -> str:
    right: dict[tuple[str, ...], list[str]] = {}
    of_left: dict[str, list[str]] = {}
    for left, other in pairs:
        of_left.setdefault(left.__name__, []).append(other.__name__)
    for left, others in of_left.items():
        right.setdefault(tuple(others), []).append(left)
    return "; ".join(f"{', '.join(lefts)} ‖ {', '.join(others)}" for others, lefts in right.items())


def _split(body: str) -> tuple[str, str]:
    # the formula stands in an indented block behind ".. math::"
    match = re.search(r"^\.\. math:: (.*(?:\n +.*)*)\n?", body, re.MULTILINE)
    if match is None:
        return body.strip(), ""
    formula = textwrap.dedent(" " * 14 + match.group(1)).strip()
    return (body[: match.start()] + body[match.end() :]).strip(), formula


def _inline(text: str) -> str:
    return re.sub(r":math:`([^`]+)`", r"$\1$", text).replace("``", "`").replace(":func:", "")


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE}: closed forms of kldiv {kldiv.__version__}")
