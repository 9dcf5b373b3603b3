"""``reca export``: what is written opens with the calls that the authors' READMEs and scripts make."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import load_checkpoint_and_dispatch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    JanusForConditionalGeneration,
    JanusProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipVisionConfig,
)

from reca import cli
from reca.config.model import ModelSection
from reca.models.base import UnifiedModel
from reca.models.openuni.vision_language import names_from_official
from reca.runtime.errors import UserError
from reca.stages.register import register
from reca.tracking.export import export, export_command
from tests.contract.published import TINY_OPTIONS, load, publish

Exported = tuple[Any, Path, ModelSection]


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Exported]:
    """A preset's model in float32, as training leaves it, and the folder that it is exported to."""

    def run(preset: str, dtype: str | None = None) -> Exported:
        section = publish(preset, tmp_path, monkeypatch)
        model = load(section, tmp_path)
        model.save_official(tmp_path / "outputs/model")
        options = {**section.load_options(Path()), **TINY_OPTIONS}
        settings = {"family": section.family, "options": options}
        export(tmp_path / "outputs/model", settings, tmp_path, tmp_path / "exported", dtype)
        return model, tmp_path / "exported", section

    return run


def is_exact(network: torch.nn.Module, model: UnifiedModel | torch.nn.Module) -> bool:
    """Return whether all of a network's tensors have the values of the model in float32."""
    expected = model.state_dict()
    return all(torch.equal(value.float(), expected[name].float()) for name, value in network.state_dict().items())


@pytest.mark.parametrize("preset", ["janus_pro_1b", "janus_pro_7b"])
def test_janus_opens_with_transformers(preset: str, exported: Callable[..., Exported]) -> None:
    model, folder, _ = exported(preset)
    network = JanusForConditionalGeneration.from_pretrained(folder, dtype="auto")
    processor = JanusProcessor.from_pretrained(folder)
    assert network.dtype == torch.bfloat16
    assert is_exact(network, model.network)
    assert processor.tokenizer("a red circle").input_ids == model.tokenizer("a red circle").input_ids


def test_showo_is_one_file_beside_its_config(exported: Callable[..., Exported], tmp_path: Path) -> None:
    model, folder, section = exported("showo_512")
    state = load_file(folder / "pytorch_model.safetensors")
    published = load_file(tmp_path / section.checkpoint / "pytorch_model.safetensors")
    assert {name: value.dtype for name, value in state.items()} == {name: v.dtype for name, v in published.items()}
    assert all(torch.equal(state[name], published[name]) for name in published)
    assert json.loads((folder / "config.json").read_text()) == dict(model.parts.config)


@pytest.mark.parametrize("preset", ["bagel_7b", "bagel_7b_reca"])
def test_bagel_opens_with_accelerate(preset: str, exported: Callable[..., Exported], tmp_path: Path) -> None:
    model, folder, section = exported(preset)
    assert Qwen2Config.from_json_file(folder / "llm_config.json").hidden_size == 96
    assert SiglipVisionConfig.from_json_file(folder / "vit_config.json").patch_size == 6
    assert load_file(folder / "ae.safetensors").keys() >= {"decoder.conv_in.bias", "encoder.conv_in.bias"}
    expected = {name: value.clone() for name, value in model.network.state_dict().items()}
    empty = model.network.bfloat16()
    for parameter in empty.parameters():
        torch.nn.init.zeros_(parameter)
    opened = load_checkpoint_and_dispatch(
        empty, checkpoint=str(folder / "ema.safetensors"), device_map={"": "cpu"}, dtype=torch.bfloat16
    )
    assert all(torch.equal(value, expected[name].bfloat16()) for name, value in opened.state_dict().items())
    base = tmp_path / section.parts.get("base", section.checkpoint)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "config.json"):  # as the authors' tokenizer reads
        assert (folder / name).read_bytes() == (base / name).read_bytes()
    ids = Qwen2Tokenizer.from_pretrained(folder)(["<|im_start|>a red circle"]).input_ids
    assert ids == model.tokenizer(["<|im_start|>a red circle"]).input_ids
    assert not (folder / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("preset", ["openuni_b_512", "openuni_l_512_reca", "harmon_0_5b", "harmon_1_5b_reca"])
def test_scripts_that_load_a_state_dict_find_one(preset: str, exported: Callable[..., Exported]) -> None:
    model, folder, section = exported(preset)
    file = folder / f"{section.family}.pth"
    assert list(folder.iterdir()) == [file]
    state = torch.load(file, map_location="cpu", weights_only=True)
    dtype = torch.bfloat16 if section.family == "openuni" else torch.float32
    assert state["meta_queries" if section.family == "openuni" else "proj_in.0.weight"].dtype == dtype
    names = names_from_official(state, "lmm.vision_model.") if section.family == "openuni" else state
    expected = model.network.state_dict()
    for parameter in model.network.parameters():
        parameter.data = torch.zeros_like(parameter)
    result = model.network.load_state_dict(names, strict=False)
    assert not result.unexpected_keys
    assert {key.partition(".")[0] for key in result.missing_keys} <= {"vae"}
    assert all(torch.equal(value.float(), expected[name]) for name, value in names.items())


def test_dtype_is_the_users_choice(exported: Callable[..., Exported]) -> None:
    _, folder, _ = exported("showo_256", "bfloat16")
    assert {value.dtype for value in load_file(folder / "pytorch_model.safetensors").values()} == {torch.bfloat16}


def test_registered_version_is_exported(make_project: Any, tmp_path: Path) -> None:
    from tools.tiny_bases.janus_tiny import build

    torch.manual_seed(0)
    project = make_project()
    project.results(lock=False)
    build().save_official(project.root / "outputs/model")
    project.results(weights=None)
    register(project.config, project.root)
    build().save_official(project.root / project.config.model.checkpoint)
    for reference in ("reca-janus_tiny@champion", "reca-janus_tiny/1"):
        target = tmp_path / reference.replace("/", "-")
        words = cli.parser().parse_args(["export", reference, "--to", str(target)])
        assert export_command(words, project.root) == 0
        assert (target / "model.safetensors").is_file()
        assert AutoTokenizer.from_pretrained(target)
    with pytest.raises(UserError, match="exists already"):
        export(target, {}, project.root, target)
