"""GenEval: does an image show the objects, numbers, colours and positions that its prompt names?

Ghosh et al., "GenEval" (arXiv 2310.11513), djghosh13/geneval@af4902f, MIT. Its 553 prompts
(:mod:`reca.evaluation.benchmarks.geneval.prompts`), its rules (:mod:`reca.evaluation.geneval_rules`), Mask2Former as
detector with mmdet's post-processing, CLIP ViT-L/14 for colours. A category is one of its six tasks and scores the
share of right images; overall is the plain mean of the six, as in the original.

The folder of samples has the original's own layout beside our manifest: ``00000/metadata.jsonl`` and
``00000/samples/0000.png``.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from reca.config import Config
from reca.config.evaluate import GenevalSettings
from reca.evaluation.benchmark import (
    Benchmark,
    ItemScore,
    Judge,
    image_count_difference,
    items_by_prompt,
    prompt_limit_difference,
    protocol_label,
)
from reca.evaluation.benchmarks.geneval.prompts import IMAGES_PER_PROMPT, PROMPTS, Entry, generate
from reca.evaluation.geneval_rules import COLORS
from reca.evaluation.samples import (
    Pixels,
    Row,
    UnreadableSample,
    draw_samples,
    first_per_category,
    group_by_size,
    read_image,
)
from reca.runtime.distributed import choose_device
from reca.runtime.errors import UserError
from reca.runtime.files import write_text
from reca.runtime.seeding import derive_seed

if TYPE_CHECKING:
    from reca.evaluation.benchmarks.geneval.detections import MaskedDetection
    from reca.models.base import Sampling, UnifiedModel

OFFICIAL_CLIP = "openai/clip-vit-large-patch14"
BATCH = 4
"""Images that the detector sees at once."""


class Geneval(Benchmark):
    """GenEval.

    Args:
        settings: Number of images, judges.
        root: The project folder; the judges lie in ``data/judges``.
        device: Where the judges run: auto, cpu or cuda.
        short_side: What the detector enlarges images to; smaller only in tests.
    """

    name: ClassVar[str] = "geneval"

    def __init__(self, settings: GenevalSettings, root: Path, device: str = "auto", short_side: int = 800) -> None:
        self._settings, self._root, self._device, self._short_side = settings, root, device, short_side
        self.images_per_prompt, self.seed = settings.images_per_prompt, settings.seed

    @classmethod
    def from_config(cls, config: Config, root: Path) -> Self:
        """Set up from ``evaluate.geneval``."""
        return cls(config.evaluate.geneval or GenevalSettings(), root, config.hardware.device)

    @property
    def protocol(self) -> str:
        """What is not the original's; never ``official``, for colours are told in float32 and not under autocast."""
        from reca.evaluation.judges import local_models

        settings, clip = self._settings, self._settings.clip.partition("@")[0]
        detector = local_models.judge_folder(self._root, settings.detector)
        official = local_models.weights_origin(detector).startswith("mask2former_swin-s")
        return protocol_label(
            [
                prompt_limit_difference(settings.max_prompts),
                image_count_difference(settings.images_per_prompt, IMAGES_PER_PROMPT),
                "" if official else f"detector {detector.name} instead of mmdet's Mask2Former Swin-S",
                "" if clip == OFFICIAL_CLIP else f"colours by {clip} instead of {OFFICIAL_CLIP}",
                "colours in float32",
            ]
        )

    @cached_property
    def judge(self) -> Judge:
        """Detector and colour head."""
        from reca.evaluation.judges import local_models

        return local_models.judge_identity(self._root, self._settings.detector, self._settings.clip)

    @cached_property
    def _detector(self) -> "GenevalDetector":
        return GenevalDetector(self._root, self._settings, self._device, self._short_side)

    def _entries(self) -> list[Row]:
        entries = generate()
        if len(entries) != PROMPTS:
            raise UserError(f"{len(entries)} GenEval prompts were generated instead of {PROMPTS}: another NumPy?")
        rows = [{"number": number, "category": e["tag"], "entry": e} for number, e in enumerate(entries)]
        return first_per_category(rows, self._settings.max_prompts)

    def plan(self) -> list[Row]:
        """One row per prompt and image."""
        return [
            {
                "prompt_id": (prompt_id := f"{entry['number']:05d}"),
                "category": entry["category"],
                "prompt": entry["entry"]["prompt"],
                "index": index,
                "seed": derive_seed(self.name, self.seed, prompt_id, index),
                "file": f"{prompt_id}/samples/{index:04d}.png",
                "metadata_file": f"{prompt_id}/metadata.jsonl",
                "metadata": entry["entry"],
            }
            for entry in self._entries()
            for index in range(self.images_per_prompt)
        ]

    def existing_samples(self, folder: Path) -> list[Row]:
        """The plan's rows for images made elsewhere, in the original's layout; what is not there is marked.

        Raises:
            UserError: The folder holds nothing of that layout, or was made for other prompts.
        """
        rows = []
        for prompt in {row["prompt_id"]: row for row in self.plan()}.values():
            _check_metadata(folder / prompt["metadata_file"], prompt["metadata"])
            samples = folder / prompt["prompt_id"] / "samples"
            files = sorted((f for f in samples.glob("*.png") if f.stem.isdigit()), key=lambda f: int(f.stem))
            for index in range(self.images_per_prompt):
                there = index < len(files)
                name = f"{prompt['prompt_id']}/samples/{files[index].name if there else f'{index:04d}.png'}"
                row = {key: value for key, value in prompt.items() if key != "seed"}
                rows.append({**row, "index": index, "file": name, **({} if there else {"missing": True})})
        if all(row.get("missing") for row in rows):
            raise UserError(f"{folder} holds no image of GenEval's layout (00000/samples/0000.png)")
        return rows

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Draw one image per row, and write what must be in it beside it."""
        for row in rows:
            if not (path := folder / row["metadata_file"]).is_file():
                write_text(path, json.dumps(row["metadata"]) + "\n")
        return draw_samples(model, rows, sampling, folder)

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """1 where every clause of the prompt holds, else 0."""
        detector = self._detector
        judged: list[tuple[float | None, dict[str, Any]]] = []
        for start in range(0, len(rows), BATCH):
            judged += _judge_batch(detector, rows[start : start + BATCH], folder)
        return items_by_prompt(rows, [value for value, _ in judged], [detail for _, detail in judged])

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """GenEval's two other numbers: share of right images, and of prompts with at least one right image."""
        from reca.evaluation.geneval_rules import summarise

        results = [(i.category, i.prompt_id, value == 1) for i in items for value in i.values if value is not None]
        summary = summarise(results)
        return {"correct_images": summary.images, "correct_prompts": summary.prompts}


class GenevalDetector:
    """Detector and colour head, loaded once."""

    def __init__(self, root: Path, settings: GenevalSettings, device: str, short_side: int) -> None:
        from reca.evaluation.judges import local_models
        from reca.evaluation.judges.clip import Clip
        from reca.evaluation.judges.mask2former import InstanceSegmenter

        where = choose_device(device)
        try:
            self._detector: InstanceSegmenter = InstanceSegmenter.load(
                local_models.existing_judge_folder(root, settings.detector), where
            )
            self._clip: Clip = Clip.load(local_models.existing_judge_folder(root, settings.clip), where)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{error}; delete the folder and let `reca compose` fetch it again") from None
        self._detector.short_side = short_side
        self._vectors: dict[str, Any] = {}

    def detect(self, images: Sequence[Pixels]) -> "list[list[MaskedDetection]]":
        """Everything found in images of one size."""
        from reca.evaluation.benchmarks.geneval.detections import detections_of

        seen = self._detector.predict(images)
        return [detections_of(one.classes, one.masks, one.padded, one.resized, one.original) for one in seen]

    def colors(self, pixels: Pixels, objects: "Sequence[MaskedDetection]", name: str) -> list[str]:
        """The colour of each object of one class."""
        from PIL import Image

        from reca.evaluation.benchmarks.geneval.colors import class_vectors, crop_of, name_colors, texts_for

        if name not in self._vectors:
            texts = [text for color in COLORS for text in texts_for(name, color)]
            features = self._clip.texts(texts)
            self._vectors[name] = class_vectors(dict(zip(texts, features, strict=True)), name)
        if not objects:
            return []
        image = Image.fromarray(pixels)
        crops = [crop_of(image, [float(edge) for edge in one.box], one.mask) for one in objects]
        return name_colors(self._clip.images(crops), self._vectors[name])


def _judge_batch(
    detector: GenevalDetector, rows: Sequence[Row], folder: Path
) -> list[tuple[float | None, dict[str, Any]]]:
    """Value and detail of a few images; those of one size are looked at together."""
    results: list[tuple[float | None, dict[str, Any]]] = [(None, {})] * len(rows)
    images: list[Pixels | None] = [None] * len(rows)
    for number, row in enumerate(rows):
        try:
            images[number] = read_image(folder, row)
        except UnreadableSample as error:
            results[number] = None, {"seen": [], "reasons": [str(error)]}
    for numbers in group_by_size(images):
        group = [image for number in numbers if (image := images[number]) is not None]
        for number, pixels, detections in zip(numbers, group, detector.detect(group), strict=True):
            results[number] = judge_image(detector, pixels, detections, rows[number]["metadata"])
    return results


def judge_image(
    detector: GenevalDetector, pixels: Pixels, detections: "Sequence[MaskedDetection]", metadata: Entry
) -> tuple[float, dict[str, Any]]:
    """1 or 0 by GenEval's rules and default options, with what was seen and what is wrong."""
    from reca.evaluation import geneval_rules as rules

    untyped: Any = detections  # their numbers are NumPy's, which the rules take as they are
    objects = rules.select(untyped, metadata["tag"])
    result = rules.evaluate_image(objects, metadata, lambda some, name: detector.colors(pixels, some, name))
    seen = [
        {"name": one.name, "box": [float(edge) for edge in one.box], "score": round(float(one.score), 4)}
        for group in objects.values()
        for one in group
    ]
    return float(result.correct), {"seen": seen, "reasons": list(result.reasons)}


def _check_metadata(path: Path, expected: Entry) -> None:
    """Refuse images of other prompts; a folder without metadata is taken at its word."""
    if not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        said = json.loads(lines[0])["prompt"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path} is no GenEval metadata ({error!r})") from None
    if said != expected["prompt"]:
        raise UserError(f"{path} is about {said!r} and not about {expected['prompt']!r}: images of another prompt set")
