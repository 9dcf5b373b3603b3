"""Starting training, one process per device, on one host or several, by torchelastic (the engine of ``torchrun``)."""

import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reca.config.sections import HardwareSection
from reca.runtime.errors import UserError
from reca.runtime.ports import free_port
from reca.runtime.signals import GUARD, StopRequest, end_with_parent

SHUTDOWN_SECONDS = 120
"""Time for ranks that are being stopped, because they may be writing a checkpoint."""
STDERR_TAIL_CHARS = 10_000
"""Length of a failed rank's stderr that is printed."""
NODE_STOP_SIGNAL = signal.SIGUSR1
"""Signal to a multi-node launcher: srun and mpirun forward it, but on SIGTERM srun kills its tasks at once."""
RENDEZVOUS = "RECA_RENDEZVOUS"
"""Environment variable with HOST:PORT, where the nodes of a multi-node run meet."""


def launch_all(command: Sequence[str], hardware: HardwareSection) -> int:
    """Run a command on all devices of all nodes, and return its exit status as :func:`launch` does.

    For several nodes ``hardware.multinode_launcher`` starts the same command on each, which comes here again.

    Raises:
        UserError: The launcher cannot be started.
    """
    rendezvous = os.environ.get(RENDEZVOUS)
    if hardware.nodes == 1 or rendezvous:
        return launch(command, hardware.processes, hardware.nodes, rendezvous)
    environment = {**os.environ, RENDEZVOUS: f"{socket.gethostname()}:{free_port()}"}
    environment.pop(GUARD, None)  # a process of this host, which only this process can watch
    words = [*shlex.split(hardware.multinode_launcher.replace("{nodes}", str(hardware.nodes))), *command]
    with StopRequest() as stop:
        end_with_parent()
        try:
            process = subprocess.Popen(words, env=environment)
        except OSError as error:
            raise UserError(f"hardware.multinode_launcher cannot be started: {words[0]}: {error.strerror}") from None
        while process.poll() is None and stop.signal_number is None:
            time.sleep(0.1)
        if stop.signal_number is not None:
            process.send_signal(NODE_STOP_SIGNAL)
        return _status(process.wait())


def launch(command: Sequence[str], processes: int, nodes: int = 1, rendezvous: str | None = None) -> int:
    """Run a command once per rank on this node; a signal is forwarded to the ranks, once.

    ``torchrun`` and ``accelerate launch`` use the same engine, but make 1 of every exit status.

    Args:
        command: Program and arguments.
        processes: Ranks on this node.
        nodes: Hosts that share the command.
        rendezvous: HOST:PORT where they meet; ``None`` for one host.

    Returns:
        0, the exit status of the rank that failed first, or 128 + signal.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std, errors
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    end_with_parent()
    logging.disable(logging.ERROR)  # torchelastic's own account of failures; ours is below
    with tempfile.TemporaryDirectory(prefix="reca-ranks-") as logs:
        # Only rank 0's stderr is passed through, because all ranks report the same user errors.
        stderr = DefaultLogsSpecs(logs, tee={0: Std.ERR}, redirects=dict.fromkeys(range(1, processes), Std.ERR))
        config = LaunchConfig(
            nodes,
            nodes,
            processes,
            stderr,
            run_id="reca",
            role="",
            rdzv_backend="c10d",
            rdzv_endpoint=rendezvous or "localhost:0",
            max_restarts=0,
            log_line_prefix_template="$role_name",  # that is, none
            local_addr=socket.gethostname() if rendezvous else "127.0.0.1",
            signals_to_handle="SIGTERM,SIGINT,SIGUSR1",
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
        try:
            elastic_launch(config, command[0])(*command[1:])
            return 0
        except errors.ChildFailedError as error:
            return _report(list(error.failures.values()), processes, Path(logs))
        except Exception as error:
            # The signal's exception may also arise in a `finally` of torchelastic, which then fails with another one.
            stopped = error if isinstance(error, SignalException) else error.__context__
            if not isinstance(stopped, SignalException):
                raise
            return 128 + (signal.SIGTERM if stopped.sigval == NODE_STOP_SIGNAL else stopped.sigval)
        finally:
            logging.disable(logging.NOTSET)


def _report(failures: list[Any], processes: int, logs: Path) -> int:
    """Print the words of the rank that failed first, unless rank 0 has said the same; return its exit status."""
    # torchelastic lists later failures after it, and those that it found at the same time by rank.
    together = [failure for failure in failures if failure.timestamp <= failures[0].timestamp + 1]
    consequences = (-signal.SIGTERM, os.EX_TEMPFAIL)  # stopped by torchelastic; found at a barrier that a rank is gone
    first = min(together, key=lambda failure: (failure.exitcode in consequences, failure.exitcode > 0))
    name = f"process {first.local_rank} of {processes}"
    words = {path.parent.name: path.read_text(errors="replace") for path in logs.rglob("stderr.log")}
    if first.exitcode < 0:
        print(f"{name} was killed by signal {-first.exitcode}", file=sys.stderr)
    elif (text := words[str(first.local_rank)]) not in words["0"]:
        print(f"{name} failed:\n{text[-STDERR_TAIL_CHARS:]}", file=sys.stderr)
    return _status(first.exitcode)


def _status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode
