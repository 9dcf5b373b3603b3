"""Published sizes of every preset but the tiny ones, as arguments of :mod:`tools.memory.build`.

They are copied from the authors' configuration files. ``tests/parity`` counts the same parameters from its own copy,
and ``tests/unit/tools/memory`` compares the counts with the table in ``docs/models.md``.
"""

from collections.abc import Mapping
from typing import Any

Numbers = Mapping[str, Any]
"""Part of a family -> its sizes."""


def text(vocabulary: int, width: int, layers: int, heads: int, keys: int, inner: int, positions: int) -> dict[str, Any]:
    """Return the sizes of a language model; ``keys``: key and value heads, ``positions``: context length."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "max_position_embeddings": positions,
    }


def vision(width: int, layers: int, heads: int, inner: int, size: int, patch: int) -> dict[str, Any]:
    """Return the sizes of a vision tower; ``size`` and ``patch`` in pixels."""
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "image_size": size,
        "patch_size": patch,
    }


def mar(size: int, stride: int, width: int, depth: int, heads: int, head: tuple[int, int]) -> dict[str, Any]:
    """Return the sizes of Harmon's masked autoencoder; ``head``: depth and width of its diffusion head."""
    halves = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (("embed_dim", width), ("depth", depth), ("num_heads", heads))
    }
    fixed = {"patch_size": 1, "vae_embed_dim": 16, "num_sampling_steps": "25" if size < 256 else "100"}
    return {"img_size": size, "vae_stride": stride, **halves, **fixed, "diffloss_d": head[0], "diffloss_w": head[1]}


def sana(heads: int, layers: int, cross: tuple[int, int], condition: int, channels: int, side: int) -> dict[str, Any]:
    """Return the sizes of OpenUni's transformer; ``condition``: width of its condition, ``side``: latents per side."""
    return {
        "in_channels": channels,
        "out_channels": channels,
        "num_attention_heads": heads,
        "attention_head_dim": 32,
        "num_layers": layers,
        "num_cross_attention_heads": cross[0],
        "cross_attention_head_dim": cross[1],
        "cross_attention_dim": cross[0] * cross[1],
        "caption_channels": condition,
        "mlp_ratio": 2.5,
        "sample_size": side,
        "patch_size": 1,
    }


def dc_ae(
    channels: tuple[int, ...], latent: int, head: int, plain: int, blocks: tuple[list[int], list[int]]
) -> Numbers:
    """Return the sizes of OpenUni's autoencoder, whose first ``plain`` stages have only convolutions."""
    kinds = ["ResBlock"] * plain + ["EfficientViTBlock"] * (len(channels) - plain)
    scales: list[list[int]] = [[]] * plain + [[5]] * (len(channels) - plain)
    sizes: dict[str, Any] = {"latent_channels": latent, "attention_head_dim": head}
    for half, layers in zip(("encoder", "decoder"), blocks, strict=True):
        sizes[f"{half}_block_types"], sizes[f"{half}_block_out_channels"] = kinds, list(channels)
        sizes[f"{half}_layers_per_block"], sizes[f"{half}_qkv_multiscales"] = layers, scales
    return {**sizes, "downsample_block_type": "conv", "upsample_block_type": "interpolate"}


def vq(width: int, side: int, **options: Any) -> dict[str, Any]:
    """Return the sizes of Janus' image tokenizer that differ from the defaults; ``side``: codes per side."""
    return {"num_patches": side, "projection_dim": width, "image_token_embed_dim": width, **options}


MAGVIT = (128, (128, 256, 256, 512, 512), (4, 3, 4, 3, 4), (128, 128, 256, 256, 512), (4, 4, 3, 4, 3), 13)
_DC_AE = dc_ae((128, 256, 512, 512, 1024, 1024), 32, 32, 3, ([2, 2, 2, 3, 3, 3], [3] * 6))
_CLIP = vision(1024, 24, 16, 4096, 336, 14)
_PHI = text(50295, 2048, 24, 32, 32, 8192, 2048)


def _janus(width: int, layers: int, heads: int, inner: int) -> Numbers:
    return {
        "text": text(102400, width, layers, heads, heads, inner, 16384),
        "vision": {**vision(1024, 24, 16, 4096, 384, 16), "projection_dim": width},
        "vq": vq(width, 24, embed_dim=8, num_embeddings=16384),
    }


def _openuni(llm: Numbers, connector: tuple[int, int, int], transformer: Numbers) -> Numbers:
    return {
        "llm": llm,
        "vision": vision(1024, 24, 16, 4096, 448, 14),
        "connector": connector,
        "sana": transformer,
        "vae": _DC_AE,
        "queries": 256,
    }


_BAGEL: Numbers = {
    "text": text(152064, 3584, 28, 28, 4, 18944, 32768),
    "vision": vision(1152, 26, 16, 4304, 980, 14),
    "autoencoder": ((128, 256, 512, 512), 2, 16),
    "grids": (64, 70),
}
_HARMON_SMALL: Numbers = {
    "llm": text(151936, 896, 24, 14, 2, 4864, 32768),
    "mar": mar(256, 16, 768, 12, 12, (6, 1024)),
    "vae": {},
}
_HARMON_LARGE: Numbers = {
    "llm": text(151936, 1536, 28, 12, 2, 8960, 32768),
    "mar": mar(256, 16, 1280, 20, 16, (12, 1536)),
    "vae": {},
}
_OPENUNI_LARGE = _openuni(
    text(151674, 1536, 28, 12, 2, 8960, 32768), (8960, 6, 24), sana(70, 20, (20, 112), 2304, 32, 16)
)

PUBLISHED: dict[str, Numbers] = {
    "bagel_7b": _BAGEL,
    "bagel_7b_reca": _BAGEL,
    "harmon_0_5b": _HARMON_SMALL,
    "harmon_0_5b_reca": _HARMON_SMALL,
    "harmon_1_5b": _HARMON_LARGE,
    "harmon_1_5b_reca": _HARMON_LARGE,
    "janus_pro_1b": _janus(2048, 24, 16, 5632),
    "janus_pro_7b": _janus(4096, 30, 32, 11008),
    "openuni_b_512": _openuni(
        text(151674, 896, 24, 14, 2, 4864, 32768), (3072, 6, 14), sana(36, 28, (16, 72), 2304, 32, 16)
    ),
    "openuni_l_512": _OPENUNI_LARGE,
    "openuni_l_512_reca": _OPENUNI_LARGE,
    "showo_256": {"phi": _PHI, "clip": _CLIP, "magvit": MAGVIT, "codes": 256},
    "showo_512": {"phi": _PHI, "clip": _CLIP, "magvit": MAGVIT, "codes": 1024},
    "showo_512_codes": {"phi": _PHI, "clip": None, "magvit": MAGVIT, "codes": 1024},
}
"""Preset -> its sizes by part."""

IN_BFLOAT16 = frozenset({"bagel_7b", "bagel_7b_reca"})
"""Presets whose published weights are known to be bfloat16: 29.2 GB for 14.6 billion (ByteDance-Seed/Bagel, issue 160;
compressed losslessly by DFloat11), and RecA's ``model_bf16``. The dtype of the others could not be checked."""
