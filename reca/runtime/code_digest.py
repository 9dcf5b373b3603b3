"""Digests of our own source code, from its syntax trees: comments, docstrings and formatting do not count.

DVC hashes the bytes of files, so a dependency on source files would make every reworded docstring retrain a model. The
stage ``code`` of ``dvc.yaml`` writes these digests to ``outputs/fingerprint/code.json`` instead, and every other stage
names the entry of the code that it runs as a parameter.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
INFRASTRUCTURE = (
    "reca.config",
    "reca.runtime.errors",
    "reca.runtime.files",
    "reca.runtime.progress",
    "reca.stages.result",
)
"""Modules that carry a result and cannot change it: an edit there makes no stage stale."""
JUDGING = ("reca.evaluation.judges", "reca.evaluation.benchmarks.geneval.detections")
"""Imported next to what draws samples, run only by what scores them: another judge must not make them again."""


def sources() -> list[str]:
    """Return the sources of images: the modules of ``reca/data/sources`` with a function ``from_config``."""
    paths = (PACKAGE / "data/sources").glob("*.py")
    return sorted(path.stem for path in paths if "def from_config(" in path.read_text())


def families() -> list[str]:
    """Return the model families: the folders of ``reca/models`` with a ``model.py``."""
    return sorted(path.parent.name for path in (PACKAGE / "models").glob("*/model.py"))


def benchmarks() -> list[str]:
    """Return the benchmarks: the folders of ``reca/evaluation/benchmarks`` with a ``benchmark.py``."""
    return sorted(path.parent.name for path in (PACKAGE / "evaluation/benchmarks").glob("*/benchmark.py"))


def stage_modules(stage: str, *, source: str = "", family: str = "", benchmark: str = "") -> set[str]:
    """Return the modules of ours that make a stage's result with a source, a family and a benchmark.

    They are the stage's module, the chosen modules, and everything that these import, inside functions too.
    Modules that only the type checker imports, empty packages and :data:`INFRASTRUCTURE` are left out.
    """
    roots = [f"reca.stages.{stage}"]
    roots += [f"reca.data.sources.{source}"] if source else []
    roots += [f"reca.models.{family}.model"] if family else []
    roots += [f"reca.evaluation.benchmarks.{benchmark}.benchmark"] if benchmark else []
    ignored = (*INFRASTRUCTURE, *(JUDGING if stage == "generate" else ()))
    modules: set[str] = set()
    queue = roots
    while queue:
        module = queue.pop()
        if module in modules or any(f"{module}.".startswith(f"{prefix}.") for prefix in ignored):
            continue
        modules.add(module)
        queue += imported_modules(module)
        queue += [module.rpartition(".")[0]] if module.count(".") else []  # Python runs the package first
    return {module for module in modules if syntax_tree(module).body}


def code_digest(stage: str, *, source: str = "", family: str = "", benchmark: str = "") -> str:
    """Return the digest (16 hex digits) of the code that :func:`stage_modules` names."""
    digest = hashlib.sha256()
    for module in sorted(stage_modules(stage, source=source, family=family, benchmark=benchmark)):
        digest.update(f"{module}\0{module_digest(module)}\n".encode())
    return digest.hexdigest()[:16]


def all_digests() -> dict[str, Any]:
    """Return the digests of all stages, nested by the source, family and benchmark that choose their code."""
    by_choice = {
        "ingest": {source: code_digest("ingest", source=source) for source in sources()},
        "extract": {family: code_digest("extract", family=family) for family in families()},
        "train": {family: code_digest("train", family=family) for family in families()},
        "generate": {
            family: {name: code_digest("generate", family=family, benchmark=name) for name in benchmarks()}
            for family in families()
        },
        "score": {name: code_digest("score", benchmark=name) for name in benchmarks()},
    }
    remaining_stages = {path.stem for path in (PACKAGE / "stages").glob("[a-z]*.py")} - by_choice.keys()
    return by_choice | {stage: code_digest(stage) for stage in sorted(remaining_stages)}


@cache
def module_digest(module: str) -> str:
    """Return the SHA-256 of a module's syntax tree and of its data files, which have its name and another suffix."""
    digest = hashlib.sha256(ast.dump(syntax_tree(module)).encode())
    path = module_path(module)
    for data in sorted(path.parent.glob(f"{path.stem}.*")):
        if data.suffix not in (".py", ".pyc"):
            digest.update(data.read_bytes())
    return digest.hexdigest()


@cache
def imported_modules(module: str) -> frozenset[str]:
    """Return the modules of this package that a module imports when it runs, inside functions too."""
    return frozenset(_imports(syntax_tree(module)))


@cache
def syntax_tree(module: str) -> ast.Module:
    """Return a module's syntax tree without docstrings; ``module`` may be a package."""
    return _Bare().visit(ast.parse(module_path(module).read_text()))


def module_path(module: str) -> Path:
    """Return the file of a module or package."""
    base = PACKAGE.parent.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in _nodes_that_run([tree]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and _is_ours(node.module):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            is_module = [module_path(name).is_file() for name in inner]
            yield from (name for name, exists in zip(inner, is_module, strict=True) if exists)
            if not all(is_module):
                yield node.module


def _nodes_that_run(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in nodes:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from _nodes_that_run(node.orelse)
        else:
            yield node
            yield from _nodes_that_run(ast.iter_child_nodes(node))


def _is_ours(name: str) -> bool:
    return name.split(".")[0] == PACKAGE.name


class _Bare(ast.NodeTransformer):
    """Drops every expression statement that is only a string: docstrings, also those of attributes."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_string = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_string else node
