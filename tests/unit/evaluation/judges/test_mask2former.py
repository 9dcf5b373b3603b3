"""Mask2Former's input and its loading, on a tiny random network; mmdet's numbers are in ``tests/parity``."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from reca.evaluation.judges.mask2former import InstanceSegmenter, opencv_bilinear, prepare
from tools import convert_mmdet as mmdet


def tiny(labels: int = 80) -> Mask2FormerConfig:
    backbone = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    return Mask2FormerConfig(
        backbone_config=backbone, num_labels=labels, num_queries=6, hidden_dim=32, feature_size=32,
        mask_feature_size=32, encoder_layers=2, decoder_layers=3, num_attention_heads=4, dim_feedforward=16,
        encoder_feedforward_dim=16,
    )  # fmt: skip


def test_patch_merging_reads_the_same_neighbours():
    """mmdet unfolds 2 x 2 patches (channel, row, column) where Swin concatenates slices."""
    image = torch.randn(1, 3, 4, 4)
    weight = torch.randn(5, 12)
    unfolded = torch.nn.functional.unfold(image, 2, stride=2).transpose(1, 2) @ weight.T
    x = image.permute(0, 2, 3, 1)
    merged = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
    assert torch.allclose(merged.reshape(1, 4, 12) @ mmdet._neighbours_first(weight).T, unfolded, atol=1e-5)


def test_the_official_sizes_are_those_of_swin_s():
    with torch.device("meta"):
        created = Mask2FormerForUniversalSegmentation(mmdet.official_config())
    unused = 2 * 768  # a last norm that mmdet does not have
    assert (
        sum(parameter.numel() for parameter in created.parameters()) == 68_739_547 + unused
    )  # counted in mmdet 2.28.2


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((1024, 1024), (800, 800), (800, 800)),
        ((480, 640), (800, 1067), (800, 1088)),
        ((300, 900), (444, 1333), (448, 1344)),
    ],
)
def test_images_are_resized_as_mmdet_resizes_them(size, resized, padded):
    inputs, inner = prepare(torch.full((1, *size, 3), 255, dtype=torch.uint8))
    assert inner == resized
    assert tuple(inputs.shape) == (1, 3, *padded)
    assert inputs[0, :, 0, 0].tolist() == pytest.approx(
        [(255 - 123.675) / 58.395, (255 - 116.28) / 57.12, (255 - 103.53) / 57.375]
    )
    grey = [(128 - 123.675) / 58.395, (128 - 116.28) / 57.12, (128 - 103.53) / 57.375]
    for padding in (inputs[0, :, resized[0] :], inputs[0, :, :, resized[1] :]):
        assert torch.allclose(padding, torch.tensor(grey)[:, None, None].expand_as(padding))


@given(shape=st.tuples(st.integers(1, 12), st.integers(1, 12)), size=st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_a_resized_image_stays_within_its_neighbours(shape, size):
    image = torch.from_numpy(np.random.default_rng(sum(shape)).integers(0, 256, (1, *shape, 1), dtype=np.uint8))
    resized = opencv_bilinear(image, size)
    assert resized.shape == (1, *size, 1)
    assert image.min() <= resized.min() <= resized.max() <= image.max()
    assert torch.equal(opencv_bilinear(image, shape), image.int())


def test_half_the_size_is_the_rounded_mean_of_four():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 6, 10, 3), dtype=np.uint8))
    fours = image.int().reshape(2, 3, 2, 5, 2, 3).sum(dim=(2, 4))
    assert torch.equal(opencv_bilinear(image, (3, 5)).long(), (fours + 2) // 4)


def test_a_wrong_folder_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing: there is no Mask2Former"):
        InstanceSegmenter.load(tmp_path, torch.device("cpu"))
    Mask2FormerForUniversalSegmentation(tiny(labels=3)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 3 classes, not COCO's 80"):
        InstanceSegmenter.load(tmp_path, torch.device("cpu"))
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="transformers cannot load .* as Mask2Former"):
        InstanceSegmenter.load(tmp_path, torch.device("cpu"))
