"""Rendered scenes of the recipes: which seeds they use, and their images."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reca.data.synthetic.scenes import Scene, render, sample_scene

STUDY_SEED, HELD_OUT_SEED, TOKENIZER_SEED, GALLERY_SEED = 100, 101, 102, 103
"""Seeds of scenes; the detector's are 110 and 111, and no run or benchmark uses any of these."""
IMAGE_SIZE = 24
"""Pixels per side, of all tiny presets."""


def render_stream(seed: int, size: int) -> tuple[list[Scene], Tensor]:
    """Return the first scenes of a seed and their images (N, 3, S, S) uint8."""
    scenes = [sample_scene(seed, index) for index in range(size)]
    return scenes, torch.cat([_render(scenes[start : start + 2000]) for start in range(0, size, 2000)])


def render_backgrounds(scenes: Sequence[Scene]) -> Tensor:
    """Return the scenes' images without shapes: a tokenizer must also decode a model's empty image."""
    return _render([replace(scene, shapes=()) for scene in scenes])


def stream_digest(seed: int, sample: int = 256) -> dict[str, Any]:
    """Return a seed and the hash of its first images, which shows whether the renderer is still the same."""
    _, images = render_stream(seed, sample)
    return {"seed": seed, "first": sample, "sha256": hashlib.sha256(images.numpy().tobytes()).hexdigest()}


def _render(scenes: Sequence[Scene]) -> Tensor:
    return torch.from_numpy(render(scenes, IMAGE_SIZE)).permute(0, 3, 1, 2).contiguous()
