"""Base class of MME, POPE and MMMU: published questions about images, answered by the model and read by a rule.

The user provides the questions: ``questions.jsonl`` next to its images, or Parquet files. One line of
``questions.jsonl`` is one question: ``question``, ``answer`` and ``image`` (a path below the folder) and, where the
benchmark has them, ``category``, ``options`` (a list), ``id`` and ``question_id``. Parquet files, as on the hub, have
columns of these names and may contain the images themselves (``image`` or ``image_1``); they are converted once into
the form above, below ``unpacked/``, equal images as one file.

A prompt is an image with all its questions, which bootstrap draws keep together; its values are 1 for a right answer
and 0 for any other. A reply that the rule cannot read is wrong, as in the originals, and counted in the details. The
whole image is shown, on a mid-grey square of the model's size, because questions ask about its edges too. Answers are
greedy.
"""

import ast
import hashlib
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from reca.config import Config
from reca.config.evaluate import QuestionSetSettings
from reca.evaluation import prompt_sources as sources
from reca.evaluation.benchmark import (
    Benchmark,
    ItemScore,
    Judge,
    items_by_prompt,
    prompt_limit_difference,
    protocol_label,
)
from reca.evaluation.samples import Row
from reca.runtime.errors import UserError
from reca.runtime.files import atomic_folder, write_text

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.models.base import UnifiedModel
    from reca.models.sampling import Sampling

TABLE = "questions.jsonl"
IMAGE_COLUMNS = ("image", "image_1")
OPTIONAL_COLUMNS = ("category", "options", "id", "question_id")
SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
GREY = (127, 127, 127)


class QuestionSet(Benchmark):
    """A published set of questions about images."""

    counts: ClassVar[Mapping[str, int]]
    """Number of published questions by category."""

    def __init__(self, settings: QuestionSetSettings, root: Path) -> None:
        self._settings, self._root = settings, root

    @classmethod
    def from_config(cls, config: Config, root: Path) -> Self:
        """Create the benchmark from its section of ``evaluate``."""
        return cls(getattr(config.evaluate, cls.name), root)

    @property
    def protocol(self) -> str:
        """Differences from the original; never ``official``, because images are shown alike to all models."""
        rule = self._settings.scoring
        return protocol_label(
            [
                *self.differences(),
                prompt_limit_difference(self._settings.max_prompts),
                "" if rule == "official" else f"replies read as {rule} does",
            ]
        )

    def differences(self) -> Sequence[str]:
        """Return the differences from the original that no setting removes."""
        return ("images padded to grey squares of the model's size",)

    @property
    def judge(self) -> Judge:
        """The rule that reads the replies."""
        return Judge(name=f"{self.name}_{self._settings.scoring}", version="1")

    @cached_property
    def _folder(self) -> Path:
        return questions_folder(self._root, self.name)

    def plan(self) -> list[Row]:
        """Return one row per question, numbered within its prompt.

        Raises:
            UserError: The questions are missing, or their number differs from the published one.
        """
        rows = [self.plan_row(question) for question in read_questions(self._folder)]
        counts = Counter(row["category"] for row in rows)
        if counts != Counter(self.counts):
            raise UserError(
                f"{self._folder} holds {counts.total()} questions, {dict(counts)}; {self.name} has "
                f"{sum(self.counts.values())}, {dict(self.counts)}"
            )
        prompts: dict[str, dict[str, list[Row]]] = {}
        for row in rows:
            prompts.setdefault(row["category"], {}).setdefault(row["prompt_id"], []).append(row)
        limit = self._settings.max_prompts
        limited_prompts = [prompt for category in prompts.values() for prompt in list(category.values())[:limit]]
        return [{**row, "index": index} for prompt in limited_prompts for index, row in enumerate(prompt)]

    @abstractmethod
    def plan_row(self, question: Row) -> Row:
        """Return a question's row: ``prompt_id``, ``category``, ``question``, ``expected``, ``image``.

        Raises:
            UserError: The question is not one of this benchmark.
        """

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Return the rows with the model's raw reply to each question in ``answer``."""
        from reca.data.images import square_tensor

        images = square_tensor([self._image(row) for row in rows], model.spec.understanding_size)
        device = next(model.parameters()).device
        answers = model.answer(images.to(device), [row["question"] for row in rows])
        return [{**row, "answer": answer} for row, answer in zip(rows, answers, strict=True)]

    def _image(self, row: Row) -> "Image":
        from reca.data.image_formats import BadImage
        from reca.data.images import decode

        try:
            return pad_to_square(decode((self._folder / row["image"]).read_bytes()))
        except (BadImage, OSError) as error:
            raise UserError(
                f"an image of {self.name}, {self._folder / row['image']}, cannot be read: {error}"
            ) from None

    @abstractmethod
    def is_right(self, row: Row) -> bool | None:
        """Return whether a reply is right, or ``None`` if the rule cannot read it."""

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """Score 1 for a right answer, else 0."""
        values, details = [], []
        for row in rows:
            right = self.is_right(row)
            values.append(float(right is True))
            facts = {name: row[name] for name in ("question", "expected", "answer")}
            details.append({**facts, "parsable": right is not None})
        return items_by_prompt(rows, values, details)

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return the number of replies that the rule could not read."""
        return {"unparsable": sum(not detail["parsable"] for item in items for detail in item.details)}


def yes_or_no(question: Row, name: str) -> str:
    """Return the right answer of a yes/no question.

    Raises:
        UserError: The answer is another word.
    """
    answer = str(question["answer"]).strip().rstrip(".").lower()
    if answer not in ("yes", "no"):
        raise UserError(f"{name} asks for yes or no, but the answer to {question['question']!r} is {answer!r}")
    return answer


def pad_to_square(image: "Image") -> "Image":
    """Centre the whole image on the smallest grey square that holds it."""
    from PIL import ImageOps

    side = max(image.size)
    return ImageOps.pad(image, (side, side), color=GREY)


def questions_folder(root: Path, name: str) -> Path:
    """Return the folder of a benchmark's ``questions.jsonl`` and images.

    Raises:
        UserError: There are no questions, or a Parquet file does not contain such questions.
    """
    folder = sources.benchmark_folder(root, name)
    if (folder / TABLE).is_file():
        return folder
    unpacked = folder / "unpacked"
    if (unpacked / TABLE).is_file():
        return unpacked
    files = [path for path in sources.data_files(folder) if path.suffix == ".parquet"]
    if not files:
        raise UserError(
            f"the questions of {name} are missing and cannot be fetched automatically: put {TABLE} "
            f"(docs/benchmarks.md describes it) and the images into {folder}, or the Parquet files of its data set "
            "on the hub"
        )
    with atomic_folder(unpacked) as temporary:
        rows = [_unpack(row, folder, temporary) for path in files for row in _parquet_rows(path)]
        write_text(temporary / TABLE, "".join(json.dumps(row) + "\n" for row in rows))
    return unpacked


def read_questions(folder: Path) -> list[Row]:
    """Return all questions in order; ``image`` is a file below the folder.

    Raises:
        UserError: A line is damaged, or its image is missing.
    """
    rows, checked_images = [], set[str]()
    lines = (folder / TABLE).read_text(encoding="utf-8").rstrip("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row |= {"question": str(row["question"]), "image": str(row["image"]), "answer": row["answer"]}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / TABLE}, line {number} is not a question ({error!r})") from None
        if row["image"] not in checked_images and not (folder / row["image"]).is_file():
            raise UserError(f"{folder / TABLE}, line {number}: there is no image {folder / row['image']}")
        checked_images.add(row["image"])
        rows.append(row)
    return rows


def parse_list(value: Any) -> list[str]:
    """Return a list of texts from a list, from its Python text (as in MMMU's files), or from a single value."""
    text = value.strip() if isinstance(value, str) else ""
    if text.startswith("["):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return [text]
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the questions of a Parquet file, the first of their images as ``image``."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        image = next((name for name in IMAGE_COLUMNS if name in names), IMAGE_COLUMNS[0])
        columns = ["question", "answer", image]
        if absent := set(columns) - set(names):
            raise UserError(f"{path} holds no questions about images: it has no {', '.join(sorted(absent))}")
        columns += [name for name in OPTIONAL_COLUMNS if name in names]
        for batch in file.iter_batches(16, columns=columns):
            for row in batch.to_pylist():
                yield {"image" if name == image else name: value for name, value in row.items()}
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} holds no questions about images ({error})") from None


def _unpack(row: dict[str, Any], folder: Path, target: Path) -> Row:
    """Write a question's image below ``target`` and return the question with the file's name."""
    image = row["image"]
    data = image.get("bytes") if isinstance(image, dict) else image if isinstance(image, bytes) else None
    if data is None:
        path = folder / str(image.get("path") if isinstance(image, dict) else image)
        if not path.is_file():
            raise UserError(f"a question's image, {path}, is missing")
        data = path.read_bytes()
    name = f"images/{hashlib.sha256(data).hexdigest()[:32]}"
    if not (target / name).exists():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(data)
    return {**row, "image": name}
