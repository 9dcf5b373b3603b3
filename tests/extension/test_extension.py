"""CONTRIBUTING.md lists all edits that add a family, a benchmark or a stage: toys, added by these, pass the suites."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from reca.config import ROOT

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PROJECT = ("conf", "reca", "tools", "tests", "dvc.yaml", "params.yaml", "pyproject.toml")
FAMILY_CONFIG = '''
class ToyOptions(Section):
    """Options of the toy family: none."""


class ToyModel(_Model):
    """Toy."""

    family: Literal["toy"]
    options: ToyOptions = ToyOptions()


ModelSection = Annotated[
    ToyModel | '''
FAMILY_PRESET = """\
name: toy_tiny
family: toy
checkpoint: data/bases/toy_tiny
prompt_dropout: 0.1
train_vision: false
"""
FAMILY_BASE = '''\
"""A toy with random weights."""

from reca.models.toy.model import Toy
from tools.tiny_bases.presets import options_of


def build(**changes: object) -> Toy:
    """Return the model of the preset ``toy_tiny``."""
    return Toy(options_of("toy_tiny", **changes))
'''
BENCHMARK_CONFIG = '''
class ToySettings(Section):
    """Brightness of generated images."""

    num_prompts: PositiveInt = 3


class PublishedSettings(Section):'''
BENCHMARK_PRESET = """\
# @package _global_
defaults:
  - scenes@evaluate
  - _self_

evaluate:
  benchmarks: [toy]
register:
  promotion_rules:
    - {benchmark: toy, category: overall, versus: base, bound: lower, minimum: 0.0}
"""
STAGE_SECTION = '''
class CountSection(Section):
    """Settings of the toy stage."""

    min_side: PositiveInt


class AllSections(Section):
    """The sections of the configuration; ``conf/config.yaml`` has their values."""

    count_: CountSection = Field(alias="count")
'''
STAGE_BLOCK = """
  count:
    cmd: python -m reca count
    params:
      - count
      - outputs/fingerprint/code.json:
          - count
    deps:
      - outputs/dataset
    outs:
      - outputs/count

plots:
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's code, with the committed bases linked; the toys are added one after the other."""
    root = tmp_path_factory.mktemp("extension") / "project"
    root.mkdir()
    for name in PROJECT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    (root / "data").symlink_to(ROOT / "data")
    return root


@pytest.fixture(scope="module")
def changed(project: Path) -> dict[str, set[str]]:
    """The files outside the toy's own folder that each toy's addition has changed."""
    changes = {}
    for toy, (folder, add) in TOYS.items():
        before = contents(project)
        add(project)
        after = contents(project)
        changes[toy] = {file for file in after if not file.startswith(folder) and after[file] != before.get(file)}
    return changes


@pytest.fixture(scope="module")
def output(project: Path, changed: dict[str, set[str]]) -> str:
    """Run the copy's own contracts and two guards over the copy's own code, in one process; a line per test."""
    contracts = [f"tests/contract/test_{name}.py" for name in ("model_family", "benchmark")]
    guards = [f"tests/architecture/test_{name}.py" for name in ("configuration", "graph")]
    run(project, "-m", "reca", "compose")
    chosen = "toy or default_composition or depends_on_the_digest or count"
    return run(project, "-m", "pytest", "-v", "-p", "no:cacheprovider", *contracts, *guards, "-k", chosen)


def run(root: Path, *arguments: str) -> str:
    """Run Python on the copy's own code; returns its standard output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def add_folder(source: Path, target: Path) -> None:
    """Copy a toy's folder and make it a package."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    (target / "__init__.py").touch()


def replace_once(path: Path, old: str, new: str) -> None:
    """Edit a file at the only place that reads ``old``."""
    text = path.read_text()
    assert text.count(old) == 1, f"{path} must contain {old!r} once"
    path.write_text(text.replace(old, new))


def documented_edits(heading: str) -> list[str]:
    """Return the files that CONTRIBUTING.md names in the numbered list under a heading, one per number."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)


def filled(paths: Iterable[str], name: str) -> set[str]:
    """Return documented paths with the toy's name in the place of ``<family>`` or ``<name>``."""
    return {re.sub(r"<\w+>", name, path) for path in paths}


def contents(root: Path) -> dict[str, bytes]:
    """Return the files of the copy."""
    files = [path for name in PROJECT for path in [root / name, *(root / name).rglob("*")] if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files if "__pycache__" not in path.parts}


def add_family(root: Path) -> None:
    add_folder(HERE / "toy_family", root / "reca/models/toy")
    replace_once(root / "reca/config/model.py", "\nModelSection = Annotated[\n    ", FAMILY_CONFIG)
    (root / "conf/model/toy_tiny.yaml").write_text(FAMILY_PRESET)
    (root / "tools/tiny_bases/toy_tiny.py").write_text(FAMILY_BASE)


def add_benchmark(root: Path) -> None:
    add_folder(HERE / "toy_benchmark", root / "reca/evaluation/benchmarks/toy")
    settings = root / "reca/config/evaluate.py"
    replace_once(settings, "\nclass PublishedSettings(Section):", BENCHMARK_CONFIG)
    field = "    scene_editing: SceneEditingSettings | None = None\n"
    replace_once(settings, field, f"{field}    toy: ToySettings | None = None\n")
    (root / "conf/evaluate/toy.yaml").write_text(BENCHMARK_PRESET)
    run(root, "-m", "reca", "compose")


def add_stage(root: Path) -> None:
    shutil.copy(HERE / "toy_stage/count.py", root / "reca/stages/count.py")
    sections = (root / "reca/config/sections.py").read_text()
    (all_sections,) = re.findall(r'\nclass AllSections\(Section\):\n    """.*?"""\n', sections, re.DOTALL)
    replace_once(root / "reca/config/sections.py", all_sections, STAGE_SECTION)
    with (root / "conf/config.yaml").open("a") as file:
        file.write("\ncount:\n  min_side: 24\n")
    replace_once(root / "dvc.yaml", "\nplots:\n", STAGE_BLOCK)


TOYS = {
    "family": ("reca/models/toy/", add_family),
    "benchmark": ("reca/evaluation/benchmarks/toy/", add_benchmark),
    "stage": ("reca/stages/count.py", add_stage),
}


def test_a_family_needs_its_folder_and_the_documented_edits(changed: dict[str, set[str]], output: str) -> None:
    edits = documented_edits("Add a model family")
    assert changed["family"] == filled(edits, "toy")
    assert len(edits) <= 3
    assert len(re.findall(r"^tests/contract/test_model_family.*toy_tiny.* PASSED", output, re.MULTILINE)) >= 10, output


def test_a_benchmark_needs_its_folder_and_the_documented_edits(changed: dict[str, set[str]], output: str) -> None:
    edits = documented_edits("Add a benchmark")
    assert changed["benchmark"] == filled(edits, "toy")
    assert len(edits) <= 3
    assert len(re.findall(r"^tests/contract/test_benchmark.*toy.* PASSED", output, re.MULTILINE)) == 5, output


def test_a_stage_needs_its_module_and_the_documented_edits(
    project: Path, changed: dict[str, set[str]], output: str
) -> None:
    edits = documented_edits("Add a stage")
    assert changed["stage"] == set(edits)
    assert len(edits) <= 3
    assert len(re.findall(r"^tests/architecture/test_graph.*count.* PASSED", output, re.MULTILINE)) >= 3, output
    words = [["compose", "data.num_images=8"], ["ingest"], ["count"]]
    run(project, "-c", f"import sys; from reca.cli import main; sys.exit(any(main(word) for word in {words}))")
    assert json.loads((project / "outputs/count/result.json").read_text())["images"] == 8
