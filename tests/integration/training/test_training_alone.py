"""A training machine needs no orchestration: stages start where Hydra, Prefect, DVC, MLflow and diffusers are not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ABSENT = ("hydra", "omegaconf", "prefect", "dvc", "mlflow", "diffusers", "pandas", "datasets", "matplotlib", "rich")
AS_IF_NOT_INSTALLED = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that lacks those packages."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(AS_IF_NOT_INSTALLED)
    return {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}


def run(words: list[str], root: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True)


def test_they_really_are_absent(project, elsewhere) -> None:
    code = f"import importlib.util as u; print([name for name in {ABSENT!r} if u.find_spec(name)])"
    assert run(["-c", code], project.root, elsewhere).stdout == "[]\n"


def test_ingest_extract_and_train_run_without_them(project, elsewhere) -> None:
    for stage, output in (("ingest", "dataset"), ("extract", "embeddings"), ("train", "model")):
        done = run(["-m", "reca", stage], project.root, elsewhere)
        assert done.returncode == 0, done.stderr
        assert (project.root / f"outputs/{output}/result.json").is_file()
    assert project.weights()
