"""GenEval: the objects, counts, colours and positions that a prompt names, checked in the generated image.

Ghosh et al., "GenEval" (arXiv 2310.11513), djghosh13/geneval@af4902f, MIT. Its 553 prompts
(:mod:`reca.evaluation.benchmarks.geneval.prompts`), its rules (:mod:`reca.evaluation.geneval_rules`), Mask2Former as
detector with mmdet's post-processing, CLIP ViT-L/14 for colours. A category is one of its six tasks, and its score the
share of correct images; overall is the plain mean of the six, as in the original.

The folder of samples has the original's layout, ``00000/metadata.jsonl`` and ``00000/samples/0000.png``, next to the
manifest.
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
from reca.runtime.device import choose_device
from reca.runtime.errors import UserError
from reca.runtime.files import write_text
from reca.runtime.seeding import derive_seed

if TYPE_CHECKING:
    from reca.evaluation.benchmarks.geneval.detections import MaskedDetection
    from reca.models.base import UnifiedModel
    from reca.models.sampling import Sampling

OFFICIAL_CLIP = "openai/clip-vit-large-patch14"
BATCH = 4
"""Images per forward pass of the detector."""


class Geneval(Benchmark):
    """GenEval.

    Args:
        settings: Number of images, judges.
        root: The project folder; the judges are in its ``data/judges``.
        device: The judges' device: auto, cpu or cuda.
        short_side: Shorter side in pixels to which the detector resizes images; smaller only in tests.
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
        """Return the differences from the original; never ``official``: colours in float32, not under autocast."""
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
        """Return the identity of detector and CLIP."""
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
        """Return one row per prompt and image."""
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
        """Return the plan's rows for images made elsewhere, in the original's layout; absent images are marked.

        Raises:
            UserError: The folder has another layout, or was made for other prompts.
        """
        rows = []
        for prompt in {row["prompt_id"]: row for row in self.plan()}.values():
            _check_metadata(folder / prompt["metadata_file"], prompt["metadata"])
            samples = folder / prompt["prompt_id"] / "samples"
            files = sorted((f for f in samples.glob("*.png") if f.stem.isdigit()), key=lambda f: int(f.stem))
            for index in range(self.images_per_prompt):
                row = {key: value for key, value in prompt.items() if key != "seed"} | {"index": index}
                if index < len(files):
                    row["file"] = f"{prompt['prompt_id']}/samples/{files[index].name}"
                else:
                    row |= {"file": f"{prompt['prompt_id']}/samples/{index:04d}.png", "missing": True}
                rows.append(row)
        if all(row.get("missing") for row in rows):
            raise UserError(f"{folder} holds no image of GenEval's layout (00000/samples/0000.png)")
        return rows

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Generate one image per row, and write the prompt's metadata next to it."""
        for row in rows:
            if not (path := folder / row["metadata_file"]).is_file():
                write_text(path, json.dumps(row["metadata"]) + "\n")
        return draw_samples(model, rows, sampling, folder)

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """Score every image: 1 if all clauses of its prompt hold, else 0."""
        detector = self._detector
        judged: list[tuple[float | None, dict[str, Any]]] = []
        for start in range(0, len(rows), BATCH):
            judged += _judge_batch(detector, rows[start : start + BATCH], folder)
        return items_by_prompt(rows, [value for value, _ in judged], [detail for _, detail in judged])

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return the shares of correct images, and of prompts with at least one correct image."""
        from reca.evaluation.geneval_rules import summarise

        results = [(i.category, i.prompt_id, value == 1) for i in items for value in i.values if value is not None]
        summary = summarise(results)
        return {"correct_images": summary.images, "correct_prompts": summary.prompts}


class GenevalDetector:
    """Mask2Former and CLIP, loaded once."""

    def __init__(self, root: Path, settings: GenevalSettings, device: str, short_side: int) -> None:
        from reca.evaluation.judges import local_models
        from reca.evaluation.judges.clip import Clip
        from reca.evaluation.judges.mask2former import InstanceSegmenter

        torch_device = choose_device(device)
        try:
            self._detector: InstanceSegmenter = InstanceSegmenter.load(
                local_models.existing_judge_folder(root, settings.detector), torch_device
            )
            self._clip: Clip = Clip.load(local_models.existing_judge_folder(root, settings.clip), torch_device)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{error}; delete the folder and let `reca compose` fetch it again") from None
        self._detector.short_side = short_side
        self._vectors: dict[str, Any] = {}

    def detect(self, images: Sequence[Pixels]) -> "list[list[MaskedDetection]]":
        """Return the detections in images of equal size."""
        from reca.evaluation.benchmarks.geneval.detections import detections_of

        predictions = self._detector.predict(images)
        return [detections_of(p.classes, p.masks, p.padded, p.resized, p.original) for p in predictions]

    def colors(self, pixels: Pixels, objects: "Sequence[MaskedDetection]", name: str) -> list[str]:
        """Return the colours of objects of the same class."""
        from PIL import Image

        from reca.evaluation.benchmarks.geneval.colors import class_vectors, crop_of, name_colors, texts_for

        if name not in self._vectors:
            texts = [text for color in COLORS for text in texts_for(name, color)]
            features = self._clip.texts(texts)
            self._vectors[name] = class_vectors(dict(zip(texts, features, strict=True)), name)
        if not objects:
            return []
        image = Image.fromarray(pixels)
        crops = [crop_of(image, [float(edge) for edge in detection.box], detection.mask) for detection in objects]
        return name_colors(self._clip.images(crops), self._vectors[name])


def _judge_batch(
    detector: GenevalDetector, rows: Sequence[Row], folder: Path
) -> list[tuple[float | None, dict[str, Any]]]:
    """Return the images' values and details; images of equal size share a forward pass."""
    results: list[tuple[float | None, dict[str, Any]]] = [(None, {})] * len(rows)
    images: list[Pixels | None] = [None] * len(rows)
    for index, row in enumerate(rows):
        try:
            images[index] = read_image(folder, row)
        except UnreadableSample as error:
            results[index] = None, {"seen": [], "reasons": [str(error)]}
    for indices in group_by_size(images):
        group = [image for index in indices if (image := images[index]) is not None]
        for index, pixels, detections in zip(indices, group, detector.detect(group), strict=True):
            results[index] = judge_image(detector, pixels, detections, rows[index]["metadata"])
    return results


def judge_image(
    detector: GenevalDetector, pixels: Pixels, detections: "Sequence[MaskedDetection]", metadata: Entry
) -> tuple[float, dict[str, Any]]:
    """Return 1 or 0 by GenEval's rules, with the selected detections and the reasons against the image."""
    from reca.evaluation import geneval_rules as rules

    untyped: Any = detections  # their numbers are NumPy's, which the rules accept
    objects = rules.select(untyped, metadata["tag"])
    result = rules.evaluate_image(objects, metadata, lambda group, name: detector.colors(pixels, group, name))
    detail = [
        {"name": d.name, "box": [float(edge) for edge in d.box], "score": round(float(d.score), 4)}
        for group in objects.values()
        for d in group
    ]
    return float(result.correct), {"seen": detail, "reasons": list(result.reasons)}


def _check_metadata(path: Path, expected: Entry) -> None:
    """Refuse images of other prompts; a folder without metadata is accepted."""
    if not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        prompt = json.loads(lines[0])["prompt"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path} is not GenEval metadata ({error!r})") from None
    if prompt != expected["prompt"]:
        raise UserError(
            f"{path} is about {prompt!r} and not about {expected['prompt']!r}: images of another prompt set"
        )
