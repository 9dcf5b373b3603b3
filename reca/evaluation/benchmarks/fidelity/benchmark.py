"""Reconstruction: does an image come back from the model's own understanding embeddings?

Held-out images go through ``encode_semantic`` and ``reconstruct``. Categories, each a mean over images of numbers in
0..1:

- ``similarity``: structural similarity with the original, negative values counted as 0;

and where the truth is known (rendered scenes), with what the scene detector sees at GenEval's threshold:

- ``objects``: share of the true shapes that are there (shape and colour, as a multiset);
- ``counts``: 1 where the number of objects is right, whatever they are;
- ``relations``: share of the pairs of true shapes that stand to each other as they should. Only shapes whose kind
  and colour occur once in the scene make pairs; scenes without a pair have no say. A pair is right when each of
  the two is found exactly once and GenEval's ``relative_position`` holds their true relation;
- ``exact_scene``: 1 where the multiset of shapes and colours is right and nothing is added.

The overall score is the plain mean of these categories. Image encoders that are named (``evaluate.fidelity.encoders``)
add a category each, the cosine of their features of drawing and original, negative values counted as 0; they weigh
nothing in the overall score, which is the same without them. The peak signal-to-noise ratio has no ceiling, and GMSD is
a distance: both are told in the details only.
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
from reca.data.images import resize_images
from reca.data.packed import to_device
from reca.data.synthetic.scenes import Scene, metadata, relation, render, sample_scene
from reca.evaluation import geneval_rules as geneval
from reca.evaluation.benchmark import Benchmark, ItemScore, Judge
from reca.evaluation.judges.image_similarity import Encoders
from reca.evaluation.judges.scene_judge import FOLDER, SceneJudge, describe
from reca.evaluation.samples import Pixels, Row, UnreadableSample, read_image, save_png, to_pixels
from reca.evaluation.similarity import gradient_deviation, peak_signal_to_noise, structural_similarity
from reca.runtime.errors import UserError
from reca.runtime.seeding import SampleRng, derive_seed

if TYPE_CHECKING:
    from reca.evaluation.judges.scene_detector import Detection
    from reca.models.base import Sampling, UnifiedModel

DATASET = Path("outputs/dataset")
CATEGORIES = ("similarity", "objects", "counts", "relations", "exact_scene")
"""Those of the overall score."""


class Fidelity(Benchmark):
    """Reconstruction of held-out images.

    Args:
        settings: How many images, and the seed that draws scenes.
        image_size: Side in pixels of rendered scenes; ``None``: the images are the data set's held-out ones.
        dataset: Folder of the data set.
        judge_folder: Where the scene detector lies.
        encoders: Compare drawing and original as well.
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
        """Set up from ``evaluate.fidelity``: scenes where the data are scenes, else the data set's held-out images."""
        size = config.data.image_size if isinstance(config.data, ScenesData) else None
        encoders = Encoders(root, config.evaluate.fidelity.encoders, config.hardware.device)
        return cls(config.evaluate.fidelity, size, root / DATASET, root / FOLDER, encoders)

    @property
    def protocol(self) -> str:
        """Return the kind of images; there is no published protocol."""
        return "variant: reconstruction of held-out " + ("photographs" if self._image_size is None else "scenes")

    @property
    def judge(self) -> Judge:
        """The scene detector, where the images are scenes, and the encoders; else arithmetic alone."""
        judge = Judge(name="ssim", version="1") if self._image_size is None else self._judge.identity
        return self._encoders.beside(judge)

    @property
    def weights(self) -> dict[str, float]:
        """Of the categories in the overall score; empty without encoders: all weigh the same."""
        names = self._encoders.names
        return dict.fromkeys(CATEGORIES, 1.0) | dict.fromkeys(names, 0.0) if names else {}

    def plan(self) -> list[Row]:
        """One row per image.

        Raises:
            UserError: There is no data set, or it holds no image back.
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
                f"{self._dataset} holds no image back, so fidelity has nothing to measure: raise "
                "data.held_out_fraction, give more images, or leave fidelity out of evaluate.benchmarks"
            )
        return [{"prompt_id": name, "category": "photograph", "metadata": None} for name in held_out]

    @cached_property
    def _scenes(self) -> list[Scene]:
        base = derive_seed("benchmark", self.name, self.seed)  # 63 bits: no seed of training data comes near
        return [sample_scene(base, index) for index in range(self._num_images)]

    def _originals(self, rows: Sequence[Row]) -> list[Image.Image]:
        if self._image_size is not None:
            pixels = render([self._scenes[row["scene"]] for row in rows], self._image_size)
            return [Image.fromarray(image) for image in pixels]
        from reca.data.manifest import load_images

        return [image for _, image in load_images(self._dataset, [row["prompt_id"] for row in rows])]

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Reconstruct each row's image; the original is saved beside it, at the size that the model draws."""
        originals = self._originals(rows)
        sizes = [model.spec.generation.size(image.height, image.width) for image in originals]
        made: dict[int, Row] = {}
        for size in dict.fromkeys(sizes):  # one, but where images keep their shapes
            alike = [number for number, own in enumerate(sizes) if own == size]
            part, pictures = [rows[number] for number in alike], [originals[number] for number in alike]
            done = _reconstruct(model, part, pictures, replace(sampling, size=size), folder)
            made |= dict(zip(alike, done, strict=True))
        return [made[number] for number in range(len(rows))]

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """Every image in every category it has a say in."""
        known = [row for row in rows if row["metadata"] is not None]
        found = dict(
            zip(
                (row["prompt_id"] for row in known),
                self._judge.detect(folder, [row["file"] for row in known]) if known else [],
                strict=True,
            )
        )
        likeness = self._encoders.likeness(rows, folder)
        return [
            item
            for row, like in zip(rows, likeness, strict=True)
            for item in _score_image(row, folder, found.get(row["prompt_id"]), like)
        ]

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Means of PSNR in decibels, over images that differ from their original at all, and of GMSD."""

        def mean(name: str) -> float | None:
            found = [value for item in items for detail in item.details if (value := detail.get(name)) is not None]
            return float(np.mean(found)) if found else None

        return {"psnr_mean": mean("psnr"), "gmsd_mean": mean("gmsd")}


def _reconstruct(
    model: "UnifiedModel", rows: Sequence[Row], originals: Sequence[Image.Image], sampling: "Sampling", folder: Path
) -> list[Row]:
    """Of images that are drawn in one size."""
    seen = to_device(resize_images(originals, model.spec.understanding), next(model.parameters()).device)
    images = model.reconstruct(model.encode_semantic(seen), sampling, SampleRng([row["seed"] for row in rows]))
    targets = [
        pixels for target in resize_images(originals, model.spec.generation) for pixels in to_pixels(target[None])
    ]
    made = []
    for row, pixels, target in zip(rows, to_pixels(images), targets, strict=True):
        names = {"file": f"{row['prompt_id']}.png", "original": f"{row['prompt_id']}_original.png"}
        save_png(pixels, folder / names["file"])
        save_png(target, folder / names["original"])
        made.append({**row, **names})
    return made


def _truth(scene: Scene) -> Row:
    """GenEval metadata of the scene, and its shapes and pairs as this benchmark asks for them."""
    identities = [(shape.kind, shape.color) for shape in scene.shapes]
    alone = [shape for shape in scene.shapes if identities.count((shape.kind, shape.color)) == 1]
    pairs = [
        [[first.kind, first.color], relation(first, second), [second.kind, second.color]]
        for first, second in combinations(alone, 2)
    ]
    return {**metadata(scene), "objects": [list(identity) for identity in identities], "pairs": pairs}


def _score_image(
    row: Row, folder: Path, detections: "Sequence[Detection] | None", likeness: Mapping[str, float | None]
) -> list[ItemScore]:
    truth = row["metadata"]
    values: dict[str, float | None] = {}
    try:
        drawn, original = read_image(folder, row), read_image(folder, row, "original")
        values["similarity"] = _similarity(drawn, original)
        detail: dict[str, Any] = {
            "psnr": peak_signal_to_noise(drawn, original),
            "gmsd": gradient_deviation(drawn, original),
        }
    except UnreadableSample as error:
        values["similarity"], detail = None, {"error": str(error)}
    if truth is not None:
        values |= compare_scene(truth, detections)
        detail["seen"] = [describe(detection) for detection in _kept(detections or ())]
    values |= likeness
    files = (row["file"], row["original"])
    return [  # what was seen is told once, with the first category
        ItemScore(row["prompt_id"], name, (value,), files, (detail if number == 0 else {},))
        for number, (name, value) in enumerate(values.items())
    ]


def _similarity(drawn: Pixels, original: Pixels) -> float:
    return max(0.0, min(1.0, structural_similarity(drawn, original)))


def _kept(detections: "Sequence[Detection]") -> "list[Detection]":
    return [detection for found in geneval.select(detections, "scene").values() for detection in found]


def compare_scene(truth: Row, detections: "Sequence[Detection] | None") -> dict[str, float | None]:
    """What of a scene is there again; every value ``None`` where there was no image to look at.

    Args:
        truth: ``objects`` as (kind, colour) and ``pairs`` as (object, relation, object); both objects of a pair are
            the only ones of their kind and colour.
        detections: What the detector reported, or ``None``.
    """
    names = ["objects", "counts", *(["relations"] if truth["pairs"] else []), "exact_scene"]
    if detections is None:
        return dict.fromkeys(names)
    kept = _kept(detections)
    wanted = Counter((kind, color) for kind, color in truth["objects"])
    seen = Counter((detection.name, detection.color) for detection in kept)
    values: dict[str, float | None] = {
        "objects": (wanted & seen).total() / wanted.total(),
        "counts": float(len(kept) == wanted.total()),
        "exact_scene": float(wanted == seen),
    }
    if truth["pairs"]:
        values["relations"] = float(np.mean([_pair_holds(pair, kept) for pair in truth["pairs"]]))
    return {name: values[name] for name in names}


def _pair_holds(pair: Sequence[Any], kept: "Sequence[Detection]") -> bool:
    first, wanted, second = pair
    a, b = ([d.box for d in kept if [d.name, d.color] == list(identity)] for identity in (first, second))
    return len(a) == len(b) == 1 and wanted in geneval.relative_position(a[0], b[0])
