"""Memory and speed switches change results by rounding at most, for every family."""

import pytest
import torch
from torch import Tensor, nn

from reca.models.base import Loss, UnifiedModel
from reca.runtime.errors import UserError
from reca.training.activation_checkpointing import blocks, checkpoint_blocks
from reca.training.compile import compile_blocks, enable_flex_attention
from reca.training.optimizer import build_optimizer
from tests.contract.test_model_family import PRESETS, dropping, load, losses

pytestmark = pytest.mark.slow

BFLOAT16_LOSS, BFLOAT16_DIRECTION = 0.02, 0.99
"""How far bfloat16 may be from float32: a loss, relatively; the cosine between the gradients.

Four times the largest errors that were measured with and without vector instructions: 4.9e-3 (2.5 times the unit
roundoff, 2^-9), and 1 - cosine = 4.3e-4, which grows with the square of an error.
"""

KEPT_LAYERS = {"janus_tiny": 4, "bagel_tiny": 2}
"""Janus' gists are the states after its third layer."""


def fresh(preset: str) -> UnifiedModel:
    model = load(preset, prompt_dropout=0.0)
    model.freeze()
    return dropping(model)


def gradients(model: UnifiedModel, kind: str, dtype: torch.dtype | None = None) -> tuple[float, dict[str, Tensor]]:
    """Return a loss and its gradients."""
    model.zero_grad()
    loss_of = losses(model)[kind]
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss: Loss = loss_of()
    loss.value.backward()
    return float(loss.value.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", ["reconstruction", "text_to_image"])
def test_recomputed_activations_change_no_bit(preset: str, kind: str) -> None:
    model = fresh(preset)
    value, gradients_before = gradients(model, kind)
    names = set(model.state_dict())
    assert len(list(blocks(model))) >= 4
    checkpoint_blocks(model)
    again, recomputed = gradients(model, kind)
    assert set(model.state_dict()) == names
    assert again == value
    assert recomputed.keys() == gradients_before.keys()
    assert all(torch.equal(gradients_before[name], recomputed[name]) for name in gradients_before)


@pytest.mark.parametrize(("preset", "recomputed"), [("janus_tiny", False), ("bagel_tiny", True)])
def test_compiled_blocks_change_rounding_only(preset: str, recomputed: bool) -> None:
    """With the compiler's own tracing and differentiation, without its machine code, which takes minutes to make."""
    model = fresh(preset)
    for layers in model.modules():  # each layer is compiled anew
        if isinstance(layers, nn.ModuleList) and len(layers) > 3:
            del layers[KEPT_LAYERS[preset] :]
    value, usual = gradients(model, "reconstruction")
    names = set(model.state_dict())
    compile_blocks(model, backend="aot_eager")
    if recomputed:
        checkpoint_blocks(model)
    again, compiled = gradients(model, "reconstruction")
    assert set(model.state_dict()) == names
    assert again == pytest.approx(value, rel=1e-5)
    assert compiled.keys() == usual.keys()
    for name, gradient in usual.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()) + 1e-9)


def test_attention_by_blocks_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(UserError, match="needs a GPU"):
        enable_flex_attention(fresh("bagel_tiny"), torch.device("cpu"))
    with pytest.raises(UserError, match="does not apply to janus"):
        enable_flex_attention(fresh("janus_tiny"), torch.device("cuda"))


def test_recomputed_activations_save_memory() -> None:
    def saved(model: UnifiedModel) -> int:
        size = 0

        def note(tensor: Tensor) -> Tensor:
            nonlocal size
            size += tensor.numel() * tensor.element_size()
            return tensor

        loss_of = losses(model)["reconstruction"]
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss_of()
        return size

    model = fresh("bagel_tiny")
    before = saved(model)
    checkpoint_blocks(model)
    assert saved(model) < before / 2


@pytest.mark.parametrize(
    ("preset", "kind"),
    [
        *[(preset, kind) for preset in PRESETS for kind in ("reconstruction", "text_to_image")],
        *[(preset, "understanding") for preset in ("janus_tiny", "showo_tiny", "harmon_tiny")],  # frozen in the others
    ],
)
def test_bfloat16_stays_near_float32(preset: str, kind: str) -> None:
    model = fresh(preset)
    value, exact = gradients(model, kind)
    lower, bf16_gradients = gradients(model, kind, torch.bfloat16)
    assert lower == pytest.approx(value, rel=BFLOAT16_LOSS)
    assert {gradient.dtype for gradient in bf16_gradients.values()} == {torch.float32}
    exact_direction, bf16_direction = (
        torch.cat([all_of[name].flatten() for name in exact]) for all_of in (exact, bf16_gradients)
    )
    assert torch.cosine_similarity(exact_direction, bf16_direction, dim=0) > BFLOAT16_DIRECTION


def test_harmons_head_does_not_decay() -> None:
    model = fresh("harmon_tiny")
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = build_optimizer(trained, (0.9, 0.95), 0.1, 1e-15, model.no_weight_decay)
    decayed = {id(value) for value in optimizer.param_groups[0]["params"]}
    names = {name for name, value in trained.items() if id(value) in decayed}
    assert names
    assert not [name for name in names if "diffloss" in name]
    assert [name for name, value in trained.items() if "diffloss" in name and value.ndim > 1]
    assert all(group["eps"] == 1e-15 for group in optimizer.param_groups)
