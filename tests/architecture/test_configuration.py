"""conf/ is the source, params.yaml its lock file, Config its type: the three never disagree."""

from pathlib import Path

import pytest
import yaml

from reca.config import CONF, ROOT, Config, compose

CHOICES = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))


def test_params_yaml_is_the_default_composition(tmp_path: Path) -> None:
    compose().save(tmp_path / "params.yaml")
    committed = (ROOT / "params.yaml").read_text()
    assert committed == (tmp_path / "params.yaml").read_text(), "run `reca compose` and commit params.yaml"


def test_params_yaml_loads_as_what_was_composed() -> None:
    assert Config.load(ROOT / "params.yaml") == compose()


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_file_of_conf_composes_and_validates(choice: Path) -> None:
    """What the file asks for (``???``) is given; everything else must fit as it stands."""
    group, name = choice.parent.name, choice.stem
    values = yaml.safe_load((CONF / choice).read_text())
    asked = [f"{group}.{key}=something" for key, value in values.items() if value == "???"]
    config = compose([f"{group}={name}", *asked])
    for key, value in values.items():
        if group not in ("experiment",) and value != "???":
            written = config.to_dict()[group][key]
            assert written == value, f"{choice}: {key} is {value!r} in the file and {written!r} in the composition"


def test_there_is_a_choice_in_every_group() -> None:
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert {choice.parent.name for choice in CHOICES} == groups
