"""Edits of rendered scenes: is the instruction followed, and is the rest unchanged?

The instruction changes the colour or position of a shape, removes a shape, or adds one. The scene detector finds the
shapes in the result, and an edit is correct if it was made and every other shape is where it was
(:mod:`reca.evaluation.benchmarks.scene_editing.rules`). A category is a kind of edit; the overall score is the plain
mean of the four. The details have both conditions separately. The background does not count.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Self

from reca.config import Config
from reca.config.evaluate import SceneEditingSettings
from reca.data.synthetic.scenes import render, sample_scene
from reca.evaluation.benchmark import Benchmark, ItemScore, Judge, items_by_prompt
from reca.evaluation.benchmarks.scene_editing import rules
from reca.evaluation.benchmarks.scene_editing.prompts import CATEGORIES, sample_edits
from reca.evaluation.judges.scene_judge import FOLDER, SceneJudge, confident, describe
from reca.evaluation.samples import Row, edit_samples, read_image
from reca.runtime.seeding import derive_seed

if TYPE_CHECKING:
    from reca.evaluation.judges.scene_detector import Detection
    from reca.models.base import UnifiedModel
    from reca.models.sampling import Sampling


class SceneEditing(Benchmark):
    """Editing of rendered scenes.

    Args:
        settings: Number of edits, and the seed of scenes and edits.
        judge_folder: The scene detector's folder.
    """

    name: ClassVar[str] = "scene_editing"
    protocol = "variant: edits of rendered scenes, judged by a scene detector"

    def __init__(self, settings: SceneEditingSettings, judge_folder: Path) -> None:
        self.seed, self._edits_per_category = settings.seed, settings.edits_per_category
        self._judge = SceneJudge(judge_folder)

    @classmethod
    def from_config(cls, config: Config, root: Path) -> Self:
        """Set up from ``evaluate.scene_editing``."""
        settings = config.evaluate.scene_editing
        return cls(settings or SceneEditingSettings(), root / FOLDER)

    @property
    def judge(self) -> Judge:
        """Return the scene detector's identity."""
        return self._judge.identity

    @cached_property
    def _base(self) -> int:
        return derive_seed("benchmark", self.name, self.seed)  # 63 bits: far from any seed of training data

    def plan(self) -> list[Row]:
        """Return one row per edit; the original scene is saved next to the result."""
        rows: list[Row] = []
        for category in CATEGORIES:
            for number, (scene, scene_edit) in enumerate(sample_edits(self._base, category, self._edits_per_category)):
                prompt_id = f"{category}-{number:03d}"
                rows.append(
                    {
                        "prompt_id": prompt_id,
                        "category": category,
                        "prompt": scene_edit.instruction,
                        "index": 0,
                        "seed": derive_seed(self.name, self.seed, prompt_id),
                        "scene": scene,
                        "metadata": scene_edit.metadata(),
                        "file": f"{prompt_id}.png",
                        "original": f"{prompt_id}_original.png",
                    }
                )
        return rows

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Edit each row's scene, rendered at the model's generation size."""
        scenes = [sample_scene(self._base, row["scene"]) for row in rows]
        return edit_samples(model, rows, list(render(scenes, model.spec.generation_size)), sampling, folder)

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """Score every image: 1 if the edit was made and the other shapes are unchanged, else 0."""
        detections = self._judge.detect(folder, [row["file"] for row in rows])
        judged = [_judge_image(row, folder, shapes) for row, shapes in zip(rows, detections, strict=True)]
        return items_by_prompt(rows, [value for value, _ in judged], [detail for _, detail in judged])

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return by category the shares of edits made, and of images whose other shapes are unchanged."""
        shares: dict[str, dict[str, float]] = {"done": {}, "kept": {}}
        for category in CATEGORIES:
            details = [d for item in items if item.category == category for d in item.details if "done" in d]
            for name, share in shares.items():
                if details:
                    share[category] = fmean(detail[name] for detail in details)
        return shares


def _judge_image(
    row: Row, folder: Path, detections: "Sequence[Detection] | None"
) -> tuple[float | None, dict[str, Any]]:
    """Return 1 or 0 and the detections; ``None`` for an unreadable image."""
    if detections is None:
        return None, {"seen": [], "reasons": ["the file is no image"]}
    shapes = confident(detections)
    height, width = read_image(folder, row).shape[:2]
    result = rules.evaluate_edit(row["metadata"], shapes, width, height)
    reasons = [] if result.done else ["the edit was not made"]
    reasons += [] if result.kept else ["other shapes changed"]
    detail = {"done": result.done, "kept": result.kept, "seen": [describe(s) for s in shapes], "reasons": reasons}
    return float(result.done and result.kept), detail
