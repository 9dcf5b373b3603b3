"""The judge is measured again: held-out scenes, sizes, noise; and it says what is wrong with its inputs."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reca.config import ROOT
from reca.data.synthetic.scenes import metadata, relation, render, sample_scene
from reca.evaluation.geneval_rules import evaluate_image, relative_position, select
from reca.evaluation.judges.scene_detector import WEIGHTS, Detection, SceneDetector
from reca.runtime.hashing import file_digest
from tools.tiny_bases import detector as detector_recipe
from tools.tiny_bases.detector import measure, scene_batch, shape_box, train_detector, unit_box
from tools.tiny_bases.detector_card import model_card

FOLDER = ROOT / "data/bases/scene_detector"
FRESH_SEED = 987_654
"""Neither the detector's training nor the scenes on its card."""


@pytest.fixture(scope="module")
def detector():
    return SceneDetector.load(FOLDER)


@pytest.fixture(scope="module")
def scenes():
    return [sample_scene(FRESH_SEED, index) for index in range(600)]


def tensor(scenes, size=24):
    return torch.from_numpy(render(scenes, size)).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_held_out_accuracy(detector, scenes):
    accuracy = measure(detector, scenes)
    assert accuracy["exact_scene"] >= 0.99
    assert accuracy["confident"] >= 0.985
    assert min(accuracy[name] for name in ("count", "objects", "shape", "color")) >= 0.995
    assert accuracy["box_iou"] >= 0.9


def test_the_card_describes_these_weights():
    card = json.loads((FOLDER / "card.json").read_text())
    assert card["sha256"] == file_digest(FOLDER / WEIGHTS)
    assert card["accuracy"]["exact_scene"] >= 0.99
    assert (FOLDER / "README.md").read_text() == model_card(card)
    assert (FOLDER / WEIGHTS).stat().st_size < 1_000_000


@pytest.mark.parametrize("size", [32, 48, 96])
def test_larger_images_are_read_as_well_and_boxes_grow_with_them(detector, scenes, size):
    result = detector.detect(tensor(scenes[:100], size))
    right = 0
    for scene, detections in zip(scenes, result, strict=False):
        remaining = [d for d in detections if d.score > 0.3]
        right += sorted((d.name, d.color) for d in remaining) == sorted((s.kind, s.color) for s in scene.shapes)
        if len(scene.shapes) == len(remaining) == 1:
            expected = np.array(shape_box(scene.shapes[0])) * size
            assert np.abs(np.array(remaining[0].box) - expected).max() < size / 24
    assert right >= 98


def test_boxes_are_good_enough_for_genevals_positions(detector, scenes):
    """GenEval's relation of the found boxes holds the true relation of every pair of shapes."""
    right = total = 0
    for scene, detections in zip(scenes, detector.detect(tensor(scenes)), strict=True):
        identities = [(s.kind, s.color) for s in scene.shapes]
        boxes = {(d.name, d.color): d.box for d in reversed(detections) if d.score > 0.3}
        unique = [s for s in scene.shapes if identities.count((s.kind, s.color)) == 1]
        for first in unique:
            for second in unique:
                if first is second:
                    continue
                total += 1
                pair = [boxes.get((s.kind, s.color)) for s in (first, second)]
                right += None not in pair and relation(first, second) in relative_position(*pair)
    assert total > 1000
    assert right / total >= 0.99


def test_noise_holds_next_to_nothing(detector):
    rng = torch.Generator().manual_seed(0)

    def per_image(images, threshold):
        return sum(d.score > threshold for result in detector.detect(images) for d in result) / len(images)

    fine = torch.rand(300, 3, 24, 24, generator=rng) * 2 - 1
    coarse = F.interpolate(torch.rand(300, 3, 6, 6, generator=rng) * 2 - 1, (24, 24))
    flat = (torch.rand(300, 3, 1, 1, generator=rng) * 2 - 1).expand(-1, -1, 24, 24)
    assert per_image(fine, 0.3) <= 0.02
    assert per_image(coarse, 0.3) <= 0.05
    assert per_image(flat, 0.3) <= 0.05


def test_the_batch_changes_nothing(detector, scenes):
    images = tensor(scenes[:50])
    together, distance = detector.detect(images), detector.detect(images, batch_size=7)
    assert [[(d.name, d.color) for d in result] for result in together] == [
        [(d.name, d.color) for d in result] for result in distance
    ]


def test_bad_inputs_are_refused(detector):
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\)"):
        detector.detect(torch.zeros(3, 24, 24))
    with pytest.raises(ValueError, match="NaN"):
        detector.detect(torch.full((1, 3, 24, 24), torch.nan))
    assert detector.detect(torch.zeros(0, 3, 24, 24)) == []


def test_missing_and_damaged_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing; restore it"):
        SceneDetector.load(tmp_path)
    shutil.copy(FOLDER / WEIGHTS, tmp_path)
    num_exact = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(num_exact[: len(num_exact) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a scene detector"):
        SceneDetector.load(tmp_path)


def test_tight_boxes_follow_the_outline():
    assert unit_box("bar") == pytest.approx((-1, -0.42, 1, 0.42), abs=0.01)
    assert unit_box("triangle") == pytest.approx((-1, -1, 1, 0.8), abs=0.01)
    batch = scene_batch([sample_scene(FRESH_SEED, index) for index in range(50)])
    assert batch.valid.any(1).all()
    assert (batch.edges[batch.valid] > 0).all()  # every cell's centre lies inside its shape's box


def test_detector_training_is_repeatable_and_learns(tmp_path, monkeypatch, capsys):
    for name, smaller in (("NUM_TRAIN", 200), ("NUM_HELD_OUT", 20), ("BATCH_SIZE", 16)):
        monkeypatch.setattr(detector_recipe, name, smaller)
    monkeypatch.setattr("reca.runtime.progress.SECONDS_BETWEEN_LINES", 0.0)
    curves = []
    for name in ("first", "second"):
        train_detector(tmp_path / name, seed=3, steps=20)
        curves.append([float(loss) for loss in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)])
    assert curves[0] == curves[1]
    assert len(curves[0]) == 20
    assert curves[0][19] < 0.85 * curves[0][0]
    assert (tmp_path / "first" / WEIGHTS).read_bytes() == (tmp_path / "second" / WEIGHTS).read_bytes()
    assert "exact scene" in (tmp_path / "first/README.md").read_text()


def test_ground_truth_satisfies_its_own_metadata():
    """The rules and the renderer agree: a scene's true boxes pass the scene's own GenEval metadata."""
    for index in range(300):
        scene = sample_scene(FRESH_SEED, index)
        truth = [Detection(s.kind, s.color, tuple(24 * v for v in shape_box(s)), 0.99) for s in scene.shapes]
        verdict = evaluate_image(select(truth, "scene"), metadata(scene), lambda result, _: [d.color for d in result])
        assert verdict.correct, (index, verdict.reasons)
