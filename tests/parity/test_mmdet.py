"""mmdet's Mask2Former, converted: checkpoint format, inputs, logits and detections on a small network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Mask2FormerConfig, SwinConfig

from reca.evaluation.benchmarks.geneval.detections import MaskedDetection, detections_of
from reca.evaluation.judges.mask2former import InstanceLogits, InstanceSegmenter, prepare
from tools import convert_mmdet as mmdet

FIXTURE = Path(__file__).parent / "fixtures/mmdet"
SHORT_SIDE = 96
IMAGES = range(4)


def sizes() -> Mask2FormerConfig:
    """Return the sizes of ``shrink`` in the fixture's ``make.py``."""
    backbone = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    return Mask2FormerConfig(
        backbone_config=backbone, num_labels=80, num_queries=10, hidden_dim=32, feature_size=32, mask_feature_size=32,
        encoder_layers=2, decoder_layers=4, num_attention_heads=4, dim_feedforward=16, encoder_feedforward_dim=16,
    )  # fmt: skip


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    loaded: dict[str, Any] = torch.load(FIXTURE / "checkpoint.pth", weights_only=True)
    return loaded["state_dict"]


@pytest.fixture(scope="module")
def recorded() -> dict[str, NDArray[Any]]:
    return dict(np.load(FIXTURE / "recorded.npz"))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> InstanceSegmenter:
    """Convert and load the fixture as a user does."""
    folder = tmp_path_factory.mktemp("judges") / "mmdet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmdet, "official_config", sizes)
        card = mmdet.convert(FIXTURE / "checkpoint.pth", folder)
    assert (card["file"], card["official"]) == ("checkpoint.pth", None)
    loaded = InstanceSegmenter.load(folder, torch.device("cpu"))
    loaded.short_side = SHORT_SIDE
    return loaded


def predict(segmenter: InstanceSegmenter, image: NDArray[Any]) -> InstanceLogits:
    return segmenter.predict([image])[0]


@pytest.mark.parametrize("number", IMAGES)
def test_input_equals_mmdets(recorded: dict[str, NDArray[Any]], number: int) -> None:
    inputs, _ = prepare(torch.from_numpy(recorded[f"{number}.image"])[None], SHORT_SIDE)
    np.testing.assert_allclose(inputs[0].numpy(), recorded[f"{number}.input"], atol=1e-6)  # a level is 0.017


@pytest.mark.parametrize("number", IMAGES)
def test_logits_equal_mmdets(recorded: dict[str, NDArray[Any]], segmenter: InstanceSegmenter, number: int) -> None:
    logits = predict(segmenter, recorded[f"{number}.image"])
    np.testing.assert_allclose(logits.classes.numpy(), recorded[f"{number}.classes"], atol=1e-4)
    np.testing.assert_allclose(logits.masks.numpy(), recorded[f"{number}.masks"], atol=1e-4)


@pytest.mark.parametrize("number", IMAGES)
def test_detections_equal_mmdets(recorded: dict[str, NDArray[Any]], segmenter: InstanceSegmenter, number: int) -> None:
    logits = predict(segmenter, recorded[f"{number}.image"])
    detections = detections_of(logits.classes, logits.masks, logits.padded, logits.resized, logits.original)
    detections.sort(key=lambda detection: (detection.label, -detection.score))
    boxes = recorded[f"{number}.boxes"]
    assert [detection.label for detection in detections] == recorded[f"{number}.labels"].tolist()
    np.testing.assert_allclose([detection.score for detection in detections], boxes[:, 4], atol=1e-5)
    assert share_of_other_pixels(detections, recorded[f"{number}.segments"]) < 1e-4
    np.testing.assert_allclose([detection.box for detection in detections], boxes[:, :4], atol=1)  # by such a pixel


def share_of_other_pixels(detections: list[MaskedDetection], segments: NDArray[Any]) -> float:
    """Return the share of pixels that differ: those whose logit is zero up to rounding."""
    return float((np.stack([detection.mask for detection in detections]) != segments).mean())


def test_every_parameter_of_mmdet_is_converted(state: dict[str, torch.Tensor]) -> None:
    converted = mmdet.from_mmdet(state)
    tables = sum(name.endswith("relative_position_index") for name in state)
    threes = sum("qkv" in name or (".attentions.1.attn.in_proj" in name) for name in state)
    assert (tables, threes) == (5, 16)
    assert len(converted) == len(state) - tables + 2 * threes


def test_names_of_mmdet_3_are_converted_too(state: dict[str, torch.Tensor]) -> None:
    names: dict[str, str] = json.loads((FIXTURE / "names_3.json").read_text())
    assert sorted(names.values()) == sorted(state)
    assert names.keys() != state.keys()
    old, new = mmdet.from_mmdet(state), mmdet.from_mmdet({name: state[second] for name, second in names.items()})
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_other_checkpoints_are_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"roi_head\.bbox\.weight is no parameter of mmdet's Mask2Former"):
        mmdet.from_mmdet({"roi_head.bbox.weight": torch.zeros(1)})
    less = {name: value for name, value in state.items() if name != "panoptic_head.cls_embed.bias"}
    with pytest.raises(ValueError, match=r"1 parameters are missing or left over, such as class_predictor\.bias"):
        mmdet.load_converted(less, sizes())
    with pytest.raises(ValueError, match="sizes are not those"):
        mmdet.load_converted(state, mmdet.official_config())
    (tmp_path / "page.pth").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"page\.pth is no checkpoint"):
        mmdet.convert(tmp_path / "page.pth", tmp_path / "out")
