"""An empty Show-o with small numbers, with CLIP, for 24-pixel scenes."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PhiConfig, PreTrainedTokenizerFast

from reca.models.showo.autoencoder import Magvit, MagvitSizes
from reca.models.showo.checkpoint import ShowoParts, build_vocabulary, empty_phi, empty_projector
from reca.models.showo.model import QUESTION_TEXT, Showo
from tools.tiny_bases.presets import UNKNOWN, options_of, word_tokenizer

END = "<|endoftext|>"
IMAGE_SIZE, PATCH = 24, 6
MAGVIT = MagvitSizes(
    base_channels=32,
    encoder_channels=(32, 32, 64),
    encoder_blocks=(1, 1, 1),
    decoder_channels=(32, 32, 64),
    decoder_blocks=(1, 1, 1),
    bits=10,
)
"""6 x 6 codes out of 1024."""
SPECIAL_TOKENS = 10
WIDTH, VISION_WIDTH, HEADS = 128, 96, 4


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, and the marks of Show-o's turns."""
    own = [*QUESTION_TEXT.format("").split(), END]
    return word_tokenizer([UNKNOWN], own, [UNKNOWN, END], {"bos_token": END, "eos_token": END})


def build(**changes: Any) -> Showo:
    """A randomly initialised ``showo_tiny``, perhaps with other options; seed torch's generator first."""
    tokenizer = build_tokenizer()
    size = len(tokenizer) + SPECIAL_TOKENS + MAGVIT.codebook + 1
    config = {
        "w_clip_vit": True,
        "vocab_size": size,
        "llm_vocab_size": len(tokenizer),
        "codebook_size": MAGVIT.codebook,
        "num_vq_tokens": (IMAGE_SIZE // MAGVIT.downsampling) ** 2,
        "mask_token_id": size - 1,
    }
    phi_config = PhiConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        partial_rotary_factor=0.5,
        max_position_embeddings=128,
        initializer_range=0.05,
        resid_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        hidden_size=VISION_WIDTH,
        intermediate_size=3 * VISION_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
    )
    parts = ShowoParts(
        config=config,
        phi=empty_phi(phi_config, size, device="cpu"),
        tokenizer=tokenizer,
        vocabulary=build_vocabulary(config, tokenizer.eos_token_id),
        magvit=Magvit(MAGVIT),
        clip=CLIPVisionModel(vision),
        projector=empty_projector(VISION_WIDTH, WIDTH, WIDTH, device="cpu"),
    )
    return Showo(parts, options_of("showo_tiny", **changes)).eval()


# -- how it is pre-trained (tools/tiny_bases/short_recipe.py) --------------------------------------------------------

RECIPE: dict[str, int] = {}
"""What differs from the short recipe's defaults."""


def autoencoder(model: Showo) -> nn.Module:
    """MAGVIT-v2."""
    return model.magvit


def rebuild(model: Showo, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images after MAGVIT-v2; gradients pass its signs straight through.

    Besides, latents stay near the signs that are taken of them, and over a batch every bit is as often set as not, in
    the place of the entropies of the paper (arXiv 2310.05737, equation 7).
    """
    latents = model.magvit.encoder(images)
    signs = torch.where(latents > 0, 1.0, -1.0)
    drawn: Tensor = model.magvit.decoder(latents + (signs - latents).detach())
    commitment = (latents - signs).pow(2).mean()
    balance = latents.tanh().mean((0, 2, 3)).pow(2).mean()
    return drawn, 0.05 * commitment + 0.1 * balance


def settle(model: Showo, images: Tensor) -> None:
    """Signs have no scale."""


def reads(name: str) -> bool:
    """Phi, the projector and CLIP."""
    return not name.startswith("magvit.")


def draws(name: str) -> bool:
    """Phi and the projector, which do both."""
    return not name.startswith(("magvit.", "clip."))
