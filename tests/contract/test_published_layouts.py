"""Every preset of a published model, from files as its repositories hold them, to what we write, and back."""

import builtins
import json
from pathlib import Path

import pytest
import torch

from reca.models.base import UnifiedModel
from reca.models.loading import base_digest
from reca.models.sampling import Sampling
from reca.runtime.seeding import SampleRng
from tests.contract.published import PRESETS, load, publish

FEW_STEPS = Sampling(1.0, num_steps=1)


def is_equal(first: UnifiedModel, second: UnifiedModel) -> bool:
    """Return whether two models have the same tensors, bit by bit."""
    before, after = first.state_dict(), second.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_written_loads_again_with_the_presets_options(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = publish(preset, tmp_path, monkeypatch)
    assert base_digest(tmp_path / section.checkpoint)
    model = load(section, tmp_path)
    model.save_official(tmp_path / "outputs/model")
    again = load(section, tmp_path, "outputs/model")
    assert is_equal(model, again)
    images = [m.generate(["a red circle"], FEW_STEPS, SampleRng([3])) for m in (model, again)]
    torch.testing.assert_close(*images, rtol=0, atol=1e-4)  # mapped files lie differently, so kernels round differently


@pytest.mark.parametrize("preset", ["bagel_7b", "bagel_7b_reca"])
def test_bagel_keeps_the_name_of_its_weights(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published index names the file of the weights and the autoencoder's; its own name says nothing."""
    section = publish(preset, tmp_path, monkeypatch)
    monkeypatch.setattr("reca.models.weights.SHARD_BYTES", 2**30)
    load(section, tmp_path).save_official(tmp_path / "outputs/model")
    written = {path.name for path in (tmp_path / "outputs/model").glob("*.safetensors*")}
    assert written == {"ae.safetensors", "model_bf16.safetensors" if preset.endswith("reca") else "ema.safetensors"}


@pytest.mark.parametrize("preset", ["janus_pro_1b", "openuni_b_512", "showo_256", "bagel_7b", "harmon_0_5b"])
def test_code_in_a_checkpoint_is_never_run_nor_asked_about(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = publish(preset, tmp_path, monkeypatch)
    marker = tmp_path / "ran"
    entries = {
        "config.json": {"AutoConfig": "remote.Remote"},
        "tokenizer_config.json": {"AutoTokenizer": ["remote.Remote", None]},
    }
    folders = [path.parent for path in (tmp_path / section.checkpoint).rglob("tokenizer_config.json")]
    assert folders
    for folder in folders:
        (folder / "remote.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Remote: pass\n")
        for name, entry in entries.items():
            content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
            (folder / name).write_text(json.dumps({**content, "auto_map": entry}))
    asked: list[object] = []
    monkeypatch.setattr(builtins, "input", lambda *words: asked.append(words) or "y")
    load(section, tmp_path)
    assert not asked
    assert not marker.exists()


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith(("openuni", "showo"))])
def test_only_what_is_read_is_fetched(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No text encoder of SANA, no weights of Phi, no code, no copies in half precision."""
    section = publish(preset, tmp_path, monkeypatch)
    files = {path.relative_to(tmp_path / section.checkpoint) for path in (tmp_path / section.checkpoint).rglob("*.*")}
    names = {path.as_posix() for path in files}
    assert names >= ({"sana/transformer/config.json"} if "sana" in section.parts else {"phi/tokenizer.json"})
    unread = ("phi/model", "sana/text_encoder", "sana/tokenizer", "sana/vae", "sana/model_index")
    assert not [name for name in names if name.startswith(unread) or name.endswith(".py") or ".fp16" in name]
