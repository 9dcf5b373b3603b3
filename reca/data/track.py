"""DVC tracking of the user's own images before a run, so that their hash is part of every lineage."""

import filecmp
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reca.config import CollagesData, Config, FolderData, HubData, WebDatasetData
from reca.data.sources.base import Rejected, printable
from reca.data.sources.folder import LEFT_OUT, list_files
from reca.data.synthetic.collages import PACKAGE_FOLDER, require_folder
from reca.runtime.errors import UserError
from reca.runtime.files import write_json, write_text
from reca.runtime.workspace import DVC, run_tool

GLOB_OR_BRACE = re.compile(r"[*?\[{]")
RECORDS = ".dvc/tmp/reca"
"""Records of the folder that each copy was made from; DVC keeps this folder out of git."""


def prepare(config: Config, root: Path) -> Config:
    """Track the images of a configuration with DVC; return the configuration with their tracked path.

    Rendered scenes, URLs and hub ids need no tracking, because DVC depends on the configuration that defines them. The
    folder of the Debian package of cut-outs is a dependency in place: the package manager can restore it.

    Raises:
        UserError: As :func:`track`; or the package of cut-outs is not installed.
    """
    data = config.data
    if isinstance(data, CollagesData):
        require_folder(root / Path(data.path).expanduser())
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
    """Track a folder (or one file) with DVC; a repeated call compares only every file's time and size.

    A path inside the project is added in place. A path outside is first mirrored to ``data/<name>``, where new,
    changed and deleted files follow the original. Entries that DVC cannot store (broken links, pipes, names that are
    not UTF-8) are listed in the copy, and so reach the quarantine.

    Returns:
        The tracked path, relative to ``root``.

    Raises:
        UserError: There is no file to track, no DVC or git, or DVC refuses; the message says what to do.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; set data.path (or data.urls, data.dataset) to the path of the images")
    files, rejected = _contents(path)
    if not files:
        raise UserError(f"{path} has no files; set data.path to the folder of the images")
    if root.resolve().is_relative_to(path.resolve()):
        raise UserError(f"{path} contains this project itself; set data.path to a folder with only images")
    _require_dvc(root)
    inside = path.resolve().is_relative_to(root.resolve())
    target = path.resolve().relative_to(root.resolve()) if inside else _mirror(path, root, files, rejected)
    if inside and rejected:
        examples = "; ".join(f"{entry.source}: {entry.detail}" for entry in rejected[:3])
        raise UserError(
            f"DVC cannot store {len(rejected)} entries of {path} ({examples}). Remove them, or move the folder out of "
            "the project: then a copy without them is tracked"
        )
    _add(_outermost_tracked(target, root), root)
    return target.as_posix()


def _split_pattern(pattern: str) -> tuple[str, str]:
    """Split ``photos/set/{0..9}.tar`` into ``photos/set`` and ``{0..9}.tar``."""
    parts = Path(pattern).expanduser().parts
    fixed = next((n for n, part in enumerate(parts) if GLOB_OR_BRACE.search(part)), len(parts) - 1)
    if not fixed:
        raise UserError(f"data.urls={pattern!r}: put the shards into a separate folder, so that DVC can track it")
    return str(Path(*parts[:fixed])), "/".join(parts[fixed:])


def _contents(path: Path) -> tuple[dict[str, Path], list[Rejected]]:
    """Return files by their relative name, and the entries that DVC cannot store."""
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
        raise UserError(f"{root} is not a DVC project: run `dvc init` there (without git: `dvc init --no-scm`)")


def _mirror(path: Path, root: Path, files: Mapping[str, Path], rejected: list[Rejected]) -> Path:
    """Mirror a path outside the project to ``data/<name>``; return that, relative to ``root``."""
    name = _free_name(path, root, files)
    record, copy = root / RECORDS / f"{name}.json", root / "data" / name
    recorded = _record(record).get("files", {})
    origin = str(path.resolve())
    try:
        write_json(record, {"origin": origin, "files": {}})  # before the copy: claims the folder
        copy.mkdir(parents=True, exist_ok=True)
        _remove_others(copy, set(files))
        state = {
            relative: _copy_if_changed(file, copy / relative, recorded.get(relative))
            for relative, file in files.items()
        }
        if rejected:
            lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in rejected]
            write_text(copy / LEFT_OUT, "".join(lines))
        write_json(record, {"origin": origin, "files": state})
    except OSError as error:
        problem = f"{error.filename or copy}: {error.strerror}"
        raise UserError(f"cannot copy {path} to {copy}: {problem}; fix that, then run again") from error
    return copy.relative_to(root)


def _free_name(path: Path, root: Path, files: Mapping[str, Path]) -> str:
    """Return the folder's name, numbered if another folder in ``data/`` has that name."""
    original = path.resolve().stem if path.is_file() else path.resolve().name
    stem = re.sub(r"[^\w.-]+", "-", original).strip("-.") or "images"
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
    """Return whether a folder is an equal copy that DVC tracks (as in a fresh clone), not the user's own folder."""
    if not copy.with_name(f"{copy.name}.dvc").is_file():
        return False
    copies = {file.relative_to(copy).as_posix(): file for file in list_files(copy) if isinstance(file, Path)}
    return copies.keys() == files.keys() and all(filecmp.cmp(copies[n], files[n], shallow=False) for n in files)


def _copy_if_changed(source: Path, target: Path, recorded: list[int] | None) -> list[int]:
    """Copy ``source`` unless its size and time are those recorded for ``target``; return them."""
    status = source.stat()
    state = [status.st_size, status.st_mtime_ns]
    if state == recorded and target.is_file() and target.stat().st_size == status.st_size:
        return state
    target.parent.mkdir(parents=True, exist_ok=True)
    # Never in place: with hard links, the old file is the one in DVC's cache.
    temporary = target.with_name(f".{target.name}.partial")  # the next mirroring removes it after a kill
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    return state


def _remove_others(copy: Path, keep: set[str]) -> None:
    for folder, folders, names in os.walk(copy, topdown=False):
        for name in names:
            path = Path(folder) / name
            if path.relative_to(copy).as_posix() not in keep:
                path.unlink()
        for name in folders:
            inner = Path(folder) / name
            if not any(inner.iterdir()):
                inner.rmdir()


def _outermost_tracked(target: Path, root: Path) -> Path:
    """Return the outermost folder above ``target`` that DVC tracks, since tracked paths cannot nest; or ``target``."""
    for folder in reversed(target.parents[:-1]):
        if (root / f"{folder}.dvc").is_file():
            return folder
    return target


def _add(target: Path, root: Path) -> None:
    try:
        run_tool([*DVC, "--wait-for-lock", "add", target.as_posix()], root)
        print(f"{target} is tracked by DVC; keep its version with `git add {target}.dvc`", flush=True)
    except UserError as error:
        if "tracked by SCM" not in str(error):
            raise UserError(f"DVC cannot track {target}: {error}") from None
        # git has the files, and DVC still hashes them as a dependency
        print(f"{target} is tracked by git, so DVC does not track it too", flush=True)
