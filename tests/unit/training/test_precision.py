"""Storing frozen weights in bfloat16 is bit-equal for every family."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reca.config import AdapterSection
from reca.models.base import UnifiedModel
from reca.runtime.seeding import SampleRng
from reca.training.activation_checkpointing import checkpoint_blocks
from reca.training.lora import adapt, merge
from reca.training.precision import bf16_safe_parameters, move_to
from tests.contract.test_model_family import CPU, PRESETS, load, losses, pictures

each_preset = pytest.mark.parametrize("preset", PRESETS)
OPTIONS: dict[str, dict[str, object]] = {"harmon_tiny": {"train_llm": False, "train_encoder": False}}
"""Harmon trains all but its autoencoder by default, which would leave no matrix to store in bfloat16."""


def published(preset: str, **options: object) -> UnifiedModel:
    """A base whose values are all bfloat16."""
    model = load(preset, prompt_dropout=0.0, **{**OPTIONS.get(preset, {}), **options})
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value.copy_(value.bfloat16() if value.is_floating_point() else value)
    return model


def adapter(kind: str) -> Callable[[UnifiedModel], None]:
    """Put adapters in that have learnt something."""

    def change(model: UnifiedModel) -> None:
        adapt(model, AdapterSection(rank=4, alpha=8, dropout=0.2, dora=kind == "dora"), seed=0)
        torch.manual_seed(5)
        with torch.no_grad():
            for name in model.trainable():
                value = model.get_parameter(name)
                value.add_(0.02 * torch.randn_like(value))

    return change


def gradients(model: UnifiedModel) -> dict[str, Tensor]:
    """Return every trained loss and its gradients."""
    results = {}
    for kind, loss_of in losses(model.train()).items():
        if kind == "understanding" and model.family == "bagel":  # its reading half is frozen
            continue
        model.zero_grad()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            value = loss_of().value
        if value.requires_grad:
            value.backward()
        results[kind] = value.detach()
        results |= {f"{kind}/{n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return results


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_equal(results: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert results.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(results[name], expected[name])] == []


@each_preset
@pytest.mark.parametrize(
    "configure",
    [lambda _: None, checkpoint_blocks, adapter("lora"), adapter("dora")],
    ids=["whole", "recomputed", "lora", "dora"],
)
def test_bfloat16_storage_is_bit_equal(preset: str, configure: Callable[[UnifiedModel], None]) -> None:
    model = published(preset)
    configure(model)
    before, expected = weights(model), gradients(model)
    names = bf16_safe_parameters(model)
    move_to(model, CPU, names)
    assert {name for name, value in model.named_parameters() if value.dtype == torch.bfloat16} == set(names) != set()
    assert_equal(gradients(model), expected)
    move_to(model, CPU)
    assert_equal(weights(model), before)


@each_preset
def test_norms_embeddings_ties_and_target_encoders_stay(preset: str) -> None:
    """Targets are encoded as before: outside of autocast a layer in bfloat16 would refuse its input."""
    model = published(preset)
    images = pictures(model, 2, model.spec.generation_size)
    expected = model.encode_target(images, SampleRng([1, 2])).values
    names = set(bf16_safe_parameters(model))
    move_to(model, CPU, names)
    assert torch.equal(model.encode_target(images, SampleRng([1, 2])).values, expected)
    for path, module in model.named_modules():
        for name, value in module.named_parameters(path, recurse=False):
            matrices = isinstance(module, nn.Linear | nn.Conv2d)
            assert value.dtype == torch.float32 or (matrices and name in names), name
            if (
                matrices
                and value.ndim > 1
                and not value.requires_grad
                and not name.startswith(model.encoder_prefixes["target"])
            ):
                assert name in names or value is model.network.llm.model.embed_tokens.weight


@each_preset
def test_what_adapters_leave_behind_is_added_up_in_float32(preset: str) -> None:
    def merged(narrow: bool) -> dict[str, Tensor]:
        model = published(preset)
        adapter("lora")(model)
        if narrow:
            move_to(model, CPU, bf16_safe_parameters(model))
            move_to(model, CPU)
        merge(model)
        return weights(model)

    assert_equal(merged(narrow=True), merged(narrow=False))


def test_adapters_are_the_same_beside_a_file_in_bfloat16() -> None:
    expected, lower = published("bagel_tiny"), published("bagel_tiny").bfloat16()
    for model in (expected, lower):
        adapter("dora")(model)
    move_to(lower, CPU)
    assert_equal(weights(lower), weights(expected))


def test_what_is_no_bfloat16_is_left_alone() -> None:
    model = published("bagel_tiny")
    spoilt = model.get_parameter("network.connector.fc1.weight")
    with torch.no_grad():
        spoilt[0, 0] = 1 + 2**-9
    before = weights(model)
    move_to(model, CPU, bf16_safe_parameters(model))
    assert spoilt.dtype == torch.float32
    assert model.get_parameter("network.connector.fc2.weight").dtype == torch.bfloat16
    move_to(model, CPU)
    assert_equal(weights(model), before)
