"""One command, several processes: their places, their exit status, and what is read of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reca.training import launch as module
from reca.training.launch import launch


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys, time\nrank = int(os.environ['RANK'])\n{code}"]


def test_every_process_knows_its_place(tmp_path: Path) -> None:
    names = "('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')"
    place = f"[os.environ[name] for name in {names}]"
    assert launch(python(f"open('{tmp_path}/' + str(rank), 'w').write(' '.join({place}))"), 3) == 0
    places = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [place[:4] for place in places] == [[str(rank), str(rank), "3", "127.0.0.1"] for rank in range(3)]
    assert len({place[4] for place in places}) == 1


def test_what_all_find_wrong_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(python("sys.exit(print('no such folder', file=sys.stderr) or 2)"), 3) == 2
    assert capfd.readouterr().err == "no such folder\n"


def test_the_first_failure_ends_the_others_and_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.2)
    began = time.monotonic()
    assert launch(python("time.sleep(60) if rank != 2 else sys.exit('out of memory')"), 3) == 1
    assert time.monotonic() - began < 30
    assert "process 2 of 3 failed:\nout of memory" in capfd.readouterr().err


def test_killed_by_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.2)
    assert launch(python("os.kill(os.getpid(), 9) if rank else time.sleep(60)"), 2) == 128 + signal.SIGKILL


TOLD = """
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(open(f'{folder}/{rank}.told', 'w').write('x') + 142))
open(f'{folder}/{rank}', 'w').close()
time.sleep(60)
"""
LAUNCHER = "import sys; from reca.training.launch import launch; sys.exit(launch(sys.argv[1:], 2))"


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
