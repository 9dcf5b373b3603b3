"""Sizes of the bench's models: tiny, middle, and as published in :mod:`tools.memory.sizes`."""

from typing import Any

from tools.memory.sizes import PUBLISHED as PRESETS
from tools.memory.sizes import dc_ae, mar, sana, text, vision, vq

FAMILIES = ("bagel", "harmon", "janus", "openuni", "showo")

OPTIONS: dict[str, Any] = {
    "parts": {},
    "weights": None,
    "understanding_size": None,
    "generation_size": None,
    "train_vision": False,
    "prompt_dropout": 0.0,
    # Harmon, Show-o, and BAGEL, which keeps shapes
    "resize": "stretch",
    "freeze_understanding": True,
    "training_shift": 1.0,
    "sampling_shift": 3.0,
    # Harmon
    "gradient_scale": 0.1,
    "train_encoder": True,
    "train_llm": True,
    # OpenUni
    "train_transformer": True,
    # Show-o
    "train_condition": False,
    "template_tokens": 24,
    "clip_normalization": True,
    # Show-o and Janus
    "system_prompt": "",
}
"""All families' options, so that machines without pydantic and Hydra can build them."""


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
_SMALL_DC_AE = dc_ae((16, 32, 64), 8, 16, 2, ([1, 1, 1], [1, 1, 1]))

SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "bagel": {
        "tiny": {
            "text": text(64, 96, 4, 4, 2, 192, 128),
            "vision": vision(96, 4, 4, 192, 24, 6),
            "autoencoder": ((32, 64), 1, 4),
            "grids": (6, 4),
            "options": {"resize": "fit"},
        },
        "middle": {
            "text": text(4096, 320, 8, 5, 5, 960, 512),
            "vision": vision(320, 6, 5, 960, 48, 6),
            "autoencoder": ((32, 64), 1, 4),
            "grids": (12, 8),
            "options": {"resize": "fit"},
        },
    },
    "harmon": {
        "tiny": {
            "llm": text(64, 96, 5, 4, 2, 256, 256),
            "mar": {**mar(24, 4, 96, 4, 4, (3, 128)), "buffer_size": 8},
            "vae": {"ch": 32, "ch_mult": (1, 1, 2), "num_res_blocks": 1},
        },
        "middle": {
            "llm": text(4096, 320, 8, 5, 5, 960, 1024),
            "mar": {**mar(48, 4, 320, 6, 5, (4, 320)), "buffer_size": 16},
            "vae": {"ch": 32, "ch_mult": (1, 1, 2), "num_res_blocks": 1},
        },
    },
    "janus": {
        "tiny": {
            "text": text(64, 96, 4, 4, 4, 256, 128),
            "vision": {**vision(96, 4, 4, 384, 24, 6), "projection_dim": 96},
            "vq": vq(96, 6, **_SMALL_VQ),
        },
        "middle": {
            "text": text(4096, 384, 10, 6, 6, 1024, 512),
            "vision": {**vision(320, 6, 5, 1280, 48, 6), "projection_dim": 384},
            "vq": vq(384, 12, **_SMALL_VQ),
        },
    },
    "openuni": {
        "tiny": {
            "llm": text(64, 96, 5, 4, 2, 256, 256),
            "vision": vision(64, 4, 4, 192, 24, 3),
            "connector": (192, 2, 4),
            "sana": sana(4, 4, (4, 32), 96, 8, 6),
            "vae": _SMALL_DC_AE,
            "queries": 16,
        },
        "middle": {
            "llm": text(4096, 320, 8, 5, 5, 960, 512),
            "vision": vision(256, 6, 4, 768, 48, 3),
            "connector": (960, 4, 5),
            "sana": sana(10, 8, (10, 32), 320, 8, 12),
            "vae": _SMALL_DC_AE,
            "queries": 32,
        },
    },
    "showo": {
        "tiny": {
            "phi": text(64, 128, 6, 4, 4, 384, 128),
            "clip": vision(96, 4, 4, 288, 24, 6),
            "magvit": _SMALL_MAGVIT,
            "codes": 36,
        },
        "middle": {
            "phi": text(4096, 384, 10, 6, 6, 1536, 512),
            "clip": vision(256, 6, 4, 768, 48, 6),
            "magvit": _SMALL_MAGVIT,
            "codes": 144,
        },
    },
}
"""Family -> size -> arguments of :func:`bench.models.build`."""

_REAL = {
    "bagel": ("bagel_7b", {"resize": "fit"}),
    "harmon": ("harmon_1_5b", {"generation_size": 512}),
    "janus": ("janus_pro_1b", {}),
    "openuni": ("openuni_l_512", {}),
    "showo": ("showo_512", {"template_tokens": 125}),
}
for _family, (_preset, _options) in _REAL.items():
    SIZES[_family]["real"] = {**PRESETS[_preset], "options": _options}

PUBLISHED = {
    "bagel": "BAGEL-7B-MoT, 1024 px",
    "harmon": "Harmon-1.5B, 512 px",
    "janus": "Janus-Pro-1B, 384 px",
    "openuni": "OpenUni-L (3.6B), 512 px",
    "showo": "Show-o with CLIP, 512 px",
}
"""Names of the models of size "real"."""
