"""``dvc.lock``: the stages that DVC recorded, and a check of their parameters.

DVC records the parameters that it reads *after* a stage has run, so a ``params.yaml`` that is edited during a run puts
new values next to a result of the old ones. Stages therefore write the parameters that they used to ``result.json``.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from reca.config import yaml_io
from reca.runtime.errors import UserError

LOCK = "dvc.lock"
RESULT = "result.json"


def read_lock(root: Path) -> dict[str, Any]:
    """Return the ``stages`` of ``dvc.lock``; empty if there is no file.

    DVC keeps the records of stages that ``dvc.yaml`` no longer has; they are left out.

    Raises:
        UserError: The file is not in DVC's format.
    """
    path = root / LOCK
    return _read_stages(path, path.stat().st_mtime_ns) if path.is_file() else {}


@lru_cache(maxsize=2)  # parsing takes 0.15 s, and a run asks for each of its 30 stages
def _read_stages(path: Path, _modified: int) -> dict[str, Any]:
    try:
        content = yaml_io.load(path)
        stages: dict[str, Any] = content["stages"]
        graph = path.with_name("dvc.yaml")
        if graph.is_file():
            names = yaml_io.load(graph)["stages"]
            stages = {name: record for name, record in stages.items() if name.partition("@")[0] in names}
        recorded_hashes(stages)
    except (yaml_io.YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise UserError(
            f"{path} is broken ({problem}); restore it (`git checkout -- {LOCK}`), or delete it and run "
            "`reca run`, which restores cached outputs"
        ) from None
    return stages


def recorded_hashes(stages: Mapping[str, Any]) -> dict[str, str]:
    """Return path -> MD5 of the dependencies and outputs of all stages."""
    entries = [entry for stage in stages.values() for kind in ("deps", "outs") for entry in stage.get(kind, [])]
    return {entry["path"]: entry["md5"] for entry in entries if "md5" in entry}


def parameter_differences(root: Path, stage: str, params: Mapping[str, Any] | None = None) -> list[str]:
    """Compare the parameters of a stage in ``dvc.lock`` with those in its ``result.json`` and with a run's.

    Sections that ``result.json`` does not have are skipped.

    Args:
        root: The workspace.
        stage: Name in ``dvc.yaml``.
        params: The parameters of a run, as in ``params.yaml``; ``None``: only compare lock and result.

    Returns:
        One line per parameter; empty if all agree or the stage has never run.
    """
    record = read_lock(root).get(stage, {})
    used = _used_parameters(root, record)
    lines = []
    for key, recorded in (record.get("params", {}).get("params.yaml") or {}).items():
        if params is not None and (difference := _first_difference(key, recorded, _value_at(params, key))):
            name, in_lock, in_run = difference
            lines.append(f"{name}: dvc.lock has {in_lock!r}, this run {in_run!r}")
        elif key.split(".")[0] in used and (difference := _first_difference(key, recorded, _value_at(used, key))):
            name, in_lock, in_result = difference
            lines.append(f"{name}: dvc.lock has {in_lock!r}, but {stage} ran with {in_result!r}")
    return lines


class _Absent:
    def __repr__(self) -> str:
        return "no value"


_ABSENT = _Absent()


def _used_parameters(root: Path, record: Mapping[str, Any]) -> Mapping[str, Any]:
    for out in record.get("outs", []):
        path = root / out["path"] / RESULT
        if path.is_file():
            return json.loads(path.read_text()).get("params", {})
    return {}


def _value_at(values: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return _ABSENT
        values = values[part]
    return values


def _first_difference(key: str, recorded: Any, value: Any) -> tuple[str, Any, Any] | None:
    """Return the first nested key whose values differ, with both values; an absent key equals null."""
    if isinstance(recorded, Mapping) and isinstance(value, Mapping):
        for name in sorted({*recorded, *value}, key=str):
            difference = _first_difference(f"{key}.{name}", recorded.get(name), value.get(name))
            if difference:
                return difference
        return None
    return None if recorded == value else (key, recorded, value)
