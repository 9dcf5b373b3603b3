"""Readers of dvc.yaml and of the configuration keys that a module reads, for test_graph.py."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import yaml

from reca.config import ROOT
from reca.config.evaluate import BENCHMARKS
from reca.models.loading import FAMILIES
from reca.runtime.code_digest import sources, stage_modules, syntax_tree

CODE = "outputs/fingerprint/code.json"


@dataclass(frozen=True)
class StageDefinition:
    """One stage as written, before DVC expands its matrix."""

    name: str
    definition: dict[str, Any]

    @property
    def over_benchmarks(self) -> bool:
        """Return whether the stage has a matrix over models and benchmarks."""
        return "matrix" in self.definition

    @property
    def params(self) -> list[str]:
        """Keys of params.yaml, ``evaluate.${item.benchmark}`` included."""
        return [param for param in self.definition.get("params", []) if isinstance(param, str)]

    @property
    def code(self) -> list[str]:
        """Keys of the file of code digests."""
        return [
            key for param in self.definition.get("params", []) if isinstance(param, dict) for key in param.get(CODE, [])
        ]

    def choices(self) -> Iterator[dict[str, str]]:
        """Yield every way to choose a family, a source and a benchmark (none for a stage without a matrix)."""
        for family, source, item in product(FAMILIES, sources(), BENCHMARKS if self.over_benchmarks else [""]):
            yield {"${model.family}": family, "${data.source}": source, "${item.benchmark}": item}

    def modules(self, choice: dict[str, str]) -> set[str]:
        """Return the modules in the stage's digest under a choice."""
        (key,) = self.code
        names = {"${model.family}": "family", "${data.source}": "source", "${item.benchmark}": "benchmark"}
        return stage_modules(self.name, **{names[field]: choice[field] for field in names if field in key})


def fill(text: str, values: dict[str, str]) -> str:
    """Put values in the place of their ``${...}``."""
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def read_stages() -> list[StageDefinition]:
    """Return the stages of dvc.yaml, in order."""
    raw = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return [StageDefinition(name, value) for name, value in raw.items()]


@cache
def config_reads(module: str) -> frozenset[str]:
    """Return ``train.max_steps`` for every ``config.train.max_steps`` in a module (also ``self.config...``).

    Distinguishing the classes of a section, ``isinstance(config.data, ScenesData)``, reads ``data.source``.
    """
    keys: set[str] = set()

    class Reads(ast.NodeVisitor):
        def visit_Call(self, node: ast.Call) -> None:
            if isinstance(node.func, ast.Name) and node.func.id == "isinstance" and config_path(node.args[0]) == "data":
                keys.add("data.source")
            else:
                self.generic_visit(node)

        def visit_Attribute(self, node: ast.Attribute) -> None:
            if path := config_path(node):
                keys.add(path)  # the whole chain; its inner nodes are not visited
            else:
                self.generic_visit(node)

    Reads().visit(syntax_tree(module))
    return frozenset(keys)


def config_path(node: ast.AST) -> str:
    """Return ``train.max_steps`` for ``config.train.max_steps``, an empty string otherwise."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.insert(0, node.id)
    if "config" not in parts[:2]:
        return ""
    section, *rest = [*parts[parts.index("config") + 1 :], ""]
    return ".".join([section.rstrip("_"), *rest]).rstrip(".")
