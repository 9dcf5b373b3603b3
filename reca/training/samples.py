"""The samples of a run: ids of both splits with their captions and questions, checked once before the first step."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from reca.data.embeddings import Embeddings
from reca.data.manifest import read_manifest
from reca.models.base import Cacheable
from reca.runtime.errors import UserError

HELD_OUT_IMAGES = 128
"""Enough for a loss whose noise is far below its change during a run; more images only cost time."""
CAPTION_COLUMNS = {"sparse": "caption", "full": "full_caption"}


@dataclass(frozen=True)
class Samples:
    """Images of a data set by id."""

    train: Sequence[str]
    held_out: Sequence[str]
    captions: dict[str, str]
    """Of the images that have one."""
    questions: dict[str, list[dict[str, str]]]
    """Questions with ``text`` and ``answer`` about training images that have some."""


def read_samples(dataset: Path, captions: str, need_captions: bool, need_questions: bool) -> Samples:
    """Read the samples of a data set.

    Args:
        dataset: The folder that ``ingest`` wrote.
        captions: See :data:`CAPTION_COLUMNS`.
        need_captions: Whether every training image must have a caption.
        need_questions: Whether some training image must have questions.

    Raises:
        UserError: There are no training images, or captions or questions are missing.
    """
    column = CAPTION_COLUMNS[captions]
    table = read_manifest(dataset, ["id", "split", column, "ground_truth"])
    train = table.filter(pc.equal(table["split"], "train"))
    held_out = table.filter(pc.equal(table["split"], "held_out")).slice(0, HELD_OUT_IMAGES)
    if not len(train):
        raise UserError(f"{dataset} has no training images; lower data.held_out_fraction or add images")
    ids = train["id"].to_pylist()
    texts = _captions(train, column) | _captions(held_out, column)
    without = [name for name in ids if name not in texts]
    if need_captions and without:
        raise UserError(
            f"train.mixture.text_to_image is positive, but {len(without)} of {len(ids)} training images have no "
            f"{column!r} in the manifest (the first is {without[0]}); set train.mixture.text_to_image=0, or give "
            "every image a caption"
        )
    questions = _questions(train) if need_questions else {}
    if need_questions and not questions:
        raise UserError(
            "train.mixture.understanding is positive, but no training image has questions; "
            "set train.mixture.understanding=0, or train.dialogues to a JSON file in LLaVA's format"
        )
    return Samples(ids, held_out["id"].to_pylist(), texts, questions)


def check_stored(embeddings: Embeddings, fields: Collection[Cacheable], ids: Sequence[str]) -> None:
    """Check that the embeddings have some fields for all images.

    Raises:
        UserError: An image or a field is missing.
    """
    stored = set(embeddings.ids)
    absent = [name for name in ids if name not in stored] if fields else []
    if absent:
        raise UserError(
            f"{len(absent)} of {len(ids)} images are not in {embeddings.folder} (the first is {absent[0]}); "
            "run `reca extract` again"
        )
    for field in sorted(fields):
        embeddings.rows(field, ids[:1])


def _captions(table: Any, column: str) -> dict[str, str]:
    pairs = zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True)
    return {name: caption for name, caption in pairs if caption}


def _questions(table: Any) -> dict[str, list[dict[str, str]]]:
    questions: dict[str, list[dict[str, str]]] = {}
    for name, text in zip(table["id"].to_pylist(), table["ground_truth"].to_pylist(), strict=True):
        truth = json.loads(text) if text else {}
        if truth.get("questions"):
            questions[name] = truth["questions"]
    return questions
