"""Watching a run: curves on disk that survive a resume, and the two alarms."""

import csv
import math
import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from reca.runtime.errors import UserError

TRAIN_COLUMNS = (
    "step",
    "loss",
    "loss_reconstruction",
    "loss_text_to_image",
    "loss_understanding",
    "learning_rate",
    "grad_norm",
    "images_per_second",
)
HELD_OUT_COLUMNS = ("step", "reconstruction_loss", "text_to_image_loss")

SPIKE_FACTOR = 10.0
"""A loss so many times the running median is no bad batch any more: in the paper's settings losses move by percents."""
SPIKE_WINDOW = 50
"""Steps that the running median looks back."""
SPIKE_AFTER = 20
"""Steps before the median means anything."""

COPY_RECONSTRUCTION = 0.2
"""Reconstruction below this share of where it began …"""
COPY_TEXT_TO_IMAGE = 1.02
"""… while text-to-image is above this share of where it began: the model copies its condition (method notes, §0)."""


class Diverged(UserError):
    """The loss is not finite, or has jumped."""


class Curve:
    """A CSV file with one row a step, appended to as the run goes.

    Args:
        path: Where; created with its header when it is not there.
        columns: Names of the columns; the first is ``step``.
        done: Steps that the run resumes after: later rows, and a last line cut off by a kill, are dropped.
    """

    def __init__(self, path: Path, columns: Sequence[str], done: int) -> None:
        self._path, self._columns = path, columns
        kept = [row for row in read_curve(path, columns) if int(row["step"]) <= done] if done else []
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        os.replace(temporary, path)
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")

    def add(self, row: Mapping[str, float | None]) -> None:
        """Append a row; ``None`` leaves a cell empty."""
        values = {column: row.get(column) for column in self._columns}
        self._writer.writerow({column: "" if value is None else f"{value:.8g}" for column, value in values.items()})
        self._file.flush()

    def sync(self) -> None:
        """Flush to disk, so that a checkpoint never knows more steps than its curves."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_curve(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The whole rows of a curve; none when there is no such file."""
    if not path.is_file():
        return []
    text = path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = list(csv.DictReader(lines))
    return [row for row in rows if tuple(row) == tuple(columns) and None not in row.values()]


class SpikeGuard:
    """Stops a run whose loss is not finite or jumps.

    Args:
        losses: The losses so far, when a run is resumed.
    """

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self._losses: deque[float] = deque(losses, maxlen=SPIKE_WINDOW)

    def check(self, step: int, loss: float, grad_norm: float) -> None:
        """Look at a step before the optimizer applies it.

        Raises:
            Diverged: NaN, infinity, or more than ``SPIKE_FACTOR`` times the running median.
        """
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise Diverged(f"step {step}: the loss is {loss} and the gradient norm {grad_norm}")
        if len(self._losses) >= SPIKE_AFTER and loss > SPIKE_FACTOR * (usual := median(self._losses)):
            raise Diverged(
                f"step {step}: the loss is {loss:.4g}, {loss / usual:.0f} times the median of the last "
                f"{len(self._losses)} steps"
            )
        self._losses.append(loss)


def copy_alarm(rows: Sequence[Mapping[str, float | None]]) -> str | None:
    """A warning when held-out reconstruction falls towards 0 while held-out text-to-image rises.

    Args:
        rows: The rows of ``held_out.csv`` so far; the first is the base model.
    """
    if len(rows) < 2:
        return None
    first, last = rows[0], rows[-1]
    began, now = first["reconstruction_loss"], last["reconstruction_loss"]
    text_began, text_now = first["text_to_image_loss"], last["text_to_image_loss"]
    if not began or now is None or not text_began or text_now is None:
        return None
    if now < COPY_RECONSTRUCTION * began and text_now > COPY_TEXT_TO_IMAGE * text_began:
        return (
            f"WARNING copy alarm: held-out reconstruction fell from {began:.4g} to {now:.4g} while text-to-image rose "
            f"from {text_began:.4g} to {text_now:.4g}: the model seems to copy its condition instead of reading it. "
            "Give the understanding encoder a smaller image, or train.mixture.text_to_image more weight"
        )
    return None
