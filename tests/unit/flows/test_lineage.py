"""What stages used, what DVC recorded, what the run wants: any difference is found."""

import json

import pytest

from flows.lineage import disagreements

LOCK = """
schema: '2.0'
stages:
  train:
    cmd: x
    params:
      params.yaml:
        seed: 3
        train:
          learning_rate: 1e-05
          betas: [0.9, 0.95]
        model.family: janus
    outs:
    - path: outputs/model
      md5: a
"""
CONFIG = {"seed": 3, "train": {"learning_rate": 1e-5, "betas": [0.9, 0.95]}, "model": {"family": "janus", "name": "x"}}


@pytest.fixture
def project(tmp_path):
    (tmp_path / "dvc.lock").write_text(LOCK)
    (tmp_path / "outputs/model").mkdir(parents=True)
    return tmp_path


def use(project, **params):
    (project / "outputs/model/result.json").write_text(json.dumps({"stage": "train", "params": params}))


def test_agreement(project):
    use(project, **CONFIG)
    assert disagreements(project, "train", CONFIG) == []
    assert disagreements(project, "never run", CONFIG) == []


def test_a_section_that_dvc_does_not_track_may_differ(project):
    use(project, **{**CONFIG, "model": {"family": "janus", "name": "another"}})
    assert disagreements(project, "train", CONFIG) == []


def test_the_stage_used_something_else(project):
    use(project, **{**CONFIG, "train": {"learning_rate": 0.5, "betas": [0.9, 0.95]}})
    (line,) = disagreements(project, "train", CONFIG)
    assert "0.5" in line
    assert "train" in line


def test_the_record_says_something_else(project):
    (line,) = disagreements(project, "train", {**CONFIG, "seed": 4})
    assert "seed" in line
    assert "dvc.lock says 3" in line


def test_a_key_that_is_gone_is_a_difference(project):
    use(project, seed=3, train=CONFIG["train"], model={})
    assert disagreements(project, "train", CONFIG)
