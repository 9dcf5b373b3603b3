"""The user's own images under DVC, before a run: their hash is then part of every lineage."""

import filecmp
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reca.config import CollagesData, Config, FolderData, HubData, WebDatasetData
from reca.data.sources.base import Rejected, printable
from reca.data.sources.folder import LEFT_OUT, list_files
from reca.data.synthetic.collages import PACKAGE_FOLDER, require
from reca.runtime.errors import UserError
from reca.runtime.files import write_json, write_text

GLOB_OR_BRACE = re.compile(r"[*?\[{]")
RECORDS = ".dvc/tmp/reca"
"""Where it is remembered which folder a copy was made of; DVC keeps that folder out of git."""


def prepare(config: Config, root: Path) -> Config:
    """Put the images that a configuration names under DVC, and let it name them by their tracked path.

    Rendered scenes, URLs and hub ids stay as they are: their recipe is what DVC watches. So does the folder of the
    package of cut-outs, which DVC watches where it is: the package manager brings the same one back.

    Raises:
        UserError: As :func:`track`; or the package of cut-outs is not installed.
    """
    data = config.data
    if isinstance(data, CollagesData):
        require(root / Path(data.path).expanduser())
        if Path(data.path) == PACKAGE_FOLDER:
            return config
    if isinstance(data, FolderData | CollagesData):
        changes = {"path": track(root / Path(data.path).expanduser(), root)}
    elif isinstance(data, WebDatasetData) and "://" not in data.urls:
        folder, rest = _split_pattern(data.urls)
        tracked = track(root / folder, root)
        changes = {"path": tracked, "urls": f"{tracked}/{rest}"}
    elif isinstance(data, HubData) and (root / Path(data.dataset).expanduser()).exists():
        tracked = track(root / Path(data.dataset).expanduser(), root)
        changes = {"path": tracked, "dataset": tracked}
    else:
        return config
    return config.model_copy(update={"data": data.model_copy(update=changes)})


def track(path: Path, root: Path) -> str:
    """Put a folder (or one file) under DVC; doing it again costs a look at every file's time and size.

    What lies inside the project is added where it is. What lies outside is copied to ``data/<name>`` first, as a
    mirror: files that are new, changed or gone there become so here. Entries that DVC cannot store (links to nothing,
    pipes, names that are not UTF-8) are listed in the copy, and so reach the quarantine.

    Returns:
        The tracked path, relative to ``root``.

    Raises:
        UserError: There is nothing to track, no DVC or git here, or DVC refuses; the message says what to do.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; set data.path (or data.urls, data.dataset) to where the images are")
    files, rejected = _contents(path)
    if not files:
        raise UserError(f"{path} holds no files; set data.path to the folder that holds the images")
    if root.resolve().is_relative_to(path.resolve()):
        raise UserError(f"{path} holds this project itself; set data.path to a folder that holds only images")
    _require_dvc(root)
    inside = path.resolve().is_relative_to(root.resolve())
    target = path.resolve().relative_to(root.resolve()) if inside else _mirror(path, root, files, rejected)
    if inside and rejected:
        named = "; ".join(f"{entry.source}: {entry.detail}" for entry in rejected[:3])
        raise UserError(
            f"DVC cannot store {len(rejected)} entries of {path} ({named}). Remove them, or keep the folder outside "
            "the project: then a copy without them is tracked"
        )
    _add(_outermost_tracked(target, root), root)
    return target.as_posix()


def _split_pattern(pattern: str) -> tuple[str, str]:
    """``photos/set/{0..9}.tar`` as ``photos/set`` and ``{0..9}.tar``."""
    parts = Path(pattern).expanduser().parts
    fixed = next((n for n, part in enumerate(parts) if GLOB_OR_BRACE.search(part)), len(parts) - 1)
    if not fixed:
        raise UserError(f"data.urls={pattern!r}: put the shards into a folder of their own, so that DVC can track it")
    return str(Path(*parts[:fixed])), "/".join(parts[fixed:])


def _contents(path: Path) -> tuple[dict[str, Path], list[Rejected]]:
    """Files by their relative name, and the entries that DVC cannot store."""
    if path.is_file():
        return {path.name: path}, []
    files, rejected = {}, []
    for entry in list_files(path):
        if isinstance(entry, Rejected):
            rejected.append(entry)
            continue
        name = entry.relative_to(path).as_posix()
        problem = _unstorable(entry, name)
        if problem is None:
            files[name] = entry
        else:
            rejected.append(Rejected(printable(name), "unreadable", problem))
    return files, rejected


def _unstorable(file: Path, name: str) -> str | None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "the name is not UTF-8"
    return None if os.access(file, os.R_OK) else "Permission denied"


def _require_dvc(root: Path) -> None:
    if importlib.util.find_spec("dvc") is None:
        raise UserError("DVC is not installed, so images cannot be versioned; install it with `make setup`")
    if not (root / ".dvc").is_dir():
        raise UserError(f"{root} is no DVC project: run `dvc init` there (without git: `dvc init --no-scm`)")


def _mirror(path: Path, root: Path, files: Mapping[str, Path], rejected: list[Rejected]) -> Path:
    """Make ``data/<name>`` a copy of what lies outside the project; returns it, relative to ``root``."""
    name = _free_name(path, root, files)
    record, copy = root / RECORDS / f"{name}.json", root / "data" / name
    known = _record(record).get("files", {})
    origin = str(path.resolve())
    try:
        write_json(record, {"origin": origin, "files": {}})  # before the copy: from now on the folder is ours
        copy.mkdir(parents=True, exist_ok=True)
        _remove_others(copy, set(files))
        state = {relative: _copied(file, copy / relative, known.get(relative)) for relative, file in files.items()}
        if rejected:
            lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in rejected]
            write_text(copy / LEFT_OUT, "".join(lines))
        write_json(record, {"origin": origin, "files": state})
    except OSError as error:
        problem = f"{error.filename or copy}: {error.strerror}"
        raise UserError(f"cannot copy {path} to {copy}: {problem}; mend that, then run again") from error
    return copy.relative_to(root)


def _free_name(path: Path, root: Path, files: Mapping[str, Path]) -> str:
    """The folder's own name, numbered when that name belongs to something else in ``data/``."""
    own = path.resolve().stem if path.is_file() else path.resolve().name
    stem = re.sub(r"[^\w.-]+", "-", own).strip("-.") or "images"
    number = 1
    while True:
        name = stem if number == 1 else f"{stem}-{number}"
        origin = _record(root / RECORDS / f"{name}.json").get("origin")
        copy = root / "data" / name
        unclaimed = origin is None and not copy.is_symlink() and (not copy.exists() or _same(copy, files))
        if origin == str(path.resolve()) or unclaimed:
            return name
        number += 1


def _record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _same(copy: Path, files: Mapping[str, Path]) -> bool:
    """Whether a folder is a copy that DVC has (in a fresh clone, say), and not something of the user's own."""
    if not copy.with_name(f"{copy.name}.dvc").is_file():
        return False
    there = {file.relative_to(copy).as_posix(): file for file in list_files(copy) if isinstance(file, Path)}
    return there.keys() == files.keys() and all(filecmp.cmp(there[n], files[n], shallow=False) for n in files)


def _copied(source: Path, target: Path, known: list[int] | None) -> list[int]:
    """Make ``target`` a copy unless it is one already; returns the size and time by which that is known."""
    status = source.stat()
    state = [status.st_size, status.st_mtime_ns]
    if state == known and target.is_file() and target.stat().st_size == status.st_size:
        return state
    target.parent.mkdir(parents=True, exist_ok=True)
    # Never in place: with hard links, the file that stands there is the one in DVC's cache.
    temporary = target.with_name(f".{target.name}.partial")  # left over by a kill, the next mirroring removes it
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    return state


def _remove_others(copy: Path, wanted: set[str]) -> None:
    for folder, folders, names in os.walk(copy, topdown=False):
        for name in names:
            path = Path(folder) / name
            if path.relative_to(copy).as_posix() not in wanted:
                path.unlink()
        for name in folders:
            inner = Path(folder) / name
            if not any(inner.iterdir()):
                inner.rmdir()


def _outermost_tracked(target: Path, root: Path) -> Path:
    """The folder above ``target`` that DVC has already, because it cannot track a part of it apart; or ``target``."""
    for folder in reversed(target.parents[:-1]):
        if (root / f"{folder}.dvc").is_file():
            return folder
    return target


def _add(target: Path, root: Path) -> None:
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "add", target.as_posix()]
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        print(f"{target} is under DVC; keep its version with `git add {target}.dvc`", flush=True)
        return
    said = " ".join(done.stderr.split()).removeprefix("ERROR: ")
    if "tracked by SCM" in said:  # then git has the files, and DVC still hashes them as a dependency
        print(f"{target} is under git, so it is not put under DVC a second time", flush=True)
        return
    raise UserError(f"DVC cannot track {target}: {said[:600]}")
