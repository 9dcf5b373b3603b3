"""WISE: does an image show what one must know to understand its prompt? A judge scores every image.

Niu et al., "WISE" (arXiv 2503.07265), PKU-YuanGroup/WISE@eb51174, which states no licence: prompts are fetched, never
passed on, and the judge's instructions are written anew, so every score made here is a variant.

Categories are the benchmark's six. Overall weighs them as the benchmark does: by how many prompts each has.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from reca.config import Config
from reca.config.evaluate import WiseSettings
from reca.evaluation import prompt_sources as sources
from reca.evaluation.benchmark import ItemScore
from reca.evaluation.benchmarks.wise import rules
from reca.evaluation.drawing import by_prompt, draw, first_of_each, label, limited
from reca.evaluation.judged import Asked, asked_otherwise
from reca.evaluation.samples import Row
from reca.runtime.errors import UserError
from reca.runtime.seeding import derive_seed

if TYPE_CHECKING:
    from reca.evaluation.judges.reply_cache import Reply
    from reca.evaluation.judges.requests import Request
    from reca.models.base import Sampling, UnifiedModel

LEGACY_QUESTION = """You are a strict judge of images that were drawn from a text. Score the attached image three \
times, each with 0, 1 or 2.

The text asked for: {prompt}
What one has to know to draw it: {explanation}

Consistency - is what the text means, with the knowledge above, in the image? 0: not, or essential parts are missing; \
1: partly; 2: all of it, without contradiction.
Realism - could the scene exist, and is it drawn believably (materials, light, proportions)? 0: no; 1: with flaws; \
2: as a photograph would show it.
Aesthetic Quality - composition, colours, craft. 0: poor; 1: plain; 2: outstanding.

Judge only what is visible, and give 2 only where nothing is wanting. Answer with these three lines and nothing else:
Consistency: <0, 1 or 2>
Realism: <0, 1 or 2>
Aesthetic Quality: <0, 1 or 2>"""
VERIFIED_QUESTION = """Decide whether the attached image shows what a text asks for, which takes knowledge to see.

The text asked for: {prompt}
What one has to know to draw it: {explanation}

The image is right (1) if the thing meant is recognisably there and nothing contradicts the explanation; otherwise \
it is wrong (0). Style and beauty do not count. Answer with one line and nothing else:
Score: <0 or 1>"""


class Wise(Asked[WiseSettings]):
    """WISE, legacy or verified."""

    name: ClassVar[str] = "wise"

    def __init__(self, settings: WiseSettings, config: Config, root: Path) -> None:
        super().__init__(settings, config, root)
        self._version = rules.VERSIONS[settings.version]

    @property
    def protocol(self) -> str:
        """Never ``official``: the judge's instructions are our own."""
        settings = self._settings
        return label(
            [
                f"WISE ({settings.version}) judged by {settings.judge.model} with instructions written anew",
                asked_otherwise(settings.judge, WiseSettings.model_fields["judge"].default),
                limited(settings.max_prompts),
                "" if settings.scoring == "official" else "replies read strictly",
            ]
        )

    @property
    def weights(self) -> dict[str, float]:
        """Of the categories in the overall score."""
        return {name.lower(): weight for name, weight in zip(rules.CATEGORIES, self._version.weights, strict=True)}

    def _prompts(self) -> list[Row]:
        if self._settings.version == "legacy":
            folder = sources.checked(self.root, self.name)
        else:
            folder = sources.folder_of(self.root, "wise_verified")
        return read_prompts(folder, self._version)

    def plan(self) -> list[Row]:
        """One row per prompt: ``<prompt id>.png``, as in the original."""
        return [
            {
                **entry,
                "index": 0,
                "seed": derive_seed(self.name, self.seed, entry["prompt_id"], 0),
                "file": f"{entry['prompt_id']}.png",
            }
            for entry in first_of_each(self._prompts(), self._settings.max_prompts)
        ]

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Draw one image per row."""
        return draw(model, rows, sampling, folder)

    def requests(self, rows: Sequence[Row], folder: Path) -> "list[Request]":
        """One request per image."""
        from reca.evaluation.judges.requests import Request

        question = LEGACY_QUESTION if self._settings.version == "legacy" else VERIFIED_QUESTION
        return [
            Request(row["prompt_id"], question.format(prompt=row["prompt"], explanation=row["explanation"]), (path,))
            for row in rows
            if (path := self.shown(row, folder)) is not None
        ]

    def read(self, rows: Sequence[Row], replies: "Mapping[str, Reply]") -> list[ItemScore]:
        """WiScore of every image."""
        from reca.evaluation.judges.judge import told

        values: list[float | None] = []
        details = []
        parse = rules.parse_legacy if self._settings.version == "legacy" else rules.parse_verified
        for row in rows:
            reply = replies.get(row["prompt_id"])
            scores = parse(reply.text, self._settings.scoring) if reply and reply.status == "answered" else {}
            whole = scores.keys() == self._version.components.keys()
            values.append(self._version.score(scores) if whole else None)
            details.append({"scores": scores, **told(reply, whole)})
        return by_prompt(rows, values, details)

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """The official overall, which exists only where all 1,000 are scored, and the plain mean that RecA prints."""
        rows = [
            {"prompt_id": int(item.prompt_id), **item.details[0]["scores"]} for item in items if item.values != (None,)
        ]
        found: dict[str, Any] = {**super().details(items), "official_overall": None, "plain_mean_of_six": None}
        try:
            summary = rules.summarise(rows, self._version)
        except ValueError as error:
            return {**found, "no_official_overall_because": str(error)}
        return {**found, "official_overall": summary.overall, "plain_mean_of_six": summary.unweighted}


def read_prompts(folder: Path, version: rules.Version) -> list[Row]:
    """WISE's prompts in order of their ids, from the JSON files of a folder.

    Raises:
        UserError: The files are not there, or are not the version's 1,000 prompts.
    """
    files = sorted(path for path in folder.glob("*.json") if path.name != sources.RECORD)
    if not files:
        raise UserError(f"{folder} holds no JSON file: put WISE's prompts ({version.name}) there, from its repository")
    entries: dict[int, Row] = {}
    for path in files:
        try:
            for entry in json.loads(path.read_text(encoding="utf-8")):
                number = int(entry["prompt_id"])
                entries[number] = {
                    "prompt_id": str(number),
                    "category": version.category_of(number).lower(),
                    "prompt": str(entry["Prompt"]),
                    "explanation": str(entry["Explanation"]),
                }
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} holds no prompts of WISE ({error!r})") from None
    if sorted(entries) != list(range(1, rules.PROMPTS + 1)):
        raise UserError(f"{folder} holds {len(entries)} of WISE's {rules.PROMPTS} prompts (ids 1 to {rules.PROMPTS})")
    return [entries[number] for number in sorted(entries)]
