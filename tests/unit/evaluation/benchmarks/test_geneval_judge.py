"""Composed images are as right and wrong as their truth says, and a judge is counted by it."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import geneval_judge
from bench.geneval_judge import TASKS, agreement, by_rules, main, write
from reca.data.synthetic.collages import read_cutouts
from reca.evaluation.benchmark import ItemScore
from reca.evaluation.benchmarks.geneval import benchmark as geneval
from reca.evaluation.benchmarks.geneval.prompts import PROMPTS
from tests.unit.data.pictures import cutout_files

CLASSES = ("dog", "teddy bear", "zebra", "elephant", "horse", "cow", "apple")


@pytest.fixture(scope="module")
def folder_of_cutouts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cutouts")
    for name, data in cutout_files(*CLASSES).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def cutouts(folder_of_cutouts):
    return read_cutouts(folder_of_cutouts)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_rules_given_the_masks_say_what_the_truth_says(cutouts, tmp_path_factory, seed):
    truths = write(tmp_path_factory.mktemp("images"), cutouts, images=4, size=96, seed=seed)
    assert {truth["category"] for truth in truths} == set(TASKS)
    for number, truth in enumerate(truths):
        assert by_rules(truth) == truth["right"] == (number % 2 == 0) == (truth["fault"] is None)
        assert len(truth["objects"]) <= 5
        if truth["right"]:  # and it is the things that make it so
            assert not by_rules({**truth, "objects": truth["objects"][1:]})
            assert by_rules({**truth, "objects": truth["objects"][::-1]})
    assert {truth["fault"] for truth in truths} == {
        None, "another object", "one too many", "one too few", "swapped"
    }  # fmt: skip


def test_the_folder_is_genevals(cutouts, tmp_path, config, project):
    truths = write(tmp_path / "images", cutouts, images=2, size=96, seed=0)
    again = write(tmp_path / "again", cutouts, images=2, size=96, seed=0)
    assert truths == again == geneval_judge.read_truth(tmp_path / "images")
    for truth in truths:
        assert (tmp_path / "images" / truth["file"]).read_bytes() == (tmp_path / "again" / truth["file"]).read_bytes()
    bench = geneval.Geneval(geneval.GenevalSettings(images_per_prompt=2), project)
    rows = bench.existing_samples(tmp_path / "images")
    assert len(rows) == 2 * PROMPTS
    there = {row["file"]: row["metadata"] for row in rows if not row.get("missing")}
    assert there == {truth["file"]: truth["metadata"] for truth in truths}


def test_from_cut_outs_to_an_answer(folder_of_cutouts, project, judges, tmp_path, monkeypatch, capsys):
    """With tiny random judges, whose opinion means nothing; every image has one."""
    shutil.copytree(judges, project / "data/judges")
    complete = geneval.Geneval.__init__
    monkeypatch.setattr(geneval.Geneval, "__init__", lambda self, s, r, d: complete(self, s, r, d, short_side=64))
    monkeypatch.setattr(geneval_judge, "ROOT", project)
    images = str(tmp_path / "images")
    assert main(["compose", images, "--cutouts", str(folder_of_cutouts), "--images", "2", "--size", "96"]) == 0
    assert "the rules misjudge 0" in capsys.readouterr().out
    assert main(["judge", images, "hardware.device=cpu", "hardware.threads=1"]) == 0
    answer = json.loads((tmp_path / "images/judge.json").read_text())
    assert answer["judge"]["name"] == "mask2former-swin-small-coco-instance+clip-vit-large-patch14"
    assert set(answer["agreement"]) == set(TASKS)
    printed = capsys.readouterr().out
    for task, detections in answer["agreement"].items():
        assert detections["right"] == detections["wrong"] > 0
        assert f"{detections['wrong_recognised']} of {detections['wrong']}" in printed.split(task)[1]


def test_agreement_counts_both_kinds():
    truths = [
        {"file": f"{task}/{number}.png", "category": task, "right": number % 2 == 0}
        for task in TASKS
        for number in range(6)
    ]

    def asked(verdict):
        return agreement(
            truths, [ItemScore("x", entry["category"], (verdict(entry),), (entry["file"],)) for entry in truths]
        ).values()

    assert all(
        entry == {"right": 3, "right_recognised": 3, "wrong": 3, "wrong_recognised": 0}
        for entry in asked(lambda entry: 1.0)
    )
    assert all(
        entry["right_recognised"] == entry["wrong_recognised"] == 3
        for entry in asked(lambda entry: float(entry["right"]))
    )
    assert all(entry["right_recognised"] == entry["wrong_recognised"] == 0 for entry in asked(lambda entry: None))


def test_mistakes_of_the_user(tmp_path, capsys):
    assert main(["compose", str(tmp_path), "--cutouts", str(tmp_path / "nowhere")]) == 2
    assert "apt-get install tuxpaint-stamps-default" in capsys.readouterr().err
    assert main(["judge", str(tmp_path / "nowhere")]) == 2
    assert "truth.jsonl is missing: run `python -m bench.geneval_judge compose" in capsys.readouterr().err
    for name, data in cutout_files("teapot").items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert main(["compose", str(tmp_path / "images"), "--cutouts", str(tmp_path)]) == 2
    assert "no prompt of GenEval matches these cut-outs" in capsys.readouterr().err
