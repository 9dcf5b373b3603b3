"""conf/ is the source, params.yaml its lock file, Config its type: the three never disagree."""

from pathlib import Path

import pytest

from reca.config import CONF, ROOT, Config, compose, flatten, yaml_io

CHOICES = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))


def test_params_yaml_is_the_default_composition(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(compose().to_yaml())
    committed = (ROOT / "params.yaml").read_text()
    assert committed == (tmp_path / "params.yaml").read_text(), "run `reca compose` and commit params.yaml"


def test_params_yaml_loads_as_what_was_composed() -> None:
    assert Config.load(ROOT / "params.yaml") == compose()


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_file_of_conf_composes_and_validates(choice: Path) -> None:
    """What the file asks for (``???``) is given; everything else must fit as it stands."""
    group, name, text = choice.parent.name, choice.stem, (CONF / choice).read_text()
    values = yaml_io.loads(text)
    values.pop("defaults", None)
    values = flatten(values if "@package _global_" in text else {group: values})
    asked = [f"{key}=something" for key, value in values.items() if value == "???"]
    config = flatten(compose([f"{group}={name}", *asked]).to_dict())
    for key, wanted in values.items():
        if wanted != "???":
            assert config[key] == wanted, f"{choice}: {key} is {wanted!r} in the file and {config[key]!r} composed"


@pytest.mark.parametrize("data", ["folder data.path=x", "webdataset data.urls=x", "hub data.dataset=x"])
def test_images_without_captions_and_questions_need_no_further_word(data: str) -> None:
    """`reca run data=folder data.path=DIR` is all there is to type; who has captions may say so."""
    words = f"data={data}".split()
    assert compose(words).train.mixture.model_dump() == {"reconstruction": 1, "text_to_image": 0, "understanding": 0}
    assert compose([*words, "train.mixture.text_to_image=1"]).train.mixture.text_to_image == 1
    assert compose(["experiment=smoke", *words]).train.max_steps == 40


def test_there_is_a_choice_in_every_group() -> None:
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert {choice.parent.name for choice in CHOICES} == groups
