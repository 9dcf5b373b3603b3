"""Set up ``.venv``: the exact versions of requirements.lock, then this project itself, editable.

    python3.11 tools/environment.py

Idempotent: it returns at once if the lock, pyproject.toml and the project's folder are those of the last success.
Packages come from pip's configured sources (its settings are passed on to uv). It needs the standard library only.
"""

import ast
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements.lock"
STAMP = VENV / "setup.stamp"
UV_OF_PIP = {  # pip's setting -> uv's variable of the same meaning
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
    "cert": "SSL_CERT_FILE",
}
COMMA_SEPARATED = {"UV_FIND_LINKS"}  # pip always separates by white space, as uv does in its other variables


class SetupError(Exception):
    """The setup failed; the message says what to do."""


def state() -> str:
    """Return a digest of the environment's inputs: both files, the interpreter and the folder."""
    digest = hashlib.sha256(f"{ROOT} {sys.version_info[:2]}".encode())
    for path in (LOCK, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def pip_settings(listing: str) -> dict[str, str]:
    """Return the effective settings in the output of ``pip config list``: environment over [install] over [global]."""
    settings: dict[str, str] = {}
    for section in ("global.", "install.", ":env:."):
        for line in listing.splitlines():
            name, separator, value = line.partition("=")
            if separator and name.startswith(section):
                settings[name.removeprefix(section)] = " ".join(str(ast.literal_eval(value)).split())
    return settings


def uv_environment(pip: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables that give uv the sources of pip; existing uv variables win."""
    values = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # pip, too, merges its indexes
    for name, variable in UV_OF_PIP.items():
        if value := pip.get(name):
            values[variable] = ",".join(value.split()) if variable in COMMA_SEPARATED else value
    if environment.get("PIP_NO_CACHE_DIR"):
        values["UV_NO_CACHE"] = "1"
    return {**values, **environment}


def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a command, its output shown; raises CalledProcessError when it fails."""
    subprocess.run([str(part) for part in command], cwd=ROOT, env=environment, check=True)


def make_venv() -> None:
    """Create ``.venv`` with this interpreter, unless a working one exists."""
    probe = "import sys, pip; sys.exit(sys.version_info[:2] != (3, 11) or sys.prefix != sys.argv[1])"
    if PYTHON.exists() and subprocess.run([PYTHON, "-c", probe, VENV], stderr=subprocess.DEVNULL).returncode == 0:
        return
    if VENV.exists():
        print(f"setup: {VENV} does not work here (moved or incomplete): creating it again", flush=True)
        shutil.rmtree(VENV)
    try:
        run(sys.executable, "-m", "venv", VENV)
    except subprocess.CalledProcessError:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SetupError(
            f"{sys.executable} cannot make a virtual environment.\n"
            "On Debian and Ubuntu: apt-get install python3.11-venv. Then run `make setup` again."
        ) from None


def install() -> None:
    """Install the lock and the project: with uv (half a minute), and with pip where uv cannot."""
    listing = subprocess.run([PYTHON, "-m", "pip", "config", "list"], cwd=ROOT, capture_output=True, text=True)
    settings = pip_settings(listing.stdout)
    if sys.platform == "linux" and "find-links" not in settings:
        print(
            "setup: no folder of wheels is set (PIP_FIND_LINKS), so torch comes from the package index;\n"
            "       on Linux that is usually the CUDA build, about 3 GB with its libraries",
            flush=True,
        )
    uv = next(line.strip() for line in LOCK.read_text().splitlines() if line.startswith("uv=="))
    try:
        run(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", uv)
        environment = uv_environment(settings, os.environ)
        command = (PYTHON, "-m", "uv", "pip", "install", "--quiet", "--python", PYTHON)
        run(*command, "--requirement", LOCK, environment=environment)
        run(*command, "--no-deps", "--editable", ROOT, environment=environment)
    except subprocess.CalledProcessError as error:
        print(f"setup: uv could not ({shlex.join(error.cmd)}); trying pip, which takes minutes", flush=True)
        pip = (PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        try:
            run(*pip, "--requirement", LOCK)
            run(*pip, "--no-deps", "--editable", ROOT)
        except subprocess.CalledProcessError as second:
            raise SetupError(
                f"the packages of {LOCK.name} could not be installed ({shlex.join(second.cmd)}); see the messages\n"
                "above. A proxy, a mirror or a folder of wheels is set as for pip: PIP_INDEX_URL, PIP_FIND_LINKS, ..."
            ) from None


def main() -> int:
    """Bring the environment up to date; return the exit status."""
    if sys.version_info[:2] != (3, 11):
        print(f"setup: Python 3.11 is needed; this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    with LOCK.open() as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # `make demo` and `make test` may be started side by side
        current = state()
        if STAMP.exists() and STAMP.read_text() == current and PYTHON.exists():
            return 0
        started = time.monotonic()
        print(f"setup: installing {LOCK.name} into .venv (about a minute)", flush=True)
        try:
            STAMP.unlink(missing_ok=True)
            make_venv()
            install()
        except SetupError as error:
            print(f"setup: {error}", file=sys.stderr)
            return 2
        STAMP.write_text(current)
        print(f"setup: done in {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
