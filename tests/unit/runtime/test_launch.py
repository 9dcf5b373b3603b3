"""Ranks of a command: their environment, exit status and stderr."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reca.config import compose
from reca.config.sections import HardwareSection
from reca.runtime.errors import UserError
from reca.runtime.launch import launch, launch_all


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """Put back what torchelastic replaces in this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys, time\nrank = int(os.environ['RANK'])\n{code}"]


def test_every_process_knows_its_place(tmp_path: Path) -> None:
    names = "('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')"
    variables = f"[os.environ[name] for name in {names}]"
    assert launch(python(f"open('{tmp_path}/' + str(rank), 'w').write(' '.join({variables}))"), 3) == 0
    places = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [variables[:4] for variables in places] == [[str(rank), str(rank), "3", "127.0.0.1"] for rank in range(3)]
    assert len({variables[4] for variables in places}) == 1


@pytest.mark.parametrize("first", [0, 1])
def test_what_all_find_wrong_is_said_once(first: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Also by a rank that fails first, and by a rank 0 that is stopped for it while it says the same."""
    code = f"""
import signal
signal.signal(signal.SIGTERM, lambda *_: None)
time.sleep(0 if rank == {first} else 0.5)
sys.exit(print('no such folder', file=sys.stderr) or 2)
"""
    assert launch(python(code), 2) == 2
    assert capfd.readouterr().err == "no such folder\n"


def test_the_first_failure_ends_the_others_and_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work = f"if rank == 2:\n    sys.exit('out of memory')\ntime.sleep(60); open('{tmp_path}/' + str(rank), 'w')"
    assert launch(python(work), 3) == 1
    assert not list(tmp_path.iterdir()), "the others were left to finish"
    assert capfd.readouterr().err == "process 2 of 3 failed:\nout of memory\n\n"


@pytest.mark.parametrize("status", [1, os.EX_TEMPFAIL])
def test_a_killed_rank_is_the_cause_of_other_failures(
    tmp_path: Path, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rank 0, listed first, fails as soon as rank 1 is dead, as a collective does."""
    code = f"""
if rank:
    open('{tmp_path}/pid.part', 'w').write(str(os.getpid()))
    os.rename('{tmp_path}/pid.part', '{tmp_path}/pid')
    os.kill(os.getpid(), 9)
while not os.path.exists('{tmp_path}/pid'):
    time.sleep(0.01)
state = '/proc/' + open('{tmp_path}/pid').read() + '/stat'
while os.path.exists(state) and ') Z ' not in open(state).read():
    time.sleep(0.001)
sys.exit({status})
"""
    assert launch(python(code), 2) == 128 + signal.SIGKILL
    assert capfd.readouterr().err == "process 1 of 2 was killed by signal 9\n"


TOLD = """
import signal
def told(number, _):
    with open(f'{folder}/{rank}.told', 'a') as file:
        file.write(f'{number} ')
    time.sleep(0.5)
    sys.exit(143)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, told)
open(f'{folder}/{rank}.part', 'w').write(str(os.getpid()))
os.rename(f'{folder}/{rank}.part', f'{folder}/{rank}')
time.sleep(60)
"""
LAUNCHER = "import sys; from reca.runtime.launch import launch; sys.exit(launch(sys.argv[1:], 2))"


def wait_for(folder: Path, names: str, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 120
    while not all((folder / name).exists() for name in names):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_all(tmp_path: Path, number: signal.Signals) -> None:
    code = python(f"folder = '{tmp_path}'{TOLD}")
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, *code])
    wait_for(tmp_path, "01", launcher)
    os.kill(launcher.pid, number)
    assert launcher.wait(60) == 128 + (signal.SIGTERM if number == signal.SIGUSR1 else number)
    assert [len((tmp_path / f"{rank}.told").read_text().split()) for rank in range(2)] == [1, 1], "forwarded once"


def test_a_signal_within_code_of_torchelastic_keeps_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.launcher.api import elastic_launch

    def interrupted(*_: object) -> None:
        try:
            raise SignalException("stopped", signal.SIGINT)
        finally:
            raise UnboundLocalError("start")

    monkeypatch.setattr(elastic_launch, "__call__", interrupted)
    assert launch(["true"], 2) == 130


def test_a_rank_that_is_stopped_ends_all(tmp_path: Path) -> None:
    """SIGTERM to one rank: it saves and ends with 143, and so does the run."""
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, *python(f"folder = '{tmp_path}'{TOLD}")])
    wait_for(tmp_path, "01", launcher)
    os.kill(int((tmp_path / "1").read_text()), signal.SIGTERM)
    assert launcher.wait(60) == 143
    assert [(tmp_path / f"{rank}.told").read_text() for rank in range(2)] == [f"{signal.SIGTERM} "] * 2


def here(multinode_launcher: str, nodes: int = 2, processes: int = 2) -> HardwareSection:
    words = [
        f"hardware.nodes={nodes}",
        f"hardware.processes={processes}",
        f"hardware.multinode_launcher='{multinode_launcher}'",
    ]
    return compose(words).hardware


LIKE_SRUN = """#!{python}
import os, signal, subprocess, sys, time
nodes = [subprocess.Popen(sys.argv[1:]) for _ in range(2)]
signal.signal(signal.SIGTERM, lambda *_: [node.kill() for node in nodes])
signal.signal(signal.SIGUSR1, lambda *_: [node.send_signal(signal.SIGUSR1) for node in nodes])
while (codes := [node.poll() for node in nodes]).count(None) and not any(codes):
    time.sleep(0.05)
status = next(filter(None, codes), 0)
[node.kill() for node in nodes]
sys.exit(status)
"""


def multinode_launcher(folder: Path) -> str:
    """A program that starts what follows it on both "nodes" of this host; if one fails, it kills the other, as srun."""
    script = folder / "like_srun"
    script.write_text(LIKE_SRUN.format(python=sys.executable))
    script.chmod(0o755)
    return str(script)


AGAIN = """
import sys, time
from reca.config import compose
from reca.runtime.launch import launch_all
hardware = compose([f"hardware.nodes=2", "hardware.processes=2", "hardware.multinode_launcher={launcher}"]).hardware
import os
if "RANK" not in os.environ:
    sys.exit(launch_all([sys.executable, *sys.argv], hardware))
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
open("{folder}/" + os.environ["RANK"], "w").write(" ".join(os.environ[name] for name in names))
assert "RECA_GUARD_PID" not in os.environ
{then}
"""


def test_several_nodes_know_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECA_GUARD_PID", "1")
    launcher, program = multinode_launcher(tmp_path), tmp_path / "program.py"
    program.write_text(AGAIN.format(launcher=launcher, folder=tmp_path, then=""))
    assert launch_all([sys.executable, str(program)], here(launcher)) == 0
    places = [(tmp_path / str(rank)).read_text().split() for rank in range(4)]
    assert [variables[:3] for variables in places] == [
        ["0", "0", "4"],
        ["1", "1", "4"],
        ["2", "0", "4"],
        ["3", "1", "4"],
    ]
    assert len({tuple(variables[3:]) for variables in places}) == 1, "all meet at one address"


def test_a_signal_reaches_all_nodes(tmp_path: Path) -> None:
    launcher, program = multinode_launcher(tmp_path), tmp_path / "program.py"
    then = f'folder, rank = "{tmp_path}", os.environ["RANK"]{TOLD}'
    (tmp_path / "places").mkdir()
    program.write_text(AGAIN.format(launcher=launcher, folder=tmp_path / "places", then=then))
    started = subprocess.Popen([sys.executable, str(program)])
    wait_for(tmp_path, "0123", started)
    started.terminate()
    assert started.wait(60) == 143
    assert [len((tmp_path / f"{rank}.told").read_text().split()) for rank in range(4)] == [1] * 4, "forwarded once"


def test_a_failure_on_another_node_is_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher, program = multinode_launcher(tmp_path), tmp_path / "program.py"
    then = 'sys.exit(2 if os.environ["RANK"] in "23" else 0)'
    program.write_text(AGAIN.format(launcher=launcher, folder=tmp_path, then=then))
    assert launch_all([sys.executable, str(program)], here(launcher)) == 2


def test_a_launcher_that_is_not_there() -> None:
    with pytest.raises(UserError, match="multinode_launcher cannot be started: no-such-launcher: No such file"):
        launch_all(["true"], here("no-such-launcher --nodes"))
