"""One command, several processes: one for each device of this machine, and of others."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

from reca.config.sections import HardwareSection
from reca.runtime.distributed import GUARD, LostProcess, StopRequest, end_with_parent
from reca.runtime.errors import UserError

GRACE_SECONDS = 30.0
"""For the others when one process has failed: the first may be writing a checkpoint."""
POLL_SECONDS = 0.1
STDERR_TAIL_CHARS = 10_000
"""Characters of a failed process's stderr that are shown."""
NODE_STOP_SIGNAL = signal.SIGUSR1
"""Ends what a node launcher has started: srun and mpirun hand it on, while at SIGTERM srun kills without asking."""
RENDEZVOUS = "RECA_RENDEZVOUS"
"""Environment variable with HOST:PORT, where the processes of several nodes find each other."""
NODE_RANKS = ("RECA_NODE_RANK", "SLURM_NODEID", "OMPI_COMM_WORLD_RANK")
"""Environment variables with the number of the node, the first one set counts."""


def launched() -> bool:
    """Whether this process is already one of several."""
    return "RANK" in os.environ


def launch_all(command: Sequence[str], hardware: HardwareSection, independent_ranks: bool = False) -> int:
    """Start a command on all devices of all nodes, and wait for it.

    On one node that is :func:`launch`. For several, ``hardware.multinode_launcher`` starts the same command on each of
    them, which comes here again and then knows its node.

    Args:
        command: Program and arguments.
        hardware: How many nodes and processes, and how nodes are reached.
        independent_ranks: See :func:`launch`.

    Returns:
        0, or the exit status of a process that failed.

    Raises:
        UserError: The launcher cannot be started, or does not tell the nodes apart.
    """
    if hardware.nodes == 1:
        return launch(command, hardware.processes, independent_ranks=independent_ranks)
    if rendezvous := os.environ.get(RENDEZVOUS):
        rank = next((os.environ[name] for name in NODE_RANKS if name in os.environ), None)
        if rank is None:
            raise UserError(
                f"hardware.multinode_launcher sets none of {', '.join(NODE_RANKS)}, so a node is not told which"
            )
        node = Node(int(rank), hardware.nodes, *rendezvous.rsplit(":", 1))
        return launch(command, hardware.processes, node, independent_ranks)
    environment = {**os.environ, RENDEZVOUS: f"{socket.gethostname()}:{free_port()}"}
    environment.pop(GUARD, None)  # a process of this host, which this one watches
    launcher = hardware.multinode_launcher.replace("{nodes}", str(hardware.nodes))
    words = [*shlex.split(launcher), *command]
    with StopRequest() as stop:
        end_with_parent()
        try:
            started = subprocess.Popen(words, env=environment, close_fds=False)
        except OSError as error:
            raise UserError(f"hardware.multinode_launcher cannot be started: {words[0]}: {error.strerror}") from None
        try:
            _wait([started], stop, NODE_STOP_SIGNAL)
        finally:
            started.kill()  # nothing where it has ended
            started.wait()
    return started.returncode if started.returncode >= 0 else 128 - started.returncode


@dataclass(frozen=True)
class Node:
    """One of the hosts that share a command."""

    rank: int = 0
    count: int = 1
    address: str = "127.0.0.1"
    """Of the leading one."""
    port: str = ""
    """Free on the leading one."""


def launch(command: Sequence[str], processes: int, node: Node | None = None, independent_ranks: bool = False) -> int:
    """Start a command so many times, each knowing its rank, and wait for all of them.

    Not accelerate's launcher: on the CPU it starts one process unless it is told ``--multi_gpu``, and it makes 1 of
    every exit status, while ours tell a mistake of the user from an interruption.

    Args:
        command: Program and arguments.
        processes: On this node.
        node: This one among several; ``None``: there is no other.
        independent_ranks: Ranks synchronise only at the end. When one is killed (not failed), the others then finish
            their shares first; otherwise they are ended after :data:`GRACE_SECONDS`.

    Returns:
        0, or the exit status of the process that failed first.
    """
    node = node or Node(port=str(free_port()))
    shared = {"WORLD_SIZE": str(processes * node.count), "MASTER_ADDR": node.address, "MASTER_PORT": node.port}
    with StopRequest() as stop, ExitStack() as files:
        end_with_parent()
        # Only the first one's stderr is seen: what all of them find wrong is to be read once.
        errors = [None, *(files.enter_context(tempfile.TemporaryFile()) for _ in range(1, processes))]
        ranks = list[subprocess.Popen[bytes]]()
        try:
            for rank, error in enumerate(errors):
                place = {"RANK": str(node.rank * processes + rank), "LOCAL_RANK": str(rank)}
                # close_fds=False: the locks on devices that the flow has handed on are held by every process.
                ranks.append(subprocess.Popen(command, env=os.environ | shared | place, stderr=error, close_fds=False))
            # Told to end by SIGTERM, never SIGINT: a terminal has sent that to them already.
            first = _wait(ranks, stop, signal.SIGTERM, independent_ranks)
        finally:
            for process in ranks:
                process.kill()  # nothing where it has ended
                process.wait()
        if first is None:
            return 0
        status = ranks[first].returncode
        if status < 0 and stop.signal_number is None:
            print(f"process {first} of {processes} was killed by signal {-status}", file=sys.stderr)
        elif status != ranks[0].returncode and (error := errors[first]) is not None:
            print(f"process {first} of {processes} failed:\n{_end_of(error)}", file=sys.stderr)
        return status if status > 0 else 128 - status


def _wait(
    ranks: Sequence[subprocess.Popen[bytes]], stop: StopRequest, ending: signal.Signals, independent_ranks: bool = False
) -> int | None:
    """Until all have ended, or one has failed and the others had time to; returns the first that failed.

    Args:
        ranks: What was started.
        stop: Whether this process was told to end.
        ending: The signal that tells them so.
        independent_ranks: See :func:`launch`.
    """
    first, until, passed_on = None, float("inf"), False
    while any(process.poll() is None for process in ranks) and time.monotonic() < until:
        if stop.signal_number is not None and not passed_on:
            for process in ranks:
                process.send_signal(ending)
            passed_on = True
        first = _failed(ranks) if first is None else first
        if until == float("inf") and any(
            process.poll() and not (independent_ranks and _lost(process)) for process in ranks
        ):
            until = time.monotonic() + GRACE_SECONDS
        time.sleep(POLL_SECONDS)
    return _failed(ranks) if first is None else first


def _failed(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    return next((rank for rank, process in enumerate(ranks) if process.poll()), None)


def _lost(process: subprocess.Popen[bytes]) -> bool:
    """Whether it was killed, or has found that another one was when it had finished."""
    return process.returncode is not None and (process.returncode < 0 or process.returncode == LostProcess.STATUS)


def _end_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")[-STDERR_TAIL_CHARS:]


def free_port() -> int:
    """A port of this machine that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
