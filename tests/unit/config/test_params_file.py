"""params.yaml says the same to PyYAML, which reads it for a stage, and to DVC, which compares it (YAML 1.2)."""

import math
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import load_yaml
from hypothesis import given
from hypothesis import strategies as st

from reca.config import Config, ConfigError, compose, yaml12

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii", exclude_categories=["Cc"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc_", min_size=1), inner),
    max_leaves=8,
)
TRICKY = ["7e-4", "12e4567", "1E5", ".5e1", "1.e2", "0x1f", "010", "on", "no", "~", "2026-11-24", "1_000", "", " x "]


@given(PLAIN)
def test_what_is_written_is_what_is_read(value) -> None:
    assert yaml12.loads(yaml12.dumps({"key": value})) == {"key": value}


@pytest.mark.parametrize("text", TRICKY)
def test_words_that_look_like_numbers_stay_words_for_all_readers(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml12.dumps({"key": text}))
    assert yaml12.load(path) == yaml.safe_load(path.read_text()) == load_yaml(str(path)) == {"key": text}


@pytest.mark.parametrize("number", [7e-4, 1e-5, 1e-300, 1.5e20, 1e16, 123456789.0, -2e-7, 5.0, math.inf])
def test_numbers_stay_numbers_for_all_readers(tmp_path: Path, number: float) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml12.dumps({"key": number}))
    for found in (yaml12.load(path), yaml.safe_load(path.read_text()), load_yaml(str(path))):
        assert found == {"key": number}
        assert isinstance(found["key"], float)


@pytest.mark.parametrize("written", ["7e-4", "7E-4", "7.e-4", "0.0007", "7.0e-04"])
def test_a_learning_rate_as_people_write_it(tmp_path: Path, written: str) -> None:
    path = tmp_path / "params.yaml"
    compose(["train.learning_rate=0.125"]).save(path)
    path.write_text(path.read_text().replace("learning_rate: 0.125", f"learning_rate: {written}"))
    assert Config.load(path).train.learning_rate == 7e-4


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    config = compose(["train.learning_rate=1e-05", "train.weight_decay=3e-300", "model.name='12e4567'"])
    config.save(tmp_path / "params.yaml")
    assert Config.load(tmp_path / "params.yaml") == config


@pytest.mark.parametrize("broken", ["a: [1", "a: !!python/object:os.system {}", "\tx", "just words", ""])
def test_a_broken_file_is_one_message(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(broken)
    with pytest.raises(ConfigError):
        Config.load(path)
