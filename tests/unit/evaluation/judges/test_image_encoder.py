"""Tiny random encoders in local folders, in the layouts of CLIP and of DINOv2."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from reca.evaluation.judges.image_encoder import ImageEncoder

SIZES = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
FEW = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_clip(path: Path) -> None:
    torch.manual_seed(0)
    both = {**FEW, "intermediate_size": 16}
    CLIPModel(
        CLIPConfig(
            text_config={**both, "vocab_size": 8, "max_position_embeddings": 4},
            vision_config={**both, "image_size": 16, "patch_size": 8},
            projection_dim=12,
        )
    ).save_pretrained(path)
    CLIPImageProcessorPil(**SIZES).save_pretrained(path)


def save_dinov2(path: Path) -> None:
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**FEW, mlp_ratio=1, image_size=16, patch_size=8)).save_pretrained(path)
    BitImageProcessorPil(**SIZES).save_pretrained(path)


@pytest.mark.parametrize("save", [save_clip, save_dinov2])
def test_features_are_the_networks_own(tmp_path, save):
    save(tmp_path)
    images = [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "coffee", "chelsea")]
    encoder = ImageEncoder.load(tmp_path, torch.device("cpu"))
    values = encoder.directions(images)
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(values[1:2], encoder.directions(images[1:2]), atol=1e-5)
    pixels = encoder._processor(images=images[:1], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    assert values[0] @ values[1] < 0.9999, "unlike images are not alike"


def test_what_is_no_encoder_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing: there is no image encoder"):
        ImageEncoder.load(tmp_path, torch.device("cpu"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    with pytest.raises(ValueError, match="transformers cannot load .* as image encoder"):
        ImageEncoder.load(tmp_path, torch.device("cpu"))
    save_dinov2(tmp_path)
    weights = tmp_path / "model.safetensors"
    remaining = {name: tensor for name, tensor in load_file(weights).items() if "layernorm.weight" not in name}
    save_file(remaining, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of its image encoder, such as layernorm\.weight"):
        ImageEncoder.load(tmp_path, torch.device("cpu"))
