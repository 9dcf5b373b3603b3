"""Collages match their ground truth for any seed, and the ground truth reaches the data set."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from reca.config import CollagesData, Config
from reca.data.images import load_images
from reca.data.manifest import read_manifest
from reca.data.sources.collages import CollagesSource
from reca.data.synthetic.collages import (
    PACKAGE_FOLDER,
    Collage,
    Cutouts,
    arrange,
    compose,
    encode_rle,
    objects,
    read_cutouts,
    sample_collage,
)
from reca.data.synthetic.cutout_nouns import CLASSES, EXCLUDED, OTHER_NOUNS, noun_of
from reca.data.synthetic.scenes import (
    NUMBERS,
    RELATIONS,
    Scene,
    full_caption,
    metadata,
    plural,
    questions,
    sparse_caption,
)
from reca.evaluation import geneval_rules as rules
from reca.evaluation.benchmarks.geneval.prompts import OBJECTS
from reca.runtime.errors import UserError
from reca.stages.ingest import ingest
from tests.unit.data.conftest import FolderOf
from tests.unit.data.pictures import cutout, cutout_files, encoded, picture, png

NOUNS = ("cup", "fox", "ostrich", "sheep", "strawberry", "tall teapot")
SEEDS, INDICES = st.integers(0, 2**33), st.integers(0, 10**6)
SIZES = st.integers(96, 200)
installed = pytest.mark.skipif(not PACKAGE_FOLDER.is_dir(), reason="tuxpaint-stamps-default is not installed")


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> Cutouts:
    folder = tmp_path_factory.mktemp("cutouts")
    for name, data in cutout_files(*NOUNS).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return read_cutouts(folder)


class PerfectDetection:
    """A detection that equals the ground truth."""

    score = 1.0

    def __init__(self, truth: dict) -> None:
        self.name, self.box = truth["class"], truth["box"]


def decoded(mask: dict[str, list[int]]) -> np.ndarray:
    """Decode COCO run lengths."""
    inside = np.arange(len(mask["counts"])) % 2 == 1
    return np.repeat(inside, mask["counts"]).reshape(mask["size"][::-1]).T


def test_captions_name_objects_and_unusable_files_are_skipped(
    folder_of: FolderOf, capsys: pytest.CaptureFixture[str]
) -> None:
    image = cutout((200, 10, 10))
    good = {
        "a.png": image, "a.txt": b"A teapot.\nde.utf8=Eine Teekanne.\n",
        "sub/b.png": image, "sub/b.txt": b"an old-fashioned clothespin",
        "sub/c.png": image, "sub/c.txt": b"A teapot!",
    }  # fmt: skip
    bad = {
        "no caption.png": image,
        "sentence.png": image, "sentence.txt": b"Remember to flush the toilet!",
        "several.png": image, "several.txt": b"A pair of pliers.",
        "proper.png": image, "proper.txt": b"A Tamworth pig.",
        "opaque.png": png(), "opaque.txt": b"A cup.",
        "empty.png": encoded(Image.new("RGBA", (60, 60)), "PNG"), "empty.txt": b"A cup.",
        "tiny.png": cutout((9, 9, 9), 40, 20), "tiny.txt": b"A cup.",
        "broken.png": image[:99], "broken.txt": b"A cup.",
        "jpeg.png": encoded(picture(), "JPEG"), "jpeg.txt": b"A cup.",
        "cartoon/x.png": image, "cartoon/x.txt": b"A cup.",
    }  # fmt: skip
    folder = folder_of(good | bad)
    files = {noun: [cutout.file for cutout in group] for noun, group in read_cutouts(folder).items()}
    assert files == {"old-fashioned clothespin": ["sub/b.png"], "teapot": ["a.png", "sub/c.png"]}
    assert "3 cut-outs of 2 objects" in capsys.readouterr().out


def test_missing_cutouts_error_names_the_package(folder_of: FolderOf, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no folder .*nowhere: .*`apt-get install tuxpaint-stamps-default`.*data\.path"
    ):
        read_cutouts(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"none of the 1 PNG files in .* is a cut-out: .*'A teapot\.'"):
        read_cutouts(folder_of({"a.png": png(), "a.txt": b"A cup."}))


def test_noun_table_is_unambiguous() -> None:
    assert CLASSES.keys() <= set(OBJECTS)
    prefixes = [prefix for table in (CLASSES, OTHER_NOUNS) for group in table.values() for prefix in group] + [
        *EXCLUDED
    ]
    assert len(prefixes) == len(set(prefixes)), "a prefix occurs twice"
    for stem, caption_noun, noun in (
        ("animals/mammals/bears/toys/edward_bear", None, "teddy bear"),
        ("food/fruit/cartoon/banana", "banana", None),
        ("food/vegetables/tomato", "tomato", "tomato"),
        ("plants/flowers/flower2", "flower", "flower"),
        ("plants/flowers/flower4", None, None),
        ("vehicles/auto/beetle", None, "car"),
        ("vehicles/auto/truck", "pickup truck", "truck"),
        ("cartoon", "cartoon", "cartoon"),
    ):
        assert noun_of(stem, caption_noun) == noun


@given(SEEDS, INDICES, SIZES)
def test_a_collage_is_a_function_of_seed_and_index(cutouts: Cutouts, seed: int, index: int, size: int) -> None:
    collages = [sample_collage(cutouts, seed, index) for _ in range(2)]
    (pixels, masks), (repeated, _) = (compose(collage, size) for collage in collages)
    assert (pixels == repeated).all()
    assert pixels.shape == (size, size, 3)
    assert masks.shape == (len(collages[0].cutouts), size, size)
    assert sample_collage(cutouts, seed, index + 1).scene != collages[0].scene


@given(SEEDS, INDICES, SIZES)
def test_masks_and_boxes_are_exact(cutouts: Cutouts, seed: int, index: int, size: int) -> None:
    """Every object here has one colour with a full channel, so a pixel's alpha follows from its value."""
    collage = sample_collage(cutouts, seed, index)
    pixels, masks = compose(collage, size)
    background, _ = compose(Collage(Scene((), "plain", 0.0), (), collage.background), size)
    assert masks.sum(axis=0).max() == 1, "objects overlap"
    outside = np.ones((size, size), bool)
    for mask, truth, shape in zip(masks, objects(collage, masks), collage.scene.shapes, strict=True):
        left, top, right, bottom = truth["box"]
        box = np.s_[top:bottom, left:right]
        assert mask[box].sum() == mask.sum()
        assert all(edge.any() for edge in (mask[box][0], mask[box][-1], mask[box][:, 0], mask[box][:, -1]))
        assert max(right - left, bottom - top) <= 2 * shape.radius * size
        assert max(abs((left + right) / 2 - shape.x * size), abs((top + bottom) / 2 - shape.y * size)) <= 1.5
        channel = 0 if NOUNS.index(truth["class"]) % 2 else 2
        here, behind = (part[..., channel][box].astype(float) for part in (pixels, background))
        alpha = (here - behind) / (255 - behind)
        decided = np.abs(alpha - 0.5) > 1.5 / (255 - behind)
        assert ((alpha > 0.5) == mask[box])[decided].all()
        outside[top - 1 : bottom + 1, left - 1 : right + 1] = False
    assert (pixels[outside] == background[outside]).all()


@given(SEEDS, INDICES, SIZES)
def test_metadata_and_answers_are_true(cutouts: Cutouts, seed: int, index: int, size: int) -> None:
    """GenEval's rules accept the metadata with the exact masks, and every answer is right."""
    collage = sample_collage(cutouts, seed, index)
    scene, truths = collage.scene, objects(collage, compose(collage, size)[1])
    clauses, rng = metadata(scene), random.Random(index)
    detections = [rules.select(map(PerfectDetection, boxes), "scene") for boxes in (truths, truths[1:])]
    assert rules.evaluate_image(detections[0], clauses, lambda *_: []).correct
    assert not rules.evaluate_image(detections[1], clauses, lambda *_: []).correct
    classes = [truth["class"] for truth in truths]
    for question in questions(scene, rng, list(cutouts)):
        nouns = [noun for noun in NOUNS if noun in question.text or plural(noun) in question.text]
        if question.kind == "existence":
            assert question.answer == ("yes" if nouns[0] in classes else "no")
        elif question.kind == "count":
            assert question.answer == NUMBERS[classes.count(nouns[0])]
        else:
            assert question.kind == "relation", "photographs have no colour labels"
            first, second = sorted(nouns, key=question.text.index)
            boxes = [truths[classes.index(noun)]["box"] for noun in (first, second)]
            assert question.answer in rules.relative_position(*boxes)
    for caption in (full_caption(scene, rng), sparse_caption(scene, rng)):
        assert any(noun in caption or plural(noun) in caption for noun in classes)


@given(SEEDS, st.sampled_from(RELATIONS))
def test_arrange_respects_the_relation(cutouts: Cutouts, seed: int, where: str) -> None:
    collage = arrange(("fox", "cup"), cutouts, random.Random(seed), where)
    boxes = [truth["box"] for truth in objects(collage, compose(collage, 128)[1])]
    assert where in rules.relative_position(*boxes)


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_rle_decodes_to_the_mask(mask: np.ndarray) -> None:
    assert (decoded(encode_rle(mask)) == mask).all()
    assert all(count > 0 for count in encode_rle(mask)["counts"][1:])


def test_rle_equals_coco_examples() -> None:
    """Runs go column by column and begin outside."""
    assert encode_rle(np.array([[0, 1, 1], [0, 0, 1]], bool)) == {"size": [2, 3], "counts": [2, 1, 1, 2]}
    assert encode_rle(np.array([[1, 0], [1, 0]], bool)) == {"size": [2, 2], "counts": [0, 2, 2]}


def test_object_that_vanishes_is_an_error(folder_of: FolderOf) -> None:
    image = Image.new("RGBA", (400, 400))
    image.paste((9, 9, 9, 255), (0, 200, 400, 201))
    image.paste((9, 9, 9, 255), (200, 0, 201, 400))
    cutouts = read_cutouts(folder_of({"a.png": encoded(image, "PNG"), "a.txt": b"A cross-hair."}))
    with pytest.raises(UserError, match=r"a\.png vanishes at \d+x\d+ pixels: raise data\.image_size"):
        compose(sample_collage(cutouts, 0, 0), 100)


def ingested(config: Config, folder: Path, root: Path, **changes: object) -> Path:
    values = {"num_images": 12, "image_size": 96, "held_out_fraction": 0.2, "max_bad_fraction": 0.0}
    data = CollagesData(source="collages", path=str(folder), **(values | changes))  # type: ignore[arg-type]
    root.mkdir(exist_ok=True)
    ingest(config.model_copy(update={"data": data}), root)
    return root / "outputs" / "dataset"


def test_data_set_contains_the_ground_truth(default_config: Config, folder_of: FolderOf, tmp_path: Path) -> None:
    folder = folder_of(cutout_files(*NOUNS))
    dataset = ingested(default_config, folder, tmp_path / "one")
    rows = {row["id"]: row for row in read_manifest(dataset).to_pylist()}
    assert len(rows) == 12
    cutouts = read_cutouts(folder)
    for key, image in load_images(dataset):
        row, truth = rows[key], json.loads(rows[key]["ground_truth"])
        collage = sample_collage(cutouts, default_config.seed, int(row["source"].rpartition("/")[2]))
        pixels, masks = compose(collage, 96)
        assert (np.asarray(image) == pixels).all()
        assert truth["objects"] == objects(collage, masks)
        assert truth["metadata"] == metadata(collage.scene)
        assert truth["questions"]
        assert row["caption"]
        assert row["full_caption"]
    repeated = ingested(default_config, folder, tmp_path / "two")
    assert {path.name: path.read_bytes() for path in dataset.iterdir()} == {
        path.name: path.read_bytes() for path in repeated.iterdir()
    }


@installed
def test_debian_package_matches_the_noun_table() -> None:
    cutouts = read_cutouts(PACKAGE_FOLDER)
    assert CLASSES.keys() | OTHER_NOUNS.keys() <= cutouts.keys()
    files = [cutout.file for group in cutouts.values() for cutout in group]
    assert len(files) == len(set(files)) > 200
    denied = [noun for noun in cutouts if noun not in CLASSES and noun.split()[-1] in CLASSES]
    assert not denied, "is there a car? no, a race car"
    data = CollagesData(
        source="collages", path="", num_images=40, image_size=96, held_out_fraction=0.0, max_bad_fraction=0.0
    )
    for item in CollagesSource(data, 0, PACKAGE_FOLDER):
        truth = item.description.ground_truth
        assert truth is not None
        assert rules.evaluate_image(
            rules.select(map(PerfectDetection, truth["objects"]), "scene"), truth["metadata"], lambda *_: []
        ).correct
