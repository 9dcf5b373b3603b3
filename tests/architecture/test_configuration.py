"""conf/, params.yaml and Config agree."""

from pathlib import Path

import pytest

from reca.config import CONF, ROOT, Config, compose, flatten, yaml_io

CHOICES = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))


def test_params_yaml_is_the_default_composition(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(compose().to_yaml())
    committed = (ROOT / "params.yaml").read_text()
    assert committed == (tmp_path / "params.yaml").read_text(), "run `reca compose` and commit params.yaml"


def test_params_yaml_loads_as_the_default_composition() -> None:
    assert Config.load(ROOT / "params.yaml") == compose()


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_file_of_conf_composes_and_validates(choice: Path) -> None:
    """Mandatory values (``???``) are filled in; all others must be valid as written."""
    group, name, text = choice.parent.name, choice.stem, (CONF / choice).read_text()
    values = yaml_io.loads(text)
    values.pop("defaults", None)
    values = flatten(values if "@package _global_" in text else {group: values})
    mandatory = [f"{key}=something" for key, value in values.items() if value == "???"]
    config = flatten(compose([f"{group}={name}", *mandatory]).to_dict())
    for key, expected in values.items():
        if expected != "???":
            assert config[key] == expected, f"{choice}: {key} is {expected!r} in the file and {config[key]!r} composed"


@pytest.mark.parametrize("data", ["folder data.path=x", "webdataset data.urls=x", "hub data.dataset=x"])
def test_images_without_captions_train_the_reconstruction_loss_alone(data: str) -> None:
    """`reca run data=folder data.path=DIR` is a complete command; the caption loss is an override away."""
    words = f"data={data}".split()
    assert compose(words).train.mixture.model_dump() == {"reconstruction": 1, "text_to_image": 0, "understanding": 0}
    assert compose([*words, "train.mixture.text_to_image=1"]).train.mixture.text_to_image == 1
    assert compose(["experiment=smoke", *words]).train.max_steps == 40


@pytest.mark.parametrize("size", ["0_5b", "1_5b"])
def test_harmon_clips_as_its_release_whose_loss_is_a_mean_over_four_micro_batches(size: str) -> None:
    recipe = compose([f"model=harmon_{size}", f"experiment=harmon_{size}"]).train
    assert recipe.mixture.reconstruction == recipe.mixture.understanding == 1
    assert recipe.max_grad_norm / recipe.mixture.reconstruction == 1.0 / (2 / 4)


def test_every_group_has_a_choice() -> None:
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert {choice.parent.name for choice in CHOICES} == groups
