"""MME: 2,374 yes/no questions in 14 subtasks, two about each of 1,187 images.

Fu et al., "MME" (arXiv 2306.13394). The images are for academic research: brought by the user, never passed on. Asked
as in the script that InternVL, BAGEL and RecA share: the question as it is, then the wish for a single word.

Categories are the subtasks; values are such that their mean is MME's points of the subtask, over 200: the mean of
accuracy over questions and accuracy over images. So overall, the plain mean, is the sum of all points over 2,800.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from reca.evaluation.benchmark import ItemScore
from reca.evaluation.benchmarks.mme import rules
from reca.evaluation.question_answering import QuestionSet, yes_or_no
from reca.evaluation.questions import SHORT_ANSWER
from reca.evaluation.samples import Row
from reca.runtime.errors import UserError


class Mme(QuestionSet):
    """MME's perception and cognition."""

    name: ClassVar[str] = "mme"
    counts = rules.QUESTIONS

    def plan(self) -> list[Row]:
        """As of all question sets; two questions about every image."""
        rows = super().plan()
        if odd := [name for name, asked in Counter(row["prompt_id"] for row in rows).items() if asked != 2]:
            raise UserError(f"MME asks two questions about an image, but not about {len(odd)} here, such as {odd[0]}")
        return rows

    def entry(self, question: Row) -> Row:
        """The questions of one image make a prompt: one ``question_id`` as on the hub, or one file."""
        category = str(question.get("category"))
        return {
            "prompt_id": f"{category}/{question.get('question_id') or question['image']}",
            "category": category,
            "question": f"{question['question']} {SHORT_ANSWER}",
            "expected": yes_or_no(question, self.name),
            "image": question["image"],
        }

    def verdict(self, row: Row) -> bool | None:
        """By the reply's first four characters."""
        said = rules.parse(row["answer"], self._settings.scoring)
        return None if said == "other" else said == row["expected"]

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """A right answer counts half, and another half where all answers about the image are right."""
        return [
            replace(item, values=tuple(((value or 0.0) + all(item.values)) / 2 for value in item.values))
            for item in super().score(rows, folder)
        ]

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """MME's points as well: 0-200 a subtask, perception of 2,000, cognition of 800."""
        rows = [
            rules.Row(item.category, item.prompt_id, detail["expected"], detail["answer"])
            for item in items
            for detail in item.details
        ]
        summary = rules.summarise(rows, self._settings.scoring)
        points = {"subtasks": summary.subtasks, "perception": summary.perception, "cognition": summary.cognition}
        return {**super().details(items), **points}
