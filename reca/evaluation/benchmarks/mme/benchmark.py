"""MME: 2,374 yes/no questions in 14 subtasks, two about each of 1,187 images.

Fu et al., "MME" (arXiv 2306.13394). The images are for academic research: provided by the user, never passed on. The
prompt is that of the script that InternVL, BAGEL and RecA share: the question, then the request for a single word.

Categories are the subtasks; the mean of a subtask's values is its MME points divided by 200: the mean of accuracy over
questions and accuracy over images. So overall, the plain mean, is the sum of all points divided by 2,800.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from reca.evaluation.benchmark import ItemScore
from reca.evaluation.benchmarks.mme import rules
from reca.evaluation.question_answering import SHORT_ANSWER, QuestionSet, yes_or_no
from reca.evaluation.samples import Row
from reca.runtime.errors import UserError


class Mme(QuestionSet):
    """MME's perception and cognition."""

    name: ClassVar[str] = "mme"
    counts = rules.QUESTIONS

    def plan(self) -> list[Row]:
        """Return one row per question, after checking that there are two about every image."""
        rows = super().plan()
        counts = Counter(row["prompt_id"] for row in rows)
        if odd := [prompt_id for prompt_id, count in counts.items() if count != 2]:
            raise UserError(f"MME asks two questions about an image, but not about {len(odd)} here, such as {odd[0]}")
        return rows

    def plan_row(self, question: Row) -> Row:
        """Return a question's row; a prompt is an image: one ``question_id`` as on the hub, or one file."""
        category = str(question.get("category"))
        return {
            "prompt_id": f"{category}/{question.get('question_id') or question['image']}",
            "category": category,
            "question": f"{question['question']} {SHORT_ANSWER}",
            "expected": yes_or_no(question, self.name),
            "image": question["image"],
        }

    def is_right(self, row: Row) -> bool | None:
        """Compare the answer in the reply's first four characters."""
        answer = rules.parse(row["answer"], self._settings.scoring)
        return None if answer == "other" else answer == row["expected"]

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """Score a right answer with 0.5, and with 1 if all answers about the image are right."""
        return [
            replace(item, values=tuple(((value or 0.0) + all(item.values)) / 2 for value in item.values))
            for item in super().score(rows, folder)
        ]

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return MME's points as well: 0-200 a subtask, perception up to 2,000, cognition up to 800."""
        rows = [
            rules.MmeAnswer(item.category, item.prompt_id, detail["expected"], detail["answer"])
            for item in items
            for detail in item.details
        ]
        summary = rules.summarise(rows, self._settings.scoring)
        points = {"subtasks": summary.subtasks, "perception": summary.perception, "cognition": summary.cognition}
        return {**super().details(items), **points}
