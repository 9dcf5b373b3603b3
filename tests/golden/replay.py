"""Replay recorded answers of the official scoring code: ``python -m tests.golden.replay BENCHMARK FOLDER``.

For every file of the folder, prints the number of cases, the number on which our code agrees, the first disagreement,
and the parts that were not compared, with reasons. Any folder of the layout of ``tests/golden/<benchmark>`` works;
files may be missing or contain other cases.

Exit status: 0 if all comparisons agree; 1 if any does not; 2 if the folder or a file in it is unusable, or there is
no case to compare.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from tests.golden.replays.comparison import Folder

BENCHMARKS = ("dpg", "dsg", "gedit", "geneval", "imgedit", "understanding", "viescore", "wise")


def replay(benchmark: str, path: Path) -> Folder:
    """Compare all known files of a folder.

    Raises:
        NotADirectoryError: The folder does not exist.
    """
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is not a folder")
    folder = Folder(path)
    import_module(f"tests.golden.replays.{benchmark}").replay(folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, replay, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        folder = replay(options.benchmark, options.folder)
    except OSError as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    for tally in folder.tallies:
        print(tally)
    for pattern in folder.absent:
        print(f"{pattern}: not in this folder")
    for name in folder.unknown():
        print(f"{name}: not compared: nothing of {options.benchmark} has this name")
    cases, agreed = (sum(getattr(tally, field) for tally in folder.tallies) for field in ("cases", "agreed"))
    print(f"{options.benchmark}: {cases} cases, {agreed} agreed")
    if not cases:
        print(f"replay: nothing to replay for {options.benchmark} in {options.folder}", file=sys.stderr)
    if agreed < cases:
        return 1
    return 2 if not cases or any(tally.unusable for tally in folder.tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
