# ruff: noqa: E501
"""Mask2Former's input, its loading, and mmdet's weights under transformers' names, on a tiny random network."""

import re

import numpy as np
import pytest
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from reca.nn import mask2former_mmdet as mmdet
from reca.nn.mask2former import InstanceSegmenter, prepare


def tiny(labels: int = 80) -> Mask2FormerConfig:
    backbone = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    return Mask2FormerConfig(
        backbone_config=backbone, num_labels=labels, num_queries=6, hidden_dim=32, feature_size=32, mask_feature_size=32,
        encoder_layers=2, decoder_layers=3, num_attention_heads=4, dim_feedforward=16, encoder_feedforward_dim=16,
    )  # fmt: skip


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = Mask2FormerForUniversalSegmentation(tiny()).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


TO_MMDET = [  # transformers -> mmdet 2.x, written the other way round and apart from the converter
    (r"model\.pixel_level_module\.encoder\.swin\.embeddings\.patch_embeddings\.projection", "backbone.patch_embed.projection"),
    (r"model\.pixel_level_module\.encoder\.swin\.embeddings\.norm", "backbone.patch_embed.norm"),
    (r"model\.pixel_level_module\.encoder\.swin\.encoder\.layers\.(\d+)", r"backbone.stages.\1"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.o_proj", "attn.w_msa.proj"),
    (r"attention\.relative_position_bias\.", "attn.w_msa."),
    (r"mlp\.fc1", "ffn.layers.0.0"),
    (r"mlp\.fc2", "ffn.layers.1"),
    (r"model\.pixel_level_module\.decoder\.level_embed", "panoptic_head.pixel_decoder.level_encoding.weight"),
    (r"model\.pixel_level_module\.decoder\.input_projections\.(\d)\.0", r"panoptic_head.pixel_decoder.input_convs.\1.conv"),
    (r"model\.pixel_level_module\.decoder\.input_projections\.(\d)\.1", r"panoptic_head.pixel_decoder.input_convs.\1.gn"),
    (r"model\.pixel_level_module\.decoder\.adapter_1\.0", "panoptic_head.pixel_decoder.lateral_convs.0.conv"),
    (r"model\.pixel_level_module\.decoder\.adapter_1\.1", "panoptic_head.pixel_decoder.lateral_convs.0.gn"),
    (r"model\.pixel_level_module\.decoder\.layer_1\.0", "panoptic_head.pixel_decoder.output_convs.0.conv"),
    (r"model\.pixel_level_module\.decoder\.layer_1\.1", "panoptic_head.pixel_decoder.output_convs.0.gn"),
    (r"model\.pixel_level_module\.decoder\.mask_projection", "panoptic_head.pixel_decoder.mask_feature"),
    (r"model\.pixel_level_module\.decoder\.encoder\.layers\.(\d+)\.self_attn\.", r"panoptic_head.pixel_decoder.encoder.layers.\1.attentions.0."),
    (r"model\.pixel_level_module\.decoder\.encoder\.layers\.(\d+)\.self_attn_layer_norm", r"panoptic_head.pixel_decoder.encoder.layers.\1.norms.0"),
    (r"model\.pixel_level_module\.decoder\.encoder\.layers\.(\d+)\.final_layer_norm", r"panoptic_head.pixel_decoder.encoder.layers.\1.norms.1"),
    (r"model\.pixel_level_module\.decoder\.encoder", "panoptic_head.pixel_decoder.encoder"),
    (r"model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0", lambda m: f"panoptic_head.mask_embed.{2 * int(m[1])}"),
    (r"model\.transformer_module\.queries_embedder", "panoptic_head.query_embed"),
    (r"model\.transformer_module\.queries_features", "panoptic_head.query_feat"),
    (r"model\.transformer_module\.level_embed", "panoptic_head.level_embed"),
    (r"model\.transformer_module\.decoder\.layernorm", "panoptic_head.transformer_decoder.post_norm"),
    (r"model\.transformer_module\.decoder\.layers", "panoptic_head.transformer_decoder.layers"),
    (r"cross_attn_layer_norm", "norms.0"),
    (r"self_attn_layer_norm", "norms.1"),
    (r"final_layer_norm", "norms.2"),
    (r"cross_attn\.", "attentions.0.attn."),
    (r"self_attn\.out_proj", "attentions.1.attn.out_proj"),
    (r"\.fc1\.", ".ffns.0.layers.0.0."),
    (r"\.fc2\.", ".ffns.0.layers.1."),
    (r"class_predictor", "panoptic_head.cls_embed"),
    (r"model\.pixel_level_module\.encoder\.hidden_states_norms\.stage(\d)", lambda m: f"backbone.norm{int(m[1]) - 1}"),
]  # fmt: skip


def to_mmdet(state):
    """What mmdet would call it."""
    found, threes = {}, {}
    for name, value in state.items():
        if name.startswith(("criterion.", "model.pixel_level_module.encoder.swin.layernorm.")):
            continue
        if match := re.search(r"\.([qkv])_proj\.(weight|bias)$", name):
            threes.setdefault((name[: match.start()], match[2]), {})[match[1]] = value
            continue
        if ".downsample." in name:  # (column, row, channel) -> (channel, row, column)
            channels = value.shape[-1] // 4
            four = [value[..., k * channels : (k + 1) * channels] for k in range(4)]
            value = torch.stack([four[0], four[2], four[1], four[3]], dim=-1).flatten(-2)
        found[renamed(name)] = value
    for (name, kind), parts in threes.items():
        joined = torch.cat([parts[letter] for letter in "qkv"])
        inner = name.endswith("attention")
        end = f"attn.w_msa.qkv.{kind}" if inner else f"attentions.1.attn.in_proj_{kind}"
        found[renamed(name.rpartition(".")[0] + ".") + end] = joined
    found["backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"] = torch.zeros(16, 16)
    return found


def renamed(name: str) -> str:
    for pattern, target in TO_MMDET:
        name = re.sub(pattern, target, name)
    return name


def test_mmdets_weights_make_the_same_network(network):
    state = to_mmdet(network.state_dict())
    assert not [name for name in state if not name.startswith(("backbone.", "panoptic_head."))]
    again = mmdet.load_converted(state, tiny()).eval()
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        first, second = network(pixel_values=pixels), again(pixel_values=pixels)
    assert torch.equal(first.class_queries_logits, second.class_queries_logits)
    assert torch.equal(first.masks_queries_logits, second.masks_queries_logits)


def test_names_of_mmdet_3_are_read_too(network):
    old = to_mmdet(network.state_dict())
    new = {}
    for name, value in old.items():
        name = name.replace("ffns.0.", "ffn.")
        if "pixel_decoder" in name:
            name = name.replace("attentions.0.", "self_attn.")
        else:
            name = name.replace("attentions.0.", "cross_attn.").replace("attentions.1.", "self_attn.")
        new[name] = value
    assert new.keys() != old.keys()
    first, second = mmdet.from_mmdet(old), mmdet.from_mmdet(new)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_patch_merging_reads_the_same_neighbours():
    """mmdet unfolds 2 x 2 patches (channel, row, column) where Swin concatenates slices."""
    image = torch.randn(1, 3, 4, 4)
    weight = torch.randn(5, 12)
    unfolded = torch.nn.functional.unfold(image, 2, stride=2).transpose(1, 2) @ weight.T
    x = image.permute(0, 2, 3, 1)
    joined = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
    assert torch.allclose(joined.reshape(1, 4, 12) @ mmdet._neighbours_first(weight).T, unfolded, atol=1e-5)


def test_what_is_no_mask2former_is_told(network):
    with pytest.raises(ValueError, match=r"roi_head\.bbox\.weight is no parameter of mmdet's Mask2Former"):
        mmdet.from_mmdet({"roi_head.bbox.weight": torch.zeros(1)})
    state = to_mmdet(network.state_dict())
    del state["panoptic_head.cls_embed.bias"]
    with pytest.raises(ValueError, match=r"1 parameters are missing or left over, such as class_predictor\.bias"):
        mmdet.load_converted(state, tiny())
    with pytest.raises(ValueError, match="sizes are not those"):
        mmdet.load_converted(to_mmdet(network.state_dict()), mmdet.official_config())


def test_a_file_is_converted_with_a_card(network, tmp_path, monkeypatch):
    torch.save({"state_dict": to_mmdet(network.state_dict()), "meta": {"epoch": 50}}, tmp_path / "m.pth")
    monkeypatch.setattr(mmdet, "official_config", tiny)
    card = mmdet.convert(tmp_path / "m.pth", tmp_path / "out")
    assert card["official"] is None
    segmenter = InstanceSegmenter.load(tmp_path / "out", torch.device("cpu"))
    seen = segmenter.look([np.zeros((40, 60, 3), np.uint8)])[0]
    assert seen.classes.shape == (6, 81)


def test_the_official_sizes_are_those_of_swin_s():
    with torch.device("meta"):
        made = Mask2FormerForUniversalSegmentation(mmdet.official_config())
    assert 68.6e6 < sum(parameter.numel() for parameter in made.parameters()) < 68.9e6  # mmdet: 68.7 M


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [((1024, 1024), (800, 800), (800, 800)), ((480, 640), (800, 1067), (800, 1088)), ((300, 900), (444, 1333), (448, 1344))],
)  # fmt: skip
def test_images_are_resized_as_mmdet_resizes_them(size, resized, padded):
    inputs, inner = prepare(torch.full((1, *size, 3), 255, dtype=torch.uint8))
    assert inner == resized
    assert tuple(inputs.shape) == (1, 3, *padded)
    assert inputs[0, :, 0, 0].tolist() == pytest.approx(
        [(255 - 123.675) / 58.395, (255 - 116.28) / 57.12, (255 - 103.53) / 57.375]
    )
    assert not inputs[0, :, resized[0] :].any()
    assert not inputs[0, :, :, resized[1] :].any()


def test_a_wrong_folder_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing: there is no Mask2Former"):
        InstanceSegmenter.load(tmp_path, torch.device("cpu"))
    Mask2FormerForUniversalSegmentation(tiny(labels=3)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 3 classes, not COCO's 80"):
        InstanceSegmenter.load(tmp_path, torch.device("cpu"))
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="is no Mask2Former that transformers can load"):
        InstanceSegmenter.load(tmp_path, torch.device("cpu"))
