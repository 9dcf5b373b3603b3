"""POPE: does an object appear in the image? 3 x 3,000 yes/no questions about photographs of COCO.

Li et al., "POPE" (arXiv 2305.10355). The user provides questions and photographs. The prompt is that of InternVL,
BAGEL and RecA: the question, then the request for a single word on a separate line, unless the question contains it.

Categories are the three ways to choose absent objects; a value is 1 for a right answer, so a category scores POPE's
accuracy and overall is their plain mean. F1, which papers average, is not a mean over questions and is in the details.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, ClassVar

from reca.evaluation.benchmark import ItemScore
from reca.evaluation.benchmarks.pope import rules
from reca.evaluation.question_answering import SHORT_ANSWER, QuestionSet, yes_or_no
from reca.evaluation.samples import Row


class Pope(QuestionSet):
    """POPE's random, popular and adversarial questions."""

    name: ClassVar[str] = "pope"
    counts = rules.QUESTIONS

    def plan_row(self, question: Row) -> Row:
        """Return a question's row; a prompt is an image in a category."""
        category, text = str(question.get("category")), question["question"]
        return {
            "prompt_id": f"{category}/{question['image']}",
            "category": category,
            "question": text if SHORT_ANSWER in text else f"{text}\n{SHORT_ANSWER}",
            "expected": yes_or_no(question, self.name),
            "image": question["image"],
        }

    def is_right(self, row: Row) -> bool | None:
        """Compare the parsed answer; officially every reply other than no is a yes, hence readable."""
        answer = rules.parse(row["answer"], self._settings.scoring)
        return answer == row["expected"] if answer in ("yes", "no") else None

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return POPE's five numbers of every category as well, and the mean of the F1 scores."""
        answers: dict[str, list[tuple[str, str]]] = {}
        for item in items:
            pairs = [(detail["expected"], detail["answer"]) for detail in item.details]
            answers.setdefault(item.category, []).extend(pairs)
        counts = {category: rules.count(rows, self._settings.scoring) for category, rows in answers.items()}
        splits = {
            category: {name: getattr(count, name) for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")}
            for category, count in counts.items()
        }
        f1 = fmean(count.f1 for count in counts.values())
        return {**super().details(items), "splits": splits, "f1": f1}
