"""What MME, POPE and MMMU have in common: published questions about images, answered by the model, read by a rule.

A prompt is an image with all its questions, which bootstrap draws keep together; its values are 1 for a right answer
and 0 for any other. A reply that the rule cannot read is wrong, as in the originals, and counted in the details. The
whole image is shown, on a mid-grey square of the model's size: questions ask about its edges too. Answers are greedy.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from reca.config import Config
from reca.config.evaluate import QuestionSetSettings
from reca.evaluation import questions
from reca.evaluation.benchmark import ItemScore, Judge
from reca.evaluation.drawing import by_prompt, label, limited
from reca.evaluation.samples import Row
from reca.runtime.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.models.base import Sampling, UnifiedModel

GREY = (127, 127, 127)


class QuestionSet(ABC):
    """A published set of questions about images.

    Args:
        settings: Of the benchmark.
        root: The project folder.
    """

    name: ClassVar[str]
    counts: ClassVar[Mapping[str, int]]
    """Questions that were published, by category."""
    images_per_prompt: int = 1
    seed: int = 0
    """Answers are greedy: nothing is drawn."""

    def __init__(self, settings: QuestionSetSettings, root: Path) -> None:
        self._settings, self._root = settings, root

    @classmethod
    def from_config(cls, config: Config, root: Path) -> Self:
        """Set up from the section of ``evaluate`` that has the benchmark's name."""
        return cls(getattr(config.evaluate, cls.name), root)

    @property
    def protocol(self) -> str:
        """What differs from the original; never ``official``, for how images are shown is the same for all models."""
        rule = self._settings.scoring
        return label(
            [
                *self.differences(),
                limited(self._settings.max_prompts),
                "" if rule == "official" else f"replies read as {rule} does",
            ]
        )

    def differences(self) -> Sequence[str]:
        """What always differs from the original."""
        return ("images padded to grey squares of the model's size",)

    @property
    def judge(self) -> Judge:
        """The rule that reads the replies."""
        return Judge(name=f"{self.name}_{self._settings.scoring}", version="1")

    @cached_property
    def _folder(self) -> Path:
        return questions.folder_of(self._root, self.name)

    def plan(self) -> list[Row]:
        """One row per question, numbered within its prompt.

        Raises:
            UserError: The questions are not there, or are not as many as were published.
        """
        entries = [self.entry(row) for row in questions.read_questions(self._folder)]
        found = Counter(entry["category"] for entry in entries)
        if found != Counter(self.counts):
            raise UserError(
                f"{self._folder} holds {found.total()} questions, {dict(found)}; {self.name} has "
                f"{sum(self.counts.values())}, {dict(self.counts)}"
            )
        prompts: dict[str, dict[str, list[Row]]] = {}
        for entry in entries:
            prompts.setdefault(entry["category"], {}).setdefault(entry["prompt_id"], []).append(entry)
        limit = self._settings.max_prompts
        kept = [asked for category in prompts.values() for asked in list(category.values())[:limit]]
        return [{**entry, "index": index} for asked in kept for index, entry in enumerate(asked)]

    @abstractmethod
    def entry(self, question: Row) -> Row:
        """What is planned of a published question: ``prompt_id``, ``category``, ``question``, ``expected``, ``image``.

        Raises:
            UserError: It is not of this benchmark.
        """

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Ask each row's question; the reply is stored as it comes, in ``answer``."""
        from reca.data.images import square_tensor

        images = square_tensor([self._image(row) for row in rows], model.spec.understanding_size)
        device = next(model.parameters()).device
        answers = model.answer(images.to(device), [row["question"] for row in rows])
        return [{**row, "answer": answer} for row, answer in zip(rows, answers, strict=True)]

    def _image(self, row: Row) -> "Image":
        from reca.data.images import BadImage, decode

        try:
            return on_square(decode((self._folder / row["image"]).read_bytes()))
        except (BadImage, OSError) as error:
            raise UserError(
                f"an image of {self.name}, {self._folder / row['image']}, cannot be read: {error}"
            ) from None

    @abstractmethod
    def verdict(self, row: Row) -> bool | None:
        """Whether a reply is right; ``None`` where the rule cannot read it."""

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """1 for a right answer, else 0."""
        verdicts = [self.verdict(row) for row in rows]
        details = [
            {**{name: row[name] for name in ("question", "expected", "answer")}, "parsable": verdict is not None}
            for row, verdict in zip(rows, verdicts, strict=True)
        ]
        return by_prompt(rows, [float(verdict is True) for verdict in verdicts], details)

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """How many replies could not be read."""
        return {"unparsable": sum(not detail["parsable"] for item in items for detail in item.details)}


def yes_or_no(question: Row, name: str) -> str:
    """The right answer of a question that asks for yes or no.

    Raises:
        UserError: It is another word.
    """
    answer = str(question["answer"]).strip().rstrip(".").lower()
    if answer not in ("yes", "no"):
        raise UserError(f"{name} asks for yes or no, but the answer to {question['question']!r} is {answer!r}")
    return answer


def on_square(image: "Image") -> "Image":
    """The whole image in the middle of the smallest square that holds it."""
    from PIL import ImageOps

    side = max(image.size)
    return ImageOps.pad(image, (side, side), color=GREY)
