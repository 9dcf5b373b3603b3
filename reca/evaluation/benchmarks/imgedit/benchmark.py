"""ImgEdit-Bench, basic suite: does the model follow editing instructions? A judge gives every edit three scores of 1-5.

Ye et al., "ImgEdit" (arXiv 2505.20275), PKU-YuanGroup/ImgEdit@547185d, which states no licence: instructions and
photographs are fetched, never passed on. The original's judge instructions are used if they came with the data; else
ours are.

Categories are the nine types of edit; a value is a fifth of the original's score. Overall is the plain mean of the
types, the leaderboard's; the details contain the mean over edits, RecA's.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from reca.config.evaluate import ImgeditSettings
from reca.evaluation import prompt_sources
from reca.evaluation.benchmark import ItemScore, items_by_prompt
from reca.evaluation.benchmarks.imgedit import rules
from reca.evaluation.judged import JudgedEditing
from reca.evaluation.judges.judge import answer_text, reply_record
from reca.evaluation.judges.reply_cache import Reply
from reca.evaluation.judges.requests import Request
from reca.evaluation.samples import Row
from reca.runtime.errors import UserError
from reca.runtime.files import atomic_folder

EDITS = "basic_edit.json"
JUDGE_PROMPTS = ("prompts.json", "judge_prompt.json")
"""The original's instructions for the judge, by their names in the repository and in the archive of photographs."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SCALE = 5
OFFICIAL_JUDGE = "gpt-4.1"
QUESTION = """You are shown two images: a photograph, and what an editor made of it. The editor was told:
{prompt}

Give three scores, whole numbers from 1 (failed) to 5 (faultless):
1. {first}: was exactly this done, all of it and nothing else?
2. {second}: does the result look as if it had never been touched, and is what should stay unchanged unchanged?
3. {third}: are shapes, materials, light, proportions and small details right?
The second and third score may not be higher than the first: an edit that was not made cannot be made well.

Write one short sentence of reasons, then these three lines:
{first}: <1-5>
{second}: <1-5>
{third}: <1-5>"""


class Imgedit(JudgedEditing[ImgeditSettings]):
    """ImgEdit-Bench's basic suite."""

    name: ClassVar[str] = "imgedit"

    def judge_changes(self) -> Sequence[str]:
        """Return the differences from the original's judge and instructions."""
        model = self._settings.judge.model
        return (
            "" if model.startswith(OFFICIAL_JUDGE) else f"judged by {model} instead of {OFFICIAL_JUDGE}",
            "" if self._templates else "judge's instructions written anew",
        )

    def scoring_changes(self) -> Sequence[str]:
        """Return the difference in the reading of replies."""
        return ("" if self._settings.scoring == "official" else "replies read strictly",)

    @cached_property
    def _folder(self) -> Path:
        folder = prompt_sources.verified_folder(self.root, self.name)
        unpack_archive(folder)
        return folder

    @cached_property
    def _templates(self) -> dict[str, str]:
        """The original's instructions by type of edit; empty if they did not come with the data."""
        for path in sorted(path for path in self._folder.rglob("*.json") if path.name in JUDGE_PROMPTS):
            templates = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(templates, dict) and rules.ITEMS.keys() <= templates.keys():
                return {name: str(templates[name]) for name in rules.ITEMS}
        return {}

    def prompts(self) -> list[Row]:
        """Return the 737 edits."""
        return read_prompts(self._folder)

    def files(self, prompt: Row, index: int) -> dict[str, str]:
        """Return the original's ``<key>.png``, and the photograph next to it."""
        return {"file": f"{prompt['prompt_id']}.png", "original": f"{prompt['prompt_id']}_SRCIMG.png"}

    def source(self, row: Row) -> tuple[Path, str]:
        """Return the photograph that a row edits."""
        return self._folder, row["source"]

    def requests(self, rows: Sequence[Row], folder: Path) -> list[Request]:
        """Return one request per edit, with the photograph and the result."""
        return [
            Request(row["prompt_id"], self._question(row), (folder / row["original"], path))
            for row in rows
            if (path := self.image_for_judge(row, folder)) is not None
        ]

    def _question(self, row: Row) -> str:
        if self._templates:
            return self._templates[row["category"]].replace("<edit_prompt>", row["prompt"])
        first, second, third = rules.DIMENSIONS[row["category"]]
        return QUESTION.format(prompt=row["prompt"], first=first, second=second, third=third)

    def read(self, rows: Sequence[Row], replies: Mapping[str, Reply]) -> list[ItemScore]:
        """Score every edit by a fifth of the mean of its three scores."""
        values: list[float | None] = []
        details = []
        for row in rows:
            reply = replies.get(row["prompt_id"])
            text = answer_text(reply)
            score = None if text is None else rules.item_score(text, row["category"], self._settings.scoring)
            if score is not None and not 0 <= score <= SCALE:  # the official reading accepts a 10
                score = None
            values.append(None if score is None else score / SCALE)
            details.append({"score": score, **reply_record(reply, score is not None)})
        return items_by_prompt(rows, values, details)

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return, in the original's unit 1-5, the types, their macro mean (leaderboard) and the micro mean (RecA)."""
        scored = [(item.category, item.details[0]["score"]) for item in items]
        details = super().details(items)
        try:
            summary = rules.summarise(scored, self._settings.scoring)
        except ValueError as error:
            return {**details, "no_score_because": str(error)}
        return {**details, "types": dict(summary.types), "macro": summary.macro, "micro": summary.micro}


def unpack_archive(folder: Path) -> None:
    """Unpack ``Benchmark.tar`` unless it is unpacked already.

    Raises:
        UserError: The archive is damaged.
    """
    target = folder / "unpacked"
    if target.is_dir():
        return
    try:
        with tarfile.open(folder / "Benchmark.tar") as archive, atomic_folder(target) as temporary:
            archive.extractall(temporary, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{folder}/Benchmark.tar cannot be unpacked ({error}); delete it and fetch it again") from None


def read_prompts(folder: Path) -> list[Row]:
    """Return the 737 edits of the basic suite; ``source`` is the photograph's path in the folder.

    Raises:
        UserError: The list is missing or does not hold 737 edits of the nine types, or a photograph is missing.
    """
    table, photographs, prompts = folder / EDITS, _photographs(folder), []
    try:
        for key, entry in json.loads(table.read_text(encoding="utf-8")).items():
            source = photographs.get(str(entry["id"]))
            if source is None:
                raise UserError(f"the photograph {entry['id']} of edit {key} is not below {folder}")
            edit_type = str(entry["edit_type"]).strip().lower()
            prompts.append(
                {
                    "prompt_id": str(key),
                    "category": "compose" if edit_type == "hybrid" else edit_type,
                    "prompt": str(entry["prompt"]),
                    "source": source,
                }
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{table} is not ImgEdit-Bench's list of edits ({error!r})") from None
    counts = Counter(prompt["category"] for prompt in prompts)
    if counts != Counter(rules.ITEMS):
        raise UserError(f"{table} holds {dict(counts)}; ImgEdit-Bench has {dict(rules.ITEMS)}")
    return prompts


def _photographs(folder: Path) -> dict[str, str]:
    """Return every photograph's path by each of its tails; the single-turn suite takes precedence."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    photographs: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: ("singleturn" in path.parts, path)):
        photographs |= {"/".join(path.parts[start:]): path.as_posix() for start in range(len(path.parts))}
    return photographs
