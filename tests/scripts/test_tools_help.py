"""The help of every tool says what it does, and shows a command."""

import ast
import re

import pytest

from scripts import ROOT

TOOLS = [path for path in sorted((ROOT / "tools").glob("*.py")) if "def main(" in path.read_text()]


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.stem)
def test_help_has_a_sentence_and_an_example(path):
    code = path.read_text()
    assert "description=__doc__" in code  # help prints the docstring
    first, blank, example, *_ = (ast.get_docstring(ast.parse(code)) or "").splitlines()
    assert re.fullmatch(r"[A-Z][a-z]+ .*\.", first)
    assert (blank, example[:4]) == ("", "    ")
    assert example.split()[:2] == ["python", f"tools/{path.name}"]
