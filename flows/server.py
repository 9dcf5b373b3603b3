"""The project's private Prefect server: started on loopback when a run needs it, ended with its last user.

A run without a server (Prefect's ephemeral mode) loses task records, so ``reca run`` starts one whose home, with the
history of all runs, is in the project's state folder. Every user of the server holds a shared lock on one file; the
guard ends the server when the kernel has released the last of these locks, also after ``kill -9``. That is why it is
not ``prefect server start --background``, which runs until it is stopped by hand.
"""

import fcntl
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

from flows.supervisor import GUARD
from reca.runtime.errors import UserError
from reca.runtime.files import write_json
from reca.runtime.ports import free_port

START_SECONDS = 300
APPLICATION = "prefect.server.api.server:create_app"
SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_CLI_PROMPT": "false",
}


class PrivateServer:
    """The server of a project; the constructor returns at once, :meth:`wait` when the server answers.

    Args:
        home: Prefect's home; created if it does not exist.
        port: Port of a newly started server; ``None``: any free port.
    """

    def __init__(self, home: Path, port: int | None = None) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self._user = os.open(home / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._user, fcntl.LOCK_SH)  # blocks while a guard ends a server without users
        with (home / "start.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.address, self._pid = _running(home) or self._start(port or free_port())

    def configure(self) -> None:
        """Set the environment so that Prefect, imported later here and in children, uses this server."""
        os.environ.update(SETTINGS)
        os.environ["PREFECT_HOME"] = str(self.home)
        os.environ["PREFECT_API_URL"] = f"{self.address}/api"
        os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))

    def wait(self) -> None:
        """Wait until the server answers.

        Raises:
            UserError: The server ended, or did not answer in five minutes; the message names its log.
        """
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.address):
            if time.monotonic() > deadline or not _is_guard(self._pid, self.home):
                raise UserError(f"the private Prefect server does not start; see its log: {self.home / 'server.log'}")
            time.sleep(0.1)

    def release(self) -> None:
        """Stop using the server; without other users it ends within a second."""
        os.close(self._user)

    def _start(self, port: int) -> tuple[str, int]:
        address = f"http://127.0.0.1:{port}"
        module = find_spec("prefect")
        if module is None or module.origin is None:
            raise UserError("prefect is not installed; run `make setup`")
        uvicorn = [sys.executable, "-m", "uvicorn", "--app-dir", str(Path(module.origin).parent.parent), "--factory"]
        listen = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
        settings = {"PREFECT_SERVER_API_HOST": "127.0.0.1", "PREFECT_SERVER_API_PORT": str(port)}
        settings |= {"PREFECT_HOME": str(self.home), "PREFECT_UI_STATIC_DIRECTORY": str(self.home / "ui")}
        environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
        with (self.home / "server.log").open("ab") as log:
            process = subprocess.Popen(
                [*GUARD, "--grace", "10", "--while-locked", _lock(self.home), "--", *uvicorn, APPLICATION, *listen],
                env={**environment, **SETTINGS, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        write_json(self.home / "server.json", {"address": address, "guard": process.pid})
        return address, process.pid


def running_server(home: Path) -> str | None:
    """Return the address of the project's server if one runs and answers."""
    server = _running(home)
    return server[0] if server and _answers(server[0]) else None


def _running(home: Path) -> tuple[str, int] | None:
    try:
        record = json.loads((home / "server.json").read_text())
    except (OSError, ValueError):
        return None
    return (record["address"], record["guard"]) if _is_guard(record["guard"], home) else None


def _is_guard(pid: int, home: Path) -> bool:
    """Return whether a process is the guard of this home's server (process ids are reused)."""
    try:
        return _lock(home).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _lock(home: Path) -> str:
    return str(home / "users.lock")


def _answers(address: str) -> bool:
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{address}/api/health", timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False
