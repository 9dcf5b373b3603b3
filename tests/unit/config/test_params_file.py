"""params.yaml has the same values for us, who read it in a stage, and for DVC, which compares it."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.serialize import load_yaml
from hypothesis import given
from hypothesis import strategies as st

from reca.config import Config, ConfigError, compose, yaml_io

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii", exclude_categories=["Cc"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc_", min_size=1), inner),
    max_leaves=8,
)
NUMBER_LIKE = [
    "7e-4",
    "12e4567",
    "1E5",
    ".5e1",
    "1.e2",
    "0x1f",
    "010",
    "on",
    "no",
    "~",
    "2026-11-24",
    "1_000",
    "",
    " x ",
]


@given(PLAIN)
def test_values_survive_writing_and_reading(value: Any) -> None:
    assert yaml_io.loads(yaml_io.dumps({"key": value})) == {"key": value}


@pytest.mark.parametrize("text", NUMBER_LIKE)
def test_number_like_strings_stay_strings_for_both_readers(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml_io.dumps({"key": text}))
    assert yaml_io.load(path) == load_yaml(str(path)) == {"key": text}


@pytest.mark.parametrize("number", [7e-4, 1e-5, 1e-300, 1.5e20, 1e16, 123456789.0, -2e-7, 5.0, math.inf])
def test_floats_stay_floats_for_all_readers(tmp_path: Path, number: float) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml_io.dumps({"key": number}))
    for values in (yaml_io.load(path), load_yaml(str(path)), yaml.safe_load(path.read_text())):
        assert values == {"key": number}
        assert isinstance(values["key"], float)


@pytest.mark.parametrize(("text", "value"), [("012", 12), ("0o14", 12), ("1e-5", 1e-5), ("on", "on"), ("1.0", 1.0)])
def test_scalars_are_read_as_yaml_1_2(text: str, value: float | str) -> None:
    loaded = yaml_io.loads(f"key: {text}")["key"]
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize("written", ["7e-4", "7E-4", "7.e-4", "0.0007", "7.0e-04"])
def test_every_spelling_of_a_learning_rate_is_a_float(tmp_path: Path, written: str) -> None:
    path = tmp_path / "params.yaml"
    text = compose(["train.learning_rate=0.125"]).to_yaml()
    path.write_text(text.replace("learning_rate: 0.125", f"learning_rate: {written}"))
    assert Config.load(path).train.learning_rate == 7e-4


def test_a_written_configuration_is_read_back(tmp_path: Path) -> None:
    config = compose(["train.learning_rate=1e-05", "train.weight_decay=3e-300", "model.name='12e4567'"])
    (tmp_path / "params.yaml").write_text(config.to_yaml())
    assert Config.load(tmp_path / "params.yaml") == config


@pytest.mark.parametrize("broken", ["a: [1", "a: !!python/object:os.system {}", "\tx", "just words", ""])
def test_a_broken_file_is_one_message(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(broken)
    with pytest.raises(ConfigError):
        Config.load(path)
