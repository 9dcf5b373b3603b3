"""The scene detector as a judge of sample folders."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from reca.evaluation import geneval_rules
from reca.evaluation.benchmark import Judge
from reca.evaluation.judges.scene_detector import WEIGHTS, Detection, SceneDetector
from reca.evaluation.samples import Pixels, UnreadableSample, group_by_size, read_image, to_tensor
from reca.runtime.errors import UserError
from reca.runtime.hashing import file_digest

FOLDER = Path("data/bases/scene_detector")
"""The shipped detector's folder, relative to the project folder."""


class SceneJudge:
    """The scene detector, loaded once, with its identity.

    Args:
        folder: Folder with the detector's weights and ``card.json``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def identity(self) -> Judge:
        """Return name, digest of the weights and held-out accuracy.

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
        """Return the detections in each file of a sample folder; ``None`` for an unreadable file."""
        pixels: list[Pixels | None] = []
        for name in files:
            try:
                pixels.append(read_image(folder, {"file": name}))
            except UnreadableSample:
                pixels.append(None)
        results: list[list[Detection] | None] = [None] * len(files)
        for indices in group_by_size(pixels):
            images = to_tensor([image for index in indices if (image := pixels[index]) is not None])
            for index, detections in zip(indices, self._detector.detect(images), strict=True):
                results[index] = detections
        return results


def confident(detections: Sequence[Detection]) -> list[Detection]:
    """Return the detections above GenEval's threshold, grouped by class."""
    return [detection for group in geneval_rules.select(detections, "scene").values() for detection in group]


def describe(detection: Detection) -> dict[str, Any]:
    """Return a detection as JSON data for reports."""
    box = [round(value, 2) for value in detection.box]
    return {"name": detection.name, "color": detection.color, "box": box, "score": round(detection.score, 4)}
