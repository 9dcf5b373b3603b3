"""dvc.yaml as it is written, and which modules of ours a stage runs. Read by test_graph.py."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, get_args

import grimp
import yaml

from reca.config import ROOT, BenchmarkName, DataSection
from reca.models.base import FAMILIES

PLUMBING = frozenset(
    {
        "reca.config",
        "reca.config.benchmarks",
        "reca.config.models",
        "reca.config.section",
        "reca.config.sections",
        "reca.config.yaml12",
        "reca.errors",
        "reca.files",
        "reca.progress",
        "reca.stages.result",
    }
)  # carries a result and does not make it: an edit there must not retrain anything
JUDGING = (
    "reca.benchmarks.judges",
    "reca.benchmarks.rules",
    "reca.benchmarks.scene_judge",
    "reca.benchmarks.similarity",
    "reca.nn.scene_detector",
)  # imported beside what makes samples, run only by what scores them: a better judge must not redraw anything
BENCHMARKS = get_args(BenchmarkName)
SOURCES = tuple(get_args(choice.model_fields["source"].annotation)[0] for choice in get_args(get_args(DataSection)[0]))
# Packages of which one module is chosen by a value of the configuration, and that value's name in dvc.yaml.
CHOSEN = {
    "reca.models": ("${model.family}", tuple(FAMILIES)),
    "reca.data.sources": ("${data.source}", SOURCES),
    "reca.benchmarks": ("${item}", BENCHMARKS),
}


@dataclass(frozen=True)
class Stage:
    """One stage as written, with its ``foreach`` taken away."""

    name: str
    over_benchmarks: bool
    definition: dict[str, Any]

    @property
    def verb(self) -> str:
        """Its module in reca/stages."""
        return self.name.split("-")[0]

    @property
    def params(self) -> list[str]:
        """As written; ``evaluate.${item}`` included."""
        return list(self.definition.get("params", []))

    def choices(self) -> Iterator[dict[str, str]]:
        """Every way to choose a family, a source and a benchmark (none for a stage of no one benchmark)."""
        for family, source, item in product(FAMILIES, SOURCES, BENCHMARKS if self.over_benchmarks else [""]):
            yield {"${model.family}": family, "${data.source}": source, "${item}": item}

    def code(self, chosen: dict[str, str]) -> set[str]:
        """The dependencies that are code, with the chosen names filled in."""
        return {fill(dep, chosen) for dep in self.definition["deps"] if dep.startswith("reca/")}


def fill(text: str, values: dict[str, str]) -> str:
    """Put values in the place of their ``${...}``."""
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def read_stages() -> list[Stage]:
    """The stages of dvc.yaml, in order."""
    raw = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return [
        Stage(name, "foreach" in value, value["do"] if "foreach" in value else value) for name, value in raw.items()
    ]


@cache
def import_graph() -> grimp.ImportGraph:
    """Who imports whom in reca when it runs: imports inside functions count, those for the type checker do not."""
    return grimp.build_graph("reca", cache_dir=None, exclude_type_checking_imports=True)


def modules_run(stage: Stage, chosen: dict[str, str]) -> set[str]:
    """Modules of ours that make the stage's result under a choice, plumbing and empty packages left out."""
    passed_over = {
        f"{package}.{name}"
        for package, (variable, names) in CHOSEN.items()
        for name in names
        if name != chosen[variable]
    }
    found: set[str] = set()
    waiting = [f"reca.stages.{stage.verb}"]
    while waiting:
        module = waiting.pop()
        if module in found or module in PLUMBING or module in passed_over:
            continue
        if stage.verb == "generate" and any(f"{module}.".startswith(f"{judging}.") for judging in JUDGING):
            continue
        found.add(module)
        waiting += import_graph().find_modules_directly_imported_by(module)
        waiting += loaded_by_name(module)
        if "." in module:
            waiting.append(module.rpartition(".")[0])  # Python runs the package first
    return {module for module in found if path_of(module).read_text().strip()}


@cache
def loaded_by_name(module: str) -> tuple[str, ...]:
    """Modules that stand in a string of ``module``, as in ``FAMILIES = {"janus": "reca.models.janus:Janus"}``."""
    strings = (node.value for node in ast.walk(syntax(module)) if isinstance(node, ast.Constant))
    names = {value.split(":")[0] for value in strings if isinstance(value, str) and value.startswith("reca.")}
    return tuple(names & import_graph().modules)


@cache
def syntax(module: str) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(path_of(module).read_text())


def path_of(module: str) -> Path:
    """The file of a module or package."""
    base = ROOT.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


@cache
def config_reads(module: str) -> frozenset[str]:
    """``train.max_steps`` for every ``config.train.max_steps`` in a module (also ``self.config...``).

    Telling the kinds of a section apart, ``isinstance(config.data, ScenesData)``, reads ``data.source``.
    """
    found: set[str] = set()

    class Reads(ast.NodeVisitor):
        def visit_Call(self, node: ast.Call) -> None:
            if isinstance(node.func, ast.Name) and node.func.id == "isinstance" and config_path(node.args[0]) == "data":
                found.add("data.source")
            else:
                self.generic_visit(node)

        def visit_Attribute(self, node: ast.Attribute) -> None:
            if path := config_path(node):
                found.add(path)  # the whole chain: what is inside it is not visited
            else:
                self.generic_visit(node)

    Reads().visit(syntax(module))
    return frozenset(found)


def config_path(node: ast.AST) -> str:
    """``train.max_steps`` of ``config.train.max_steps``; empty for anything else."""
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
