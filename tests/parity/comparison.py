"""Comparison of our numbers with the official code's, key by key.

A fixture folder holds ``config.json``, weights under their official names, ``inputs.safetensors`` and
``outputs.safetensors``. A family's module here replays the inputs and passes its results to :class:`Recording`.

``config.json`` may have, beside the sizes of the networks:

    runs           {run: arguments of the official call}, for runs such as "t2i", "edit_b", "freeze_und", "gen_linear":
                   guidance, steps, seed, "samples" (rows of the inputs) and so on, under the official or our names
    gen            the arguments of "gen"
    records        {key or prefix: how a tensor was stored}: {"area": [h, w]} (averaged to a smaller size),
                   {"bits": shape} (booleans, eight in a byte), {"samples": rows}
    not_compared   {key or prefix: why}

An argument that is not there is that of the first recordings, which stand in the families' modules. A key that cannot
be compared is a failure, unless ``not_compared`` says why or the replay reads it as an input.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from reca.config.model import ModelSection
from reca.runtime.seeding import SampleRng

LOSS, EMBEDDING, THROUGH_VAE, GRADIENT_NORM = 1e-5, 1e-5, 2e-5, 1e-4
"""Relative tolerances; tokens and codes must be equal (tolerance 0).

At least five times the largest errors of the committed recordings, with and without vector instructions: 1.6e-6 for
losses and embeddings (27 unit roundoffs of float32), 3.6e-6 through a VAE. Gradient norms (1.8e-6) and samples of
several steps (7.6e-7; 1e-4 in the families' modules) have more room, because larger networks can be replayed too.
"""

Verdict = Literal["ok", "differs", "not compared", "excused", "input"]
FAILURES = ("differs", "not compared")

ALIASES = {
    "guidance_scale": ("cfg_text_scale", "text_scale", "cfg_scale", "cfg_weight", "cfg", "guidance"),
    "image_guidance_scale": ("cfg_img_scale", "cfg_image_scale", "img_scale", "image_scale"),
    "num_steps": ("num_inference_steps", "num_iter", "num_iters", "generation_timesteps", "steps", "timesteps"),
    "num_points": ("num_timesteps",),
    "shift": ("timestep_shift", "sampling_shift"),
    "guidance_interval": ("cfg_interval", "interval"),
    "guidance_renorm": ("cfg_renorm_type", "renorm_type", "cfg_renorm", "renorm"),
    "guidance_renorm_min": ("cfg_renorm_min", "renorm_min"),
    "guidance_schedule": ("cfg_schedule", "schedule"),
    "temperature": ("temp",),
    "seed": ("generator_seed", "manual_seed", "torch_seed"),
    "samples": ("sample", "rows", "row", "select", "selection", "indices", "index", "image"),
    "drop_text": ("dropped", "text_dropped", "drop_prompt"),
    "freeze_und": ("freeze_understanding",),
}
"""Our name of an argument -> names in official calls."""
_FORMS = {
    "area": ("area_resized", "resized", "downsampled"),
    "bits": ("bit_packed", "bitpacked", "packed", "packbits"),
    "samples": ("selected", "rows"),
}
_FORM_NAMES = {alias: name for name, aliases in _FORMS.items() for alias in (name, *aliases)}
_CANONICAL = {alias: name for name, aliases in ALIASES.items() for alias in (name, *aliases)}


@dataclass(frozen=True)
class Row:
    """Result of comparing a key of ``outputs.safetensors``."""

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
    """Return the default options of a family with some values changed."""
    values = {"name": "parity", "family": family, "checkpoint": "unused", "prompt_dropout": 0.0}
    section = TypeAdapter(ModelSection).validate_python(values)
    return {**section.load_options(Path()), **changes}


class Recording:
    """Inputs and outputs of a fixture folder, and the results of the comparison.

    Raises:
        FileNotFoundError: The folder lacks ``inputs.safetensors`` or ``outputs.safetensors``.
    """

    def __init__(self, folder: Path) -> None:
        for name in ("config.json", "inputs.safetensors", "outputs.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing: {folder} is not a parity folder")
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.inputs: Mapping[str, Tensor] = {
            key: self._unpacked(key, value) for key, value in load_file(folder / "inputs.safetensors").items()
        }
        self.outputs: Mapping[str, Tensor] = {
            key: self._unpacked(key, value) for key, value in load_file(folder / "outputs.safetensors").items()
        }
        self._rows: dict[str, Row] = {}
        for prefix, why in self.config.get("not_compared", {}).items():
            self.skip(prefix, str(why), "excused")

    def arguments(self, run: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a run under our names: ``defaults``, those of its kind, then its own.

        The kind of "t2i_b" is "t2i". A group of arguments inside a run counts as part of it.
        """
        runs, kind = _by_name(self.config.get("runs", {})), run.split("_")[0]
        sources = [self.config.get(kind), self.config.get(run), runs.get(kind), runs.get(run)]
        values = dict(defaults)
        for source in sources:
            if isinstance(source, Mapping):
                values |= _canonical(source)
                values |= _canonical(source.get(run, {})) if isinstance(source.get(run), Mapping) else {}
        if "num_points" in values:  # points of time, between which the steps are
            values["num_steps"] = int(values.pop("num_points")) - 1
        return values

    def runs(self, kind: str) -> list[str]:
        """Return the recorded runs of a kind: "gen" and "gen_linear" of "gen"."""
        names = {key.split(".")[0] for key in self.outputs}
        return sorted(name for name in names if name == kind or name.startswith(f"{kind}_"))

    def input(self, run: str, name: str) -> Tensor | None:
        """Return an input of a run, or of its kind."""
        return self.inputs.get(f"{run}.{name}", self.inputs.get(f"{run.split('_')[0]}.{name}"))

    def _record(self, key: str) -> dict[str, Any]:
        """Return how a tensor was stored: by ``records``, or by an entry of ``config.json`` named after the form."""
        form: dict[str, Any] = {}
        for prefix, entry in self.config.get("records", {}).items():
            if key.startswith(prefix):
                form |= entry if isinstance(entry, Mapping) else {str(entry): True}
        for name in _FORM_NAMES.keys() & self.config.keys():
            keys = self.config[name]
            for prefix in keys if isinstance(keys, Mapping | list) else ():
                if isinstance(prefix, str) and key.startswith(prefix):
                    form[name] = keys[prefix] if isinstance(keys, Mapping) else True
        return {_FORM_NAMES.get(name, name): value for name, value in form.items()}

    def _unpacked(self, key: str, value: Tensor) -> Tensor:
        shape = self._record(key).get("bits")
        if not isinstance(shape, list | tuple):
            return value
        bits = (value.flatten()[:, None] >> torch.arange(7, -1, -1)) & 1  # the first bit is the highest, as numpy's
        return bits.flatten()[: math.prod(shape)].reshape(tuple(shape)).bool()

    def _as_recorded(self, key: str, ours: Tensor) -> Tensor:
        """Select, shrink or pack our value as the recorded one was."""
        record, recorded = self._record(key), self.outputs[key]
        if (rows := record.get("samples")) is not None:
            ours = ours[[rows] if isinstance(rows, int) else list(rows)]
        if (size := record.get("area")) and ours.shape != recorded.shape:
            size = recorded.shape[-2:] if size is True else size
            ours = F.interpolate(ours.float(), size=tuple(size) if isinstance(size, Sequence) else size, mode="area")
        if record.get("bits") is True:
            axis = -1 if ours.ndim == recorded.ndim else None
            ours = torch.from_numpy(np.packbits(ours.numpy().astype(bool), axis=axis))
        return ours

    def check(self, key: str, ours: Tensor | float, tolerance: float) -> None:
        """Compare a value; a key that was not recorded is ignored.

        The error is max |ours - theirs| / max |theirs|; integers and booleans must be equal.
        """
        if key not in self.outputs:
            return
        official = self.outputs[key]
        value = self._as_recorded(key, torch.as_tensor(ours).detach().cpu())
        if value.shape != official.shape:
            why = f"shape {tuple(value.shape)}, recorded {tuple(official.shape)}"
            self._rows[key] = Row(key, "differs", None, tolerance, why)
            return
        error = relative_error(value, official)
        self._rows[key] = Row(key, "ok" if error <= tolerance else "differs", error, tolerance)

    def check_gradients(
        self, prefix: str, named: Iterable[tuple[str, Tensor]], tolerance: float = GRADIENT_NORM
    ) -> None:
        """Compare ``<prefix><parameter>`` with the gradient norm of the parameter (0 without a gradient).

        Very small norms are compared relative to the largest norm, which sets the scale of rounding.
        """
        recorded = {key: value for key, value in self.outputs.items() if key.startswith(prefix)}
        floor = 1e-4 * max((float(value.abs()) for value in recorded.values()), default=0.0)
        ours = {f"{prefix}{name}": parameter.grad for name, parameter in named}
        for key, official in recorded.items():
            if key not in ours:
                self._rows[key] = Row(key, "differs", None, tolerance, "we have no such parameter")
                continue
            gradient = ours[key]
            norm = 0.0 if gradient is None else float(gradient.norm())
            error = abs(norm - float(official)) / max(float(official.abs()), floor, 1e-12)
            self._rows[key] = Row(key, "ok" if error <= tolerance else "differs", error, tolerance)

    def skip(self, prefix: str, why: str, verdict: Verdict = "not compared") -> None:
        """Mark keys that start with ``prefix``, except those that have a verdict."""
        for key in self.outputs:
            if key.startswith(prefix):
                self._rows.setdefault(key, Row(key, verdict, why=why))

    def part(self, name: str, needs: Iterable[str], run: Callable[[], None], covers: Iterable[str]) -> None:
        """Run a part of a replay if the folder has its inputs.

        Args:
            name: Name of the part in reasons.
            needs: Input keys that the part requires.
            run: Computes the results and calls :meth:`check`.
            covers: Prefixes of the part's output keys; without any of these the part is skipped.
        """
        covers = tuple(covers)
        if not any(key.startswith(covers) for key in self.outputs):
            return
        absent = [key for key in needs if key not in self.inputs]
        if absent:
            for prefix in covers:
                self.skip(prefix, f"{name} needs {', '.join(absent)}, which inputs.safetensors lacks")
            return
        try:
            run()
        except Exception as error:  # a failing part must not hide the results of the others
            reason = " ".join(f"{name} failed with {type(error).__name__}: {error}".split())
            for key in self.outputs:
                if key.startswith(covers):
                    self._rows.setdefault(key, Row(key, "differs", why=reason[:300]))

    def rows(self) -> list[Row]:
        """Return a row per recorded key, sorted by key."""
        unknown = "this replay knows no such key"
        return [self._rows.get(key, Row(key, "not compared", why=unknown)) for key in sorted(self.outputs)]


def _by_name(runs: Any) -> Mapping[str, Any]:
    """Runs by name, from a mapping or from a list of entries that have one."""
    return runs if isinstance(runs, Mapping) else {str(entry.get("name")): entry for entry in runs}


def _canonical(source: Mapping[str, Any]) -> dict[str, Any]:
    groups = [
        source,
        *(source[name] for name in ("args", "arguments", "sampling") if isinstance(source.get(name), Mapping)),
    ]
    return {_CANONICAL[key]: value for group in groups for key, value in group.items() if key in _CANONICAL}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Return max |ours - theirs| / max |theirs|; for integers and booleans the share of different values."""
    if not theirs.is_floating_point():
        return float((ours != theirs).float().mean()) if theirs.numel() else 0.0
    difference = (ours.double() - theirs.double()).abs().max() if theirs.numel() else torch.tensor(0.0)
    if not torch.isfinite(difference):
        return float("inf")
    return float(difference / theirs.double().abs().max().clamp(min=1e-30)) if theirs.numel() else 0.0


class RecordedRng(SampleRng):
    """Returns the draws of the official code, by name.

    Args:
        draws: Tensor per draw, or a list of tensors for repeated draws, in order.
        size: Samples in the batch.

    Raises:
        KeyError: The model makes a draw that was not recorded.
    """

    def __init__(self, draws: Mapping[str, Tensor | list[Tensor]], size: int) -> None:
        super().__init__([0] * size)
        self._draws = {name: list(value) if isinstance(value, list) else [value] for name, value in draws.items()}

    def _next(self, name: str) -> Tensor:
        if not self._draws.get(name):
            raise KeyError(f"the model drew {name!r} more often than the recording holds; it has {sorted(self._draws)}")
        return self._draws[name].pop(0)

    def normal(self, name: str, shape: Iterable[int] = ()) -> Tensor:
        """Return a recorded draw."""
        return self._next(name)

    def normals(self, name: str, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return a recorded draw."""
        return list(self._next(name))

    def uniform(self, name: str, shape: Iterable[int] = ()) -> Tensor:
        """Return a recorded draw."""
        return self._next(name)

    def permutation(self, name: str, length: int) -> Tensor:
        """Return a recorded draw."""
        return self._next(name)

    def categorical(self, name: str, logits: Tensor) -> Tensor:
        """Return a recorded draw."""
        return self._next(name)
