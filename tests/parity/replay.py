"""Replay a recording of the official code through our model: ``python -m tests.parity.replay FAMILY FOLDER``.

Prints one line per key of the folder's ``outputs.safetensors``: the key, the maximum relative error, the tolerance,
and whether it is ok, differs, or was not compared and why. Arguments of the recorded calls are read from the folder's
``config.json`` (:mod:`tests.parity.comparison`). Exit status 1 if a key differs, or cannot be compared and is not
excused there; 2 if the folder is unusable.

``--device cuda`` computes on a GPU without TF32; tolerances are ten times as wide there, because the order of
sums differs. Tokens and codes must still be equal.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import get_args
from unittest import mock

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from reca.models.base import UnifiedModel
from reca.models.loading import FAMILIES
from tests.parity.comparison import FAILURES, GRADIENT_NORM, RecordedRng, Recording, Row, Verdict

CPU = torch.device("cpu")
DEVICE_TOLERANCE_FACTOR = 10.0
"""Factor of the tolerances on another device than the recording's."""
ON_CPU_ONLY = {"showo": ("gen.", "the official sampler drew from a CPU's generator by torch.multinomial")}
"""Family -> prefix of the keys that can be replayed on a CPU only, and the reason."""
MASKED_BY_DRAWS = ("showo",)
"""Families whose replay masks codes by recorded draws, so that both must be on one device."""


class DeviceRecording(Recording):
    """A recording on another device than the CPU; results are compared on the CPU."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        super().__init__(folder)
        self._recorded = self.outputs
        self.inputs, self.outputs = (
            {key: value.to(device) for key, value in tensors.items()} for tensors in (self.inputs, self.outputs)
        )

    def check(self, key: str, ours: Tensor | float, tolerance: float) -> None:
        """See :meth:`Recording.check`."""
        on_device, self.outputs = self.outputs, self._recorded
        try:
            super().check(key, ours, DEVICE_TOLERANCE_FACTOR * tolerance)
        finally:
            self.outputs = on_device

    def check_gradients(
        self, prefix: str, named: Iterable[tuple[str, Tensor]], tolerance: float = GRADIENT_NORM
    ) -> None:
        """See :meth:`Recording.check_gradients`."""
        super().check_gradients(prefix, named, DEVICE_TOLERANCE_FACTOR * tolerance)


@contextmanager
def moving_models(device: torch.device, draws: torch.device) -> Iterator[None]:
    """Move every model to ``device`` and recorded draws to ``draws``."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    next_draw = RecordedRng._next

    def eval_on_device(model: UnifiedModel) -> UnifiedModel:
        return nn.Module.eval(model).to(device)

    try:
        for backend in backends:
            backend.allow_tf32 = False
        with (
            mock.patch.object(UnifiedModel, "eval", eval_on_device),  # the last call of every build()
            mock.patch.object(RecordedRng, "_next", lambda rng, name: next_draw(rng, name).to(draws)),
        ):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def replay(family: str, folder: Path, device: torch.device = CPU) -> list[Row]:
    """Compare a folder and return a row per recorded key."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    run = import_module(f"tests.parity.{family}").replay
    if device == CPU:
        recording = Recording(folder)
        run(recording)
        return recording.rows()
    recording = DeviceRecording(folder, device)
    if family in ON_CPU_ONLY:
        recording.skip(*ON_CPU_ONLY[family], "excused")
    # SampleRng draws on the CPU for all devices.
    with moving_models(device, draws=device if family in MASKED_BY_DRAWS else CPU):
        run(recording)
    return recording.rows()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", type=torch.device, default=CPU, help="where ours is computed; default: cpu")
    options = parser.parse_args(arguments)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        print("replay: torch finds no GPU here", file=sys.stderr)
        return 2
    try:
        rows = replay(options.family, options.folder, options.device)
    except (OSError, ValueError, SafetensorError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    for row in rows:
        print(row)
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in get_args(Verdict)}
    print(", ".join(f"{number} {verdict}" for verdict, number in counts.items()))
    return int(any(counts[verdict] for verdict in FAILURES))


if __name__ == "__main__":
    sys.exit(main())
