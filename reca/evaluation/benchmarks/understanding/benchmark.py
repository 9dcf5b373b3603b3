"""Visual question answering on rendered scenes that no training data contains.

Every scene has one question of each kind that applies to it. An answer is correct if it equals the expected word
or words, case and outer spaces aside. An answer outside the closed vocabulary of its kind is wrong and counted as
unparsable. A category is a kind of question; the overall score is the plain mean of the kinds.
"""

import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from reca.config import Config, ScenesData, UnderstandingSettings
from reca.data.synthetic.scenes import COLORS, NUMBERS, RELATIONS, SHAPES, Scene, questions, render, sample_scene
from reca.evaluation.benchmark import Benchmark, ItemScore, Judge
from reca.evaluation.samples import Row

if TYPE_CHECKING:
    from reca.models.base import UnifiedModel
    from reca.models.sampling import Sampling

SCENE_SIZE = 24
"""Side in pixels of the rendered scenes if the training data are not scenes."""
VOCABULARY = {
    "color": frozenset(COLORS),
    "count": frozenset(NUMBERS),
    "relation": frozenset(RELATIONS),
    "shape": frozenset(SHAPES),
    "existence": frozenset({"yes", "no"}),
}


class Understanding(Benchmark):
    """Question answering about held-out scenes.

    Args:
        settings: Number of scenes, and their seed.
        image_size: Side of the rendered scenes in pixels.
    """

    name: ClassVar[str] = "understanding"
    protocol = "variant: exact match on questions about rendered scenes"
    judge = Judge(name="exact_match", version="1")

    def __init__(self, settings: UnderstandingSettings, image_size: int) -> None:
        self.seed = settings.seed
        self._num_images, self._image_size = settings.num_images, image_size

    @classmethod
    def from_config(cls, config: Config, root: Path) -> Self:
        """Set up from ``evaluate.understanding``; scenes have the size of the data's, if these are scenes."""
        size = config.data.image_size if isinstance(config.data, ScenesData) else SCENE_SIZE
        return cls(config.evaluate.understanding, size)

    @cached_property
    def _scenes(self) -> list[Scene]:
        from reca.runtime.seeding import derive_seed

        base = derive_seed("benchmark", self.name, self.seed)  # 63 bits: far from any seed of training data
        return [sample_scene(base, index) for index in range(self._num_images)]

    def plan(self) -> list[Row]:
        """Return one row per scene and question."""
        return [
            {
                "prompt_id": f"{number:04d}-{question.kind}",
                "category": question.kind,
                "index": 0,
                "scene": number,
                "image_size": self._image_size,
                "question": question.text,
                "expected": question.answer,
            }
            for number, scene in enumerate(self._scenes)
            for question in questions(scene, random.Random(f"{self.name}-questions-{self.seed}-{number}"))
        ]

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Answer each row's question greedily; ``sampling`` and seeds have no influence."""
        from PIL import Image

        from reca.data.images import square_tensor

        pixels = render([self._scenes[row["scene"]] for row in rows], self._image_size)
        images = square_tensor([Image.fromarray(image) for image in pixels], model.spec.understanding_size)
        device = next(model.parameters()).device
        answers = model.answer(images.to(device), [row["question"] for row in rows])
        return [{**row, "answer": answer} for row, answer in zip(rows, answers, strict=True)]

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """Score every answer: 1 for an exact match, else 0."""
        return [_score_answer(row) for row in rows]

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return the number of answers outside the vocabulary of their question."""
        return {"unparsable": sum(not detail["parsable"] for item in items for detail in item.details)}


def _score_answer(row: Row) -> ItemScore:
    answer = " ".join(row["answer"].lower().split())
    detail = {
        "question": row["question"],
        "expected": row["expected"],
        "answer": row["answer"],
        "parsable": answer in VOCABULARY[row["category"]],
    }
    return ItemScore(row["prompt_id"], row["category"], (float(answer == row["expected"]),), details=(detail,))
