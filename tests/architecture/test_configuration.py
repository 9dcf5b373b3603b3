"""conf/, params.yaml and Config agree."""

from pathlib import Path

import pytest

from reca.config import CONF, ROOT, Config, ConfigError, compose, flatten, yaml_io
from reca.config.evaluate import sampling_arguments

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


def documented_sampling() -> list[tuple[str, str, dict[str, object]]]:
    """The table of docs/models.md: start of the presets' names, benchmark, settings."""
    text = (ROOT / "docs/models.md").read_text().split("## Sampling, per benchmark")[1].split("\n## ")[0]
    lines = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    (_, _, *keys), _, *rows = lines
    return [
        (prefix, benchmark, {key: yaml_io.loads(cell) for key, cell in zip(keys, cells, strict=True) if cell != "–"})
        for prefix, benchmark, *cells in rows
    ]


PUBLISHED_PRESETS = sorted(path.stem for path in CONF.glob("model/*.yaml") if not path.stem.endswith("_tiny"))


@pytest.mark.parametrize("preset", PUBLISHED_PRESETS)
def test_published_presets_draw_every_benchmark_as_documented(preset: str) -> None:
    edits = ["imgedit", "gedit"] if preset.startswith("bagel") else []
    for benchmark in ["geneval", "dpgbench", "wise", *edits]:
        config = compose([f"model={preset}", f"evaluate.benchmarks=[{benchmark}]"])
        settings = sampling_arguments(config.to_dict()["generate"], benchmark)
        (expected,) = (
            row
            for prefix, name, row in documented_sampling()
            if preset.startswith(prefix) and name in (benchmark, "all")
        )
        defaults = {"temperature": 1.0, "guidance_renorm_min": 0.0, "guidance_schedule": "constant"}
        assert {key: value for key, value in settings.items() if key not in defaults} == expected
        assert all(settings.get(key, value) == value for key, value in defaults.items())


@pytest.mark.parametrize("preset", PUBLISHED_PRESETS)
@pytest.mark.parametrize("data", [(), ("data=folder", "data.path=x")])
def test_published_presets_bring_their_recipe(preset: str, data: tuple[str, ...]) -> None:
    recipe = compose([f"model={preset}", *data]).train
    assert recipe == compose([f"model={preset}", f"experiment={preset.removesuffix('_reca')}", *data]).train
    assert recipe.learning_rate < compose().train.learning_rate / 10
    assert recipe.precision == "bfloat16"


def test_sampling_that_another_family_has_is_refused() -> None:
    for word in ("generate.image_guidance_scale=2", "generate.guidance_schedule=linear"):
        with pytest.raises(ConfigError, match="janus would ignore it"):
            compose([word])
    with pytest.raises(ConfigError, match=r"generate\.benchmarks\.geneval\.guidance"):
        compose(["++generate.benchmarks.geneval.guidance=2"])
    with pytest.raises(ConfigError, match="unknown benchmark"):
        compose(["++generate.benchmarks.genevil.guidance_scale=2"])


@pytest.mark.parametrize("size", ["0_5b", "1_5b"])
def test_harmon_clips_as_its_release_whose_loss_is_a_mean_over_four_micro_batches(size: str) -> None:
    recipe = compose([f"model=harmon_{size}"]).train
    assert recipe.mixture.reconstruction == recipe.mixture.understanding == 1
    assert recipe.max_grad_norm / recipe.mixture.reconstruction == 1.0 / (2 / 4)


def test_every_group_has_a_choice() -> None:
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert {choice.parent.name for choice in CHOICES} == groups
