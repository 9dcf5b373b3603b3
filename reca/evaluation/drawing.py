"""What the benchmarks of drawing and editing have in common: making samples, sorting scores, naming what differs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.evaluation.benchmark import ItemScore
from reca.evaluation.samples import Pixels, Row, save_png, to_pixels
from reca.runtime.errors import UserError
from reca.runtime.seeding import SampleRng

if TYPE_CHECKING:
    from reca.models.base import Sampling, UnifiedModel


def draw(model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
    """Draw the image of every row, ``prompt`` with ``seed``, into ``file``."""
    images = model.generate([row["prompt"] for row in rows], sampling, SampleRng([row["seed"] for row in rows]))
    for row, pixels in zip(rows, to_pixels(images), strict=True):
        (folder / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        save_png(pixels, folder / row["file"])
    return [dict(row) for row in rows]


def edit(
    model: "UnifiedModel", rows: Sequence[Row], originals: Sequence[Pixels], sampling: "Sampling", folder: Path
) -> list[Row]:
    """Edit the original of every row as ``prompt`` says, into ``file``; the original goes to ``original``.

    Raises:
        UserError: The model's family does not edit.
    """
    import torch

    make_edits = getattr(model, "edit", None)  # reca.models.base.ImageEditor
    if make_edits is None:
        family = getattr(model, "family", type(model).__name__)
        raise UserError(f"the family {family} does not edit images; leave this benchmark out of evaluate.benchmarks")
    device = next(model.parameters()).device
    images = [torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().to(device) / 127.5 - 1 for pixels in originals]
    edited = make_edits(images, [row["prompt"] for row in rows], sampling, SampleRng([row["seed"] for row in rows]))
    for row, before, after in zip(rows, originals, edited, strict=True):
        (folder / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        save_png(before, folder / row["original"])
        save_png(to_pixels(after[None])[0], folder / row["file"])
    return [dict(row) for row in rows]


def first_of_each(entries: Sequence[Row], limit: int | None) -> list[Row]:
    """The first ``limit`` entries of every category; all without a limit."""
    taken: dict[str, int] = {}
    kept = []
    for entry in entries:
        taken[entry["category"]] = taken.get(entry["category"], 0) + 1
        if limit is None or taken[entry["category"]] <= limit:
            kept.append(entry)
    return kept


def by_prompt(
    rows: Sequence[Row], values: Sequence[float | None], details: Sequence[dict[str, Any]]
) -> list[ItemScore]:
    """One item a prompt, from one value and one detail a sample; answers leave no files."""
    prompts: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        prompts.setdefault(row["prompt_id"], []).append(number)
    return [
        ItemScore(
            prompt_id,
            rows[numbers[0]]["category"],
            tuple(values[number] for number in numbers),
            tuple(rows[number]["file"] for number in numbers if "file" in rows[number]),
            tuple(details[number] for number in numbers),
        )
        for prompt_id, numbers in prompts.items()
    ]


def label(differences: Iterable[str]) -> str:
    """``official``, or ``variant: `` and what differs."""
    found = [difference for difference in differences if difference]
    return f"variant: {'; '.join(found)}" if found else "official"


def limited(max_prompts: int | None) -> str:
    """What :func:`label` says of a shortened prompt set."""
    return "" if max_prompts is None else f"only the first {max_prompts} prompts of each category"


def numbered(images_per_prompt: int, official: int) -> str:
    """What :func:`label` says of another number of images."""
    return "" if images_per_prompt == official else f"{images_per_prompt} images a prompt instead of {official}"
