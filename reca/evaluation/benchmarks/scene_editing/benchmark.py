"""Edits of rendered scenes, for families that edit: is the instruction carried out, and is the rest as it was?

One shape gets another colour or another place, is taken out, or is put in. The scene detector looks at the result, and
an edit is right when it was made and every other shape is where it was
(:mod:`reca.evaluation.benchmarks.scene_editing.rules`). A category is a kind of edit; the overall score is the plain
mean of the four. The two halves of the verdict stand in the details by themselves. The background is not looked at.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Self

from reca.config import Config
from reca.config.evaluate import SceneEditingSettings
from reca.data.synthetic.scenes import render, sample_scene
from reca.evaluation import geneval_rules as geneval
from reca.evaluation.benchmark import Benchmark, ItemScore, Judge, items_by_prompt
from reca.evaluation.benchmarks.scene_editing import rules
from reca.evaluation.benchmarks.scene_editing.prompts import CATEGORIES, sample_edits
from reca.evaluation.judges.scene_judge import FOLDER, SceneJudge, describe
from reca.evaluation.samples import Row, edit_samples, read_image
from reca.runtime.seeding import derive_seed

if TYPE_CHECKING:
    from reca.evaluation.judges.scene_detector import Detection
    from reca.models.base import Sampling, UnifiedModel


class SceneEditing(Benchmark):
    """Editing of rendered scenes.

    Args:
        settings: How many edits, and the seed that chooses scenes and edits.
        judge_folder: Where the scene detector lies.
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
        """The scene detector."""
        return self._judge.identity

    @cached_property
    def _base(self) -> int:
        return derive_seed("benchmark", self.name, self.seed)  # 63 bits: no seed of training data comes near

    def plan(self) -> list[Row]:
        """One row per edit; the scene before it is saved beside the result."""
        rows: list[Row] = []
        for category in CATEGORIES:
            for number, (scene, wanted) in enumerate(sample_edits(self._base, category, self._edits_per_category)):
                prompt_id = f"{category}-{number:03d}"
                rows.append(
                    {
                        "prompt_id": prompt_id,
                        "category": category,
                        "prompt": wanted.instruction,
                        "index": 0,
                        "seed": derive_seed(self.name, self.seed, prompt_id),
                        "scene": scene,
                        "metadata": wanted.metadata(),
                        "file": f"{prompt_id}.png",
                        "original": f"{prompt_id}_original.png",
                    }
                )
        return rows

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Edit each row's scene, rendered at the size that the model draws."""
        scenes = [sample_scene(self._base, row["scene"]) for row in rows]
        return edit_samples(model, rows, list(render(scenes, model.spec.generation_size)), sampling, folder)

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """1 where the edit was made and nothing else, else 0."""
        found = self._judge.detect(folder, [row["file"] for row in rows])
        judged = [_judge_image(row, folder, seen) for row, seen in zip(rows, found, strict=True)]
        return items_by_prompt(rows, [value for value, _ in judged], [detail for _, detail in judged])

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Share of edits that were made, and of images whose other shapes were kept, by category."""
        shares: dict[str, dict[str, float]] = {"done": {}, "kept": {}}
        for category in CATEGORIES:
            seen = [d for item in items if item.category == category for d in item.details if "done" in d]
            for name, found in shares.items():
                found |= {category: fmean(detail[name] for detail in seen)} if seen else {}
        return shares


def _judge_image(
    row: Row, folder: Path, detections: "Sequence[Detection] | None"
) -> tuple[float | None, dict[str, Any]]:
    """1 or 0 and what was seen; ``None`` where there was nothing to look at."""
    if detections is None:
        return None, {"seen": [], "reasons": ["the file is no image"]}
    kept = [detection for found in geneval.select(detections, "scene").values() for detection in found]
    height, width = read_image(folder, row).shape[:2]
    verdict = rules.evaluate_edit(row["metadata"], kept, width, height)
    reasons = [] if verdict.done else ["the edit was not made"]
    reasons += [] if verdict.kept else ["other shapes changed"]
    detail = {"done": verdict.done, "kept": verdict.kept, "seen": [describe(one) for one in kept], "reasons": reasons}
    return float(verdict.done and verdict.kept), detail
