"""ImgEdit-Bench, basic suite: does the model edit images as it is told? A judge gives every edit three scores of 1-5.

Ye et al., "ImgEdit" (arXiv 2505.20275), PKU-YuanGroup/ImgEdit@547185d, which states no licence: instructions and
photographs are fetched, never passed on. Where the original's judge instructions came with them, they are used as they
are; else ours are.

Categories are the nine types of edit; a value is a fifth of the original's score. Overall is the plain mean of the
types, the leaderboard's; the mean over edits, RecA's, stands in the details.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from reca.config.evaluate import ImgeditSettings
from reca.evaluation import prompt_sources as sources
from reca.evaluation.benchmark import ItemScore
from reca.evaluation.benchmarks.imgedit import rules
from reca.evaluation.drawing import by_prompt, edit, first_of_each, label, limited
from reca.evaluation.judged import Asked, asked_otherwise
from reca.evaluation.samples import Row, UnreadableSample, read_image
from reca.runtime.errors import UserError
from reca.runtime.files import atomic_folder
from reca.runtime.seeding import derive_seed

if TYPE_CHECKING:
    from reca.evaluation.judges.reply_cache import Reply
    from reca.evaluation.judges.requests import Request
    from reca.models.base import Sampling, UnifiedModel

EDITS = "basic_edit.json"
JUDGE_PROMPTS = ("prompts.json", "judge_prompt.json")
"""The original's instructions for the judge: as the repository and as the archive of photographs call them."""
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
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


class Imgedit(Asked[ImgeditSettings]):
    """ImgEdit-Bench's basic suite."""

    name: ClassVar[str] = "imgedit"

    @property
    def protocol(self) -> str:
        """``official`` with the original's instructions, judge and reading; else what differs."""
        settings = self._settings
        judge = settings.judge.model
        return label(
            [
                "" if judge.startswith(OFFICIAL_JUDGE) else f"judged by {judge} instead of {OFFICIAL_JUDGE}",
                "" if self._templates else "judge's instructions written anew",
                asked_otherwise(settings.judge, ImgeditSettings.model_fields["judge"].default),
                limited(settings.max_prompts),
                "" if settings.scoring == "official" else "replies read strictly",
            ]
        )

    @cached_property
    def _folder(self) -> Path:
        folder = sources.checked(self.root, self.name)
        unpacked(folder)
        return folder

    @cached_property
    def _templates(self) -> dict[str, str]:
        """The original's instructions by type of edit; empty where they did not come with the data."""
        for path in sorted(path for path in self._folder.rglob("*.json") if path.name in JUDGE_PROMPTS):
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict) and rules.ITEMS.keys() <= found.keys():
                return {name: str(found[name]) for name in rules.ITEMS}
        return {}

    def plan(self) -> list[Row]:
        """One row per edit: ``<key>.png`` as in the original, and the photograph beside it."""
        return [
            {
                **entry,
                "index": 0,
                "seed": derive_seed(self.name, self.seed, entry["prompt_id"], 0),
                "file": f"{entry['prompt_id']}.png",
                "original": f"{entry['prompt_id']}_SRCIMG.png",
            }
            for entry in first_of_each(read_prompts(self._folder), self._settings.max_prompts)
        ]

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Edit the photograph of every row."""
        try:
            originals = [read_image(self._folder, row, "source") for row in rows]
        except UnreadableSample as error:
            raise UserError(f"a photograph of ImgEdit-Bench cannot be read: {error}") from None
        return edit(model, rows, originals, sampling, folder)

    def requests(self, rows: Sequence[Row], folder: Path) -> "list[Request]":
        """One request per edit, with the photograph and the result."""
        from reca.evaluation.judges.requests import Request

        return [
            Request(row["prompt_id"], self._question(row), (folder / row["original"], path))
            for row in rows
            if (path := self.shown(row, folder)) is not None
        ]

    def _question(self, row: Row) -> str:
        if self._templates:
            return self._templates[row["category"]].replace("<edit_prompt>", row["prompt"])
        first, second, third = rules.DIMENSIONS[row["category"]]
        return QUESTION.format(prompt=row["prompt"], first=first, second=second, third=third)

    def read(self, rows: Sequence[Row], replies: "Mapping[str, Reply]") -> list[ItemScore]:
        """A fifth of the mean of an edit's scores."""
        from reca.evaluation.judges.judge import told

        values: list[float | None] = []
        details = []
        for row in rows:
            reply = replies.get(row["prompt_id"])
            answered = reply is not None and reply.status == "answered"
            score = (
                rules.item_score(reply.text, row["category"], self._settings.scoring) if reply and answered else None
            )
            valid = score is not None and 0 <= score <= SCALE  # the official reading takes a 10 for a score
            values.append(score / SCALE if score is not None and valid else None)
            details.append({"score": score if valid else None, **told(reply, valid)})
        return by_prompt(rows, values, details)

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """In the original's unit, 1-5: types, macro mean (leaderboard) and micro mean (RecA)."""
        scored = [(item.category, item.details[0]["score"]) for item in items]
        found = super().details(items)
        try:
            summary = rules.summarise(scored, self._settings.scoring)
        except ValueError as error:
            return {**found, "no_score_because": str(error)}
        return {**found, "types": dict(summary.types), "macro": summary.macro, "micro": summary.micro}


def unpacked(folder: Path) -> None:
    """Unpack ``Benchmark.tar``, once.

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
        raise UserError(f"{folder}/Benchmark.tar cannot be unpacked ({error}); delete it and fetch it anew") from None


def read_prompts(folder: Path) -> list[Row]:
    """The 737 edits of the basic suite; ``source`` is the photograph's path in the folder.

    Raises:
        UserError: They are not there, or not 737 of the nine types, or a photograph is missing.
    """
    table, pictures, entries = folder / EDITS, _pictures(folder), []
    try:
        for key, entry in json.loads(table.read_text(encoding="utf-8")).items():
            source = pictures.get(str(entry["id"]))
            if source is None:
                raise UserError(f"the photograph {entry['id']} of edit {key} is not below {folder}")
            entries.append(
                {
                    "prompt_id": str(key),
                    "category": _type_of(str(entry["edit_type"])),
                    "prompt": str(entry["prompt"]),
                    "source": source,
                }
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{table} is not ImgEdit-Bench's list of edits ({error!r})") from None
    counts = Counter(entry["category"] for entry in entries)
    if counts != Counter(rules.ITEMS):
        raise UserError(f"{table} holds {dict(counts)}; ImgEdit-Bench has {dict(rules.ITEMS)}")
    return entries


def _pictures(folder: Path) -> dict[str, str]:
    """Every photograph's path in the folder, by each of its ends; those of the single-turn suites come first."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in PICTURES]
    pictures: dict[str, str] = {}
    for path in sorted(found, key=lambda path: ("singleturn" in path.parts, path)):
        pictures |= {"/".join(path.parts[start:]): path.as_posix() for start in range(len(path.parts))}
    return pictures


def _type_of(name: str) -> str:
    plain = name.strip().lower()
    return "compose" if plain == "hybrid" else plain
