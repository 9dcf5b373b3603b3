"""Starting one process per device, on one host or several."""

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
from reca.runtime.errors import UserError
from reca.runtime.ports import free_port
from reca.runtime.signals import GUARD, LostProcess, StopRequest, end_with_parent

GRACE_SECONDS = 30.0
"""Time for the other ranks when one has failed, because rank 0 may be writing a checkpoint."""
POLL_SECONDS = 0.1
STDERR_TAIL_CHARS = 10_000
"""Length of a failed rank's stderr that is printed."""
NODE_STOP_SIGNAL = signal.SIGUSR1
"""Signal to a multi-node launcher: srun and mpirun forward it, but on SIGTERM srun kills its tasks at once."""
RENDEZVOUS = "RECA_RENDEZVOUS"
"""Environment variable with HOST:PORT of rank 0 of a multi-node run."""
NODE_RANKS = ("RECA_NODE_RANK", "SLURM_NODEID", "OMPI_COMM_WORLD_RANK")
"""Environment variables with the number of the node; the first one set counts."""


def launched() -> bool:
    """Return whether this process was started by a launcher."""
    return "RANK" in os.environ


def launch_all(command: Sequence[str], hardware: HardwareSection, independent_ranks: bool = False) -> int:
    """Run a command on all devices of all nodes.

    On one node that is :func:`launch`. For several, ``hardware.multinode_launcher`` starts the same command on each of
    them, which comes here again and then knows its node.

    Returns:
        0, or the exit status of a process that failed.

    Raises:
        UserError: The launcher cannot be started, or does not number the nodes.
    """
    if hardware.nodes == 1:
        return launch(command, hardware.processes, independent_ranks=independent_ranks)
    if rendezvous := os.environ.get(RENDEZVOUS):
        rank = next((os.environ[name] for name in NODE_RANKS if name in os.environ), None)
        if rank is None:
            raise UserError(
                f"hardware.multinode_launcher sets none of {', '.join(NODE_RANKS)}, so a node does not know its number"
            )
        node = Node(int(rank), hardware.nodes, *rendezvous.rsplit(":", 1))
        return launch(command, hardware.processes, node, independent_ranks)
    environment = {**os.environ, RENDEZVOUS: f"{socket.gethostname()}:{free_port()}"}
    environment.pop(GUARD, None)  # a process of this host, which only this process can watch
    launcher = hardware.multinode_launcher.replace("{nodes}", str(hardware.nodes))
    words = [*shlex.split(launcher), *command]
    with StopRequest() as stop:
        end_with_parent()
        try:
            process = subprocess.Popen(words, env=environment, close_fds=False)
        except OSError as error:
            raise UserError(f"hardware.multinode_launcher cannot be started: {words[0]}: {error.strerror}") from None
        try:
            _wait([process], stop, NODE_STOP_SIGNAL)
        finally:
            process.kill()  # no effect if it has ended
            process.wait()
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


@dataclass(frozen=True)
class Node:
    """One of the hosts that share a command."""

    rank: int = 0
    count: int = 1
    address: str = "127.0.0.1"
    """Address of the node with rank 0."""
    port: str = ""
    """Free on the node with rank 0."""


def launch(command: Sequence[str], processes: int, node: Node | None = None, independent_ranks: bool = False) -> int:
    """Run a command once per rank on this node.

    Not accelerate's launcher: on the CPU it starts one process unless ``--multi_gpu`` is given, and it turns every
    exit status into 1, whereas ours distinguish a user's mistake from an interruption.

    Args:
        command: Program and arguments.
        processes: Ranks on this node.
        node: This node; ``None`` if it is the only one.
        independent_ranks: Ranks synchronise only at the end. When one is killed (not failed), the others then finish
            their shares first; otherwise they are ended after :data:`GRACE_SECONDS`.

    Returns:
        0, or the exit status of the rank that failed first.
    """
    node = node or Node(port=str(free_port()))
    shared = {"WORLD_SIZE": str(processes * node.count), "MASTER_ADDR": node.address, "MASTER_PORT": node.port}
    with StopRequest() as stop, ExitStack() as files:
        end_with_parent()
        # Only rank 0's stderr is passed through, because all ranks report the same user errors.
        errors = [None, *(files.enter_context(tempfile.TemporaryFile()) for _ in range(1, processes))]
        ranks = list[subprocess.Popen[bytes]]()
        try:
            for rank, error in enumerate(errors):
                rank_variables = {"RANK": str(node.rank * processes + rank), "LOCAL_RANK": str(rank)}
                # close_fds=False: every rank inherits the flow's locks on devices.
                ranks.append(
                    subprocess.Popen(command, env=os.environ | shared | rank_variables, stderr=error, close_fds=False)
                )
            # Stopped by SIGTERM, never SIGINT, which a terminal has sent to every rank already.
            first = _wait(ranks, stop, signal.SIGTERM, independent_ranks)
        finally:
            for process in ranks:
                process.kill()  # no effect if it has ended
                process.wait()
        if first is None:
            return 0
        status = ranks[first].returncode
        if status < 0 and stop.signal_number is None:
            print(f"process {first} of {processes} was killed by signal {-status}", file=sys.stderr)
        elif status != ranks[0].returncode and (error := errors[first]) is not None:
            print(f"process {first} of {processes} failed:\n{_tail(error)}", file=sys.stderr)
        return status if status > 0 else 128 - status


def _wait(
    ranks: Sequence[subprocess.Popen[bytes]],
    stop: StopRequest,
    stop_signal: signal.Signals,
    independent_ranks: bool = False,
) -> int | None:
    """Wait until all have ended, or one has failed and ``GRACE_SECONDS`` are over; return the first that failed."""
    first, deadline, forwarded = None, float("inf"), False
    while any(process.poll() is None for process in ranks) and time.monotonic() < deadline:
        if stop.signal_number is not None and not forwarded:
            for process in ranks:
                process.send_signal(stop_signal)
            forwarded = True
        first = _failed(ranks) if first is None else first
        if deadline == float("inf") and any(
            process.poll() and not (independent_ranks and _lost(process)) for process in ranks
        ):
            deadline = time.monotonic() + GRACE_SECONDS
        time.sleep(POLL_SECONDS)
    return _failed(ranks) if first is None else first


def _failed(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    return next((rank for rank, process in enumerate(ranks) if process.poll()), None)


def _lost(process: subprocess.Popen[bytes]) -> bool:
    """Return whether the rank was killed, or found at a barrier that another rank was."""
    return process.returncode is not None and (process.returncode < 0 or process.returncode == LostProcess.STATUS)


def _tail(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")[-STDERR_TAIL_CHARS:]
