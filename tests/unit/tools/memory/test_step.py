"""Estimated steps equal measured ones in every family."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from reca.config import ROOT, compose
from reca.models.base import UnifiedModel
from reca.models.harmon.diffusion_head import DiffusionHead
from reca.models.loading import FAMILIES, load_model
from reca.training.mixture import build_mixture
from reca.training.precision import bf16_safe_parameters
from tools.memory.build import build
from tools.memory.sizes import PUBLISHED
from tools.memory.step import Plan, Step, bytes_of, estimate_step, measure_step

CPU = torch.device("cpu")


def tiny(family: str) -> UnifiedModel:
    section = compose([f"model={family}_tiny"]).model
    return load_model(family, ROOT / section.checkpoint, section.load_options(ROOT), CPU)


def plan(family: str, **changes: object) -> Plan:
    understanding = 0.0 if family in ("openuni", "bagel") else 0.5
    mixture = build_mixture({"reconstruction": 1.0, "text_to_image": 0.0, "understanding": understanding}, 4)
    settings = {
        "micro_batch_size": 2,
        "processes": 1,
        "autocast_bf16": False,
        "gradient_checkpointing": False,
        "fused": False,
    }
    return Plan(mixture, **{**settings, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "recompute"), [(family, i % 2 == 0) for i, family in enumerate(sorted(FAMILIES))])
def test_estimated_step_equals_measured_step(family: str, recompute: bool) -> None:
    model = tiny(family)
    names = frozenset(bf16_safe_parameters(model) if recompute else ())
    settings = plan(family, gradient_checkpointing=recompute, autocast_bf16=recompute, bf16_parameters=names)
    estimate, measurement = estimate_step(tiny(family), settings), measure_step(tiny(family), settings)
    assert estimate.peak == pytest.approx(measurement.peak, rel=0.02)
    assert estimate.extract_peak == pytest.approx(measurement.extract_peak, rel=0.02)
    assert estimate.flops == measurement.flops
    assert (estimate.weights, estimate.gradients, estimate.moments) == (
        measurement.weights,
        measurement.gradients,
        measurement.moments,
    )
    float32_bytes = bytes_of([*model.parameters(), *model.buffers()])
    assert estimate.weights == float32_bytes - sum(2 * model.get_parameter(name).numel() for name in names)


@cache
def janus_with(moments: str) -> Step:
    reconstruction = build_mixture({"reconstruction": 1.0, "text_to_image": 0.0, "understanding": 0.0}, 2)
    return estimate_step(tiny("janus"), replace(plan("janus", optimizer_state_dtype=moments), mixture=reconstruction))


@pytest.mark.parametrize(("moments", "share"), [("bfloat16", 0.5), ("8bit", 0.3)])
def test_low_bit_moments_change_only_the_optimizer_state(moments: str, share: float) -> None:
    full, small = (janus_with(kind) for kind in ("float32", moments))
    assert small.moments < full.moments * (share + 0.01)
    assert replace(small, moments=full.moments) == full


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
def test_published_sizes_match_the_documentation(preset: str, total: float, trained: float) -> None:
    """Billions of parameters, as in docs/models.md."""
    section = compose([f"model={preset}"]).model
    model = build(section.family, PUBLISHED[preset], section.load_options(ROOT), torch.device("meta"))
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (True, False)]
    assert counts == pytest.approx([total * 1e9, trained * 1e9], abs=0.006e9)


def test_constant_tables_stay_real_on_the_meta_device() -> None:
    with torch.device("meta"):
        head = DiffusionHead(channels=4, condition_width=8, width=8, depth=1, num_sampling_steps=10)
    assert head.training_schedule.log_betas.device == head.sampling_schedule.log_betas.device == CPU


def test_every_full_size_preset_has_published_sizes() -> None:
    presets = {path.stem for path in (ROOT / "conf/model").glob("*.yaml")}
    assert presets - PUBLISHED.keys() == {f"{family}_tiny" for family in FAMILIES}
