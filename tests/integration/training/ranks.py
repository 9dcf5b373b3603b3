"""Child processes of the training tests, forked from a server that has imported everything."""

import multiprocessing
import os
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import reca.runtime.files
from reca.cli import main
from reca.models.loading import FAMILIES
from reca.runtime.ports import free_port
from reca.stages import evaluate, extract, generate, train  # noqa: F401
from reca.training.metrics import CurveFile

CHILD_SECONDS = 240
# A fresh process needs seconds of imports and first calls; a fork of this server none.
SERVER = multiprocessing.get_context("forkserver")
MODELS = [f"reca.models.{family}.model" for family in FAMILIES]
SERVER.set_forkserver_preload(
    [__name__, *MODELS, "pyarrow.dataset", "torch._inductor.config", "tests.integration.training.first_calls"]
)


def ranks(size: int, function, *arguments, hosts: int = 1) -> list[int | None]:
    """Run a function on ``size`` ranks, which count as those of ``hosts`` hosts; returns their exit statuses."""
    port = free_port()
    started: list[BaseProcess] = [
        SERVER.Process(target=_as_rank, args=(rank, size, hosts, port, function, *arguments)) for rank in range(size)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(CHILD_SECONDS)
        process.kill()
    return [process.exitcode for process in started]


def _as_rank(rank: int, size: int, hosts: int, port: int, function, *arguments) -> None:
    variables = {"RANK": rank, "LOCAL_RANK": rank % (size // hosts), "WORLD_SIZE": size}
    variables |= {"LOCAL_WORLD_SIZE": size // hosts, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in variables.items()}
    torch.set_num_threads(1)
    function(*arguments)


def start_slowly(stage: str, root: Path) -> BaseProcess:
    """Start ``reca <stage>``, with time to be killed after every flush to disk and every row of a curve."""
    process = SERVER.Process(target=_slow_stage, args=(stage, root))
    process.start()
    return process


def _slow_stage(stage: str, root: Path) -> None:
    os.chdir(root)
    torch.set_num_threads(1)
    reca.runtime.files.sync = _slowed(reca.runtime.files.sync)
    CurveFile.add = _slowed(CurveFile.add)  # type: ignore[method-assign]
    sys.exit(main([stage]))


def _slowed(function):
    def slow(*arguments):
        time.sleep(0.15)
        return function(*arguments)

    return slow
