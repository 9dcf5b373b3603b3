"""``accelerate launch``, and so ``torchrun``, whose code it calls, trains as ``reca train`` does."""

import os
import subprocess
import sys
from pathlib import Path

from reca.config import Config
from reca.stages.train import train
from tests.integration.training.ranks import ranks

ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
              "--mixed_precision=no", "--dynamo_backend=no")  # fmt: skip


RANK = "import os\nif 'RANK' in os.environ: open('rank-' + os.environ['RANK'], 'w').close()\n"


def _train(root: Path) -> None:
    train(Config.load(root / "params.yaml"), root)


def _losses(project) -> list[tuple[str, str]]:
    return [(row["loss"], row["grad_norm"]) for row in project.curve("train.csv")]


def test_accelerate_launch_trains_the_same(project) -> None:
    short = ("train.max_steps=2", "train.warmup_steps=1", "train.eval_every=2")
    project.configure(*short, "paths.state=.reca/ours")
    assert ranks(2, _train, project.root) == [0, 0]
    ours = _losses(project)
    assert len(ours) == 2
    project.configure(*short, "paths.state=.reca/theirs")
    (project.root / "sitecustomize.py").write_text(RANK)
    variables = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, *ACCELERATE, "-m", "reca", "train"],
        cwd=project.root,
        env={**variables, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(project.root)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in project.root.glob("rank-*")) == ["rank-0", "rank-1"]
    assert _losses(project) == ours
