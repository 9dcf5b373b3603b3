"""The guard ends a command with all its descendants, however the command, the guard or the flow ends."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

GUARD = [sys.executable, "-I", str(Path(__file__).parents[3] / "flows/guard.py")]
STUBBORN = """
trap '' TERM
echo $$ >> {pids}
(trap '' TERM; echo $BASHPID >> {pids}; exec sleep 300) &
setsid bash -c 'echo $$ >> {pids}; exec sleep 301' &
bash -c 'setsid bash -c "echo \\$\\$ >> {pids}; exec sleep 302" & exit' &
sleep 303
"""


def start(*command: str, options: tuple[str, ...] = ("--grace", "0.5")) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*GUARD, *options, "--", *command], stdin=subprocess.PIPE, start_new_session=True)


def wait_for(condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition did not hold within {seconds:g} s"
        time.sleep(0.05)


def read_pids(path: Path) -> list[int]:
    return [int(word) for word in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize("how", ["input closes", "TERM"])
def test_guard_ends_a_process_tree_that_ignores_sigterm(tmp_path, how):
    pids = tmp_path / "pids"
    guard = start("bash", "-c", STUBBORN.format(pids=pids))
    wait_for(lambda: len(read_pids(pids)) == 4)
    tree = read_pids(pids)
    assert all(psutil.pid_exists(pid) for pid in tree)
    if how == "TERM":
        guard.send_signal(signal.SIGTERM)
    else:
        guard.stdin.close()
    assert guard.wait(60) == 128 + signal.SIGKILL
    assert not any(psutil.pid_exists(pid) for pid in tree)


def test_guard_gives_a_command_time_to_finish(tmp_path):
    done = tmp_path / "done"
    code = f"""
import pathlib, signal, sys, time
def last_words(*_):
    time.sleep(0.3); pathlib.Path({str(done)!r}).touch(); sys.exit(0)
signal.signal(signal.SIGTERM, last_words)
pathlib.Path({str(tmp_path / "ready")!r}).touch()
time.sleep(300)
"""
    guard = start(sys.executable, "-c", code, options=("--grace", "30"))
    wait_for((tmp_path / "ready").exists)
    guard.stdin.close()
    assert guard.wait(60) == 0
    assert done.exists()


def test_guard_sends_sigusr1_to_processes_that_span_hosts(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(f"""
import pathlib, signal, sys, time
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda got, _: sys.exit(pathlib.Path({str(tmp_path / "got")!r}).write_text(str(got)) * 0))
pathlib.Path({str(tmp_path / "ready")!r}).touch()
time.sleep(300)
""")
    command = f"RECA_RENDEZVOUS=host:1 {sys.executable} {program}; true"
    guard = start("sh", "-c", command, options=("--grace", "30"))
    wait_for((tmp_path / "ready").exists)
    guard.stdin.close()
    guard.wait(60)
    assert int((tmp_path / "got").read_text()) == signal.SIGUSR1


def test_guard_killed_with_sigkill_ends_its_command(tmp_path):
    pids = tmp_path / "pids"
    guard = start("bash", "-c", f"echo $$ >> {pids}; exec sleep 300")
    wait_for(lambda: len(read_pids(pids)) == 1)
    guard.kill()
    guard.wait()
    wait_for(lambda: not psutil.pid_exists(read_pids(pids)[0]))


@pytest.mark.parametrize(("command", "status"), [("exit 7", 7), ("exit 0", 0), ("kill -9 $$", 137)])
def test_guard_returns_the_status_of_the_command(command, status):
    assert start("bash", "-c", command).wait(60) == status


def test_guard_ends_processes_that_the_command_left_behind(tmp_path):
    pids = tmp_path / "pids"
    guard = start(
        "bash", "-c", f"setsid bash -c 'echo $$ >> {pids}; exec sleep 300' & while ! test -s {pids}; do :; done"
    )
    assert guard.wait(60) == 0
    assert not psutil.pid_exists(read_pids(pids)[0])


def test_guard_ends_a_server_with_its_last_user(tmp_path):
    lock = tmp_path / "users.lock"
    users = [os.open(lock, os.O_RDWR | os.O_CREAT) for _ in range(2)]
    for user in users:
        fcntl.flock(user, fcntl.LOCK_SH)
    guard = start("sleep", "300", options=("--grace", "1", "--while-locked", str(lock)))
    os.close(users[0])
    time.sleep(0.5)
    assert guard.poll() is None
    os.close(users[1])
    assert guard.wait(60) == 128 + signal.SIGTERM
