"""Monitoring of a run: curves on disk that survive a resume, and the copy alarm."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from reca.runtime.distributed import DistributedContext
from reca.runtime.locks import friendly_io_errors
from reca.training.losses import KINDS, Kind

TRAIN_COLUMNS = ("step", "loss", *(f"loss_{kind}" for kind in KINDS), "learning_rate", "grad_norm", "images_per_second")
HELD_OUT_COLUMNS = ("step", "reconstruction_loss", "text_to_image_loss")

COPY_RECONSTRUCTION = 0.2
"""Reconstruction below this share of its first value …"""
COPY_TEXT_TO_IMAGE = 1.02
"""… while text-to-image is above this share of its first value: the model copies its condition."""


class CurveFile:
    """A CSV file that gets one row per measured step.

    Args:
        path: Created with its header if absent.
        columns: Names of the columns; the first is ``step``.
        last_step: The step after which the run resumes: later rows, and a last line cut off by a kill, are removed.
    """

    def __init__(self, path: Path, columns: Sequence[str], last_step: int) -> None:
        self._columns = columns
        rows = [row for row in read_curve(path, columns) if int(row["step"]) <= last_step] if last_step else []
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, path)
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")

    def add(self, row: Mapping[str, float | None]) -> None:
        """Append a row; ``None`` leaves a cell empty."""
        values = {column: row.get(column) for column in self._columns}
        self._writer.writerow({column: "" if value is None else f"{value:.8g}" for column, value in values.items()})
        self._file.flush()

    def sync(self) -> None:
        """Flush to disk, so that a checkpoint never has more steps than its curves."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_curve(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the complete rows of a curve; none if the file does not exist."""
    if not path.is_file():
        return []
    text = path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = list(csv.DictReader(lines))
    return [row for row in rows if tuple(row) == tuple(columns) and None not in row.values()]


class TrainingCurves:
    """``train.csv`` and ``held_out.csv`` of a run; rank 0 writes them, every rank reads them.

    Args:
        folder: Of both files.
        last_step: The step after which the run resumes.
        distributed: The ranks of the run.
    """

    def __init__(self, folder: Path, last_step: int, distributed: DistributedContext) -> None:
        self._folder = folder
        self._files: tuple[CurveFile, CurveFile] | None = None
        if distributed.is_main_process:
            with friendly_io_errors(folder, "the training curves"):
                self._files = (
                    CurveFile(folder / "train.csv", TRAIN_COLUMNS, last_step),
                    CurveFile(folder / "held_out.csv", HELD_OUT_COLUMNS, last_step),
                )
        distributed.barrier()  # rows beyond ``last_step`` must be gone before any rank reads
        self.losses = [float(row["loss"]) for row in read_curve(folder / "train.csv", TRAIN_COLUMNS)]
        """Losses of the steps before a resume."""
        self._held_out: list[dict[str, float | None]] = [
            {key: float(value) if value else None for key, value in row.items()}
            for row in read_curve(folder / "held_out.csv", HELD_OUT_COLUMNS)
        ]

    def train(self, row: Mapping[str, float]) -> None:
        """Append a step."""
        if self._files:
            with friendly_io_errors(self._folder, "the training curves"):
                self._files[0].add(row)

    def held_out(self, step: int, losses: Mapping[Kind, float]) -> None:
        """Append and print held-out losses, and print the copy alarm if they raise it."""
        if not self._files:
            return
        row: dict[str, float | None] = dict.fromkeys(HELD_OUT_COLUMNS)
        row |= {"step": step, **{f"{kind}_loss": value for kind, value in losses.items()}}
        self._held_out.append(row)
        with friendly_io_errors(self._folder, "the training curves"):
            self._files[1].add(row)
        if losses:
            values = ", ".join(f"{kind}_loss {value:.4g}" for kind, value in losses.items())
            print(f"held out, step {step}: {values}", flush=True)
        if warning := copy_alarm(self._held_out):
            print(warning, flush=True)

    def sync(self) -> None:
        """Flush both files to disk."""
        with friendly_io_errors(self._folder, "the training curves"):
            for file in self._files or ():
                file.sync()

    def close(self) -> None:
        """Close both files."""
        for file in self._files or ():
            file.close()


def copy_alarm(rows: Sequence[Mapping[str, float | None]]) -> str | None:
    """Return a warning when held-out reconstruction falls towards 0 while held-out text-to-image rises.

    Args:
        rows: The rows of ``held_out.csv`` so far; the first is the base model.
    """
    if len(rows) < 2:
        return None
    base, latest = rows[0], rows[-1]
    base_reconstruction, reconstruction = base["reconstruction_loss"], latest["reconstruction_loss"]
    base_text, text = base["text_to_image_loss"], latest["text_to_image_loss"]
    if not base_reconstruction or reconstruction is None or not base_text or text is None:
        return None
    if reconstruction < COPY_RECONSTRUCTION * base_reconstruction and text > COPY_TEXT_TO_IMAGE * base_text:
        return (
            f"WARNING copy alarm: held-out reconstruction fell from {base_reconstruction:.4g} to {reconstruction:.4g} "
            f"while text-to-image rose from {base_text:.4g} to {text:.4g}: the model seems to copy its condition "
            "instead of reading it. Give the understanding encoder a smaller image, or train.mixture.text_to_image "
            "more weight"
        )
    return None
