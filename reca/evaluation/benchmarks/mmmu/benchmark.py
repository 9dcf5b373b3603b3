"""MMMU's validation split: 900 questions of college exams in 30 subjects, 847 of multiple choice.

Yue et al., "MMMU" (arXiv 2311.16502). The user provides questions and images. The prompt is that of InternVL, BAGEL
and RecA: the question, the options on separate lines, then how to answer.

Two things differ from the original, so a score is always a variant: of several images the first is used, and an
unreadable letter is wrong instead of drawn at random. Categories are the subjects, 30 questions each, so overall, their
plain mean, is the accuracy over questions.
"""

from collections.abc import Sequence
from statistics import fmean
from string import ascii_uppercase
from typing import Any, ClassVar

from reca.evaluation.benchmark import ItemScore
from reca.evaluation.benchmarks.mmmu import rules
from reca.evaluation.question_answering import LETTER, SHORT_ANSWER, QuestionSet, parse_list
from reca.evaluation.samples import Row
from reca.runtime.errors import UserError


class Mmmu(QuestionSet):
    """MMMU's validation split."""

    name: ClassVar[str] = "mmmu"
    counts = rules.QUESTIONS

    def differences(self) -> Sequence[str]:
        """Return the differences in padding, images and letters."""
        return *super().differences(), "of several images the first", "unreadable letters wrong, not drawn"

    def plan_row(self, question: Row) -> Row:
        """Return a question as its own prompt; its id contains the subject: ``validation_Art_Theory_3``."""
        name = str(question.get("id"))
        options = dict(
            zip(ascii_uppercase, (text.strip() for text in parse_list(question.get("options"))), strict=False)
        )
        lines = [question["question"].strip(), *(f"{letter}. {text}" for letter, text in options.items())]
        answers = parse_list(question["answer"])
        if not answers or (options and answers[0] not in options):
            raise UserError(f"the answer to MMMU's question {name}, {question['answer']!r}, is none of its options")
        return {
            "prompt_id": name,
            "category": name.removeprefix("validation_").rpartition("_")[0],
            "question": "\n".join([*lines, LETTER if options else SHORT_ANSWER]),
            "expected": answers[0] if options else answers,
            "options": options,
            "image": question["image"],
        }

    def is_right(self, row: Row) -> bool | None:
        """Compare the chosen letter, or search the reply for one of the short answers."""
        options = row["options"]
        if not options:
            return rules.open_is_right(row["expected"], row["answer"])
        letter = rules.parse_choice(row["answer"], list(options), options, self._settings.scoring)
        return None if letter is None else letter == row["expected"]

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return the accuracy by form of question as well."""
        forms: dict[str, list[float]] = {}
        for item in items:
            for value, detail in zip(item.values, item.details, strict=True):
                form = "multiple_choice" if isinstance(detail["expected"], str) else "short_answer"
                forms.setdefault(form, []).append(value or 0.0)
        return {**super().details(items), **{form: fmean(values) for form, values in forms.items()}}
