"""The layout of the package: a folder is imported from by its __init__ alone, and public names are declared."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import kldiv

PACKAGE = Path(kldiv.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [name for _, name, _ in pkgutil.walk_packages(kldiv.__path__, "kldiv.")]


def folder(path: Path) -> str:
    """The folder of the package that a file lies in; empty for a flat one."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_other_folders_are_entered_by_their_init(path):
    folders = {folder(file) for file in FILES} - {""}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kldiv."):
            _, entered, *inner = node.module.split(".")
            if entered in folders and entered != folder(path):
                assert not inner, f"{path.name} imports from {node.module}: from kldiv.{entered} import ... would do"


@pytest.mark.parametrize("name", MODULES)
def test_every_public_module_declares_its_public_names(name):
    if name.rpartition(".")[2].startswith("_"):
        pytest.skip("a private module")
    module = importlib.import_module(name)
    assert sorted(module.__all__) == sorted(set(module.__all__))
    assert all(hasattr(module, public) and not public.startswith("_") for public in module.__all__)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_is_defined_in_public_is_declared(path):
    tree = ast.parse(path.read_text())
    declared = next(
        (
            ast.literal_eval(n.value)
            for n in tree.body
            if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"
        ),
        [],
    )
    defined = [
        n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")
    ]
    assert set(defined) <= set(declared)


def test_every_public_name_is_documented():
    root = PACKAGE.parent
    text = "".join(page.read_text() for page in [root / "README.md", *(root / "docs").glob("*.md")])
    assert [name for name in kldiv.__all__ if f"`{name}" not in text and f"kldiv.{name}" not in text] == []


def test_importing_kldiv_changes_nothing_of_torch():
    # in a process of its own: torch.compile switches the default off
    program = "import torch, kldiv; print(torch.distributions.Distribution._validate_args is __debug__)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "True\n"
    )
