"""Reconstruction of images from the model's own understanding embeddings.

Held-out images go through ``encode_semantic`` and ``reconstruct``. Categories, each a mean over images of numbers in
0..1:

- ``similarity``: structural similarity with the original, negative values counted as 0;

and for rendered scenes, whose truth is known, from the scene detector's detections above GenEval's threshold:

- ``objects``: share of the true shapes that are detected (shape and colour, as a multiset);
- ``counts``: 1 if the number of objects is correct, regardless of their kinds;
- ``relations``: share of the pairs of true shapes with the correct relation. Only shapes whose kind and colour occur
  once in the scene form pairs; scenes without a pair do not count. A pair is correct if each of the two is detected
  exactly once and GenEval's ``relative_position`` contains their true relation;
- ``exact_scene``: 1 if the multiset of shapes and colours is exactly the true one.

The overall score is the plain mean of these categories. Image encoders (``evaluate.fidelity.encoders``) add a category
each, the cosine of their features of reconstruction and original, negative values counted as 0; these have no weight in
the overall score, which is the same without them. The peak signal-to-noise ratio is unbounded, and GMSD is a distance:
both are in the details only.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from PIL import Image

from reca.config import Config, FidelitySettings, ScenesData
from reca.data.embeddings import to_device
from reca.data.images import resize_images
from reca.data.synthetic.scenes import Scene, metadata, relation, render, sample_scene
from reca.evaluation import geneval_rules as geneval
from reca.evaluation.benchmark import Benchmark, ItemScore, Judge
from reca.evaluation.judges.image_similarity import Encoders
from reca.evaluation.judges.scene_judge import FOLDER, SceneJudge, confident, describe
from reca.evaluation.samples import Row, UnreadableSample, read_image, save_png, to_pixels
from reca.evaluation.similarity import gradient_deviation, peak_signal_to_noise, structural_similarity
from reca.runtime.errors import UserError
from reca.runtime.seeding import SampleRng, derive_seed

if TYPE_CHECKING:
    from reca.evaluation.judges.scene_detector import Detection
    from reca.models.base import UnifiedModel
    from reca.models.sampling import Sampling

DATASET = Path("outputs/dataset")
CATEGORIES = ("similarity", "objects", "counts", "relations", "exact_scene")
"""Categories of the overall score."""


class Fidelity(Benchmark):
    """Reconstruction of held-out images.

    Args:
        settings: Number of images, and the seed of scenes.
        image_size: Side in pixels of rendered scenes; ``None``: the images are the data set's held-out ones.
        dataset: Folder of the data set.
        judge_folder: The scene detector's folder.
        encoders: Image encoders that also compare reconstruction and original.
    """

    name: ClassVar[str] = "fidelity"

    def __init__(
        self,
        settings: FidelitySettings,
        image_size: int | None,
        dataset: Path,
        judge_folder: Path,
        encoders: Encoders,
    ) -> None:
        self.seed = settings.seed
        self._num_images, self._image_size = settings.num_images, image_size
        self._dataset, self._judge, self._encoders = dataset, SceneJudge(judge_folder), encoders

    @classmethod
    def from_config(cls, config: Config, root: Path) -> Self:
        """Set up from ``evaluate.fidelity``: scenes if the data are scenes, else held-out images."""
        size = config.data.image_size if isinstance(config.data, ScenesData) else None
        encoders = Encoders(root, config.evaluate.fidelity.encoders, config.hardware.device)
        return cls(config.evaluate.fidelity, size, root / DATASET, root / FOLDER, encoders)

    @property
    def protocol(self) -> str:
        """Return the kind of images; there is no published protocol."""
        return "variant: reconstruction of held-out " + ("photographs" if self._image_size is None else "scenes")

    @property
    def judge(self) -> Judge:
        """Return the identity of SSIM (photographs) or the scene detector (scenes), and of the encoders."""
        judge = Judge(name="ssim", version="1") if self._image_size is None else self._judge.identity
        return self._encoders.combined_identity(judge)

    @property
    def weights(self) -> dict[str, float]:
        """Return the weights of the categories in the overall score; empty without encoders: equal weights."""
        names = self._encoders.names
        return dict.fromkeys(CATEGORIES, 1.0) | dict.fromkeys(names, 0.0) if names else {}

    def plan(self) -> list[Row]:
        """Return one row per image.

        Raises:
            UserError: There is no data set, or it has no held-out images.
        """
        rows = self._scene_rows() if self._image_size is not None else self._dataset_rows()
        return [
            {**row, "index": 0, "seed": derive_seed(self.name, self.seed, row["prompt_id"])}
            for row in rows[: self._num_images]
        ]

    def _scene_rows(self) -> list[Row]:
        return [
            {
                "prompt_id": f"{number:04d}",
                "category": "scene",
                "scene": number,
                "image_size": self._image_size,
                "metadata": _truth(scene),
            }
            for number, scene in enumerate(self._scenes)
        ]

    def _dataset_rows(self) -> list[Row]:
        from reca.data.manifest import read_manifest

        table = read_manifest(self._dataset, ["id", "split"]).to_pylist()
        held_out = sorted(row["id"] for row in table if row["split"] == "held_out")
        if not held_out:
            raise UserError(
                f"{self._dataset} has no held-out images, so fidelity cannot be measured: raise "
                "data.held_out_fraction, give more images, or leave fidelity out of evaluate.benchmarks"
            )
        return [{"prompt_id": name, "category": "photograph", "metadata": None} for name in held_out]

    @cached_property
    def _scenes(self) -> list[Scene]:
        base = derive_seed("benchmark", self.name, self.seed)  # 63 bits: far from any seed of training data
        return [sample_scene(base, index) for index in range(self._num_images)]

    def _originals(self, rows: Sequence[Row]) -> list[Image.Image]:
        if self._image_size is not None:
            pixels = render([self._scenes[row["scene"]] for row in rows], self._image_size)
            return [Image.fromarray(image) for image in pixels]
        from reca.data.images import load_images

        return [image for _, image in load_images(self._dataset, [row["prompt_id"] for row in rows])]

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Reconstruct each row's image; the original is saved next to it, at the model's generation size."""
        originals = self._originals(rows)
        sizes = [model.spec.generation.size(image.height, image.width) for image in originals]
        results: dict[int, Row] = {}
        for size in dict.fromkeys(sizes):  # a single size, unless images keep their aspect ratios
            indices = [index for index, image_size in enumerate(sizes) if image_size == size]
            group, images = [rows[index] for index in indices], [originals[index] for index in indices]
            reconstructed = _reconstruct(model, group, images, replace(sampling, size=size), folder)
            results |= dict(zip(indices, reconstructed, strict=True))
        return [results[index] for index in range(len(rows))]

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """Score every image in every category that applies to it."""
        scenes = [row for row in rows if row["metadata"] is not None]
        detections = self._judge.detect(folder, [row["file"] for row in scenes]) if scenes else []
        by_prompt = {row["prompt_id"]: shapes for row, shapes in zip(scenes, detections, strict=True)}
        cosines = self._encoders.cosines(rows, folder)
        return [
            item
            for row, row_cosines in zip(rows, cosines, strict=True)
            for item in _score_image(row, folder, by_prompt.get(row["prompt_id"]), row_cosines)
        ]

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return the means of PSNR in decibels, over images that differ from their original, and of GMSD."""

        def mean(name: str) -> float | None:
            values = [value for item in items for detail in item.details if (value := detail.get(name)) is not None]
            return float(np.mean(values)) if values else None

        return {"psnr_mean": mean("psnr"), "gmsd_mean": mean("gmsd")}


def _reconstruct(
    model: "UnifiedModel", rows: Sequence[Row], originals: Sequence[Image.Image], sampling: "Sampling", folder: Path
) -> list[Row]:
    """Reconstruct images of equal generation size, and save them and their originals."""
    inputs = to_device(resize_images(originals, model.spec.understanding), next(model.parameters()).device)
    images = model.reconstruct(model.encode_semantic(inputs), sampling, SampleRng([row["seed"] for row in rows]))
    targets = [
        pixels for target in resize_images(originals, model.spec.generation) for pixels in to_pixels(target[None])
    ]
    results = []
    for row, pixels, target in zip(rows, to_pixels(images), targets, strict=True):
        names = {"file": f"{row['prompt_id']}.png", "original": f"{row['prompt_id']}_original.png"}
        save_png(pixels, folder / names["file"])
        save_png(target, folder / names["original"])
        results.append({**row, **names})
    return results


def _truth(scene: Scene) -> Row:
    """Return the scene's GenEval metadata, its shapes, and its pairs of shapes with their relations."""
    identities = [(shape.kind, shape.color) for shape in scene.shapes]
    unique = [shape for shape in scene.shapes if identities.count((shape.kind, shape.color)) == 1]
    pairs = [
        [[first.kind, first.color], relation(first, second), [second.kind, second.color]]
        for first, second in combinations(unique, 2)
    ]
    return {**metadata(scene), "objects": [list(identity) for identity in identities], "pairs": pairs}


def _score_image(
    row: Row, folder: Path, detections: "Sequence[Detection] | None", cosines: Mapping[str, float | None]
) -> list[ItemScore]:
    truth = row["metadata"]
    values: dict[str, float | None] = {}
    try:
        reconstruction, original = read_image(folder, row), read_image(folder, row, "original")
        values["similarity"] = max(0.0, min(1.0, structural_similarity(reconstruction, original)))
        detail: dict[str, Any] = {
            "psnr": peak_signal_to_noise(reconstruction, original),
            "gmsd": gradient_deviation(reconstruction, original),
        }
    except UnreadableSample as error:
        values["similarity"], detail = None, {"error": str(error)}
    if truth is not None:
        values |= compare_scene(truth, detections)
        detail["seen"] = [describe(detection) for detection in confident(detections or ())]
    values |= cosines
    files = (row["file"], row["original"])
    return [  # the first category has the detail
        ItemScore(row["prompt_id"], name, (value,), files, (detail if index == 0 else {},))
        for index, (name, value) in enumerate(values.items())
    ]


def compare_scene(truth: Row, detections: "Sequence[Detection] | None") -> dict[str, float | None]:
    """Compare detections with the true scene; every value is ``None`` for an unreadable image.

    Args:
        truth: ``objects`` as (kind, colour) and ``pairs`` as (object, relation, object); both objects of a pair are
            the only ones of their kind and colour.
        detections: The detector's answer, or ``None``.
    """
    names = ["objects", "counts", *(["relations"] if truth["pairs"] else []), "exact_scene"]
    if detections is None:
        return dict.fromkeys(names)
    shapes = confident(detections)
    expected = Counter((kind, color) for kind, color in truth["objects"])
    detected = Counter((shape.name, shape.color) for shape in shapes)
    values: dict[str, float | None] = {
        "objects": (expected & detected).total() / expected.total(),
        "counts": float(len(shapes) == expected.total()),
        "exact_scene": float(expected == detected),
    }
    if truth["pairs"]:
        values["relations"] = float(np.mean([_pair_holds(pair, shapes) for pair in truth["pairs"]]))
    return {name: values[name] for name in names}


def _pair_holds(pair: Sequence[Any], shapes: "Sequence[Detection]") -> bool:
    first, expected, second = pair
    a, b = ([s.box for s in shapes if [s.name, s.color] == list(identity)] for identity in (first, second))
    return len(a) == len(b) == 1 and expected in geneval.relative_position(a[0], b[0])
