"""GenEval's six categories over rendered scenes: the agreement of an image with its prompt.

The prompts have GenEval's form, the scene detector takes the place of Mask2Former and CLIP, and GenEval's own
rules decide (:mod:`reca.evaluation.geneval_rules`). A category's score is the share of correct images,
and the overall score is the plain mean of the six.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from reca.config import Config, ScenesSettings
from reca.data.synthetic.scenes import benchmark_prompts
from reca.evaluation import geneval_rules as geneval
from reca.evaluation.benchmark import Benchmark, ItemScore, Judge, items_by_prompt
from reca.evaluation.judges.scene_judge import FOLDER, SceneJudge, describe
from reca.evaluation.samples import Row, draw_samples
from reca.runtime.seeding import derive_seed

if TYPE_CHECKING:
    from reca.evaluation.judges.scene_detector import Detection
    from reca.models.base import UnifiedModel
    from reca.models.sampling import Sampling


class Scenes(Benchmark):
    """GenEval over rendered scenes.

    Args:
        settings: Numbers of prompts and images, and the seed of the prompts.
        judge_folder: The scene detector's folder.
    """

    name: ClassVar[str] = "scenes"
    protocol = "variant: GenEval's rules and options on rendered scenes, judged by a scene detector"

    def __init__(self, settings: ScenesSettings, judge_folder: Path) -> None:
        self.images_per_prompt, self.seed = settings.images_per_prompt, settings.seed
        self._prompts_per_category = settings.prompts_per_category
        self._judge = SceneJudge(judge_folder)

    @classmethod
    def from_config(cls, config: Config, root: Path) -> Self:
        """Set up from ``evaluate.scenes``."""
        return cls(config.evaluate.scenes, root / FOLDER)

    @property
    def judge(self) -> Judge:
        """Return the scene detector's identity."""
        return self._judge.identity

    def plan(self) -> list[Row]:
        """Return one row per prompt and image; its seed depends on prompt set, prompt and the image's index."""
        rows: list[Row] = []
        for number, entry in enumerate(benchmark_prompts(self.seed, self._prompts_per_category)):
            prompt_id = f"{entry['tag']}-{number % self._prompts_per_category:03d}"
            rows.extend(
                {
                    "prompt_id": prompt_id,
                    "category": entry["tag"],
                    "prompt": entry["prompt"],
                    "index": index,
                    "seed": derive_seed(self.name, self.seed, prompt_id, index),
                    "metadata": entry,
                    "file": f"{prompt_id}_{index}.png",
                }
                for index in range(self.images_per_prompt)
            )
        return rows

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Generate one image per row."""
        return draw_samples(model, rows, sampling, folder)

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """Score every image by GenEval's rules: 1 if all clauses of its prompt hold, else 0."""
        detections = self._judge.detect(folder, [row["file"] for row in rows])
        judged = [judge_image(objects, row["metadata"]) for row, objects in zip(rows, detections, strict=True)]
        return items_by_prompt(rows, [value for value, _ in judged], [detail for _, detail in judged])

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return the shares of correct images, and of prompts with at least one correct image."""
        results = [(i.category, i.prompt_id, value == 1) for i in items for value in i.values if value is not None]
        summary = geneval.summarise(results)
        return {"correct_images": summary.images, "correct_prompts": summary.prompts}


def judge_image(detections: "Sequence[Detection] | None", metadata: Row) -> tuple[float | None, dict[str, Any]]:
    """Return 1 or 0 and the detections; ``None`` for an unreadable image."""
    if detections is None:
        return None, {"seen": [], "reasons": ["the file is no image"]}
    objects = geneval.select(detections, metadata["tag"])
    result = geneval.evaluate_image(objects, metadata, lambda group, _: [detection.color for detection in group])
    detail = [describe(detection) for group in objects.values() for detection in group]
    return float(result.correct), {"seen": detail, "reasons": list(result.reasons)}
