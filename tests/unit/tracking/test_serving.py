"""The registered model, loaded and called like a user would: by MLflow, from another folder, in another process."""

import ast
import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch

from reca.models.base import Sampling
from reca.models.loading import FAMILIES
from reca.runtime.code_digest import imported_modules, module_path
from reca.runtime.errors import UserError
from reca.stages.register import REQUIREMENTS, register

pytestmark = pytest.mark.slow

Project = Any  # the class in conftest.py
ASK = """
import base64, io, json, sys
import mlflow, numpy
from PIL import Image
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/reca-janus_tiny@champion")
prompts = [f"a photo of a red circle {n}" for n in range(3)]
images = model.predict(prompts)
again = model.predict(prompts[::-1], params={"seed": 0})[::-1]
other = model.predict(prompts, params={"seed": 1})
picture = numpy.asarray(Image.open(io.BytesIO(base64.b64decode(images[0]))))
import reca
print(json.dumps({"shape": picture.shape, "same": images == again, "other": images != other, "code": reca.__file__,
                  "spread": float(picture.std())}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Janus."""
    from tools.tiny_bases.janus_tiny import build

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("janus") / "model"
    build().save_official(folder)
    return folder


@pytest.fixture
def served(make_project: Callable[..., Project], checkpoint: Path) -> Callable[..., Project]:
    """A project whose aligned model really draws, registered."""

    def make(**sections: Any) -> Project:
        project = make_project(**sections)
        project.results(lock=False)
        model = project.root / "outputs/model"
        shutil.copytree(checkpoint, model, dirs_exist_ok=True)
        project.results(weights=None)
        register(project.config, project.root)
        return project

    return make


def test_version_generates_with_its_own_code_from_any_folder(served: Callable[..., Project], tmp_path: Path) -> None:
    project = served()
    shutil.rmtree(project.root / "outputs")
    command = [sys.executable, "-c", ASK, project.store().uri]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["shape"] == [24, 24, 3]
    assert answer["spread"] > 0
    assert answer["same"]  # an image depends on its prompt and seed, not on its neighbours
    assert answer["other"]
    assert str(project.root / "mlruns/artifacts") in answer["code"]
    (requirements,) = (project.root / "mlruns/artifacts").rglob("model*/**/requirements.txt")
    assert f"torch=={torch.__version__.split('+')[0]}" in requirements.read_text().splitlines()


@pytest.mark.parametrize("family", FAMILIES)
def test_requirements_name_the_libraries_of_every_family(family: str) -> None:
    loaded = {"reca.tracking.serving", f"reca.models.{family}.model"}
    queue = list(loaded)
    while queue:
        new = imported_modules(queue.pop()) - loaded
        loaded |= new
        queue += new
    trees = [ast.parse(module_path(module).read_text()) for module in loaded]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    libraries = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"reca"}
    distributions = packages_distributions()
    assert {"mlflow", "torch", "transformers"} <= libraries
    assert {name for name in libraries if set(REQUIREMENTS).isdisjoint(distributions[name])} == set()


@pytest.mark.parametrize("params", [{"temperature": -1.0}, {"guidance_scale": float("nan")}, {"num_steps": -4}])
def test_sampling_that_no_sampler_can_use_is_refused(params: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be at least 0, temperature and num_steps above 0"):
        Sampling(**{"guidance_scale": 1.0, **params})


def test_large_weights_are_registered_by_reference(
    served: Callable[..., Project], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = served(tracking={"copy_limit_mib": 0})
    (logged,) = (project.root / "mlruns/artifacts").rglob("MLmodel")
    assert not list(logged.parent.rglob("model.safetensors"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow puts the model's own code there
    with pytest.raises(FileNotFoundError, match="are in none of .*dvc fetch"):
        mlflow.pyfunc.load_model(str(logged.parent))

    cache = tmp_path / "cache"
    into_dvc_cache(project.root / "outputs/model", cache)
    shutil.rmtree(project.root / "outputs")
    monkeypatch.setenv("RECA_DVC_CACHE", str(cache))
    (image,) = mlflow.pyfunc.load_model(str(logged.parent)).predict(["a photo of a red circle"])
    assert base64.b64decode(image).startswith(b"\x89PNG")


def test_large_weights_without_dvc_are_refused(make_project: Callable[..., Project]) -> None:
    project = make_project(tracking={"copy_limit_mib": 0})
    project.results(lock=False)
    with pytest.raises(UserError, match=r"bigger than tracking\.copy_limit_mib and not under DVC"):
        register(project.config, project.root)
    assert project.sql("SELECT status FROM runs") == [("FAILED",)]
    assert project.sql("SELECT version FROM model_versions") == []


def into_dvc_cache(folder: Path, cache: Path) -> None:
    """Real DVC puts the folder into a cache."""
    project = folder.parent / "dvc"
    shutil.copytree(folder, project / "model")
    for arguments in (["init", "--no-scm", "--quiet"], ["cache", "dir", str(cache)], ["add", "--quiet", "model"]):
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=project, check=True, capture_output=True)
