"""The scene detector as a judge: loaded once, asked about the files of a sample folder."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from reca.evaluation.benchmark import Judge
from reca.evaluation.judges.scene_detector import WEIGHTS, Detection, SceneDetector
from reca.evaluation.samples import Pixels, UnreadableSample, group_by_size, read_image, to_tensor
from reca.runtime.errors import UserError
from reca.runtime.hashing import file_digest

FOLDER = Path("data/bases/scene_detector")
"""Where the shipped detector lies, from the project folder."""


class SceneJudge:
    """Detections of samples, and who made them.

    Args:
        folder: Weights and ``card.json`` of the detector.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def identity(self) -> Judge:
        """Name, digest of the weights and held-out accuracy.

        Raises:
            UserError: Weights or card are missing, or the card describes other weights.
        """
        weights, card_file = self._folder / WEIGHTS, self._folder / "card.json"
        for path in (weights, card_file):
            if not path.is_file():
                raise UserError(f"{path} is missing; restore it with `git checkout -- {FOLDER}`")
        card, digest = json.loads(card_file.read_text()), file_digest(weights)
        if card["sha256"] != digest:
            raise UserError(f"{card_file} describes other weights; restore both with `git checkout -- {FOLDER}`")
        return Judge(name="scene_detector", version=digest[:16], accuracy=card["accuracy"])

    @cached_property
    def _detector(self) -> SceneDetector:
        try:
            return SceneDetector.load(self._folder)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(str(error)) from None

    def detect(self, folder: Path, files: Sequence[str]) -> list[list[Detection] | None]:
        """What stands in each file of a sample folder; ``None`` for a file that is no image."""
        pixels: list[Pixels | None] = []
        for name in files:
            try:
                pixels.append(read_image(folder, {"file": name}))
            except UnreadableSample:
                pixels.append(None)
        found: list[list[Detection] | None] = [None] * len(files)
        for numbers in group_by_size(pixels):
            images = to_tensor([image for number in numbers if (image := pixels[number]) is not None])
            for number, detections in zip(numbers, self._detector.detect(images), strict=True):
                found[number] = detections
        return found


def describe(detection: Detection) -> dict[str, Any]:
    """A detection for people and reports."""
    box = [round(value, 2) for value in detection.box]
    return {"name": detection.name, "color": detection.color, "box": box, "score": round(detection.score, 4)}
