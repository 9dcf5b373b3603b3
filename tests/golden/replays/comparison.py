"""Counts of agreement between our scoring code and recorded answers, file by file."""

import gzip
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXACT, MEANS, PUBLISHED, CORRELATIONS = 0.0, 1e-9, 6e-5, 1e-3
"""Tolerances: booleans and lists; means; published means of four decimals; published Spearman with ties."""


class Unusable(ValueError):
    """A file cannot be replayed: it is damaged, or of another form."""


@dataclass
class Tally:
    """Result of comparing a file."""

    file: str
    cases: int = 0
    agreed: int = 0
    first: str = ""
    """The first disagreement."""
    unusable: str = ""
    """Reason why the file, or the rest of the file, could not be replayed."""
    notes: list[str] = field(default_factory=list)
    """Parts that were not compared, with reasons."""
    odd: list[str] = field(default_factory=list)
    """Cases that do not have the expected form."""

    def case(self, name: str, expected: Any, ours: Callable[[], Any], tolerance: float = EXACT) -> None:
        """Compare a case; an exception of our code is a disagreement, unless ``expected`` is ``ERR:<its name>``."""
        self.cases += 1
        try:
            value = ours()
        except Exception as error:
            value = failure = f"ERR:{type(error).__name__}"
            if expected != failure:
                value = f"raised {error!r}"
        if same(expected, value, tolerance):
            self.agreed += 1
        elif not self.first:
            self.first = f"{name}: expected {_short(expected)}, got {_short(value)}"

    def each(self, cases: Iterable[tuple[str, Any]], work: Callable[[str, Any], None]) -> None:
        """Call ``work`` for every named case; a case of another form is recorded and the rest go on."""
        for name, case in cases:
            try:
                work(name, case)
            except Exception as error:  # of any kind: a case of an unknown file may be wrong in any way
                self.odd.append(f"{name}: {type(error).__name__}: {error}")

    def __str__(self) -> str:
        lines = [f"{self.file}: {self.cases} cases, {self.agreed} agreed"]
        if self.first:
            lines.append(f"  first disagreement: {self.first}")
        if self.unusable:
            lines.append(f"  unusable: {self.unusable}")
        return "\n".join([*lines, *(f"  not compared: {note}" for note in self.notes)])


def same(expected: Any, value: Any, tolerance: float = EXACT) -> bool:
    """Compare JSON values, numbers within an absolute tolerance; NaN equals NaN, and true is not a number."""
    if isinstance(expected, bool) or isinstance(value, bool):
        return expected is value
    if isinstance(expected, int | float) and isinstance(value, int | float):
        if math.isnan(expected) or math.isnan(value):
            return math.isnan(expected) and math.isnan(value)
        return expected == value or abs(expected - value) <= tolerance
    if isinstance(expected, dict) and isinstance(value, dict):
        return expected.keys() == value.keys() and all(same(expected[key], value[key], tolerance) for key in expected)
    if isinstance(expected, list | tuple) and isinstance(value, list | tuple):
        return len(expected) == len(value) and all(map(lambda a, b: same(a, b, tolerance), expected, value))
    return bool(type(expected) is type(value) and expected == value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def _plain(raw: bytes) -> bytes:
    return gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw


def read_json(path: Path) -> Any:
    """Read a JSON file, compressed or not.

    Raises:
        Unusable: The file is damaged.
    """
    try:
        return json.loads(_plain(path.read_bytes()))
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise Unusable(f"no readable JSON ({error})") from None


def numbered(cases: Any) -> Iterator[tuple[str, Any]]:
    """Return the cases of a list with distinct names.

    Raises:
        Unusable: The value is not a list.
    """
    if not isinstance(cases, list):
        raise Unusable(f"it should hold a list of cases, not {_short(cases)}")
    return ((f"case {number}", case) for number, case in enumerate(cases))


def read_lines(path: Path) -> list[Any]:
    """Read a JSON Lines file, compressed or not.

    Raises:
        Unusable: The file is damaged.
    """
    try:
        text = _plain(path.read_bytes()).decode()
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise Unusable(f"no readable JSON lines ({error})") from None


class Folder:
    """A folder of recorded answers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tallies: list[Tally] = []
        self.absent: list[str] = []
        """Patterns without a file in this folder."""
        self.known: set[str] = set()

    def has(self, *names: str) -> bool:
        """Return whether all these files exist."""
        return all((self.path / name).is_file() for name in names)

    def replay(self, pattern: str, work: Callable[[Tally, Path], None], needs: tuple[str, ...] = ()) -> None:
        """Replay every file of a pattern whose required files exist."""
        paths = sorted(path for path in self.path.glob(pattern) if path.is_file())
        if not paths:
            self.absent.append(pattern)
        for path in paths:
            name = path.relative_to(self.path).as_posix()
            self.known |= {name, *needs}
            tally = Tally(name)
            self.tallies.append(tally)
            if absent := [need for need in needs if not self.has(need)]:
                tally.notes.append(f"it needs {', '.join(absent)}, which this folder lacks")
                continue
            try:
                work(tally, path)
            except Exception as error:  # of any kind: an unknown file may be wrong in any way
                kind = "" if isinstance(error, Unusable) else f"not of the expected form: {type(error).__name__}: "
                tally.unusable = f"{kind}{error}"
            if tally.odd and not tally.unusable:
                tally.unusable = f"{len(tally.odd)} cases are not of the expected form, the first: {tally.odd[0]}"
            if not (tally.cases or tally.unusable or tally.notes):
                tally.notes.append("it holds no case")

    def supports(self, *patterns: str) -> None:
        """Register patterns of files that other files use and that are not replayed themselves."""
        self.known |= {path.relative_to(self.path).as_posix() for glob in patterns for path in self.path.glob(glob)}

    def unknown(self) -> list[str]:
        """Return the files that no replay reads."""
        files = (path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file())
        return sorted(name for name in files if name not in self.known and not name.endswith(".md"))
