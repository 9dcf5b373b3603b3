"""pyproject.toml declares every imported package, and requirements.lock pins them."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from reca.config import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"reca", "flows", "tests", "bench", "tools", "_typeshed"}
ELSEWHERE = {"mmcv", "mmdet", "mmengine"}
"""Imported by the script that recorded ``tests/parity/fixtures/mmdet``, in an environment of its own."""


def name_of(requirement: str) -> str:
    return re.sub("[-_.]+", "-", requirement).lower()


def declared(*extras: str) -> dict[str, Requirement]:
    """Return the dependencies and those of extras by normalised name."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {name_of(requirement.name): requirement for requirement in map(Requirement, lines)}


def imported(folder: Path) -> set[str]:
    """Return the top-level packages that are imported below a folder, inside functions too."""
    modules: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module)
    return {name.split(".")[0] for name in modules} - sys.stdlib_module_names - OURS - ELSEWHERE


@pytest.mark.parametrize(
    ("top", "extras"),
    [("reca", ("ray",)), ("flows", ()), ("tools", ()), ("tests", ("test", "dev", "ray")), ("bench", ("test",))],
)
def test_imports_are_declared(top: str, extras: tuple[str, ...]) -> None:
    owners = packages_distributions()
    local = {path.stem for path in (ROOT / top).rglob("*.py")}  # conftest and the like
    for module in imported(ROOT / top) - local:
        distributions = {name_of(name) for name in owners.get(module, [module])}
        assert distributions & declared(*extras).keys(), f"{top}/ imports {module}: declare it in pyproject.toml"


def test_lock_pins_every_declared_dependency() -> None:
    lines = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")
    ]
    pins = {name_of(name): version for name, version in (line.split("==") for line in lines)}
    extras = dict(PROJECT["optional-dependencies"])
    # 240 MB that one device does not need; pyproject.toml pins it, and its dependencies are those of the lock.
    assert all("==" in requirement for requirement in extras.pop("ray"))
    for name, requirement in declared(*extras).items():
        assert name in pins, f"requirements.lock lacks {name}"
        assert requirement.specifier.contains(pins[name]), (
            f"requirements.lock has {name} {pins[name]}, not {requirement}"
        )
    assert not [version for version in pins.values() if "+" in version], "a local version belongs to one machine"


def test_no_class_runs_code_from_a_folder() -> None:
    """Transformers' Auto classes, and classes that are arguments, would ask the user whether they may."""
    calls = [
        (path, node.func.value.id, {word.arg: word.value for word in node.keywords})
        for path in (ROOT / "reca").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained"
        if isinstance(node.func.value, ast.Name)
    ]
    risky = [(path, words) for path, name, words in calls if name.startswith("Auto") or name.islower()]
    assert len(risky) >= 6
    refused = ast.dump(ast.Constant(False))
    assert not [path for path, words in risky if ast.dump(words.get("trust_remote_code", ast.Pass())) != refused]
