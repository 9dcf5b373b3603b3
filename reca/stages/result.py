"""``result.json``, the last file of a stage's output: the parameters of the stage and its measurements."""

import json
from pathlib import Path
from typing import Any

from reca.config import Config
from reca.runtime.files import write_json

RESULT = "result.json"


def write_result(folder: Path, stage: str, config: Config, sections: tuple[str, ...], **facts: Any) -> None:
    """Write ``result.json``, the last file of a stage's output.

    DVC records the parameters that it reads after a stage has run; these are the ones that the stage ran with
    (docs/decisions.md, "the params race"). The flow compares the two before it registers anything.
    """
    values = config.to_dict()
    write_json(folder / RESULT, {"stage": stage, "params": {name: values[name] for name in sections}, **facts})


def read_result(folder: Path) -> dict[str, Any]:
    """Read ``result.json``.

    Raises:
        FileNotFoundError: The stage that writes the folder has not finished.
    """
    path = folder / RESULT
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the stage that writes {folder} has not finished; run it again")
    result: dict[str, Any] = json.loads(path.read_text())
    return result
