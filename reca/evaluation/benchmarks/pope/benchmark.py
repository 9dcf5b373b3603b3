"""POPE: does an object appear in the image? 3 x 3,000 yes/no questions about photographs of COCO.

Li et al., "POPE" (arXiv 2305.10355). Questions and photographs are brought by the user. Asked as InternVL, BAGEL and
RecA do: the question, then the wish for a single word on a line of its own, unless the question holds it already.

Categories are the three ways to choose absent objects; a value is 1 for a right answer, so a category scores POPE's
accuracy and overall is their plain mean. F1, which papers average, is no mean over questions: it stands in the details.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, ClassVar

from reca.evaluation.benchmark import ItemScore
from reca.evaluation.benchmarks.pope import rules
from reca.evaluation.question_answering import QuestionSet, yes_or_no
from reca.evaluation.questions import SHORT_ANSWER
from reca.evaluation.samples import Row


class Pope(QuestionSet):
    """POPE's random, popular and adversarial questions."""

    name: ClassVar[str] = "pope"
    counts = rules.QUESTIONS

    def entry(self, question: Row) -> Row:
        """The questions that a category asks about one image make a prompt."""
        category, text = str(question.get("category")), question["question"]
        return {
            "prompt_id": f"{category}/{question['image']}",
            "category": category,
            "question": text if SHORT_ANSWER in text else f"{text}\n{SHORT_ANSWER}",
            "expected": yes_or_no(question, self.name),
            "image": question["image"],
        }

    def verdict(self, row: Row) -> bool | None:
        """Officially whatever is not no is yes, so every reply can be read."""
        said = rules.parse(row["answer"], self._settings.scoring)
        return said == row["expected"] if said in ("yes", "no") else None

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """POPE's five numbers of every category as well, and the mean of its F1."""
        answers: dict[str, list[tuple[str, str]]] = {}
        for item in items:
            said = [(detail["expected"], detail["answer"]) for detail in item.details]
            answers.setdefault(item.category, []).extend(said)
        counts = {category: rules.count(rows, self._settings.scoring) for category, rows in answers.items()}
        splits = {
            category: {name: getattr(count, name) for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")}
            for category, count in counts.items()
        }
        f1 = fmean(count.f1 for count in counts.values())
        return {**super().details(items), "splits": splits, "f1": f1}
