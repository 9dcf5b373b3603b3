"""MMMU's validation split: 900 questions of college exams in 30 subjects, 847 of multiple choice.

Yue et al., "MMMU" (arXiv 2311.16502). Questions and images are brought by the user. Asked as InternVL, BAGEL and RecA
do: the question, the options on lines of their own, then how to answer.

Two things differ from the original, so a score is always a variant: of several images the first is shown, and a letter
that cannot be read is wrong instead of drawn at random. Categories are the subjects, 30 questions each: overall, their
plain mean, is the accuracy over questions.
"""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any, ClassVar

from reca.evaluation.benchmark import ItemScore
from reca.evaluation.benchmarks.mmmu import rules
from reca.evaluation.question_answering import QuestionSet
from reca.evaluation.questions import LETTER, SHORT_ANSWER, as_list
from reca.evaluation.samples import Row
from reca.runtime.errors import UserError


class Mmmu(QuestionSet):
    """MMMU's validation split."""

    name: ClassVar[str] = "mmmu"
    counts = rules.QUESTIONS

    def differences(self) -> Sequence[str]:
        """Images and letters."""
        return *super().differences(), "of several images the first", "unreadable letters wrong, not drawn"

    def entry(self, question: Row) -> Row:
        """Every question is a prompt; its subject stands in its id: ``validation_Art_Theory_3``."""
        name = str(question.get("id"))
        options = dict(zip(ascii_uppercase, (text.strip() for text in as_list(question.get("options"))), strict=False))
        lines = [question["question"].strip(), *(f"{letter}. {text}" for letter, text in options.items())]
        answers = as_list(question["answer"])
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

    def verdict(self, row: Row) -> bool | None:
        """A letter, or one of the short answers within the reply."""
        options = row["options"]
        if not options:
            return rules.open_is_right(row["expected"], row["answer"])
        said = rules.parse_choice(row["answer"], list(options), options, self._settings.scoring)
        return None if said is None else said == row["expected"]

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Accuracy by form of question as well."""
        forms: dict[str, list[bool | None]] = {}
        for item in items:
            for value, detail in zip(item.values, item.details, strict=True):
                form = "multiple_choice" if isinstance(detail["expected"], str) else "short_answer"
                forms.setdefault(form, []).append(value == 1 if detail["parsable"] else None)
        return {**super().details(items), **{form: rules.summarise(said).accuracy for form, said in forms.items()}}
