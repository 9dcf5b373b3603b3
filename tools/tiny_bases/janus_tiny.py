"""``janus_tiny``: a small Janus and its word tokenizer."""

from typing import Any

from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerFast

from reca.models.janus.model import ASSISTANT, BOI, EOI, IMAGE, USER, Janus
from tools.tiny_bases.janus_tokenizer import codebook_size
from tools.tiny_bases.presets import UNKNOWN, options_of, word_tokenizer

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
GIST_TOKENS, GIST_LAYER = 8, 3
IMAGE_SIZE, PATCH, CODES_PER_SIDE, OUTLINES = 24, 6, 6, 254
WIDTH, HEADS = 96, 4


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with a token per word, and Janus' own markers."""
    special = [UNKNOWN, PAD, BOS, EOS, USER, ASSISTANT, BOI, EOI, IMAGE]
    special += [f"<gist_{number}>" for number in range(GIST_TOKENS)]
    means = [f"<gist_mean_{number}>" for number in range(GIST_TOKENS)]
    token_names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    return word_tokenizer(special, means, [*special, *means], token_names)


def build(**changes: Any) -> Janus:
    """Build ``janus_tiny`` with random weights and perhaps changed options; seed torch's generator first."""
    tokenizer = build_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    config = JanusConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": 7,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "max_position_embeddings": 128,
            "initializer_range": 0.05,
            "bos_token_id": ids(BOS),
            "eos_token_id": ids(EOS),
            "pad_token_id": ids(PAD),
            "tie_word_embeddings": False,
        },
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "hidden_size": WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": HEADS,
            "mlp_ratio": 3.0,
            "num_image_tokens": (IMAGE_SIZE // PATCH) ** 2,
            "projection_dim": WIDTH,
            "depth": 2,
            "initializer_range": 0.05,
        },
        vq_config={
            "embed_dim": 16,
            "num_embeddings": codebook_size(OUTLINES),
            "latent_channels": 64,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 2],
            "num_res_blocks": 1,
            "num_patches": CODES_PER_SIDE,
            "projection_dim": WIDTH,
            "image_token_embed_dim": WIDTH,
            "num_hidden_layers": 2,
            "double_latent": False,
        },
        image_token_id=ids(IMAGE),
        tie_word_embeddings=False,
        gist={"tokens": GIST_TOKENS, "layer": GIST_LAYER, "scale": 1.0},
    )
    config.vq_config.num_patches = CODES_PER_SIDE  # the stock class sets it to the vision tower's grid
    return Janus(JanusForConditionalGeneration(config), tokenizer, options_of("janus_tiny", **changes))
