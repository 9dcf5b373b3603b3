"""Forecasts of runs, and their comparison with a device."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reca.config import ROOT, compose
from reca.runtime.errors import UserError
from reca.training.precision import bf16_safe_parameters
from tools.memory.command import lines, predict
from tools.memory.forecast import (
    USABLE_FRACTION,
    bfloat16_parameters,
    build_sized_model,
    forecast,
    shard_step,
    suggest_changes,
)
from tools.memory.step import Step

STEP = Step(
    parameters=10,
    trained=4,
    weights=40,
    gradients=16,
    moments=32,
    activations=80,
    phase="reconstruction",
    largest_unit=12,
    images=8,
    tokens=100,
    flops=1000,
    extract_peak=60,
    extract_flops=10,
    stored=20,
)
SMALL = ("train.global_batch_size=4", "hardware.micro_batch_size=2")
RECA_ONLY = (*SMALL, "train.mixture={reconstruction: 1.0, text_to_image: 0.0, understanding: 0.0}")
"""Overrides for a single loss, which is enough where losses do not matter."""
TINY = ("model=showo_tiny", *RECA_ONLY)


def test_json_forecast_is_consistent(capsys: pytest.CaptureFixture[str]) -> None:
    priced = ["hardware.device=cuda", "hardware.forecast_gpu=h100", "hardware.price_per_hour=2"]
    assert predict([*TINY, *priced], ROOT, as_json=True) == 0
    forecast_json = json.loads(capsys.readouterr().out)
    step = forecast_json["step"]
    assert step["peak"] == sum(step[name] for name in ("weights", "gradients", "moments", "activations"))
    assert step["gradients"] == 4 * step["trained"]
    assert forecast_json["train_seconds"] == pytest.approx(forecast_json["steps"] * forecast_json["step_seconds"])
    assert forecast_json["dollars"] == pytest.approx(2 * forecast_json["device_hours"])
    assert any("assumed" in assumption or "measured" in assumption for assumption in forecast_json["assumptions"])


def test_disk_of_the_embeddings_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict([*TINY, "data.num_images=1000"], ROOT) == 0
    # 16 embeddings of CLIP in bfloat16 and 36 codes of 8 bytes.
    assert "x 1,000 images = 3.36 MB" in capsys.readouterr().out
    assert forecast(compose([*TINY, "extract.dtype=float32"]), ROOT).step.stored == 16 * 96 * 4 + 36 * 8
    trained = forecast(compose([*TINY, "model.train_vision=true"]), ROOT)
    assert trained.step.stored == 36 * 8


def test_cpu_forecast_has_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict([*TINY], ROOT) == 0
    output = capsys.readouterr().out
    assert "step time   not predicted" in output
    assert "fits" in output


def test_step_that_does_not_fit_gets_suggestions() -> None:
    config = compose(["hardware=gpu", "hardware.micro_batch_size=8", "hardware.gradient_checkpointing=false"])
    suggestions = suggest_changes(config, STEP, room=STEP.peak - 40)
    assert [line.split(":")[0] for line in suggestions] == [
        "hardware.micro_batch_size=4 or less, not 8",
        "hardware.gradient_checkpointing=true",
    ]
    assert "another device or model" in suggest_changes(config, STEP, room=80)[1]
    assert 0 < USABLE_FRACTION < 1


def test_extraction_that_does_not_fit_gets_a_suggestion() -> None:
    config = compose(["hardware=gpu", "hardware.micro_batch_size=8"])
    (suggestion,) = suggest_changes(config, replace(STEP, extract_peak=2 * STEP.peak), room=STEP.peak)
    assert suggestion.startswith("hardware.micro_batch_size below 8: extraction takes")
    prediction = forecast(compose(TINY), ROOT)
    rows = "\n".join(lines(replace(prediction, step=replace(prediction.step, extract_peak=10**15))))
    assert "can be filled: fits" in rows
    assert "1000000.00 GB, which DOES NOT FIT" in rows


def test_sharding_divides_persistent_memory_and_gathers_two_units() -> None:
    assert shard_step(STEP, 1, 1) == STEP
    assert shard_step(STEP, 4, 1) == replace(STEP, activations=80 + 2 * 12)
    assert shard_step(STEP, 2, 4) == replace(STEP, weights=10, gradients=4, moments=8, activations=80 + 2 * 12)


def test_bfloat16_parameters_follow_the_checkpoints_values(tmp_path: Path) -> None:
    words = ["model=bagel_tiny", *RECA_ONLY]
    config = compose([*words, f"model.checkpoint={tmp_path}/bagel", "train.precision=bfloat16"])
    shutil.copytree(ROOT / "data/bases/bagel_tiny", tmp_path / "bagel")
    model, sizes = build_sized_model(config, tmp_path)
    assert sizes == f"of {tmp_path}/bagel"
    assert bfloat16_parameters(config, model)[0] == frozenset()
    weights = tmp_path / "bagel/model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(weights).items()}, weights)
    model, _ = build_sized_model(config, tmp_path)
    converted = {name for name in bf16_safe_parameters(model) if not name.startswith("autoencoder.")}
    assert converted
    assert bfloat16_parameters(config, model) == (converted, ())
    assert forecast(config, tmp_path).step.weights < forecast(compose(words), ROOT).step.weights


def test_nodes_multiply_devices() -> None:
    processes = forecast(compose([*TINY, "hardware.processes=2"]), ROOT)
    nodes = forecast(compose([*TINY, "hardware.processes=1", "hardware.nodes=2"]), ROOT)
    assert (nodes.devices, nodes.step) == (processes.devices, processes.step)


def test_unknown_sizes_are_refused() -> None:
    config = compose(["model=showo_tiny", "model.name=mine", "model.checkpoint=nowhere"])
    with pytest.raises(UserError, match=r"sizes of model\.name=mine are not known.*nowhere is missing"):
        build_sized_model(config, ROOT)


@pytest.mark.parametrize(("preset", "share"), [("bagel_7b", 0.75), ("janus_pro_1b", 1.0)])
def test_frozen_matrices_use_the_published_dtype(preset: str, share: float) -> None:
    config = compose([f"model={preset}", "train.precision=bfloat16"])
    model, _ = build_sized_model(config, ROOT)
    names, (assumption,) = bfloat16_parameters(config, model)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    lower = sum(model.get_parameter(name).numel() for name in names)
    assert (4 * numbers - 2 * lower) / (4 * numbers) == pytest.approx(share, abs=0.01)
    assert ("not known" in assumption) == (share == 1.0)


def test_bfloat16_parameters_are_detected_by_value() -> None:
    config = compose(["model=janus_tiny", "train.precision=bfloat16"])
    model, _ = build_sized_model(config, ROOT)
    assert bfloat16_parameters(config, model) == (frozenset(), ())
    with torch.no_grad():
        matrix = model.get_parameter("network.model.aligner.fc1.weight")
        matrix.copy_(matrix.bfloat16())
    assert bfloat16_parameters(config, model) == (frozenset({"network.model.aligner.fc1.weight"}), ())
    assert bfloat16_parameters(compose(["model=janus_tiny"]), model) == (frozenset(), ())
