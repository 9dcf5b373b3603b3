"""Did every stage run with the parameters that its record in ``dvc.lock`` names?

DVC records the parameters that it finds after a stage has run. Whoever edits ``params.yaml`` meanwhile gets a
model made with the old values under the name of the new ones, in the lock file and in the cache (facts/mlops.md
§3.3). Stages therefore leave the parameters they used in ``result.json``; here both are held against the run's.
"""

import json
from pathlib import Path
from typing import Any

RESULT = "result.json"
ABSENT = "(not there)"


def disagreements(root: Path, stage: str, config: dict[str, Any]) -> list[str]:
    """What a stage's record or its output says otherwise than the configuration of this run.

    Args:
        root: The workspace.
        stage: Name in ``dvc.yaml``.
        config: The composed configuration, as plain containers.

    Returns:
        One line per parameter; empty if all agree, or the stage has never run.
    """
    record = _lock(root).get(stage, {})
    used = _used(root, record)
    lines = []
    for key, recorded in record.get("params", {}).get("params.yaml", {}).items():
        wanted = _at(config, key)
        if recorded != wanted:
            lines.append(f"{key}: dvc.lock says {recorded!r}, this run {wanted!r}")
        elif key.split(".")[0] in used and _at(used, key) != wanted:
            lines.append(f"{key}: {stage} ran with {_at(used, key)!r}, dvc.lock says {recorded!r}")
    return lines


def _lock(root: Path) -> dict[str, Any]:
    from dvc.utils.serialize import load_yaml  # YAML 1.2, as DVC writes it: PyYAML takes 1e-05 for a string

    path = root / "dvc.lock"
    content = load_yaml(str(path)) if path.is_file() else None
    return (content or {}).get("stages", {})


def _used(root: Path, record: dict[str, Any]) -> dict[str, Any]:
    for out in record.get("outs", []):
        path = root / out["path"] / RESULT
        if path.is_file():
            return json.loads(path.read_text())["params"]
    return {}


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return ABSENT
        values = values[part]
    return values
