"""``train.csv`` and ``held_out.csv`` of a run, and what is concluded from them while it runs."""

from collections.abc import Mapping
from pathlib import Path

from reca.runtime.distributed import DistributedContext
from reca.runtime.locks import friendly_io_errors
from reca.training import metrics as monitor
from reca.training.mixture import Kind


class Curves:
    """The two curves; the leading process writes them, all of them know the losses so far.

    Args:
        folder: Where the two files lie.
        done: Steps that the run resumes after.
        distributed: The processes of the run.
    """

    def __init__(self, folder: Path, done: int, distributed: DistributedContext) -> None:
        self._folder = folder
        self._files: tuple[monitor.Curve, monitor.Curve] | None = None
        if distributed.is_main_process:
            with friendly_io_errors(folder, "the training curves"):
                self._files = (
                    monitor.Curve(folder / "train.csv", monitor.TRAIN_COLUMNS, done),
                    monitor.Curve(folder / "held_out.csv", monitor.HELD_OUT_COLUMNS, done),
                )
        distributed.barrier()  # only now are rows beyond ``done`` gone
        losses = [float(row["loss"]) for row in monitor.read_curve(folder / "train.csv", monitor.TRAIN_COLUMNS)]
        self.guard = monitor.SpikeGuard(losses)
        earlier = monitor.read_curve(folder / "held_out.csv", monitor.HELD_OUT_COLUMNS)
        self._measured: list[dict[str, float | None]] = [
            {key: float(value) if value else None for key, value in row.items()} for row in earlier
        ]

    def train(self, row: Mapping[str, float]) -> None:
        """Append a step."""
        if self._files:
            with friendly_io_errors(self._folder, "the training curves"):
                self._files[0].add(row)

    def held_out(self, step: int, losses: Mapping[Kind, float]) -> None:
        """Append held-out losses by kind, say them, and raise the copy alarm if it is due."""
        if not self._files:
            return
        row: dict[str, float | None] = {"step": step}
        row |= {f"{kind}_loss": value for kind, value in losses.items()}
        self._measured.append({column: row.get(column) for column in monitor.HELD_OUT_COLUMNS})
        with friendly_io_errors(self._folder, "the training curves"):
            self._files[1].add(row)
        found = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
        if found:
            print(f"held out, step {step}: {found}", flush=True)
        if warning := monitor.copy_alarm(self._measured):
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
