"""GEdit-Bench: 606 edits that users asked for, judged as VIEScore does: was it done, and does it look right?

Liu et al., "Step1X-Edit" (arXiv 2504.17761), stepfun-ai/Step1X-Edit@570eba6, Apache-2.0; Ku et al., "VIEScore" (arXiv
2312.14867). The judge's instructions are our own after theirs, so every score made here is a variant.

Categories are the eleven groups; a value is a tenth of the original's O, the root of SC times PQ. Overall is the plain
mean of the groups (G_O).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from reca.config.evaluate import GeditSettings
from reca.data.image_formats import BadImage
from reca.data.images import decode
from reca.evaluation import prompt_sources
from reca.evaluation.benchmark import ItemScore, items_by_prompt
from reca.evaluation.benchmarks.gedit import rules
from reca.evaluation.judged import JudgedEditing
from reca.evaluation.judges.judge import answer_text, reply_record
from reca.evaluation.judges.reply_cache import Reply
from reca.evaluation.judges.requests import Request
from reca.evaluation.samples import Row, UnreadableSample, read_image
from reca.runtime.errors import UserError
from reca.runtime.files import atomic_folder

SCALE = 10
COLUMNS = ("task_type", "key", "instruction", "instruction_language", "Intersection_exist")
SEMANTICS = """Two images follow: first an original, then an edited version of it. The editor was asked to do this:
{prompt}

Give two scores from 0 to 10.
First, how well the edit succeeded: 0 if what was asked for is not there, 10 if all of it is.
Second, how little else was changed: 0 if the edited image is another picture altogether, 10 if it is the original \
with exactly the edit that was asked for and no more.

Answer with JSON and nothing else: {{"score": [first, second], "reasoning": "one short sentence"}}"""
QUALITY = """One image follows. It was made by a machine.

Give two scores from 0 to 10.
First, naturalness: 0 if it looks wrong as a whole (light, shadows, distances, perspective), 10 if it looks natural.
Second, absence of artefacts: 0 if there is much distortion, blur, watermark, broken faces or limbs, or parts that do \
not fit together, 10 if there is none.

Answer with JSON and nothing else: {{"score": [first, second], "reasoning": "one short sentence"}}"""


class Gedit(JudgedEditing[GeditSettings]):
    """GEdit-Bench in one language."""

    name: ClassVar[str] = "gedit"

    def judge_changes(self) -> Sequence[str]:
        """Return the judge; its instructions are always our own."""
        settings = self._settings
        return (f"GEdit-Bench ({settings.language}) judged by {settings.judge.model} with instructions written anew",)

    @cached_property
    def _folder(self) -> Path:
        return prompt_sources.verified_folder(self.root, self.name)

    def prompts(self) -> list[Row]:
        """Return the 606 edits of the configured language.

        Raises:
            UserError: A group has another number of edits.
        """
        language = self._settings.language
        prompts = [row for row in read_prompts(self._folder) if row["language"] == language]
        counts = Counter(row["category"] for row in prompts)
        if counts != Counter(rules.ITEMS):
            raise UserError(f"{self._folder} holds {dict(counts)} in {language}, not {dict(rules.ITEMS)}")
        unpack_sources(self._folder, language)  # now, because several processes may make the samples later
        return prompts

    def files(self, prompt: Row, index: int) -> dict[str, str]:
        """Return the original's layout, ``fullset/<group>/<language>/<key>.png``, and the source next to it."""
        stem = f"fullset/{prompt['category']}/{prompt['language']}/{prompt['prompt_id']}"
        return {"file": f"{stem}.png", "original": f"{stem}_SRCIMG.png"}

    def source(self, row: Row) -> tuple[Path, str]:
        """Return the image that a row edits."""
        return unpack_sources(self._folder, self._settings.language), f"{row['prompt_id']}.png"

    def requests(self, rows: Sequence[Row], folder: Path) -> list[Request]:
        """Return two requests per edit: source and edit for SC, the edit alone, in its source's size, for PQ."""
        requests = []
        for row in rows:
            try:
                source = read_image(folder, row, "original")
            except UnreadableSample as error:
                raise UserError(f"{folder}: {error}; delete it and run `reca generate` again") from None
            if (path := self.image_for_judge(row, folder, like=source)) is not None:
                both = (folder / row["original"], path)
                requests.append(Request(f"{row['prompt_id']}/SC", SEMANTICS.format(prompt=row["prompt"]), both))
                requests.append(Request(f"{row['prompt_id']}/PQ", QUALITY.format(), (path,)))
        return requests

    def read(self, rows: Sequence[Row], replies: Mapping[str, Reply]) -> list[ItemScore]:
        """Score every edit by a tenth of its O; both replies must be readable."""
        values: list[float | None] = []
        details = []
        for row in rows:
            detail: dict[str, Any] = {"intersection": row["intersection"]}
            for aspect in ("SC", "PQ"):
                reply = replies.get(f"{row['prompt_id']}/{aspect}")
                text = answer_text(reply)
                scores = None if text is None else rules.parse_strict(text)
                score = None if scores is None else min(scores)
                detail[aspect] = {"score": score, **reply_record(reply, score is not None)}
            semantics, quality = detail["SC"]["score"], detail["PQ"]["score"]
            readable = semantics is not None and quality is not None
            values.append(rules.item_score([semantics], [quality])[2] / SCALE if readable else None)
            details.append(detail)
        return items_by_prompt(rows, values, details)

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return, in the original's unit 0-10, G_SC, G_PQ and G_O of all edits and of the intersection subset."""
        language, details = self._settings.language, super().details(items)
        edits = []
        for item in items:
            for detail in item.details:
                scores = detail["SC"]["score"], detail["PQ"]["score"]
                edits.append(rules.JudgedEdit(item.category, language, *scores, intersection=detail["intersection"]))
        for name, subset in (("full_set", False), ("intersection", True)):
            try:
                semantics, quality, overall = rules.summarise(edits, language, subset).macro
                details[name] = {"G_SC": semantics, "G_PQ": quality, "G_O": overall}
            except ValueError as error:
                details[name] = {"no_score_because": str(error)}
        return details


def _read_rows(folder: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the data set's Parquet and Arrow files."""
    import pyarrow as pa
    from pyarrow import ipc, parquet

    for path in prompt_sources.data_files(folder):
        try:
            if path.suffix == ".parquet":
                for batch in parquet.ParquetFile(path).iter_batches(batch_size=16, columns=list(columns)):
                    yield from batch.to_pylist()
            else:
                with pa.memory_map(str(path)) as file, ipc.open_stream(file) as stream:
                    for batch in stream:
                        yield from batch.select(list(columns)).to_pylist()
        except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError, OSError) as error:
            raise UserError(f"{path} is not GEdit-Bench's data ({error}); delete {folder} and fetch it again") from None


def read_prompts(folder: Path) -> list[Row]:
    """Return all edits in both languages, without their images.

    Raises:
        UserError: A file is damaged or lacks a column.
    """
    return [
        {
            "prompt_id": str(row["key"]),
            "category": str(row["task_type"]),
            "prompt": str(row["instruction"]),
            "language": str(row["instruction_language"]),
            "intersection": bool(row["Intersection_exist"]),
        }
        for row in _read_rows(folder, COLUMNS)
    ]


def unpack_sources(folder: Path, language: str) -> Path:
    """Return the folder with a language's source images, ``<key>.png``, extracted from the data on first use.

    Raises:
        UserError: An image cannot be read.
    """
    target = folder / "unpacked" / language
    if target.is_dir():
        return target
    with atomic_folder(target) as temporary:
        for row in _read_rows(folder, ["key", "instruction_language", "input_image_raw"]):
            if row["instruction_language"] == language:
                stored = row["input_image_raw"]
                try:
                    data = stored["bytes"] if isinstance(stored, dict) else stored
                    decode(data).save(temporary / f"{row['key']}.png")
                except (BadImage, OSError, TypeError, KeyError) as error:
                    raise UserError(f"the source image of edit {row['key']} cannot be read ({error})") from None
    return target
