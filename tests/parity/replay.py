"""Replay a recording of the official code through our model: ``python -m tests.parity.replay FAMILY FOLDER``.

Prints one line per key of the folder's ``outputs.safetensors``: the key, the maximum relative error, the tolerance,
and whether it is ok, differs, or was not compared and why. Exit status 0 only if nothing differs; 2 if the folder is
unusable.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
from safetensors import SafetensorError

from tests.parity.comparison import Recording, Row

FAMILIES = ("bagel", "harmon", "janus", "openuni", "showo")


def replay(family: str, folder: Path) -> list[Row]:
    """Compare a folder; one row per recorded key."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    recording = Recording(folder)
    import_module(f"tests.parity.{family}").replay(recording)
    return recording.rows()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, replay, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        rows = replay(options.family, options.folder)
    except (OSError, ValueError, SafetensorError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    for row in rows:
        print(row)
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("ok", "differs", "not compared")}
    print(", ".join(f"{number} {verdict}" for verdict, number in counts.items()))
    return int(counts["differs"] > 0)


if __name__ == "__main__":
    sys.exit(main())
