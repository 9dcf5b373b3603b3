"""Low-rank adapters of every family: trained parameters, changed weights, saved layout."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reca.config import AdapterSection, ConfigError, compose
from reca.models.base import UnifiedModel
from reca.runtime.errors import UserError
from reca.training.activation_checkpointing import checkpoint_blocks
from reca.training.lora import HEADS, adapt, merge, targets
from reca.training.optimizer import build_optimizer, freeze
from tests.contract.test_model_family import PRESETS, load, losses

DORA = ("janus_tiny", "bagel_tiny")
"""A stock network and one of ours; all five were compared once."""
each_preset = pytest.mark.parametrize("preset", PRESETS)
each_kind_and_preset = pytest.mark.parametrize(
    ("kind", "preset"), [*(("lora", preset) for preset in PRESETS), *(("dora", preset) for preset in DORA)]
)


def section(kind: str = "lora", **settings: object) -> AdapterSection:
    return AdapterSection.model_validate({"rank": 4, "alpha": 8, "dora": kind == "dora", **settings})


def whole(preset: str) -> UnifiedModel:
    return load(preset, prompt_dropout=0.0)


def adapted(preset: str, kind: str = "lora", **settings: object) -> UnifiedModel:
    model = whole(preset)
    adapt(model, section(kind, **settings), seed=0)
    return model


def perturbed(model: UnifiedModel) -> UnifiedModel:
    """Set every adapter to nonzero values, as training does."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name in model.trainable():
            value = model.get_parameter(name)
            value.mul_(1 + 0.1 * torch.rand_like(value)).add_(0.02 * torch.randn_like(value))
    return model


def values(model: UnifiedModel) -> Mapping[str, float]:
    with torch.no_grad():
        return {name: float(loss().value) for name, loss in losses(model).items()}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@each_kind_and_preset
def test_a_fresh_adapter_changes_nothing(preset: str, kind: str) -> None:
    assert values(adapted(preset, kind)) == values(whole(preset))


@each_kind_and_preset
def test_only_adapters_learn(preset: str, kind: str) -> None:
    """Adapters are on layers that RecA trains, and every adapter gets a gradient."""
    before = whole(preset)
    layers = targets(before, None)
    model = perturbed(adapted(preset, kind))
    for loss in losses(model).values():
        value = loss().value
        if value.requires_grad:
            value.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(model.trainable())
    assert {name.split(".lora_")[0] for name in with_gradient} == set(layers)
    assert all(f"{layer}.weight" in set(before.trainable()) and not layer.endswith(HEADS) for layer in layers)


@each_kind_and_preset
def test_what_is_saved_is_the_adapted_model_in_the_official_layout(preset: str, kind: str, tmp_path: Path) -> None:
    untouched = whole(preset)
    model = perturbed(adapted(preset, kind, rslora=True))
    expected = values(model)
    assert expected != values(untouched)
    merge(model)
    assert set(model.trainable()) == set(untouched.trainable())
    assert model.state_dict().keys() == untouched.state_dict().keys()
    model.save_official(tmp_path / "saved")
    reloaded = values(load(preset, tmp_path / "saved", prompt_dropout=0.0))
    assert reloaded == pytest.approx(expected, rel=1e-5)
    base, merged = weights(untouched), weights(model)
    changed_weights = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed_weights == {f"{layer}.weight" for layer in targets(untouched, None)}


@each_preset
def test_the_optimizer_knows_adapters_alone(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = whole(preset)
    full = sum(model.get_parameter(name).numel() for name in model.trainable())
    adapt(model, section(), seed=0)
    trained = freeze(model, set(model.trainable()))
    optimizer = build_optimizer(trained, (0.9, 0.95), 0.0)
    losses(model)["text_to_image"]().value.backward()
    optimizer.step()
    states = list(optimizer.state.values())
    state_size = sum(state["exp_avg"].numel() for state in states)
    counted = sum(value.numel() for value in trained.values())
    assert 0 < state_size <= counted < full / 2
    assert f"{counted:,} parameters train, not {full:,}" in capsys.readouterr().out


@each_kind_and_preset
def test_bfloat16_and_recomputed_activations_do_as_with_whole_weights(preset: str, kind: str) -> None:
    model = perturbed(adapted(preset, kind, dropout=0.2)).train()

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        torch.manual_seed(3)
        loss = losses(model)["reconstruction"]
        with torch.autocast("cpu", torch.bfloat16):
            value = loss().value
        value.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    checkpoint_blocks(model)
    again = gradients()
    assert expected.keys() == again.keys() <= set(model.trainable())
    assert {gradient.dtype for gradient in expected.values()} == {torch.float32}
    assert all(torch.equal(expected[name], again[name]) for name in expected)


def test_adapters_are_a_function_of_the_seed() -> None:
    first, again, other = (whole("janus_tiny") for _ in range(3))
    state = torch.manual_seed(1).get_state()
    adapt(first, section(), seed=0)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is unchanged
    torch.manual_seed(2)
    adapt(again, section(), seed=0)
    adapt(other, section(), seed=1)
    (name,) = [name for name in first.trainable() if name.endswith("layers.4.mlp.up_proj.lora_A.default.weight")]
    assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_layers_are_chosen_by_patterns() -> None:
    model = whole("bagel_tiny")
    layers = targets(model, ["*self_attn.q_proj*", "*.vae2llm"])
    assert {name.rpartition(".")[2] for name in layers} == {"q_proj_moe_gen", "vae2llm"}  # what reads is frozen
    assert "network.lm_head" in targets(whole("janus_tiny"), ["network.lm_head"])  # named, so meant
    with pytest.raises(UserError, match=r"'\*\.q_proj' matches no linear layer.*\*\.q_proj_moe_gen.*vae2llm"):
        targets(model, ["*.vae2llm", "*.q_proj"])


def test_dora_refuses_rows_of_zeros() -> None:
    model = whole("harmon_tiny")
    with torch.no_grad():
        model.get_parameter("network.proj_in.0.weight")[1] = 0
    with pytest.raises(UserError, match=r"network\.proj_in\.0 has rows of zeros"):
        adapt(model, section("dora"), seed=0)
    adapt(model, section("lora"), seed=0)


def test_the_section_is_closed() -> None:
    assert compose(["train.adapter={rank: 8, alpha: 16}"]).train.adapter == AdapterSection(rank=8, alpha=16)
    for wrong in (
        "{rank: 0, alpha: 16}",
        "{rank: 8, alpha: 16, targets: []}",
        "{rank: 8}",
        "{rank: 8, alpha: 1, r: 2}",
    ):
        with pytest.raises(ConfigError, match=r"train\.adapter"):
            compose([f"train.adapter={wrong}"])
