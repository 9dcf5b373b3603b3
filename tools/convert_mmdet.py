"""mmdet's Mask2Former weights in the layout of transformers: the same network under other names.

``python -m tools.convert_mmdet CHECKPOINT.pth data/judges/NAME`` converts the
detector that GenEval itself uses.
The differences beyond names are three: mmdet keeps query, key and value of an attention in one matrix where
transformers has three, transformers keeps them together in the decoder's cross-attention, and mmdet's patch merging
reads its four neighbours in the order of ``unfold`` (channel first). With random weights mmdet 2.28.2 and 3.3.0 give
the same logits (``tests/parity/test_mmdet.py``); the published files themselves were never seen.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from reca.runtime.files import atomic_folder, write_json
from reca.runtime.hashing import file_digest

OFFICIAL = {
    "743b7d99": "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
    "c9d0c4f2": "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco_20220504_001756-c9d0c4f2.pth",
}
"""Published files by the first eight digits of their SHA-256: GenEval's, and its twin for mmdet 3.x."""
CARD = "converted_from.json"
"""What a converted folder was made of."""
_SWIN, _PIXEL, _DECODER = "backbone.", "panoptic_head.pixel_decoder.", "panoptic_head.transformer_decoder."
_HF = "model.pixel_level_module."
_LAYER = rf"{_HF}encoder.swin.encoder.layers.\1."
_BLOCK = rf"{_LAYER}blocks.\2."
_QUERY = r"model.transformer_module.decoder.layers.\1."
_RULES: tuple[tuple[str, str], ...] = tuple(
    (rf"^{source}(weight|bias)$", target)
    for source, target in (
        (r"backbone\.patch_embed\.projection\.", rf"{_HF}encoder.swin.embeddings.patch_embeddings.projection.\1"),
        (r"backbone\.patch_embed\.norm\.", rf"{_HF}encoder.swin.embeddings.norm.\1"),
        (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.norm1\.", rf"{_BLOCK}layernorm_before.\3"),
        (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.norm2\.", rf"{_BLOCK}layernorm_after.\3"),
        (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.proj\.", rf"{_BLOCK}attention.o_proj.\3"),
        (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.0\.0\.", rf"{_BLOCK}mlp.fc1.\3"),
        (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.1\.", rf"{_BLOCK}mlp.fc2.\3"),
        (r"backbone\.stages\.(\d+)\.downsample\.(reduction|norm)\.", rf"{_LAYER}downsample.\2.\3"),
        (rf"{_PIXEL}input_convs\.(\d+)\.conv\.", rf"{_HF}decoder.input_projections.\1.0.\2"),
        (rf"{_PIXEL}input_convs\.(\d+)\.gn\.", rf"{_HF}decoder.input_projections.\1.1.\2"),
        (
            rf"{_PIXEL}encoder\.layers\.(\d+)\.(?:attentions\.0|self_attn)\.(\w+)\.",
            rf"{_HF}decoder.encoder.layers.\1.self_attn.\2.\3",
        ),
        (rf"{_PIXEL}encoder\.layers\.(\d+)\.ffns?(?:\.0)?\.layers\.0\.0\.", rf"{_HF}decoder.encoder.layers.\1.fc1.\2"),
        (rf"{_PIXEL}encoder\.layers\.(\d+)\.ffns?(?:\.0)?\.layers\.1\.", rf"{_HF}decoder.encoder.layers.\1.fc2.\2"),
        (rf"{_PIXEL}encoder\.layers\.(\d+)\.norms\.0\.", rf"{_HF}decoder.encoder.layers.\1.self_attn_layer_norm.\2"),
        (rf"{_PIXEL}encoder\.layers\.(\d+)\.norms\.1\.", rf"{_HF}decoder.encoder.layers.\1.final_layer_norm.\2"),
        (rf"{_PIXEL}lateral_convs\.0\.conv\.", rf"{_HF}decoder.adapter_1.0.\1"),
        (rf"{_PIXEL}lateral_convs\.0\.gn\.", rf"{_HF}decoder.adapter_1.1.\1"),
        (rf"{_PIXEL}output_convs\.0\.conv\.", rf"{_HF}decoder.layer_1.0.\1"),
        (rf"{_PIXEL}output_convs\.0\.gn\.", rf"{_HF}decoder.layer_1.1.\1"),
        (rf"{_PIXEL}mask_feature\.", rf"{_HF}decoder.mask_projection.\1"),
        (
            rf"{_DECODER}layers\.(\d+)\.(?:attentions\.0|cross_attn)\.attn\.(in_proj_|out_proj\.)",
            rf"{_QUERY}cross_attn.\2\3",
        ),
        (
            rf"{_DECODER}layers\.(\d+)\.(?:attentions\.1|self_attn)\.attn\.out_proj\.",
            rf"{_QUERY}self_attn.out_proj.\2",
        ),
        (rf"{_DECODER}layers\.(\d+)\.ffns?(?:\.0)?\.layers\.0\.0\.", rf"{_QUERY}fc1.\2"),
        (rf"{_DECODER}layers\.(\d+)\.ffns?(?:\.0)?\.layers\.1\.", rf"{_QUERY}fc2.\2"),
        (rf"{_DECODER}layers\.(\d+)\.norms\.0\.", rf"{_QUERY}cross_attn_layer_norm.\2"),
        (rf"{_DECODER}layers\.(\d+)\.norms\.1\.", rf"{_QUERY}self_attn_layer_norm.\2"),
        (rf"{_DECODER}layers\.(\d+)\.norms\.2\.", rf"{_QUERY}final_layer_norm.\2"),
        (rf"{_DECODER}post_norm\.", r"model.transformer_module.decoder.layernorm.\1"),
        (r"panoptic_head\.query_embed\.", r"model.transformer_module.queries_embedder.\1"),
        (r"panoptic_head\.query_feat\.", r"model.transformer_module.queries_features.\1"),
        (r"panoptic_head\.level_embed\.", r"model.transformer_module.level_embed.\1"),
        (r"panoptic_head\.cls_embed\.", r"class_predictor.\1"),
    )
)  # fmt: skip
_QKV = (
    (rf"^{_SWIN}stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.qkv\.(weight|bias)$", rf"{_BLOCK}attention.%s_proj.\3"),
    (
        rf"^{_DECODER}layers\.(\d+)\.(?:attentions\.1|self_attn)\.attn\.in_proj_(weight|bias)$",
        rf"{_QUERY}self_attn.%s_proj.\2",
    ),
)
"""Matrices that become three."""


def from_mmdet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict for transformers of mmdet's, 2.x or 3.x.

    The unused last norm of transformers' Swin and the loss's class weights are not in it.

    Raises:
        ValueError: A parameter has a name that no Mask2Former with Swin has.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith("relative_position_index"):  # a table that follows from the window's size
            continue
        converted = dict(_convert(name, value))
        if not converted:
            raise ValueError(f"{name} is no parameter of mmdet's Mask2Former with a Swin backbone")
        found |= converted
    return found


def _convert(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    for pattern, target in _QKV:
        if match := re.match(pattern, name):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                yield match.expand(target % letter), part.clone()
            return
    if match := re.match(rf"^{_SWIN}stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.relative_position_bias_table$", name):
        yield match.expand(rf"{_BLOCK}attention.relative_position_bias.relative_position_bias_table"), value
    elif match := re.match(rf"^{_SWIN}norm(\d)\.(weight|bias)$", name):
        yield f"{_HF}encoder.hidden_states_norms.stage{int(match[1]) + 1}.{match[2]}", value
    elif name == f"{_PIXEL}level_encoding.weight":
        yield f"{_HF}decoder.level_embed", value
    elif match := re.match(r"^panoptic_head\.mask_embed\.([024])\.(weight|bias)$", name):
        embedder = "model.transformer_module.decoder.mask_predictor.mask_embedder"
        yield f"{embedder}.{int(match[1]) // 2}.0.{match[2]}", value
    else:
        for pattern, target in _RULES:
            if match := re.match(pattern, name):
                yield match.expand(target), _neighbours_first(value) if ".downsample." in name else value
                return


def _neighbours_first(value: Tensor) -> Tensor:
    """From unfold's order (channel, row, column) to that of the original Swin: neighbours by column, then channels."""
    *rest, length = value.shape
    grid = value.reshape(*rest, length // 4, 2, 2)
    return grid.movedim((-1, -2, -3), (-3, -2, -1)).reshape(value.shape).contiguous()


def official_config() -> Mask2FormerConfig:
    """Sizes of mmdet's ``mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco``."""
    backbone = SwinConfig(
        image_size=224, patch_size=4, embed_dim=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24], window_size=7,
        drop_path_rate=0.3, out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    return Mask2FormerConfig(backbone_config=backbone, num_labels=80, num_queries=100)


def load_converted(state: Mapping[str, Tensor], config: Mask2FormerConfig) -> Mask2FormerForUniversalSegmentation:
    """A network with mmdet's weights.

    Raises:
        ValueError: Names or sizes do not fit ``config``.
    """
    network = Mask2FormerForUniversalSegmentation(config)
    converted = from_mmdet(state)
    try:
        missing, unexpected = network.load_state_dict(converted, strict=False)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint's sizes are not those of Mask2Former Swin-S: {error}") from None
    unused = (f"{_HF}encoder.swin.layernorm.", "criterion.")
    if lost := [name for name in missing if not name.startswith(unused)] + unexpected:
        raise ValueError(f"{len(lost)} parameters are missing or left over, such as {lost[0]}")
    return network


def convert(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Write mmdet's checkpoint as a folder for transformers; returns what is written beside it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such checkpoint.
    """
    digest = file_digest(checkpoint)
    try:
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{checkpoint} is no checkpoint that can be read without running code: {error}") from None
    network = load_converted(loaded.get("state_dict", loaded), official_config())
    card = {"file": checkpoint.name, "sha256": digest, "official": OFFICIAL.get(digest[:8])}
    with atomic_folder(folder) as target:
        network.save_pretrained(target)
        write_json(target / CARD, card)
    return card


if __name__ == "__main__":
    print(convert(Path(sys.argv[1]), Path(sys.argv[2])))
