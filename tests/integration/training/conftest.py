"""A small real project: ingested scenes, a random Janus as base, and a child process that trains it."""

import csv
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reca.config import Config, compose
from reca.models.base import Semantic
from reca.models.janus.model import Janus
from reca.stages.extract import extract
from reca.stages.ingest import ingest
from reca.training.loader import TrainingData
from reca.training.losses import Kind, TrainingBatch
from tests.integration.training.ranks import CHILD_SECONDS, start_slowly
from tools.tiny_bases.janus_tiny import GIST_LAYER, build

SMALL = (
    "data.num_images=48",
    "data.held_out_fraction=0.2",
    "extract.images_per_shard=16",
    "train.max_steps=8",
    "train.warmup_steps=2",
    "train.save_every=3",
    "train.eval_every=4",
    "train.global_batch_size=8",
    "hardware.micro_batch_size=4",
    "hardware.threads=1",
    "model.checkpoint=base",
)
# The real command, but every flush to disk and every row of a curve takes a while: time to be killed in between.
SLOWLY = """
import sys, time
import reca.runtime.files
from reca.training.metrics import CurveFile

def slowed(function):
    def slow(*arguments):
        time.sleep(0.15)
        return function(*arguments)
    return slow

reca.runtime.files.sync = slowed(reca.runtime.files.sync)
CurveFile.add = slowed(CurveFile.add)
from reca.cli import main
sys.exit(main())
"""


@dataclass
class TrainingProject:
    """A project folder; ``overrides`` on top of ``SMALL`` make its configuration."""

    root: Path
    config: Config
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    def configure(self, *overrides: str) -> Config:
        """Compose again and write params.yaml, as ``reca compose`` does."""
        self.config = compose([*SMALL, *overrides])
        (self.root / "params.yaml").write_text(self.config.to_yaml())
        return self.config

    @property
    def checkpoints(self) -> Path:
        """The one folder of checkpoints."""
        folders = [path for path in (self.root / ".reca/checkpoints").iterdir() if path.is_dir()]
        assert len(folders) == 1, folders
        return folders[0]

    def steps(self) -> list[str]:
        """Names of the saved steps."""
        return sorted(path.name for path in self.checkpoints.iterdir() if path.name.isdigit())

    def curve(self, name: str) -> list[dict[str, str]]:
        """A finished curve without its speed, which no two runs share."""
        with (self.root / "outputs/curves" / name).open() as file:
            return [
                {key: cell for key, cell in row.items() if key != "images_per_second"} for row in csv.DictReader(file)
            ]

    def recorded(self) -> int:
        """Rows of the training curve so far."""
        path = next((self.root / ".reca/checkpoints").glob("*/curves/train.csv"), None)
        return path.read_text().count("\n") - 1 if path else 0

    def weights(self) -> dict[str, torch.Tensor]:
        """The aligned weights."""
        return load_file(self.root / "outputs/model/model.safetensors")

    def start(self, stage: str, slowly: bool = False) -> subprocess.Popen[str]:
        """Start ``reca <stage>`` as the flow does: its own process, in the project."""
        child = subprocess.Popen(
            [sys.executable, *(("-c", SLOWLY) if slowly else ("-m", "reca")), stage],
            cwd=self.root,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.children.append(child)
        return child

    def kill_when(self, stage: str, condition: Callable[[], bool]) -> None:
        """Start a stage and end it with SIGKILL as soon as something is true."""
        child = start_slowly(stage, self.root)
        try:
            self.wait_for(condition, child.is_alive)
        finally:
            child.kill()
            child.join()
        assert child.exitcode == -signal.SIGKILL

    def wait_for(self, condition: Callable[[], bool], is_alive: Callable[[], bool]) -> None:
        """Poll until a condition is true while a child runs."""
        until = time.monotonic() + CHILD_SECONDS
        while not condition():
            assert is_alive(), "the child ended too early"
            assert time.monotonic() < until, "waited too long"
            time.sleep(0.005)


def poisoned(read: Callable[..., TrainingBatch], step: int) -> Callable[..., TrainingBatch]:
    """Replace ``TrainingData.read`` by one whose embeddings of a step are NaN."""

    def read_nan(self: TrainingData, kind: Kind, ids: Sequence[str], noise_key: tuple[object, ...]) -> TrainingBatch:
        batch = read(self, kind, ids, noise_key)
        if kind != "reconstruction" or noise_key != ("train", step):
            return batch
        return replace(batch, condition=Semantic(batch.condition.values * math.nan))

    return read_nan


def shallow(model: Janus) -> Janus:
    """Keep one layer above the gists and one of the vision tower: what is tested is the training, not the model."""
    network = model.network.model
    del network.language_model.layers[GIST_LAYER + 1 :], network.vision_model.encoder.layers[1:]
    network.config.text_config.num_hidden_layers, network.config.vision_config.num_hidden_layers = GIST_LAYER + 1, 1
    return model


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project that every test gets a copy of."""
    root = tmp_path_factory.mktemp("template")
    (root / "dvc.yaml").write_text("stages: {}\n")
    project = TrainingProject(root, compose())
    config = project.configure()
    (root / "conf/data").mkdir(parents=True)
    shutil.copy(Path(__file__).resolve().parents[3] / config.data.path, root / config.data.path)
    torch.manual_seed(0)
    shallow(build()).save_official(root / "base")
    ingest(config, root)
    extract(config, root)
    shutil.rmtree(root / ".reca")  # so that a copy does not reuse this extraction
    return root


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Iterator[TrainingProject]:
    root = tmp_path / "project"
    shutil.copytree(template, root)
    copy = TrainingProject(root, Config.load(root / "params.yaml"))
    yield copy
    for child in copy.children:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
