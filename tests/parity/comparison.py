"""Our numbers beside the official code's, key by key.

A fixture folder holds ``config.json``, weights under their official names, ``inputs.safetensors`` and
``outputs.safetensors``. A family's module here replays the inputs and offers what it has computed; this file compares.
Whatever key the folder has and nobody offers is said to be not compared, with a reason; nothing passes in silence.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from reca.config.model import ModelSection
from reca.runtime.seeding import SampleRng

LOSS, EMBEDDING, THROUGH_VAE, GRADIENT_NORM = 1e-5, 1e-5, 2e-5, 1e-4
"""Relative tolerances of the issue; tokens and codes are compared exactly (tolerance 0)."""

Verdict = Literal["ok", "differs", "not compared"]


@dataclass(frozen=True)
class Row:
    """What became of one key of ``outputs.safetensors``."""

    key: str
    verdict: Verdict
    error: float | None = None
    tolerance: float | None = None
    why: str = ""

    def __str__(self) -> str:
        error = "-" if self.error is None else f"{self.error:.2e}"
        tolerance = "-" if self.tolerance is None else f"{self.tolerance:.0e}"
        return f"{self.key:<72} {error:>9} {tolerance:>7}  {self.verdict}{': ' + self.why if self.why else ''}"


def options_of(family: str, **changes: Any) -> dict[str, Any]:
    """The configuration's defaults for a family, as its model takes them, with some of them changed."""
    values = {"name": "parity", "family": family, "checkpoint": "unused", "prompt_dropout": 0.0}
    section = TypeAdapter(ModelSection).validate_python(values)
    return {**section.load_options(Path()), **changes}


class Recording:
    """A fixture folder's inputs and outputs, and the rows of the comparison.

    Raises:
        FileNotFoundError: The folder lacks ``inputs.safetensors`` or ``outputs.safetensors``.
    """

    def __init__(self, folder: Path) -> None:
        for name in ("config.json", "inputs.safetensors", "outputs.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing: {folder} is no parity folder")
        self.folder = folder
        self.inputs: Mapping[str, Tensor] = load_file(folder / "inputs.safetensors")
        self.outputs: Mapping[str, Tensor] = load_file(folder / "outputs.safetensors")
        self._rows: dict[str, Row] = {}

    def check(self, key: str, ours: Tensor | float, tolerance: float) -> None:
        """Compare one value; a key that was not recorded is passed over.

        The error is max |ours - theirs| / max |theirs|; integers and booleans must be equal.
        """
        if key not in self.outputs:
            return
        theirs = self.outputs[key]
        mine = torch.as_tensor(ours).detach().cpu()
        if mine.shape != theirs.shape:
            why = f"shape {tuple(mine.shape)}, recorded {tuple(theirs.shape)}"
            self._rows[key] = Row(key, "differs", None, tolerance, why)
            return
        error = relative_error(mine, theirs)
        self._rows[key] = Row(key, "ok" if error <= tolerance else "differs", error, tolerance)

    def check_gradients(
        self, prefix: str, named: Iterable[tuple[str, Tensor]], tolerance: float = GRADIENT_NORM
    ) -> None:
        """Compare ``<prefix><parameter>`` with the norm of each parameter's gradient (none counts as 0).

        Very small norms are compared on the scale of the largest one, where rounding lives.
        """
        recorded = {key: value for key, value in self.outputs.items() if key.startswith(prefix)}
        floor = 1e-4 * max((float(value.abs()) for value in recorded.values()), default=0.0)
        ours = {f"{prefix}{name}": parameter.grad for name, parameter in named}
        for key, theirs in recorded.items():
            if key not in ours:
                self._rows[key] = Row(key, "differs", None, tolerance, "we have no such parameter")
                continue
            gradient = ours[key]
            norm = 0.0 if gradient is None else float(gradient.norm())
            error = abs(norm - float(theirs)) / max(float(theirs.abs()), floor, 1e-12)
            self._rows[key] = Row(key, "ok" if error <= tolerance else "differs", error, tolerance)

    def skip(self, prefix: str, why: str) -> None:
        """Say why the keys that start with ``prefix`` are not compared, unless they have been."""
        for key in self.outputs:
            if key.startswith(prefix):
                self._rows.setdefault(key, Row(key, "not compared", why=why))

    def part(self, name: str, needs: Iterable[str], run: Callable[[], None], covers: Iterable[str]) -> None:
        """Run one part of a replay if the folder has what it needs.

        Args:
            name: For the reader, in the reason why nothing was compared.
            needs: Input keys without which the part cannot be replayed.
            run: Computes and calls :meth:`check`.
            covers: Prefixes of the output keys that this part is about; the part is left out if none was recorded.
        """
        covers = tuple(covers)
        if not any(key.startswith(covers) for key in self.outputs):
            return
        missing = [key for key in needs if key not in self.inputs]
        if missing:
            for prefix in covers:
                self.skip(prefix, f"{name} needs {', '.join(missing)}, which inputs.safetensors lacks")
            return
        try:
            run()
        except Exception as error:  # a folder of another kind must not hide what the other parts have to say
            reason = " ".join(f"{name} failed with {type(error).__name__}: {error}".split())
            for key in self.outputs:
                if key.startswith(covers):
                    self._rows.setdefault(key, Row(key, "differs", why=reason[:300]))

    def rows(self) -> list[Row]:
        """One row per recorded key, in the file's order."""
        unknown = "this replay knows no such key"
        return [self._rows.get(key, Row(key, "not compared", why=unknown)) for key in sorted(self.outputs)]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / max |theirs|; for integers and booleans 0 if equal, else the share that differs."""
    if not theirs.is_floating_point():
        return float((ours != theirs).float().mean()) if theirs.numel() else 0.0
    difference = (ours.double() - theirs.double()).abs().max() if theirs.numel() else torch.tensor(0.0)
    if not torch.isfinite(difference):
        return float("inf")
    return float(difference / theirs.double().abs().max().clamp(min=1e-30)) if theirs.numel() else 0.0


class RecordedRng(SampleRng):
    """Gives back the draws that the official code made, by the name of the draw.

    Args:
        draws: Name of a draw -> tensor, or a list of tensors when the draw is made several times; used in order.
        size: Samples in the batch.

    Raises:
        KeyError: The model asks for a draw that was not recorded.
    """

    def __init__(self, draws: Mapping[str, Tensor | list[Tensor]], size: int) -> None:
        super().__init__([0] * size)
        self._draws = {name: list(value) if isinstance(value, list) else [value] for name, value in draws.items()}

    def _next(self, name: str) -> Tensor:
        if not self._draws.get(name):
            raise KeyError(f"the model drew {name!r} more often than the recording holds; it has {sorted(self._draws)}")
        return self._draws[name].pop(0)

    def normal(self, name: str, shape: Iterable[int] = ()) -> Tensor:
        """A recorded draw."""
        return self._next(name)

    def normals(self, name: str, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """A recorded draw."""
        return list(self._next(name))

    def uniform(self, name: str, shape: Iterable[int] = ()) -> Tensor:
        """A recorded draw."""
        return self._next(name)

    def permutation(self, name: str, length: int) -> Tensor:
        """A recorded draw."""
        return self._next(name)

    def categorical(self, name: str, logits: Tensor) -> Tensor:
        """A recorded draw."""
        return self._next(name)
