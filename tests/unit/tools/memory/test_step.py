"""A step that is simulated takes what the same step takes with real numbers, for every family."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from reca.config import ROOT, compose
from reca.models.base import FAMILIES, UnifiedModel, load_model
from reca.models.harmon.diffusion_head import DiffusionHead
from reca.training.losses import build_mixture
from reca.training.precision import bf16_safe_parameters
from tools.memory.build import build
from tools.memory.sizes import PUBLISHED
from tools.memory.step import Plan, Step, bytes_of, estimate_step, measure_step

CPU = torch.device("cpu")


def tiny(family: str) -> UnifiedModel:
    section = compose([f"model={family}_tiny"]).model
    return load_model(family, ROOT / section.checkpoint, section.load_options(ROOT), CPU)


def plan(family: str, **changes: object) -> Plan:
    asked = 0.0 if family in ("openuni", "bagel") else 0.5
    mixture = build_mixture({"reconstruction": 1.0, "text_to_image": 0.0, "understanding": asked}, 4)
    settings = {"micro_batch_size": 2, "processes": 1, "lower": False, "gradient_checkpointing": False, "fused": False}
    return Plan(mixture, **{**settings, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_is_predicted_is_what_is_measured(family: str, again: bool) -> None:
    model = tiny(family)
    rounded = frozenset(bf16_safe_parameters(model) if again else ())
    wanted = plan(family, gradient_checkpointing=again, lower=again, rounded=rounded)
    predicted, measured = estimate_step(tiny(family), wanted), measure_step(tiny(family), wanted)
    assert predicted.peak == pytest.approx(measured.peak, rel=0.02)
    assert predicted.extract_peak == pytest.approx(measured.extract_peak, rel=0.02)
    assert predicted.flops == measured.flops
    assert (predicted.weights, predicted.gradients, predicted.moments) == (
        measured.weights,
        measured.gradients,
        measured.moments,
    )
    whole = bytes_of([*model.parameters(), *model.buffers()])
    assert predicted.weights == whole - sum(2 * model.get_parameter(name).numel() for name in rounded)


@cache
def janus_with(moments: str) -> Step:
    return estimate_step(tiny("janus"), plan("janus", optimizer_moments=moments))


@pytest.mark.parametrize(("moments", "share"), [("bfloat16", 0.5), ("8bit", 0.3)])
def test_small_moments_take_less_and_nothing_else_changes(moments: str, share: float) -> None:
    whole, small = (janus_with(kind) for kind in ("float32", moments))
    assert small.moments < whole.moments * (share + 0.01)
    assert replace(small, moments=whole.moments) == whole


@pytest.mark.parametrize(
    ("preset", "total", "trained"),
    [
        ("janus_pro_1b", 2.08, 1.69),
        ("janus_pro_7b", 7.41, 7.01),
        ("openuni_b_512", 1.90, 0.65),
        ("openuni_l_512", 4.23, 1.83),
        ("showo_512", 1.85, 1.45),
        ("showo_512_codes", 1.54, 1.45),
        ("bagel_7b", 14.66, 6.54),
        ("harmon_0_5b", 0.77, 0.70),
        ("harmon_1_5b", 2.56, 2.49),
    ],
)
def test_published_sizes_are_those_of_the_documents(preset: str, total: float, trained: float) -> None:
    """Billions, as in docs/models.md."""
    section = compose([f"model={preset}"]).model
    model = build(section.family, PUBLISHED[preset], section.load_options(ROOT), torch.device("meta"))
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (True, False)]
    assert counts == pytest.approx([total * 1e9, trained * 1e9], abs=0.006e9)


def test_tables_of_known_numbers_hold_them_in_a_model_that_holds_none() -> None:
    with torch.device("meta"):
        head = DiffusionHead(channels=4, condition_width=8, width=8, depth=1, num_sampling_steps=10)
    assert head.training_schedule.log_betas.device == head.sampling_schedule.log_betas.device == CPU


def test_every_big_preset_has_published_sizes() -> None:
    presets = {path.stem for path in (ROOT / "conf/model").glob("*.yaml")}
    assert presets - PUBLISHED.keys() == {f"{family}_tiny" for family in FAMILIES}
