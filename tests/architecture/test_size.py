"""Limits on the length of files and functions."""

import ast
from pathlib import Path
from statistics import mean, quantiles

import pytest

from reca.config import ROOT

SOURCES = sorted(path for top in ("reca", "flows", "bench", "tools") for path in (ROOT / top).rglob("*.py"))
each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())


def functions(path: Path) -> dict[str, int]:
    """Return the lines per function, without docstring and decorators."""
    lengths = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            code = node.body[1:] if ast.get_docstring(node) else node.body
            first = code[0].lineno if code else node.lineno
            lengths[f"{node.name} (line {node.lineno})"] = (node.end_lineno or first) - first + 2  # and its def line
    return lengths


@each_source
def test_file_has_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400, "split it: a family or a source becomes a folder"


@each_source
def test_function_has_at_most_80_lines(path: Path) -> None:
    long = {name: lines for name, lines in functions(path).items() if lines > 80}
    assert not long


def test_typical_files_and_functions_are_short() -> None:
    lengths = [len(path.read_text().splitlines()) for path in SOURCES if path.name != "__init__.py"]
    assert mean(lengths) <= 150, "files have grown long on average"
    ninetieth = quantiles([lines for path in SOURCES for lines in functions(path).values()], n=10)[-1]
    assert ninetieth <= 40, "one function in ten is longer than 40 lines"
