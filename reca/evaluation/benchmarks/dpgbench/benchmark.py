"""DPG-Bench: does an image match a long prompt? A judge answers a yes/no question for every fact of the prompt.

Hu et al., "ELLA" (arXiv 2403.05135), TencentQQGYLab/ELLA@3c228f1, Apache-2.0. The original's judge (mPLUG-large, in an
environment of 2022) is in no maintained library, so every score made here is a variant, named by its judge.

There is one category, since overall is the mean over prompts; the details contain the scores by kind of question.
"""

import csv
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from reca.config import Config
from reca.config.evaluate import DpgbenchSettings
from reca.evaluation import prompt_sources
from reca.evaluation.benchmark import ItemScore, image_count_difference, items_by_prompt
from reca.evaluation.benchmarks.dpgbench import rules
from reca.evaluation.judged import JudgedBenchmark
from reca.evaluation.judges.judge import answer_text, reply_record
from reca.evaluation.judges.reply_cache import Reply
from reca.evaluation.judges.requests import Request
from reca.evaluation.samples import Row
from reca.runtime.errors import UserError

PROMPTS = 1065
CATEGORY = "all_prompts"
QUESTION = "{question}\nLook at the image and answer with a single word: yes or no."
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Dpgbench(JudgedBenchmark[DpgbenchSettings]):
    """DPG-Bench."""

    name: ClassVar[str] = "dpgbench"

    def __init__(self, settings: DpgbenchSettings, config: Config, root: Path) -> None:
        super().__init__(settings, config, root)
        self.images_per_prompt = settings.images_per_prompt

    def judge_changes(self) -> Sequence[str]:
        """Return the name of the judge, which is never the original's."""
        return (f"judged by {self._settings.judge.model} instead of mPLUG-large",)

    def scoring_changes(self) -> Sequence[str]:
        """Return the differences in number of images and questions."""
        quirks = self._settings.official_quirks
        return (
            image_count_difference(self.images_per_prompt, 4),
            "" if quirks else "all questions count (the official script skips the first)",
        )

    @property
    def _table(self) -> Path:
        return prompt_sources.verified_folder(self.root, self.name) / "dpg_bench.csv"

    def prompts(self) -> list[Row]:
        """Return the 1,065 prompts."""
        return read_prompts(self._table)

    def files(self, prompt: Row, index: int) -> dict[str, str]:
        """Return RecA's layout, one file an image: ``<item>_<number>.png``."""
        return {"file": f"{prompt['prompt_id']}_{index}.png"}

    def existing_samples(self, folder: Path) -> list[Row]:
        """Return the plan's rows for images made elsewhere: a 2 x 2 grid a prompt (official) or a file an image (RecA).

        Raises:
            UserError: The folder has neither layout.
        """
        rows = []
        for row in self.plan():
            row = {key: value for key, value in row.items() if key != "seed"}
            rows.append({**row, **_find_image(folder, row["prompt_id"], row["index"])})
        if all(row.get("missing") for row in rows):
            raise UserError(f"{folder} holds no image of DPG-Bench's layout: <item>.png (2 x 2) or <item>_<number>.png")
        return rows

    @property
    def _compatibility(self) -> rules.Compatibility:
        return rules.OFFICIAL if self._settings.official_quirks else rules.CORRECT

    @cached_property
    def _questions(self) -> dict[str, list[rules.DpgQuestion]]:
        return rules.read_questions(self._table, self._compatibility)

    def requests(self, rows: Sequence[Row], folder: Path) -> list[Request]:
        """Return one request per image and question."""
        questions = self._questions
        requests = []
        for row in rows:
            if (path := self.image_for_judge(row, folder)) is not None:
                for question in questions.get(row["prompt_id"], ()):
                    key = f"{row['prompt_id']}/{row['index']}/{question.number}"
                    requests.append(Request(key, QUESTION.format(question=question.text), (path,)))
        return requests

    def read(self, rows: Sequence[Row], replies: Mapping[str, Reply]) -> list[ItemScore]:
        """Score each image by the share of its questions that hold; a prompt with an unusable answer fails."""
        questions, details = self._questions, []
        for row in rows:
            answers = {}
            for question in questions.get(row["prompt_id"], ()):
                reply = replies.get(f"{row['prompt_id']}/{row['index']}/{question.number}")
                value = rules.read_reply(answer_text(reply))
                answers[str(question.number)] = {"answer": value, **reply_record(reply, value is not None)}
            details.append({"answers": answers})
        items = items_by_prompt(rows, [None] * len(rows), details)
        try:
            scored = self._summary(items).images
        except ValueError as error:
            raise UserError(f"DPG-Bench cannot be scored: {error}") from None
        return [
            ItemScore(i.prompt_id, i.category, scored.get(i.prompt_id, i.values), i.files, i.details) for i in items
        ]

    def _summary(self, items: Sequence[ItemScore]) -> rules.DpgSummary:
        answers = []
        for item in items:
            images = [
                {int(number): entry["answer"] for number, entry in detail["answers"].items()} for detail in item.details
            ]
            answers.append(rules.ItemAnswers(item.prompt_id, tuple(images)))
        return rules.summarise(self._questions, answers, self._compatibility)

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return scores by kind of question (ELLA's L1 and L2), reasons of failed prompts, and counts of replies."""
        summary = self._summary(items)
        return {
            **super().details(items),
            "dpg": 100 * summary.overall,
            "level_1": dict(summary.broad_categories),
            "level_2": dict(summary.categories),
            "failed_prompts": dict(summary.failed),
        }


def read_prompts(table: Path) -> list[Row]:
    """Return DPG-Bench's prompts, in the table's order.

    Raises:
        UserError: The file is another table.
    """
    try:
        with table.open(newline="", encoding="utf-8") as file:
            texts = {row["item_id"]: row["text"] for row in csv.DictReader(file)}
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not DPG-Bench's table of questions ({error!r})") from None
    if len(texts) != PROMPTS:
        raise UserError(f"{table} holds {len(texts)} prompts; DPG-Bench has {PROMPTS}")
    return [{"prompt_id": item, "category": CATEGORY, "prompt": text} for item, text in texts.items()]


def _find_image(folder: Path, item: str, index: int) -> Row:
    """Return the members of a row that describe the image's file."""
    from PIL import Image

    for suffix in SUFFIXES:
        if (folder / f"{item}_{index}{suffix}").is_file():
            return {"file": f"{item}_{index}{suffix}"}
        if (grid := folder / f"{item}{suffix}").is_file():
            try:
                with Image.open(grid) as image:
                    return {"file": grid.name, "box": list(rules.quadrants(image.size)[index])}
            except (OSError, ValueError, Image.DecompressionBombError):
                return {"file": grid.name}  # counted as unreadable when it is scored
    return {"file": f"{item}_{index}.png", "missing": True}


def write_grid(images: Sequence[Any], path: Path) -> None:
    """Write four images of a prompt (PIL, one size) as the 2 x 2 grid of the official layout.

    Raises:
        ValueError: There are not four images of the same size.
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
