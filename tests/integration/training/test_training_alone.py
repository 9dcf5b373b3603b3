"""A training machine needs no orchestration: stages start where Hydra, Prefect, DVC, MLflow and diffusers are not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

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


STAGES = f"""
import importlib.util
from reca.cli import main

print("installed:", [name for name in {ABSENT!r} if importlib.util.find_spec(name)])
print("statuses:", [main([stage]) for stage in ("ingest", "extract", "train")])
"""


def test_ingest_extract_and_train_run_without_orchestration(project, elsewhere) -> None:
    project.configure("train.max_steps=2")
    command = [sys.executable, "-c", STAGES]
    done = subprocess.run(command, cwd=project.root, env=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "installed: []\n" in done.stdout
    assert "statuses: [0, 0, 0]\n" in done.stdout
    for output in ("dataset", "embeddings", "model"):
        assert (project.root / f"outputs/{output}/result.json").is_file()
    assert project.weights()
