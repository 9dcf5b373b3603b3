"""The project's private Prefect server: started on loopback when a run needs one, gone when nobody uses it.

A run without a server (Prefect's ephemeral mode) loses task records, so ``reca run`` has a real one, with its
home, and thereby the history of all runs, in the project's state folder. Every user of the server holds a shared
lock on one file; its guard ends it when the kernel has taken back the last of them, also after ``kill -9``.
"""

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

from reca.runtime.errors import UserError
from reca.runtime.files import write_json

START_SECONDS = 300
APPLICATION = "prefect.server.api.server:create_app"
SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_CLI_PROMPT": "false",
}


class PrivateServer:
    """The server of one project; the constructor returns at once, :meth:`wait` when it answers.

    Args:
        home: Prefect's home; made if need be.
        port: Where to listen if a server must be started; ``None``: any free port.
    """

    def __init__(self, home: Path, port: int | None = None) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self._user = os.open(home / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._user, fcntl.LOCK_SH)  # waits while a guard that saw no users ends its server
        with (home / "start.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = _running(home)
            self.started = found is None
            self.address, self._pid = found or self._start(port or free_port())

    def configure(self) -> None:
        """Point Prefect, once it is imported in this process and its children, to this server."""
        os.environ.update(SETTINGS)
        os.environ["PREFECT_HOME"] = str(self.home)
        os.environ["PREFECT_API_URL"] = f"{self.address}/api"
        os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))

    def wait(self) -> None:
        """Return when the server answers.

        Raises:
            UserError: It ended, or did not answer in five minutes; names its log.
        """
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.address):
            if time.monotonic() > deadline or not _is_guard(self._pid, self.home):
                raise UserError(f"the private Prefect server does not start; its log: {self.home / 'server.log'}")
            time.sleep(0.1)

    def release(self) -> None:
        """Use it no longer; without other users it ends by itself within a second."""
        os.close(self._user)

    def _start(self, port: int) -> tuple[str, int]:
        address = f"http://127.0.0.1:{port}"
        module = find_spec("prefect")
        if module is None or module.origin is None:
            raise UserError("prefect is not installed; run `make setup`")
        uvicorn = [sys.executable, "-m", "uvicorn", "--app-dir", str(Path(module.origin).parent.parent), "--factory"]
        listen = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
        guard = [sys.executable, "-I", str(Path(__file__).with_name("guard.py")), "--grace", "10"]
        place = {"PREFECT_SERVER_API_HOST": "127.0.0.1", "PREFECT_SERVER_API_PORT": str(port)}
        place |= {"PREFECT_HOME": str(self.home), "PREFECT_UI_STATIC_DIRECTORY": str(self.home / "ui")}
        environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
        with (self.home / "server.log").open("ab") as log:
            process = subprocess.Popen(
                [*guard, "--while-locked", _lock(self.home), "--", *uvicorn, APPLICATION, *listen],
                env={**environment, **SETTINGS, **place},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        write_json(self.home / "server.json", {"address": address, "guard": process.pid})
        return address, process.pid


def running_server(home: Path) -> str | None:
    """The address of the project's server, if one runs and answers."""
    found = _running(home)
    return found[0] if found and _answers(found[0]) else None


def _running(home: Path) -> tuple[str, int] | None:
    try:
        known = json.loads((home / "server.json").read_text())
    except (OSError, ValueError):
        return None
    return (known["address"], known["guard"]) if _is_guard(known["guard"], home) else None


def _is_guard(pid: int, home: Path) -> bool:
    """Whether that process is the guard of this home's server (numbers are used again)."""
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


def free_port() -> int:
    """A port of loopback that nothing uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
