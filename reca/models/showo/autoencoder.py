"""MAGVIT-v2: a convolutional image tokenizer whose codes are the signs of its latents (arXiv 2310.05737, section 3).

    encoder (B, 3, H, W) -> z (B, d, h, w);   q = sign(z);   code = the bits (z > 0), the first channel highest

There is no table of codes to learn ("lookup-free quantization"): 2^d codes are the corners of a cube. Parameter names
and layout are those of the official checkpoint (``showlab/magvitv2``): levels with their own numbers of residual
blocks, attention in the middle only. Sizes are read off the weights' shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca.models.autoencoder_kl import level_sizes

GROUPS, EPSILON = 32, 1e-6


@dataclass(frozen=True)
class MagvitSizes:
    """Sizes of both halves, level by level, from the full resolution down to the codes' grid."""

    base_channels: int
    """Channels after the encoder's first convolution."""
    encoder_channels: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    """Residual blocks per level."""
    decoder_channels: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    bits: int
    """Channels of the latents; there are 2^bits codes."""

    @property
    def codebook(self) -> int:
        """Number of codes."""
        return 2**self.bits

    @property
    def downsampling(self) -> int:
        """Pixels per code, along one side."""
        return 2 ** (len(self.encoder_channels) - 1)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> Self:
        """Read all sizes off a checkpoint.

        Raises:
            ValueError: The weights are not a MAGVIT-v2's.
        """
        if "encoder.conv_in.weight" not in weights or "encoder.conv_out.weight" not in weights:
            raise ValueError("these are not MAGVIT-v2 weights: encoder.conv_in or encoder.conv_out is missing")
        encoder_channels, encoder_blocks = level_sizes(weights, "encoder.down")
        decoder_channels, decoder_blocks = level_sizes(weights, "decoder.up")
        return cls(
            base_channels=weights["encoder.conv_in.weight"].shape[0],
            encoder_channels=encoder_channels,
            encoder_blocks=encoder_blocks,
            decoder_channels=decoder_channels,
            decoder_blocks=decoder_blocks,
            bits=weights["encoder.conv_out.weight"].shape[0],
        )


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=EPSILON)


class ResidualBlock(nn.Module):
    """Norm, swish, convolution, twice, around a shortcut: (B, C, h, w) -> (B, C', h, w)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(channels_in), _norm(channels_out)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.nin_shortcut = None if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h, w)."""
        change = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return change + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """Self-attention over the grid with one head, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).mT[:, None] for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].mT
        return x + self.proj_out(mixed.reshape(x.shape))


class MiddleBlock(nn.Module):
    """The lowest level: two residual blocks around attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = ResidualBlock(channels, channels), ResidualBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Resample(nn.Module):
    """A convolution that halves the grid, or doubles it."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        """Nearest neighbours then convolution; or padding at the right and bottom only, then stride 2."""
        return self.conv(F.interpolate(x, scale_factor=2.0) if self.up else F.pad(x, (0, 1, 0, 1)))


class ResolutionLevel(nn.Module):
    """Residual blocks at one resolution, then a change of resolution unless it is the last level."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.channels = channels_out
        self.block = nn.ModuleList(ResidualBlock(*pair) for pair in pairwise(widths))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w')."""
        for block in self.block:
            x = block(x)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


class MagvitEncoder(nn.Module):
    """Pixels (B, 3, H, W) to latents (B, bits, h, w)."""

    def __init__(self, sizes: MagvitSizes) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, sizes.base_channels, 3, padding=1)
        width, levels = sizes.base_channels, list[ResolutionLevel]()
        for channels, blocks in zip(sizes.encoder_channels, sizes.encoder_blocks, strict=True):
            levels.append(ResolutionLevel(width, channels, blocks))
            width = channels
        for level in levels[:-1]:
            level.downsample = Resample(level.channels, up=False)
        self.down = nn.ModuleList(levels)
        self.mid = MiddleBlock(width)
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, sizes.bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(sizes.bits, sizes.bits, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the latents before their signs are taken."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class MagvitDecoder(nn.Module):
    """Signs (B, bits, h, w) to pixels (B, 3, H, W); levels are numbered as the encoder's, from the pixels down."""

    def __init__(self, sizes: MagvitSizes) -> None:
        super().__init__()
        width = sizes.decoder_channels[-1]
        self.post_quant_conv = nn.Conv2d(sizes.bits, sizes.bits, 1)
        self.conv_in = nn.Conv2d(sizes.bits, width, 3, padding=1)
        self.mid = MiddleBlock(width)
        levels = list[ResolutionLevel]()
        for channels, blocks in zip(reversed(sizes.decoder_channels), reversed(sizes.decoder_blocks), strict=True):
            levels.insert(0, ResolutionLevel(width, channels, blocks))
            width = channels
        for level in levels[1:]:
            level.upsample = Resample(level.channels, up=True)
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, q: Tensor) -> Tensor:
        """Pixels, roughly in [-1, 1]."""
        x = self.mid(self.conv_in(self.post_quant_conv(q)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class SignQuantizer(nn.Module):
    """Latents to codes; its two buffers are in the official file, and follow from the number of bits."""

    embedding: Tensor
    power_vals: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        powers = 2 ** torch.arange(bits - 1, -1, -1)
        codes = torch.arange(2**bits)
        self.register_buffer("power_vals", powers)
        self.register_buffer("embedding", (codes[:, None] & powers).ne(0).float() * 2 - 1)

    def forward(self, z: Tensor) -> Tensor:
        """Codes of latents (B, bits, ...): (B, ...) int64."""
        return ((z > 0).movedim(1, -1) * self.power_vals).sum(-1)


class Magvit(nn.Module):
    """The tokenizer: images (B, 3, H, W) in [-1, 1] to codes (B, h*w) and back."""

    def __init__(self, sizes: MagvitSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.encoder, self.decoder = MagvitEncoder(sizes), MagvitDecoder(sizes)
        self.quantize = SignQuantizer(sizes.bits)

    def encode(self, images: Tensor) -> Tensor:
        """Codes, row by row: (B, 3, H, W) -> (B, h*w) int64.

        Raises:
            ValueError: A side is not a multiple of the pixels per code.
        """
        step = self.sizes.downsampling
        if images.shape[-2] % step or images.shape[-1] % step:
            raise ValueError(f"an image of {tuple(images.shape[-2:])} pixels: both sides must be multiples of {step}")
        return self.quantize(self.encoder(images)).flatten(1)

    def signs(self, codes: Tensor) -> Tensor:
        """Corners of the cube of codes (B, T): (B, T, bits), each -1 or 1."""
        return self.quantize.embedding[codes]

    def decode(self, codes: Tensor, height: int | None = None) -> Tensor:
        """Decode codes (B, h*w) in ``height`` rows to images (B, 3, H, W); ``None``: a square."""
        height = height or round(codes.shape[1] ** 0.5)
        if codes.shape[1] % height:
            raise ValueError(f"{codes.shape[1]} codes do not fill a grid of {height} rows")
        return self.decoder(self.signs(codes).mT.unflatten(-1, (height, -1)))
