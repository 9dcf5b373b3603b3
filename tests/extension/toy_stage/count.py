"""``count``: count the images whose sides have a minimum length."""

from pathlib import Path

from reca.config import Config
from reca.data.manifest import read_manifest
from reca.stages.result import write_result


def count(config: Config, root: Path) -> None:
    """Write ``outputs/count/result.json``."""
    table = read_manifest(root / "outputs/dataset", ["width", "height"])
    large = [row for row in table.to_pylist() if min(row.values()) >= config.count_.min_side]
    (root / "outputs/count").mkdir(parents=True, exist_ok=True)
    write_result(root / "outputs/count", "count", config, ("count",), images=len(large))
