"""DPG-Bench: does an image show what a long prompt says? A judge answers a yes/no question for every fact of it.

Hu et al., "ELLA" (arXiv 2403.05135), TencentQQGYLab/ELLA@3c228f1, Apache-2.0. The original's judge (mPLUG-large, in an
environment of 2022) is in no library that is maintained, so every score made here is a variant, named by its judge.

There is one category, since overall is the mean over prompts; the scores by kind of question stand in the details.
"""

import csv
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from reca.config import Config
from reca.config.evaluate import DpgbenchSettings
from reca.evaluation import prompt_sources as sources
from reca.evaluation.benchmark import ItemScore
from reca.evaluation.drawing import by_prompt, draw, first_of_each, label, limited, numbered
from reca.evaluation.judged import Asked, asked_otherwise
from reca.evaluation.samples import Row
from reca.runtime.errors import UserError
from reca.runtime.seeding import derive_seed

if TYPE_CHECKING:
    from reca.evaluation.benchmarks.dpgbench.rules import Question, Summary
    from reca.evaluation.judges.reply_cache import Reply
    from reca.evaluation.judges.requests import Request
    from reca.models.base import Sampling, UnifiedModel

PROMPTS = 1065
CATEGORY = "all_prompts"
QUESTION = "{question}\nLook at the image and answer with a single word: yes or no."
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Dpgbench(Asked[DpgbenchSettings]):
    """DPG-Bench."""

    name: ClassVar[str] = "dpgbench"

    def __init__(self, settings: DpgbenchSettings, config: Config, root: Path) -> None:
        super().__init__(settings, config, root)
        self.images_per_prompt = settings.images_per_prompt

    @property
    def protocol(self) -> str:
        """Never ``official``: the judge is another one."""
        settings = self._settings
        return label(
            [
                f"judged by {settings.judge.model} instead of mPLUG-large",
                asked_otherwise(settings.judge, DpgbenchSettings.model_fields["judge"].default),
                limited(settings.max_prompts),
                numbered(settings.images_per_prompt, 4),
                "" if settings.official_quirks else "all questions count (the official script skips the first)",
            ]
        )

    @property
    def _table(self) -> Path:
        return sources.checked(self.root, self.name) / "dpg_bench.csv"

    def plan(self) -> list[Row]:
        """One row per prompt and image, a file each, in RecA's layout: ``<item>_<number>.png``."""
        return [
            {
                "prompt_id": entry["prompt_id"],
                "category": CATEGORY,
                "prompt": entry["prompt"],
                "index": index,
                "seed": derive_seed(self.name, self.seed, entry["prompt_id"], index),
                "file": f"{entry['prompt_id']}_{index}.png",
            }
            for entry in first_of_each(read_prompts(self._table), self._settings.max_prompts)
            for index in range(self.images_per_prompt)
        ]

    def existing_samples(self, folder: Path) -> list[Row]:
        """The plan's rows for images made elsewhere: a 2 x 2 grid a prompt (official), or a file an image (RecA).

        Raises:
            UserError: The folder holds neither.
        """
        rows = []
        for row in self.plan():
            row = {key: value for key, value in row.items() if key != "seed"}
            rows.append({**row, **_find(folder, row["prompt_id"], row["index"])})
        if all(row.get("missing") for row in rows):
            raise UserError(f"{folder} holds no image of DPG-Bench's layout: <item>.png (2 x 2) or <item>_<number>.png")
        return rows

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Draw one image per row."""
        return draw(model, rows, sampling, folder)

    @cached_property
    def _questions(self) -> "dict[str, list[Question]]":
        from reca.evaluation.benchmarks.dpgbench.rules import CORRECT, OFFICIAL, read_questions

        return read_questions(self._table, OFFICIAL if self._settings.official_quirks else CORRECT)

    def requests(self, rows: Sequence[Row], folder: Path) -> "list[Request]":
        """One request per image and question."""
        from reca.evaluation.judges.requests import Request

        questions = self._questions
        found = []
        for row in rows:
            if (path := self.shown(row, folder)) is not None:
                for question in questions.get(row["prompt_id"], ()):
                    key = f"{row['prompt_id']}/{row['index']}/{question.number}"
                    found.append(Request(key, QUESTION.format(question=question.text), (path,)))
        return found

    def read(self, rows: Sequence[Row], replies: "Mapping[str, Reply]") -> list[ItemScore]:
        """An image's value is the share of its questions that hold; a prompt lacking an answer fails as a whole."""
        from reca.evaluation.benchmarks.dpgbench.rules import read_reply
        from reca.evaluation.judges.judge import told

        questions, details = self._questions, []
        for row in rows:
            answers = {}
            for question in questions.get(row["prompt_id"], ()):
                reply = replies.get(f"{row['prompt_id']}/{row['index']}/{question.number}")
                value = read_reply(reply.text) if reply is not None and reply.status == "answered" else None
                answers[str(question.number)] = {"answer": value, **told(reply, value is not None)}
            details.append({"answers": answers})
        items = by_prompt(rows, [None] * len(rows), details)
        try:
            scored = self._summary(items).images
        except ValueError as error:
            raise UserError(f"DPG-Bench cannot be scored: {error}") from None
        return [
            ItemScore(i.prompt_id, i.category, scored.get(i.prompt_id, i.values), i.files, i.details) for i in items
        ]

    def _summary(self, items: Sequence[ItemScore]) -> "Summary":
        from reca.evaluation.benchmarks.dpgbench.rules import CORRECT, OFFICIAL, ItemAnswers, summarise

        answers = [
            ItemAnswers(
                item.prompt_id,
                tuple({int(n): one["answer"] for n, one in detail["answers"].items()} for detail in item.details),
            )
            for item in items
        ]
        return summarise(self._questions, answers, OFFICIAL if self._settings.official_quirks else CORRECT)

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Scores by kind of question (ELLA's L1 and L2), why prompts failed, what became of the replies."""
        summary = self._summary(items)
        return {
            **super().details(items),
            "dpg": 100 * summary.overall,
            "level_1": dict(summary.broad_categories),
            "level_2": dict(summary.categories),
            "failed_prompts": dict(summary.failed),
        }


def read_prompts(table: Path) -> list[Row]:
    """DPG-Bench's prompts: item and text, in the table's order.

    Raises:
        UserError: It is another table.
    """
    try:
        with table.open(newline="", encoding="utf-8") as file:
            texts = {row["item_id"]: row["text"] for row in csv.DictReader(file)}
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not DPG-Bench's table of questions ({error!r})") from None
    if len(texts) != PROMPTS:
        raise UserError(f"{table} holds {len(texts)} prompts; DPG-Bench has {PROMPTS}")
    return [{"prompt_id": item, "category": CATEGORY, "prompt": text} for item, text in texts.items()]


def _find(folder: Path, item: str, index: int) -> Row:
    """What to add to a row for the file that holds this image."""
    from PIL import Image

    from reca.evaluation.benchmarks.dpgbench.rules import quadrants

    for suffix in SUFFIXES:
        if (folder / f"{item}_{index}{suffix}").is_file():
            return {"file": f"{item}_{index}{suffix}"}
        if (grid := folder / f"{item}{suffix}").is_file():
            try:
                with Image.open(grid) as image:
                    return {"file": grid.name, "box": list(quadrants(image.size)[index])}
            except (OSError, ValueError):
                return {"file": grid.name}  # found unreadable when it is scored
    return {"file": f"{item}_{index}.png", "missing": True}


def write_grid(images: Sequence[Any], path: Path) -> None:
    """Write four images of a prompt (PIL, one size) as the 2 x 2 grid of the official layout.

    Raises:
        ValueError: They are not four of one size.
    """
    from PIL import Image

    sizes = {image.size for image in images}
    if len(images) != 4 or len(sizes) != 1:
        raise ValueError(f"a grid needs four images of one size, not {len(images)} of {sorted(sizes)}")
    width, height = images[0].size
    grid = Image.new("RGB", (2 * width, 2 * height))
    for number, image in enumerate(images):
        grid.paste(image, (number % 2 * width, number // 2 * height))
    grid.save(path)
