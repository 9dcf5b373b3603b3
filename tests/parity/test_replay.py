"""``python -m tests.parity.replay``: arguments from ``config.json``, stored forms of tensors, failures."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity import bagel, openuni, showo
from tests.parity.comparison import RecordedRng, Recording
from tests.parity.replay import main, replay

FIXTURES = Path(__file__).parent / "fixtures"
CHANGED = {"cfg_text_scale": 3.0, "cfg_renorm_type": "channel", "cfg_renorm_min": 0.6, "cfg_interval": [0.0, 0.9]}


def copied(family: str, folder: Path, changes: dict[str, Any], edit: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a fixture with entries added to its ``config.json``, its outputs edited, and no README."""
    shutil.copytree(FIXTURES / family, folder, ignore=shutil.ignore_patterns("README.md"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    outputs = load_file(folder / "outputs.safetensors")
    edit(outputs)
    save_file({key: value.contiguous() for key, value in outputs.items()}, folder / "outputs.safetensors")
    return folder


def verdicts(family: str, folder: Path, *prefixes: str) -> set[str]:
    return {row.verdict for row in replay(family, folder) if row.key.startswith(prefixes)}


@pytest.mark.parametrize("key", ["gen", "runs"])
def test_showo_is_sampled_with_the_arguments_in_config_json(key: str, tmp_path: Path) -> None:
    recording = Recording(FIXTURES / "showo")
    model = showo.load(recording, "vq")
    assert model is not None
    ids, tokens = recording.inputs["gen.input_ids"], recording.outputs["gen.tokens"].shape[1]
    prompts = showo.prompts_of(model, showo.drawn_texts(model, ids, tokens))
    with torch.no_grad():
        sampling = showo.Sampling(3.0, 0.5, num_steps=4)
        codes = model.sample(prompts, None, sampling, showo.GeneratorRng(len(prompts), 77777))
        image = model.magvit.decode(codes)
    assert not torch.equal(codes, recording.outputs["gen.tokens"])
    arguments = {"guidance_scale": 2.0, "temperature": 0.5, "timesteps": 4, "seed": 77777}
    entries = {"gen": arguments} if key == "gen" else {"runs": {"gen": arguments}}
    edit = {"gen.tokens": codes, "gen.image": image}
    with_arguments = copied("showo", tmp_path / "told", entries, lambda outputs: outputs.update(edit))
    assert verdicts("showo", with_arguments, "gen.") == {"ok"}
    untold = copied("showo", tmp_path / "untold", {}, lambda outputs: outputs.update(edit))
    assert {row.key: row.verdict for row in replay("showo", untold)}["gen.tokens"] == "differs"


def test_bagel_runs_have_their_own_arguments(tmp_path: Path) -> None:
    recording = Recording(FIXTURES / "bagel")
    model = bagel.build(recording.folder)
    ids, noise = recording.outputs["t2i.prompt_ids"], recording.outputs["t2i.init_noise"]
    settings = bagel.Sampling(
        3.0, num_steps=3, guidance_renorm="channel", guidance_renorm_min=0.6, guidance_interval=(0.0, 0.9)
    )
    text = [bagel.condition(model.network, None, ids.tolist())]
    grid = bagel.grid_of(model, recording, "t2i")
    latents = bagel.sample_latent_tokens(model.network, [text, [[]], text], grid, noise[None], settings, 2.0)
    edited = model.edit_latents(
        recording.inputs["vae_image.1"],
        recording.inputs["vit_image.1"],
        ids.tolist(),
        bagel.Sampling(0.5, num_steps=2, image_guidance_scale=2.0),
        RecordedRng({"posterior": torch.ones(1, 4, 4, 8), "noise": torch.ones(1, 8, 16)}, 1),
    )
    entries = {
        "t2i_channel.init_noise": noise,
        "t2i_channel.latent": latents[0],
        "edit_unguided.noise.0": torch.ones(1, 4, 4, 8),
        "edit_unguided.noise.1": torch.ones(8, 16),
        "edit_unguided.latent": edited[0],
    }
    runs = {
        "t2i_channel": {**CHANGED, "num_timesteps": 4, "timestep_shift": 2.0},
        "edit_unguided": {"cfg_text_scale": 0.5, "cfg_img_scale": 2.0, "num_timesteps": 3, "sample": 1},
    }
    folder = copied("bagel", tmp_path / "runs", {"runs": runs}, lambda outputs: outputs.update(entries))
    assert verdicts("bagel", folder, "t2i", "edit") == {"ok", "input"}


def test_a_loss_of_selected_samples(tmp_path: Path) -> None:
    recording = Recording(FIXTURES / "bagel")
    tokens = len(recording.outputs["freeze_und.mse"]) - recording.inputs["dropped.mse_loss_indexes"].shape[0]

    def edit(outputs: dict[str, Tensor]) -> None:
        for name in ("noise", "mse"):
            outputs[f"freeze_und_second.{name}"] = outputs[f"freeze_und.{name}"][-tokens:].clone()
        outputs["freeze_und_second.loss"] = outputs["freeze_und.mse"][-tokens:].mean()

    folder = copied("bagel", tmp_path / "one", {"runs": {"freeze_und_second": {"samples": [1]}}}, edit)
    assert verdicts("bagel", folder, "freeze_und_second.") == {"ok", "input"}


def test_openuni_is_sampled_with_the_steps_in_config_json(tmp_path: Path) -> None:
    run = openuni._Replay(Recording(FIXTURES / "openuni"))
    run.recording.config["runs"] = {"gen": {"guidance_scale": 2.0, "num_inference_steps": 3}}
    results: dict[str, Tensor] = {}
    run.recording.check = lambda key, ours, tolerance: results.setdefault(key, ours)  # type: ignore[method-assign,assignment]
    run.sampling("gen")
    runs = {"runs": run.recording.config["runs"]}
    with_arguments = copied("openuni", tmp_path / "told", runs, lambda outputs: outputs.update(results))
    assert verdicts("openuni", with_arguments, "gen.") == {"ok"}
    untold = copied("openuni", tmp_path / "untold", {}, lambda outputs: outputs.update(results))
    assert verdicts("openuni", untold, "gen.") == {"differs"}


def test_records_are_compared_in_the_form_that_config_json_names(tmp_path: Path) -> None:
    mask = load_file(FIXTURES / "showo/inputs.safetensors")["mmu.mask"]
    records = {
        "vq.decoded": {"area": [16, 16]},
        "vq.codes": {"samples": [1]},
        "mmu.mask": {"bits": list(mask.shape)},
    }

    def edit(outputs: dict[str, Tensor]) -> None:
        outputs["vq.decoded"] = F.interpolate(outputs["vq.decoded"], size=(16, 16), mode="area")
        outputs["vq.codes"] = outputs["vq.codes"][[1]]

    folder = copied("showo", tmp_path / "small", {"records": records}, edit)
    assert torch.equal(Recording(folder)._as_recorded("vq.codes", torch.arange(2)[:, None]), torch.tensor([[1]]))
    inputs = load_file(folder / "inputs.safetensors")
    packed = torch.from_numpy(np.packbits(mask.numpy()))
    save_file({**inputs, "mmu.mask": packed}, folder / "inputs.safetensors")
    assert torch.equal(Recording(folder).inputs["mmu.mask"], mask)
    assert verdicts("showo", folder, "vq.") == {"ok"}
    by_form = {"downsampled": {"vq.decoded": [16, 16]}, "selected": {"vq.codes": [1]}}
    assert verdicts("showo", copied("showo", tmp_path / "forms", by_form, edit), "vq.") == {"ok"}


def test_a_key_that_cannot_be_compared_fails_unless_config_json_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(outputs: dict[str, Tensor]) -> None:
        outputs["unheard.of"] = torch.zeros(1)

    assert main(["janus", str(FIXTURES / "janus")]) == 0
    assert main(["janus", str(copied("janus", tmp_path / "bare", {}, edit))]) == 1
    excuse = {"not_compared": {"unheard.": "a check of the recorder itself"}}
    assert main(["janus", str(copied("janus", tmp_path / "excused", excuse, edit))]) == 0
    assert "excused: a check of the recorder itself" in capsys.readouterr().out
