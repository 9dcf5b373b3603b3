"""InternVL's vision encoder (arXiv 2404.16821) from stock parts: InternViT, pixel shuffle and projector.

The tower is the stock ``InternVLVisionModel``. Checkpoints that come with remote code (``OpenGVLab/InternVL3-*``, hence
OpenUni's) use other parameter names and one matrix for query, key and value; the functions below convert both.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import InternVLVisionConfig, InternVLVisionModel

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""InternVL's normalisation of images in [0, 1]."""

_NAMES = (
    ("embeddings.class_embedding", "embeddings.cls_token"),
    ("embeddings.patch_embedding.", "embeddings.patch_embeddings.projection."),
    ("embeddings.position_embedding", "embeddings.position_embeddings"),
    ("encoder.layers.", "encoder.layer."),
    (".attn.proj.", ".attention.projection_layer."),
    (".attn.q_norm.", ".attention.q_norm."),
    (".attn.k_norm.", ".attention.k_norm."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
)
"""Parts of parameter names: remote code, stock class."""
_FUSED, _SPLIT = ".attn.qkv.", tuple(f".attention.{name}_proj." for name in "qkv")


def vision_config(official: Mapping[str, Any]) -> InternVLVisionConfig:
    """Return the stock configuration for a remote-code ``vision_config``."""
    widths = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "image_size",
        "patch_size",
    )
    return InternVLVisionConfig(
        **{name: official[name] for name in widths},
        num_channels=official.get("num_channels", 3),
        attention_bias=official.get("qkv_bias", True),
        use_qk_norm=official.get("qk_normalization", False),
        norm_type=official.get("norm_type", "layer_norm"),
        hidden_act=official.get("hidden_act", "gelu"),
        layer_norm_eps=official.get("layer_norm_eps", 1e-6),
        use_mean_pooling=True,  # without a norm after the last layer
    )


def names_from_official(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Rename the keys under ``prefix`` from remote code to the stock class; other keys are kept."""
    renamed = {key: value for key, value in state.items() if not key.startswith(prefix)}
    for key in [key for key in state if key.startswith(prefix)]:
        fused = _FUSED in key
        pieces = state[key].chunk(3) if fused else [state[key]]
        for part, piece in zip(_SPLIT, pieces, strict=fused):
            name = key.removeprefix(prefix).replace(_FUSED, part)
            for official, stock in _NAMES:
                name = name.replace(official, stock)
            renamed[prefix + name] = piece
    return renamed


def names_to_official(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Rename the keys under ``prefix`` from the stock class to remote code."""
    renamed = {key: value for key, value in state.items() if not key.startswith(prefix)}
    for key in [key for key in state if key.startswith(prefix)]:
        if any(part in key for part in _SPLIT[1:]):
            continue  # part of the fused matrix, which replaces the query
        name, value = key.removeprefix(prefix), state[key]
        if _SPLIT[0] in name:
            value = torch.cat([state[key.replace(_SPLIT[0], part)] for part in _SPLIT])
            name = name.replace(_SPLIT[0], _FUSED)
        for official, stock in _NAMES:
            name = name.replace(stock, official)
        renamed[prefix + name] = value
    return renamed


def projector(official: Mapping[str, Any], width: int) -> nn.Sequential:
    """Return InternVL's ``mlp1``: norm, linear, GELU, linear; it maps a square of patches to ``width``."""
    folded = official["vision_config"]["hidden_size"] * fold(official) ** 2
    return nn.Sequential(nn.LayerNorm(folded), nn.Linear(folded, width), nn.GELU(), nn.Linear(width, width))


def fold(official: Mapping[str, Any]) -> int:
    """Return the number of patches per side of a token."""
    return round(1 / official.get("downsample_ratio", 0.5))


def image_tokens(
    vision_model: InternVLVisionModel, projection: nn.Module, official: Mapping[str, Any], images: Tensor
) -> Tensor:
    """Encode images (B, 3, H, W) in [-1, 1] as tokens (B, N, D), N = H * W / (patch * fold)^2.

    Position embeddings are interpolated for images of another size than the configured one.
    """
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    hidden = vision_model.embeddings(((images + 1) / 2 - mean) / std)
    layers = vision_model.encoder.layer
    last = official.get("select_layer", -1)
    for layer in layers[: last if last >= 0 else len(layers) + 1 + last]:
        hidden = layer(hidden)
    rows, columns = (side // official["vision_config"]["patch_size"] for side in images.shape[-2:])
    factor = fold(official)
    # (B, rows * columns, C) -> (B, rows / factor, columns / factor, factor * factor * C)
    grid = hidden[:, 1:].unflatten(1, (rows // factor, factor, columns // factor, factor)).transpose(2, 3).flatten(3)
    if official.get("ps_version", "v2") == "v1":  # early checkpoints were trained with rows and columns exchanged
        grid = grid.transpose(1, 2)
    return projection(grid.flatten(1, 2))
