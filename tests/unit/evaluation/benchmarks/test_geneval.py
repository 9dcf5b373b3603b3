"""The GenEval benchmark: plan, folder layout, tiny judges end to end, and the recorded scenes of the original."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reca.config import ROOT, compose
from reca.config.evaluate import GenevalSettings
from reca.evaluation.benchmark import load_benchmark, read_items, read_scores
from reca.evaluation.benchmarks.geneval import benchmark as geneval
from reca.evaluation.benchmarks.geneval.detections import MaskedDetection
from reca.evaluation.benchmarks.geneval.prompts import OBJECTS
from reca.evaluation.samples import read_manifest
from reca.runtime.errors import UserError
from reca.stages.generate import generate
from reca.stages.score import score

PIPELINE = ROOT / "tests/golden/geneval/pipeline"
TAGS = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}


@pytest.fixture
def config():
    return compose(
        [
            "evaluate.benchmarks=[geneval]",
            "+evaluate.geneval.images_per_prompt=2",
            "+evaluate.geneval.max_prompts=1",
            "evaluate.bootstrap_resamples=50",
            "hardware.generate_batch_size=5",
            "hardware.threads=1",
        ]
    )


@pytest.fixture
def small_detector(monkeypatch):
    """Judges that look at images of 64 pixels."""
    complete = geneval.Geneval.__init__
    monkeypatch.setattr(geneval.Geneval, "__init__", lambda self, s, r, d: complete(self, s, r, d, short_side=64))


def test_it_plans_the_553_prompts(project):
    bench = load_benchmark("geneval", compose(["evaluate.benchmarks=[geneval]"]), project)
    rows = bench.plan()
    assert bench.images_per_prompt == 12
    assert len(rows) == 553 * 12
    assert Counter(row["category"] for row in rows) == {tag: 12 * n for tag, n in TAGS.items()}
    assert len({row["seed"] for row in rows}) == len({row["file"] for row in rows}) == len(rows)
    assert rows[13]["file"] == "00001/samples/0001.png"


def test_end_to_end_with_tiny_judges(config, project, use_model, artist, judges, small_detector):
    use_model(artist)
    shutil.copytree(judges, project / "data/judges")
    generate(config, project, "base", "geneval")
    folder = project / "outputs/samples/base/geneval"
    assert len(artist.drawn_prompts) == 12
    metadata = json.loads((folder / "00080/metadata.jsonl").read_text())
    assert metadata["tag"] == "two_object"
    assert sorted(path.name for path in (folder / "00080/samples").iterdir()) == ["0000.png", "0001.png"]
    score(config, project, "base", "geneval")
    scores = read_scores(project / "outputs/scores/base/geneval.json")
    assert (scores.expected, scores.failed) == (12, 0)
    assert scores.categories.keys() == TAGS.keys()
    assert scores.judge.name == "mask2former-swin-small-coco-instance+clip-vit-large-patch14"
    assert scores.protocol == (
        "variant: only the first 1 prompts of each category; 2 images a prompt instead of 4; detector "
        "mask2former-swin-small-coco-instance instead of mmdet's Mask2Former Swin-S; colours in float32"
    )
    calls = [
        entry for item in read_items(project / "outputs/scores/base/geneval.items.jsonl") for entry in item.details
    ]
    assert all(detail["seen"] or detail["reasons"] for detail in calls)

    (folder / "00000/samples/0001.png").write_bytes(b"no image")
    score(config, project, "base", "geneval")
    scores = read_scores(project / "outputs/scores/base/geneval.json")
    assert (scores.scored, scores.failed) == (11, 1)


def test_images_made_elsewhere(config, project, use_model, artist, tmp_path):
    use_model(artist)
    generate(config, project, "base", "geneval")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(project / "outputs/samples/base/geneval", elsewhere)
    (elsewhere / "manifest.jsonl").unlink()
    (elsewhere / "00000/samples/0001.png").unlink()
    (elsewhere / "00000/samples/grid.png").write_bytes(b"not a sample by its name")
    shutil.rmtree(elsewhere / "00080")
    bench = load_benchmark("geneval", config, project)
    rows = bench.existing_samples(elsewhere)
    assert len(rows) == 12
    assert [row["file"] for row in rows if row.get("missing")] == [
        "00000/samples/0001.png", "00080/samples/0000.png", "00080/samples/0001.png"
    ]  # fmt: skip
    created = {row["file"]: row for row in read_manifest(project / "outputs/samples/base/geneval")}
    assert all(created[row["file"]]["metadata"] == row["metadata"] for row in rows)
    (elsewhere / "00179/metadata.jsonl").write_text('{"prompt": "a photo of two suns"}\n')
    with pytest.raises(UserError, match="is about 'a photo of two suns' and not"):
        bench.existing_samples(elsewhere)
    with pytest.raises(UserError, match="holds no image of GenEval's layout"):
        bench.existing_samples(tmp_path / "nothing")


def test_the_originals_detector_is_known(project):
    settings = GenevalSettings(images_per_prompt=4, detector="mmdet/official@geneval")
    bench = geneval.Geneval(settings, project)
    assert bench.protocol.startswith("variant: detector official instead of mmdet's")
    folder = project / "data/judges/official"
    folder.mkdir(parents=True)
    (folder / "converted_from.json").write_text(json.dumps({"official": "mask2former_swin-s-p4-w7-224_lsj.pth"}))
    assert bench.protocol == "variant: colours in float32"
    (folder / "converted_from.json").write_text(json.dumps({"official": None}))
    assert bench.protocol.startswith("variant: detector official")


def test_missing_judges_are_named(config, project, use_model, artist):
    use_model(artist)
    generate(config, project, "base", "geneval")
    with pytest.raises(
        UserError, match=r"the judge facebook/mask2former\S+@main is missing: .*data/judges/mask2former"
    ):
        score(config, project, "base", "geneval")


class RecordedDetector:
    """Answers with what a golden case recorded: detections with masks, and the mean colour of a crop for CLIP."""

    def __init__(self, case, palette):
        self.case, self.palette = case, palette

    def detect(self, images):
        result = []
        for entry in self.case["detections"]:
            *box, confidence = (np.float32(value) for value in entry["row"])
            mask = np.asarray(Image.open(PIPELINE / entry["mask"]).convert("1")) if entry.get("mask") else None
            result.append(MaskedDetection(OBJECTS.index(entry["cls"]), confidence, tuple(box), mask))
        return [result] * len(images)

    def colors(self, pixels, objects, name):
        detector = geneval.GenevalDetector.__new__(geneval.GenevalDetector)
        detector._vectors, detector._clip = {}, self
        return geneval.GenevalDetector.colors(detector, pixels, objects, name)

    def texts(self, texts):
        word = {text: next(c for c in self.palette if f" {c} " in text or f" {c}-" in text) for text in texts}
        return np.stack([np.float32(self.palette[word[text]]) / 255 - np.float32(0.4627) for text in texts])

    def images(self, crops):
        small = [np.asarray(crop.resize((16, 16), Image.Resampling.NEAREST), np.float32) for crop in crops]
        return np.stack([entry.mean(axis=(0, 1)) / np.float32(255) - np.float32(0.4627) for entry in small])


def test_the_recorded_scenes_get_the_originals_verdicts(tmp_path):
    """Files in a folder, through our reading, selection, rules, crops and colour head, with the official defaults."""
    recorded = json.loads((PIPELINE / "cases.json").read_text())
    cases = [case for case in recorded["cases"] if not case.get("options")]
    assert len(cases) >= 10
    wrong = []
    for case in cases:
        shutil.copyfile(PIPELINE / case["image"], tmp_path / "0.png")
        rows = [{"file": "0.png", "metadata": case["metadata"]}]
        detector = RecordedDetector(case, recorded["color_rgb"])
        [(value, detail)] = geneval._judge_batch(detector, rows, tmp_path)
        remaining = Counter((entry["name"], tuple(entry["box"])) for entry in detail["seen"])
        expected = Counter((n, tuple(row[:4])) for n, rows in case["expect"]["details"].items() for row in rows)
        if (value == 1) != case["expect"]["correct"] or remaining != expected:
            wrong.append((case["image"], value, detail, case["expect"]))
    assert not wrong


def test_files_keep_their_official_names(config, project):
    rows = load_benchmark("geneval", config, project).plan()
    assert all(Path(row["file"]).stem.isdigit() for row in rows)
