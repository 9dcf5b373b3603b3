"""The image autoencoder of FLUX as a stock ``AutoencoderKL``, read from and written to its own file format.

``ae.safetensors`` names its weights as latent-diffusion does (``encoder.down.0.block.0``). Every size can be told from
the shapes, so the file needs no configuration.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from reca.models.autoencoder_kl import to_official, to_stock
from reca.models.weights import load_strictly

SCALE, SHIFT = 0.3611, 0.1159
"""Of FLUX.1's latents: what the drawing half sees is (z - shift) · scale."""
GROUPS = 32


def empty_autoencoder(
    channels: tuple[int, ...], blocks: int, latent_channels: int, scale: float = SCALE, shift: float = SHIFT
) -> AutoencoderKL:
    """A randomly initialised autoencoder; draws from torch's generator.

    Args:
        channels: Of each resolution, the full one first; multiples of 32.
        blocks: Residual blocks per resolution of the encoder (the decoder has one more).
        latent_channels: Channels of z.
        scale: See ``SCALE``.
        shift: See ``SHIFT``.
    """
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
    """An autoencoder with the weights of an ``ae.safetensors``.

    Args:
        state: The file's tensors.
        source: The file, for messages.
        scale: See ``SCALE``.
        shift: See ``SHIFT``.

    Raises:
        ValueError: The file is of another kind, or incomplete.
    """
    found = (re.match(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv2\.weight$", name) for name in state)
    blocks = {(int(match[1]), int(match[2])): len(state[match[0]]) for match in found if match}
    if not blocks or "decoder.conv_in.weight" not in state:
        raise ValueError(f"{source} is no FLUX autoencoder: it has no encoder.down.* or no decoder.conv_in")
    channels = tuple(width for (_, block), width in sorted(blocks.items()) if block == 0)
    latent_channels = state["decoder.conv_in.weight"].shape[1]
    with torch.device("meta"):
        autoencoder = empty_autoencoder(channels, 1 + max(block for _, block in blocks), latent_channels, scale, shift)
    load_strictly(autoencoder, to_stock(state), source)
    return autoencoder


def official_state(autoencoder: AutoencoderKL) -> dict[str, Tensor]:
    """The weights as ``ae.safetensors`` has them: the inverse of :func:`load_autoencoder`."""
    return to_official(autoencoder.state_dict())


def encode(autoencoder: AutoencoderKL, images: Tensor) -> Tensor:
    """Posterior moments (mean, log variance) of images (B, 3, H, W) in [-1, 1]: (B, 2C, h, w)."""
    moments: Tensor = autoencoder.encode(images.to(autoencoder.dtype)).latent_dist.parameters.float()
    return moments


def sample_latents(autoencoder: AutoencoderKL, moments: Tensor, noise: Tensor) -> Tensor:
    """Scaled latents drawn from posteriors: moments (B, 2C, h, w) and noise (B, C, h, w) -> (B, C, h, w)."""
    mean, log_variance = moments.chunk(2, dim=1)
    drawn = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise.to(moments)
    return (drawn - autoencoder.config.shift_factor) * autoencoder.config.scaling_factor


def decode(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) of scaled latents, not clamped."""
    stored = latents / autoencoder.config.scaling_factor + autoencoder.config.shift_factor
    images: Tensor = autoencoder.decode(stored.to(autoencoder.dtype)).sample.float()
    return images
