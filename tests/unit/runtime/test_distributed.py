"""Ranks and meshes; the process stops on signals and when its parent dies."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from reca.runtime.distributed import DistributedContext
from reca.runtime.signals import StopRequest

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
time.sleep(60)
"""
CHILD = """
import sys, time, signal, os
from pathlib import Path
from reca.runtime.signals import StopRequest, end_with_parent
# Set in either case: the tests themselves may run under nohup.
signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in sys.argv[1] else signal.SIG_DFL)
with StopRequest() as stop:
    end_with_parent()
    Path(sys.argv[1]).write_text(str(os.getpid()))
    for _ in range(400):
        if stop.signal_number:
            Path(sys.argv[1] + ".ended").write_text(str(stop.signal_number))
            break
        time.sleep(0.05)
"""


def _until(path: Path, seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("name", ["plain", "nohup"])
def test_child_of_a_killed_parent(tmp_path: Path, name: str) -> None:
    note = tmp_path / name
    parent = subprocess.Popen([sys.executable, "-c", PARENT, textwrap.dedent(CHILD), str(note)])
    assert _until(note)
    parent.kill()
    parent.wait()
    ended = _until(tmp_path / f"{name}.ended", 20 if name == "plain" else 1)
    if name == "nohup":
        os.kill(int(note.read_text()), signal.SIGKILL)
        assert not ended
    else:
        assert (tmp_path / "plain.ended").read_text() == str(int(signal.SIGTERM))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_noted_and_handlers_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal_number is None
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
    assert signal.getsignal(number) == before


def test_a_second_interrupt_ends_at_once() -> None:
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_single_process_imports_neither_torch_nor_accelerate() -> None:
    code = """
import sys
from reca.runtime.distributed import init_distributed
with init_distributed(None) as distributed:
    distributed.barrier()
    assert distributed.is_main_process and distributed.shard("ab") == "ab" and distributed.all_reduce(3) == 3
    assert distributed.broadcast("a") == "a" and distributed.all_gather({"a": 1}) == {"a": 1}
    assert distributed.all_reduce_sum([1, 2]) == [1, 2]
assert not {"torch", "accelerate"} & sys.modules.keys()
"""
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_mesh_has_every_rank_once() -> None:
    ranks = DistributedContext(world_size=8, ranks_per_host=4)
    assert ranks.mesh_shape("none") == (8, 1)
    assert ranks.mesh_shape("host") == (2, 4)
    assert ranks.mesh_shape("all") == (1, 8)
