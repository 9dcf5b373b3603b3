"""The numbers that models are built from here: tiny, middle, and as published; weights are random everywhere.

Published sizes are those whose parameters ``tests/parity`` counts. Nothing here is fetched.
"""

from typing import Any

FAMILIES = ("bagel", "harmon", "janus", "openuni", "showo")

OPTIONS: dict[str, Any] = {
    "parts": {},
    "weights": None,
    "understanding_size": None,
    "generation_size": None,
    "train_vision": False,
    "prompt_dropout": 0.0,
    # BAGEL
    "resize": "fit",
    "freeze_understanding": True,
    "training_shift": 1.0,
    "sampling_shift": 3.0,
    "guidance_interval": (0.0, 1.0),
    "guidance_renorm": "global",
    "edit_guidance_interval": (0.0, 1.0),
    "edit_guidance_renorm": "text_channel",
    # Harmon
    "gradient_scale": 0.1,
    "train_encoder": True,
    "train_llm": True,
    # OpenUni
    "train_transformer": True,
    # Show-o
    "train_condition": False,
    "template_tokens": 24,
    "system_prompt": "",
}
"""Every family's options at once, so that no configuration (pydantic, Hydra) is needed on a bare machine."""


def _text(vocabulary: int, width: int, layers: int, heads: int, keys: int, inner: int, room: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "max_position_embeddings": room,
    }


def _vision(width: int, layers: int, heads: int, inner: int, size: int, patch: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "image_size": size,
        "patch_size": patch,
    }


def _mar(size: int, stride: int, width: int, depth: int, heads: int, head: tuple[int, int]) -> dict[str, Any]:
    halves = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (("embed_dim", width), ("depth", depth), ("num_heads", heads))
    }
    fixed = {"patch_size": 1, "vae_embed_dim": 16, "num_sampling_steps": "25" if size < 256 else "100"}
    return {"img_size": size, "vae_stride": stride, **halves, **fixed, "diffloss_d": head[0], "diffloss_w": head[1]}


def _sana(heads: int, layers: int, cross: tuple[int, int], told: int, channels: int, side: int) -> dict[str, Any]:
    return {
        "in_channels": channels,
        "out_channels": channels,
        "num_attention_heads": heads,
        "attention_head_dim": 32,
        "num_layers": layers,
        "num_cross_attention_heads": cross[0],
        "cross_attention_head_dim": cross[1],
        "cross_attention_dim": cross[0] * cross[1],
        "caption_channels": told,
        "mlp_ratio": 2.5,
        "sample_size": side,
        "patch_size": 1,
    }


def _dc_ae(channels: tuple[int, ...], latent: int, head: int, plain: int, blocks: tuple[list[int], list[int]]) -> Any:
    kinds = ["ResBlock"] * plain + ["EfficientViTBlock"] * (len(channels) - plain)
    scales: list[list[int]] = [[]] * plain + [[5]] * (len(channels) - plain)
    found: dict[str, Any] = {"latent_channels": latent, "attention_head_dim": head}
    for half, layers in zip(("encoder", "decoder"), blocks, strict=True):
        found[f"{half}_block_types"], found[f"{half}_block_out_channels"] = kinds, list(channels)
        found[f"{half}_layers_per_block"], found[f"{half}_qkv_multiscales"] = layers, scales
    return {**found, "downsample_block_type": "conv", "upsample_block_type": "interpolate"}


def _vq(width: int, side: int, **others: Any) -> dict[str, Any]:
    return {"num_patches": side, "projection_dim": width, "image_token_embed_dim": width, **others}


_SMALL_VQ: dict[str, Any] = {
    "embed_dim": 8,
    "num_embeddings": 1024,
    "base_channels": 32,
    "latent_channels": 64,
    "num_res_blocks": 1,
    "channel_multiplier": [1, 1, 2],
    "num_hidden_layers": 2,
    "double_latent": False,
}

_SMALL_MAGVIT = (32, (32, 32, 64), (1, 1, 1), (32, 32, 64), (1, 1, 1), 10)
_MAGVIT = (128, (128, 256, 256, 512, 512), (4, 3, 4, 3, 4), (128, 128, 256, 256, 512), (4, 4, 3, 4, 3), 13)

_DC_AE = _dc_ae((128, 256, 512, 512, 1024, 1024), 32, 32, 3, ([2, 2, 2, 3, 3, 3], [3] * 6))
_SMALL_DC_AE = _dc_ae((16, 32, 64), 8, 16, 2, ([1, 1, 1], [1, 1, 1]))

SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "bagel": {
        "tiny": {
            "text": _text(64, 96, 4, 4, 2, 192, 128),
            "vision": _vision(96, 4, 4, 192, 24, 6),
            "autoencoder": ((32, 64), 1, 4),
            "grids": (6, 4),
        },
        "middle": {
            "text": _text(4096, 320, 8, 5, 5, 960, 512),
            "vision": _vision(320, 6, 5, 960, 48, 6),
            "autoencoder": ((32, 64), 1, 4),
            "grids": (12, 8),
        },
        "real": {
            "text": _text(152064, 3584, 28, 28, 4, 18944, 32768),
            "vision": _vision(1152, 26, 16, 4304, 980, 14),
            "autoencoder": ((128, 256, 512, 512), 2, 16),
            "grids": (64, 70),
        },
    },
    "harmon": {
        "tiny": {
            "llm": _text(64, 96, 5, 4, 2, 256, 256),
            "mar": {**_mar(24, 4, 96, 4, 4, (3, 128)), "buffer_size": 8},
            "vae": {"ch": 32, "ch_mult": (1, 1, 2), "num_res_blocks": 1},
        },
        "middle": {
            "llm": _text(4096, 320, 8, 5, 5, 960, 1024),
            "mar": {**_mar(48, 4, 320, 6, 5, (4, 320)), "buffer_size": 16},
            "vae": {"ch": 32, "ch_mult": (1, 1, 2), "num_res_blocks": 1},
        },
        "real": {
            "llm": _text(151936, 1536, 28, 12, 2, 8960, 32768),
            "mar": _mar(256, 16, 1280, 20, 16, (12, 1536)),
            "vae": {},
            "options": {"generation_size": 512},
        },
    },
    "janus": {
        "tiny": {
            "text": _text(64, 96, 4, 4, 4, 256, 128),
            "vision": {**_vision(96, 4, 4, 384, 24, 6), "projection_dim": 96},
            "vq": _vq(96, 6, **_SMALL_VQ),
        },
        "middle": {
            "text": _text(4096, 384, 10, 6, 6, 1024, 512),
            "vision": {**_vision(320, 6, 5, 1280, 48, 6), "projection_dim": 384},
            "vq": _vq(384, 12, **_SMALL_VQ),
        },
        "real": {
            "text": _text(102400, 2048, 24, 16, 16, 5632, 16384),
            "vision": {**_vision(1024, 24, 16, 4096, 384, 16), "projection_dim": 2048},
            "vq": _vq(2048, 24, embed_dim=8, num_embeddings=16384),
        },
    },
    "openuni": {
        "tiny": {
            "llm": _text(64, 96, 5, 4, 2, 256, 256),
            "vision": _vision(64, 4, 4, 192, 24, 3),
            "connector": (192, 2, 4),
            "sana": _sana(4, 4, (4, 32), 96, 8, 6),
            "vae": _SMALL_DC_AE,
            "queries": 16,
        },
        "middle": {
            "llm": _text(4096, 320, 8, 5, 5, 960, 512),
            "vision": _vision(256, 6, 4, 768, 48, 3),
            "connector": (960, 4, 5),
            "sana": _sana(10, 8, (10, 32), 320, 8, 12),
            "vae": _SMALL_DC_AE,
            "queries": 32,
        },
        "real": {
            "llm": _text(151674, 1536, 28, 12, 2, 8960, 32768),
            "vision": _vision(1024, 24, 16, 4096, 448, 14),
            "connector": (8960, 6, 24),
            "sana": _sana(70, 20, (20, 112), 2304, 32, 16),
            "vae": _DC_AE,
            "queries": 256,
        },
    },
    "showo": {
        "tiny": {
            "phi": _text(64, 128, 6, 4, 4, 384, 128),
            "clip": _vision(96, 4, 4, 288, 24, 6),
            "magvit": _SMALL_MAGVIT,
            "codes": 36,
        },
        "middle": {
            "phi": _text(4096, 384, 10, 6, 6, 1536, 512),
            "clip": _vision(256, 6, 4, 768, 48, 6),
            "magvit": _SMALL_MAGVIT,
            "codes": 144,
        },
        "real": {
            "phi": _text(50295, 2048, 24, 32, 32, 8192, 2048),
            "clip": _vision(1024, 24, 16, 4096, 336, 14),
            "magvit": _MAGVIT,
            "codes": 1024,
            "options": {"template_tokens": 125},
        },
    },
}
"""Family -> size -> what :mod:`bench.models` builds it from."""

PUBLISHED = {
    "bagel": "BAGEL-7B-MoT, 1024 px",
    "harmon": "Harmon-1.5B, 512 px",
    "janus": "Janus-Pro-1B, 384 px",
    "openuni": "OpenUni-L (3.6B), 512 px",
    "showo": "Show-o with CLIP, 512 px",
}
"""What the size "real" is."""
