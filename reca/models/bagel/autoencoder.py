"""The image autoencoder of FLUX as a stock ``AutoencoderKL``, read from and written to its own file format.

``ae.safetensors`` names its weights as latent-diffusion does (``encoder.down.0.block.0``). All sizes follow from the
shapes, so the file needs no configuration.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from reca.models.autoencoder_kl import level_sizes, to_official, to_stock
from reca.models.weights import load_strictly

SCALE, SHIFT = 0.3611, 0.1159
"""FLUX.1's normalisation: latents are (z - shift) · scale."""
GROUPS = 32


def empty_autoencoder(
    channels: tuple[int, ...], blocks: int, latent_channels: int, scale: float = SCALE, shift: float = SHIFT
) -> AutoencoderKL:
    """Return a randomly initialised autoencoder; ``channels`` (multiples of 32) begin with the full resolution."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=blocks,
        latent_channels=latent_channels,
        norm_num_groups=GROUPS,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def load_autoencoder(
    state: Mapping[str, Tensor], source: Path | str, scale: float = SCALE, shift: float = SHIFT
) -> AutoencoderKL:
    """Return the autoencoder of an ``ae.safetensors``.

    Raises:
        ValueError: This is not a FLUX autoencoder, or it is incomplete.
    """
    channels, blocks = level_sizes(state, "encoder.down")
    if not channels or "decoder.conv_in.weight" not in state:
        raise ValueError(f"{source} is not a FLUX autoencoder: it has no encoder.down.* or no decoder.conv_in")
    latent_channels = state["decoder.conv_in.weight"].shape[1]
    with torch.device("meta"):
        autoencoder = empty_autoencoder(channels, max(blocks), latent_channels, scale, shift)
    load_strictly(autoencoder, to_stock(state), source)
    return autoencoder


def official_state(autoencoder: AutoencoderKL) -> dict[str, Tensor]:
    """Return the weights under the names of ``ae.safetensors``."""
    return to_official(autoencoder.state_dict())


def encode(autoencoder: AutoencoderKL, images: Tensor) -> Tensor:
    """Return posterior moments (mean, log variance), (B, 2C, h, w), of images (B, 3, H, W) in [-1, 1]."""
    moments: Tensor = autoencoder.encode(images.to(autoencoder.dtype)).latent_dist.parameters.float()
    return moments


def sample_latents(autoencoder: AutoencoderKL, moments: Tensor, noise: Tensor) -> Tensor:
    """Sample scaled latents (B, C, h, w) from posterior moments (B, 2C, h, w) with noise (B, C, h, w)."""
    mean, log_variance = moments.chunk(2, dim=1)
    latents = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise.to(moments)
    return (latents - autoencoder.config.shift_factor) * autoencoder.config.scaling_factor


def decode(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode scaled latents (B, C, h, w) to images (B, 3, H, W), not clamped."""
    unscaled = latents / autoencoder.config.scaling_factor + autoencoder.config.shift_factor
    images: Tensor = autoencoder.decode(unscaled.to(autoencoder.dtype)).sample.float()
    return images
