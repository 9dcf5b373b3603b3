"""Ranks of a command: their environment, exit status and stderr."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reca.config import compose
from reca.config.sections import HardwareSection
from reca.runtime import launch as module
from reca.runtime.errors import UserError
from reca.runtime.launch import launch, launch_all
from reca.runtime.signals import LostProcess


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys, time\nrank = int(os.environ['RANK'])\n{code}"]


def test_every_process_knows_its_place(tmp_path: Path) -> None:
    names = "('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')"
    variables = f"[os.environ[name] for name in {names}]"
    assert launch(python(f"open('{tmp_path}/' + str(rank), 'w').write(' '.join({variables}))"), 3) == 0
    places = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [variables[:4] for variables in places] == [[str(rank), str(rank), "3", "127.0.0.1"] for rank in range(3)]
    assert len({variables[4] for variables in places}) == 1


def test_what_all_find_wrong_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(python("sys.exit(print('no such folder', file=sys.stderr) or 2)"), 3) == 2
    assert capfd.readouterr().err == "no such folder\n"


def test_the_first_failure_ends_the_others_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.2)
    work = f"if rank == 2:\n    sys.exit('out of memory')\ntime.sleep(60); open('{tmp_path}/' + str(rank), 'w')"
    assert launch(python(work), 3) == 1
    assert not list(tmp_path.iterdir()), "the others were left to finish"
    assert "process 2 of 3 failed:\nout of memory" in capfd.readouterr().err


def test_killed_by_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.2)
    assert launch(python("os.kill(os.getpid(), 9) if rank else time.sleep(60)"), 2) == 128 + signal.SIGKILL


@pytest.mark.parametrize("independent_ranks", [True, False])
def test_a_lost_process_leaves_others_to_finish_where_they_work_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], independent_ranks: bool
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.1)
    done = tmp_path / "done"
    seconds = 1 if independent_ranks else 60
    work = f"os.kill(os.getpid(), 9) if rank == 1 else time.sleep({seconds})"
    found_out = f"open('{done}', 'a').write(str(rank)); sys.exit({LostProcess.STATUS})"
    assert launch(python(f"{work}; {found_out}"), 3, independent_ranks=independent_ranks) == 128 + signal.SIGKILL
    assert sorted(done.read_text() if done.exists() else "") == (["0", "2"] if independent_ranks else [])
    assert "process 1 of 3 was killed by signal 9" in capfd.readouterr().err


TOLD = """
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(open(f'{folder}/{rank}.told', 'w').write('x') + 142))
open(f'{folder}/{rank}', 'w').close()
time.sleep(60)
"""
LAUNCHER = "import sys; from reca.runtime.launch import launch; sys.exit(launch(sys.argv[1:], 2))"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all(tmp_path: Path, number: signal.Signals) -> None:
    code = python(f"folder = '{tmp_path}'{TOLD}")
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, *code])
    until = time.monotonic() + 60
    while not all((tmp_path / name).exists() for name in "01") and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(launcher.pid, number)
    assert launcher.wait(60) == 143
    assert all((tmp_path / f"{rank}.told").exists() for rank in range(2))


def here(multinode_launcher: str, nodes: int = 2, processes: int = 2) -> HardwareSection:
    words = [
        f"hardware.nodes={nodes}",
        f"hardware.processes={processes}",
        f"hardware.multinode_launcher='{multinode_launcher}'",
    ]
    return compose(words).hardware


def multinode_launcher(folder: Path, ranks: str) -> str:
    """A program that starts what follows it on every "node" of this host and fails if any node does."""
    script = folder / "on_every_node"
    script.write_text(
        f'#!/bin/sh\njobs=\nfor n in {ranks}; do SLURM_NODEID=$n "$@" & jobs="$jobs $!"; done\n'
        "status=0; for job in $jobs; do wait $job || status=$?; done; exit $status\n"
    )
    script.chmod(0o755)
    return str(script)


AGAIN = """
import sys, time
from reca.config import compose
from reca.runtime.launch import launch_all, launched
hardware = compose([f"hardware.nodes=2", "hardware.processes=2", "hardware.multinode_launcher={launcher}"]).hardware
if not launched():
    sys.exit(launch_all([sys.executable, *sys.argv], hardware))
import os
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
open("{folder}/" + os.environ["RANK"], "w").write(" ".join(os.environ[name] for name in names))
assert "RECA_GUARD_PID" not in os.environ
{then}
"""


def test_several_nodes_know_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECA_GUARD_PID", "1")
    launcher, program = multinode_launcher(tmp_path, "0 1"), tmp_path / "program.py"
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


LIKE_SRUN = """#!{python}
import os, signal, subprocess, sys
nodes = [subprocess.Popen(sys.argv[1:], env={{**os.environ, "SLURM_NODEID": str(n)}}) for n in range(2)]
signal.signal(signal.SIGTERM, lambda *_: [node.kill() for node in nodes])
signal.signal(signal.SIGUSR1, lambda *_: [node.send_signal(signal.SIGUSR1) for node in nodes])
sys.exit(max(node.wait() for node in nodes))
"""


def test_a_signal_reaches_all_nodes(tmp_path: Path) -> None:
    launcher, program = tmp_path / "like_srun", tmp_path / "program.py"
    launcher.write_text(LIKE_SRUN.format(python=sys.executable))
    launcher.chmod(0o755)
    then = f'folder, rank = "{tmp_path}", os.environ["RANK"]{TOLD}'
    (tmp_path / "places").mkdir()
    program.write_text(AGAIN.format(launcher=launcher, folder=tmp_path / "places", then=then))
    started = subprocess.Popen([sys.executable, str(program)])
    until = time.monotonic() + 60
    while not all((tmp_path / name).exists() for name in "0123") and time.monotonic() < until:
        time.sleep(0.02)
    started.terminate()
    assert started.wait(60) == 143
    assert all((tmp_path / f"{rank}.told").exists() for rank in range(4))


def test_a_failure_on_another_node_is_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher, program = multinode_launcher(tmp_path, "0 1"), tmp_path / "program.py"
    then = 'sys.exit(2 if os.environ["RANK"] in "23" else 0)'
    program.write_text(AGAIN.format(launcher=launcher, folder=tmp_path, then=then))
    assert launch_all([sys.executable, str(program)], here(launcher)) == 2


def test_a_launcher_that_is_not_there_or_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="multinode_launcher cannot be started: no-such-launcher: No such file"):
        launch_all(["true"], here("no-such-launcher --nodes"))
    monkeypatch.setenv("RECA_RENDEZVOUS", "host:1")
    for name in module.NODE_RANKS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="sets none of RECA_NODE_RANK"):
        launch_all(["true"], here("srun"))
