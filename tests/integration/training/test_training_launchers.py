"""``torchrun`` and ``accelerate launch`` train as ``reca train`` does."""

import os
import subprocess
import sys

import pytest

TORCHRUN = ("-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--master-addr=127.0.0.1")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
              "--mixed_precision=no", "--dynamo_backend=no")  # fmt: skip


RANK = "import os\nif 'RANK' in os.environ: open('rank-' + os.environ['RANK'], 'w').close()\n"


def _train(project, *launcher: str) -> list[tuple[str, str]]:
    """Train by a command in the project; return the losses after two ranks were there."""
    (project.root / "sitecustomize.py").write_text(RANK)
    variables = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "reca", "train"],
        cwd=project.root,
        env={**variables, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(project.root)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    ranks = [path.name for path in project.root.glob("rank-*") if path.unlink() is None]
    assert sorted(ranks) == ["rank-0", "rank-1"]
    return [(row["loss"], row["grad_norm"]) for row in project.curve("train.csv")]


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_other_launchers_train_the_same(project, launcher: tuple[str, ...]) -> None:
    short = ("train.max_steps=2", "train.warmup_steps=1", "train.eval_every=2")
    project.configure(*short, "hardware.processes=2", "paths.state=.reca/ours")
    ours = _train(project)
    assert len(ours) == 2
    project.configure(*short, "paths.state=.reca/theirs")
    assert _train(project, *launcher) == ours
