"""GEdit-Bench: 606 edits that users asked for, judged as VIEScore does: was it done, and does it look right?

Liu et al., "Step1X-Edit" (arXiv 2504.17761), stepfun-ai/Step1X-Edit@570eba6, Apache-2.0; Ku et al., "VIEScore" (arXiv
2312.14867). The judge's instructions are written anew after theirs, so every score made here is a variant.

Categories are the eleven groups; a value is a tenth of the original's O, the root of SC times PQ. Overall is the plain
mean of the groups (G_O).
"""

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from reca.config.evaluate import GeditSettings
from reca.evaluation import prompt_sources as sources
from reca.evaluation.benchmark import ItemScore
from reca.evaluation.benchmarks.gedit import rules
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

SCALE = 10
COLUMNS = ["task_type", "key", "instruction", "instruction_language", "input_image_raw", "Intersection_exist"]
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


class Gedit(Asked[GeditSettings]):
    """GEdit-Bench in one language."""

    name: ClassVar[str] = "gedit"

    @property
    def protocol(self) -> str:
        """Never ``official``: the judge's instructions are our own."""
        settings = self._settings
        judged = f"GEdit-Bench ({settings.language}) judged by {settings.judge.model} with instructions written anew"
        return label(
            [
                judged,
                asked_otherwise(settings.judge, GeditSettings.model_fields["judge"].default),
                limited(settings.max_prompts),
            ]
        )

    @cached_property
    def _folder(self) -> Path:
        return sources.checked(self.root, self.name)

    def plan(self) -> list[Row]:
        """One row per edit, in the original's layout: ``fullset/<group>/<language>/<key>.png`` and its source."""
        chosen = [row for row in read_prompts(self._folder) if row["language"] == self._settings.language]
        if Counter(row["category"] for row in chosen) != Counter(rules.ITEMS):
            counts = dict(Counter(row["category"] for row in chosen))
            raise UserError(f"{self._folder} holds {counts} in {self._settings.language}, not {dict(rules.ITEMS)}")
        rows = []
        for entry in first_of_each(chosen, self._settings.max_prompts):
            stem = f"fullset/{entry['category']}/{entry['language']}/{entry['prompt_id']}"
            seed = derive_seed(self.name, self.seed, entry["prompt_id"], 0)
            rows.append({**entry, "index": 0, "seed": seed, "file": f"{stem}.png", "original": f"{stem}_SRCIMG.png"})
        unpacked(self._folder, self._settings.language)  # now: while samples are made, several processes may be at it
        return rows

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Edit the source of every row."""
        language = self._settings.language
        sources_folder = unpacked(self._folder, language)
        try:
            originals = [read_image(sources_folder, {"file": f"{row['prompt_id']}.png"}) for row in rows]
        except UnreadableSample as error:
            raise UserError(f"a source image of GEdit-Bench cannot be read: {error}") from None
        return edit(model, rows, originals, sampling, folder)

    def requests(self, rows: Sequence[Row], folder: Path) -> "list[Request]":
        """Two requests per edit: source and edit for SC, the edit alone for PQ; the edit in its source's size."""
        from reca.evaluation.judges.requests import Request

        found = []
        for row in rows:
            try:
                source = read_image(folder, row, "original")
            except UnreadableSample as error:
                raise UserError(f"{folder}: {error}; delete it and run `reca generate` again") from None
            if (path := self.shown(row, folder, like=source)) is not None:
                both = (folder / row["original"], path)
                found.append(Request(f"{row['prompt_id']}/SC", SEMANTICS.format(prompt=row["prompt"]), both))
                found.append(Request(f"{row['prompt_id']}/PQ", QUALITY.format(), (path,)))
        return found

    def read(self, rows: Sequence[Row], replies: "Mapping[str, Reply]") -> list[ItemScore]:
        """A tenth of O of every edit; both replies must be readable."""
        from reca.evaluation.judges.judge import told

        values: list[float | None] = []
        details = []
        for row in rows:
            detail: dict[str, Any] = {"intersection": row["intersection"]}
            for what in ("SC", "PQ"):
                reply = replies.get(f"{row['prompt_id']}/{what}")
                scores = rules.parse_strict(reply.text) if reply and reply.status == "answered" else None
                detail[what] = {"score": None if scores is None else min(scores), **told(reply, scores is not None)}
            smallest = detail["SC"]["score"], detail["PQ"]["score"]
            scored = None not in smallest
            values.append(rules.item_score([smallest[0]], [smallest[1]])[2] / SCALE if scored else None)
            details.append(detail)
        return by_prompt(rows, values, details)

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """In the original's unit, 0-10: G_SC, G_PQ and G_O of all edits and of the intersection subset."""
        language, found = self._settings.language, super().details(items)
        edits = [
            rules.Edit(
                item.category, language, one["SC"]["score"], one["PQ"]["score"], intersection=one["intersection"]
            )
            for item in items
            for one in item.details
        ]
        for name, subset in (("full_set", False), ("intersection", True)):
            try:
                semantics, quality, overall = rules.summarise(edits, language, subset).macro
                found[name] = {"G_SC": semantics, "G_PQ": quality, "G_O": overall}
            except ValueError as error:
                found[name] = {"no_score_because": str(error)}
        return found


def _rows_of(folder: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a data set's files.

    Raises:
        UserError: A file or a column is not as expected.
    """
    import pyarrow as pa
    from pyarrow import ipc, parquet

    for path in sources.data_files(folder):
        try:
            if path.suffix == ".parquet":
                for batch in parquet.ParquetFile(path).iter_batches(batch_size=16, columns=list(columns)):
                    yield from batch.to_pylist()
            else:
                with pa.memory_map(str(path)) as file, ipc.open_stream(file) as stream:
                    for batch in stream:
                        yield from batch.select(list(columns)).to_pylist()
        except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError, OSError) as error:
            raise UserError(f"{path} is not GEdit-Bench's data ({error}); delete {folder} and fetch it anew") from None


def read_prompts(folder: Path) -> list[Row]:
    """All edits in both languages; images are left where they are.

    Raises:
        UserError: See :func:`_rows_of`.
    """
    return [
        {
            "prompt_id": str(row["key"]),
            "category": str(row["task_type"]),
            "prompt": str(row["instruction"]),
            "language": str(row["instruction_language"]),
            "intersection": bool(row["Intersection_exist"]),
        }
        for row in _rows_of(folder, [name for name in COLUMNS if name != "input_image_raw"])
    ]


def unpacked(folder: Path, language: str) -> Path:
    """The folder with the source images of one language, ``<key>.png``, which are taken out of the data once.

    Raises:
        UserError: An image cannot be read.
    """
    target = folder / "unpacked" / language
    if target.is_dir():
        return target
    with atomic_folder(target) as temporary:
        for row in _rows_of(folder, ["key", "instruction_language", "input_image_raw"]):
            if row["instruction_language"] == language:
                stored = row["input_image_raw"]
                try:
                    with Image.open(io.BytesIO(stored["bytes"] if isinstance(stored, dict) else stored)) as image:
                        image.convert("RGB").save(temporary / f"{row['key']}.png")
                except (OSError, TypeError, KeyError) as error:
                    raise UserError(f"the source image of edit {row['key']} cannot be read ({error})") from None
    return target
