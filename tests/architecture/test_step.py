"""A stranger can read one training step: how many calls, files and lines it takes."""

import shutil
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from reca.config import ROOT, Config, compose
from reca.stages.extract import extract
from reca.stages.ingest import ingest
from reca.stages.train import train
from reca.training import step as step_module
from tools.tiny_bases.janus_tiny import build

PACKAGE = ROOT / "reca"
MAX_CALLS = 3
"""From the loop of a step to the family's loss: accumulate, compute_loss, reconstruction_loss."""
MAX_FILES = 9
MAX_LINES = 1_500
"""Whole files, documentation included."""
TINY = (
    "data.num_images=24",
    "data.held_out_fraction=0.2",
    "train.max_steps=1",
    "train.warmup_steps=0",
    "train.global_batch_size=8",
    "hardware.micro_batch_size=2",
    "hardware.threads=1",
    "model.checkpoint=base",
)


class StepProfile:
    """Files whose functions a training step calls, from loading to the optimizer.

    Left out are the family's folder and what only the family calls: they are another concept, the model.
    """

    def __init__(self, family: str) -> None:
        self.files: set[Path] = set()
        self.calls_to_loss: int | None = None
        self._family = PACKAGE / "models" / family

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Record a call, if it is part of a step (the profile function of :func:`sys.setprofile`)."""
        if event != "call" or not frame.f_code.co_filename.startswith(str(PACKAGE)):
            return
        callers: list[FrameType] = []
        caller = frame.f_back
        while caller is not None and caller.f_code is not step_module.train_step.__code__:
            callers.append(caller)
            caller = caller.f_back
        if caller is None and frame.f_code is not step_module.train_step.__code__:
            return
        if any(self._is_family(above) for above in callers):
            return
        if frame.f_code.co_name == "reconstruction_loss":
            self.calls_to_loss = len(callers) + 1
        if not self._is_family(frame):
            self.files.add(Path(frame.f_code.co_filename))

    def _is_family(self, frame: FrameType) -> bool:
        return Path(frame.f_code.co_filename).is_relative_to(self._family)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> StepProfile:
    """Profile one step of the demo's configuration with fewer images: all three losses, stored and decoded inputs."""
    root = tmp_path_factory.mktemp("step")
    (root / "dvc.yaml").write_text("stages: {}\n")
    config: Config = compose(list(TINY))
    (root / config.data.path).parent.mkdir(parents=True)
    shutil.copy(ROOT / config.data.path, root / config.data.path)
    torch.manual_seed(0)
    build().save_official(root / "base")
    ingest(config, root)
    extract(config, root)
    recorded = StepProfile(config.model.family)
    sys.setprofile(recorded)
    try:
        train(config, root)
    finally:
        sys.setprofile(None)
    return recorded


def test_the_loop_is_three_calls_from_the_loss(profile: StepProfile) -> None:
    assert profile.calls_to_loss is not None
    assert profile.calls_to_loss <= MAX_CALLS


def test_a_step_is_read_in_few_files_and_lines(profile: StepProfile) -> None:
    lines = {path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path in profile.files}
    assert {"training/step.py", "training/loader.py", "training/losses.py", "data/embeddings.py"} <= lines.keys()
    table = "\n".join(f"{count:6d} {name}" for name, count in sorted(lines.items()))
    assert len(lines) <= MAX_FILES, table
    assert sum(lines.values()) <= MAX_LINES, table
