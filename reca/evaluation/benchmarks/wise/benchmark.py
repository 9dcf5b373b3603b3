"""WISE: does an image show the knowledge that its prompt implies? A judge scores every image.

Niu et al., "WISE" (arXiv 2503.07265), PKU-YuanGroup/WISE@eb51174, which states no licence: prompts are fetched, never
passed on, and the judge's instructions are our own, so every score made here is a variant.

Categories are the benchmark's six. Overall weighs them as the benchmark does: by their number of prompts.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from reca.config import Config
from reca.config.evaluate import WiseSettings
from reca.evaluation import prompt_sources
from reca.evaluation.benchmark import ItemScore, items_by_prompt
from reca.evaluation.benchmarks.wise import rules
from reca.evaluation.judged import JudgedBenchmark
from reca.evaluation.judges.judge import answer_text, reply_record
from reca.evaluation.judges.reply_cache import Reply
from reca.evaluation.judges.requests import Request
from reca.evaluation.samples import Row
from reca.runtime.errors import UserError

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


class Wise(JudgedBenchmark[WiseSettings]):
    """WISE, legacy or verified."""

    name: ClassVar[str] = "wise"

    def __init__(self, settings: WiseSettings, config: Config, root: Path) -> None:
        super().__init__(settings, config, root)
        self._version = rules.VERSIONS[settings.version]

    def judge_changes(self) -> Sequence[str]:
        """Return the judge; its instructions are always our own."""
        settings = self._settings
        return (f"WISE ({settings.version}) judged by {settings.judge.model} with instructions written anew",)

    def scoring_changes(self) -> Sequence[str]:
        """Return the difference in the reading of replies."""
        return ("" if self._settings.scoring == "official" else "replies read strictly",)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the categories in the overall score."""
        return {name.lower(): weight for name, weight in zip(rules.CATEGORIES, self._version.weights, strict=True)}

    def prompts(self) -> list[Row]:
        """Return the 1,000 prompts of the configured version."""
        if self._settings.version == "legacy":
            folder = prompt_sources.verified_folder(self.root, self.name)
        else:
            folder = prompt_sources.benchmark_folder(self.root, "wise_verified")
        return read_prompts(folder, self._version)

    def files(self, prompt: Row, index: int) -> dict[str, str]:
        """Return the original's layout: ``<prompt id>.png``."""
        return {"file": f"{prompt['prompt_id']}.png"}

    def requests(self, rows: Sequence[Row], folder: Path) -> list[Request]:
        """Return one request per image."""
        question = LEGACY_QUESTION if self._settings.version == "legacy" else VERIFIED_QUESTION
        return [
            Request(row["prompt_id"], question.format(prompt=row["prompt"], explanation=row["explanation"]), (path,))
            for row in rows
            if (path := self.image_for_judge(row, folder)) is not None
        ]

    def read(self, rows: Sequence[Row], replies: Mapping[str, Reply]) -> list[ItemScore]:
        """Score every image by its WiScore."""
        values: list[float | None] = []
        details = []
        parse = rules.parse_legacy if self._settings.version == "legacy" else rules.parse_verified
        for row in rows:
            reply = replies.get(row["prompt_id"])
            text = answer_text(reply)
            scores = {} if text is None else parse(text, self._settings.scoring)
            complete = scores.keys() == self._version.components.keys()
            values.append(self._version.score(scores) if complete else None)
            details.append({"scores": scores, **reply_record(reply, complete)})
        return items_by_prompt(rows, values, details)

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return the official overall, defined only if all 1,000 are scored, and the plain mean that RecA prints."""
        rows = [
            {"prompt_id": int(item.prompt_id), **item.details[0]["scores"]} for item in items if item.values != (None,)
        ]
        details: dict[str, Any] = {**super().details(items), "official_overall": None, "plain_mean_of_six": None}
        try:
            summary = rules.summarise(rows, self._version)
        except ValueError as error:
            return {**details, "no_official_overall_because": str(error)}
        return {**details, "official_overall": summary.overall, "plain_mean_of_six": summary.unweighted}


def read_prompts(folder: Path, version: rules.WiseVersion) -> list[Row]:
    """Return WISE's prompts in order of their ids, from the JSON files of a folder.

    Raises:
        UserError: The files are missing, or are not the version's 1,000 prompts.
    """
    files = sorted(path for path in folder.glob("*.json") if path.name != prompt_sources.RECORD)
    if not files:
        raise UserError(f"{folder} holds no JSON file: put WISE's prompts ({version.name}) there, from its repository")
    prompts: dict[int, Row] = {}
    for path in files:
        try:
            for entry in json.loads(path.read_text(encoding="utf-8")):
                number = int(entry["prompt_id"])
                prompts[number] = {
                    "prompt_id": str(number),
                    "category": version.category_of(number).lower(),
                    "prompt": str(entry["Prompt"]),
                    "explanation": str(entry["Explanation"]),
                }
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} holds no prompts of WISE ({error!r})") from None
    if sorted(prompts) != list(range(1, rules.PROMPTS + 1)):
        raise UserError(f"{folder} holds {len(prompts)} of WISE's {rules.PROMPTS} prompts (ids 1 to {rules.PROMPTS})")
    return [prompts[number] for number in sorted(prompts)]
