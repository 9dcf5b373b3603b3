"""Parameters that a stage used, that DVC recorded and that the run has: every difference is reported."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reca.runtime.dvc_lock import _first_difference, parameter_differences, read_lock
from reca.runtime.errors import UserError

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
PARAMS = {"seed": 3, "train": {"learning_rate": 1e-5, "betas": [0.9, 0.95]}, "model": {"family": "janus", "name": "x"}}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "dvc.lock").write_text(LOCK)
    (tmp_path / "outputs/model").mkdir(parents=True)
    return tmp_path


def write_result(project: Path, **params: Any) -> None:
    (project / "outputs/model/result.json").write_text(json.dumps({"stage": "train", "params": params}))


def test_equal_parameters_have_no_difference(project: Path) -> None:
    write_result(project, **PARAMS)
    assert parameter_differences(project, "train", PARAMS) == parameter_differences(project, "train") == []
    assert parameter_differences(project, "never run", PARAMS) == []


def test_an_untracked_key_may_differ(project: Path) -> None:
    write_result(project, **{**PARAMS, "model": {"family": "janus", "name": "another"}})
    assert parameter_differences(project, "train", PARAMS) == []


@pytest.mark.parametrize("run", [PARAMS, None])
def test_a_parameter_edited_during_the_run_is_reported(project: Path, run: dict[str, Any] | None) -> None:
    write_result(project, **{**PARAMS, "train": {"learning_rate": 0.5, "betas": [0.9, 0.95]}})
    assert parameter_differences(project, "train", run) == [
        "train.learning_rate: dvc.lock has 1e-05, but train ran with 0.5"
    ]


def test_another_parameter_of_the_run_is_reported(project: Path) -> None:
    assert parameter_differences(project, "train", {**PARAMS, "seed": 4}) == ["seed: dvc.lock has 3, this run 4"]


def test_an_absent_key_is_a_difference(project: Path) -> None:
    write_result(project, seed=3, train=PARAMS["train"], model={})
    assert parameter_differences(project, "train", PARAMS) == [
        "model.family: dvc.lock has 'janus', but train ran with no value"
    ]


def test_a_changed_lock_file_is_read_again(project: Path) -> None:
    assert read_lock(project)["train"]["params"]["params.yaml"]["seed"] == 3
    (project / "dvc.lock").write_text(LOCK.replace("seed: 3", "seed: 012"))
    assert read_lock(project)["train"]["params"]["params.yaml"]["seed"] == 12


@pytest.mark.parametrize("broken", ["stages: [", "just words", "stages: {train: 3}", "{}"])
def test_a_broken_lock_file_is_one_message(project: Path, broken: str) -> None:
    (project / "dvc.lock").write_text(broken)
    with pytest.raises(UserError, match="dvc.lock is broken"):
        read_lock(project)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, json_values)
def test_the_first_difference_exists_exactly_for_unequal_values(first: Any, second: Any) -> None:
    difference = _first_difference("key", first, second)
    assert (difference is None) == (without_null(first) == without_null(second))
    assert difference is None or difference[0].startswith("key")


def without_null(value: Any) -> Any:
    """Drop keys whose value is null: they equal absent keys."""
    if isinstance(value, dict):
        return {key: without_null(inner) for key, inner in value.items() if inner is not None}
    return value


def test_records_of_stages_that_the_graph_no_longer_has_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages:\n  score:\n    cmd: echo\n")
    (tmp_path / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  score@base-scenes:\n    cmd: echo\n  score-base@scenes:\n    cmd: echo\n"
    )
    assert read_lock(tmp_path).keys() == {"score@base-scenes"}
