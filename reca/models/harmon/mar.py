"""MAR: a masked autoencoder over continuous latents (arXiv 2406.11838), as Harmon shares it between both its tasks.

    encoder   visible latents and n buffer tokens -> hidden states       all visible: the understanding embeddings
    decoder   hidden states, and a mask token for each hidden latent -> one condition per latent
    head      condition -> latent (reca/models/harmon/diffusion_head.py)

Buffer tokens come first and carry ``fake_latent``, the class-free entry of the original's class table. Positions are
learnt for a square grid and interpolated to others. Parameters have the names of the official checkpoints.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca.models.harmon.diffusion_head import DiffusionHead
from reca.models.harmon.dropout import SampleDropout, number_dropout_layers
from reca.runtime.seeding import SampleRng

EPSILON = 1e-6
MASK_RATIO_MEAN, MASK_RATIO_STD = 1.0, 0.25
"""Normal distribution of the mask ratio, before its truncation to [mask_ratio_min, 1]."""


@dataclass(frozen=True)
class MarSizes:
    """The ``mar`` entry of an official ``config.json``, under its names."""

    img_size: int
    """Pixels; with ``vae_stride`` and ``patch_size`` the grid whose positions are learnt."""
    vae_stride: int
    patch_size: int
    encoder_embed_dim: int
    encoder_depth: int
    encoder_num_heads: int
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int
    vae_embed_dim: int
    diffloss_d: int
    diffloss_w: int
    mlp_ratio: float = 4.0
    mask_ratio_min: float = 0.7
    class_num: int = 1000
    attn_dropout: float = 0.1
    proj_dropout: float = 0.1
    buffer_size: int = 64
    num_sampling_steps: str | int = "100"
    diffusion_batch_mul: int = 4

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read the entry; keys that do not shape the network (gradient checkpointing, label dropping) are ignored.

        Raises:
            ValueError: A size is missing.
        """
        names = {field.name for field in fields(cls)}
        try:
            return cls(**{name: value for name, value in config.items() if name in names})
        except TypeError as error:
            raise ValueError(f"the mar entry of config.json is not complete: {error}") from None

    @property
    def grid(self) -> int:
        """Side of the grid whose positions are learnt."""
        return self.img_size // self.vae_stride // self.patch_size

    @property
    def pixels(self) -> int:
        """Side in pixels of the square that one token covers."""
        return self.vae_stride * self.patch_size

    @property
    def channels(self) -> int:
        """Channels per token."""
        return self.vae_embed_dim * self.patch_size**2


@dataclass(frozen=True)
class VisibleTokens:
    """Indices of each sample's visible tokens, padded to the longest with hidden tokens (never attended to)."""

    indices: Tensor
    """(B, V) int64, in reading order."""
    is_visible: Tensor
    """(B, V) bool; False is padding."""
    has_padding: bool

    @classmethod
    def from_hidden(cls, hidden: Tensor, device: torch.device | None = None) -> Self:
        """Build from a mask of hidden tokens (B, T) bool; on the CPU, reading its sizes does not sync a GPU."""
        counts = (~hidden).sum(dim=1)
        longest = int(counts.max())
        indices = hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
        is_visible = torch.arange(longest, device=hidden.device) < counts[:, None]
        has_padding = not bool(is_visible.all())
        return cls(indices.to(device, non_blocking=True), is_visible.to(device, non_blocking=True), has_padding)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Select tokens per sample: (B, T, D) by indices (B, V) -> (B, V, D)."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


def mask_first(orders: Tensor, counts: Tensor) -> Tensor:
    """Mask the first ``counts`` (B,) tokens in each random order (B, T): (B, T) bool."""
    first = torch.arange(orders.shape[1], device=orders.device) < counts[:, None]
    return torch.zeros_like(orders, dtype=torch.bool).scatter(1, orders, first)


def mask_ratios(uniform: Tensor, minimum: float) -> Tensor:
    """Map uniform numbers (B,) to mask ratios (B,), distributed as the truncated normal."""
    lowest = torch.special.ndtr(torch.tensor((minimum - MASK_RATIO_MEAN) / MASK_RATIO_STD, dtype=torch.float64))
    highest = torch.special.ndtr(torch.tensor((1 - MASK_RATIO_MEAN) / MASK_RATIO_STD, dtype=torch.float64))
    normal = torch.special.ndtri(lowest + uniform.double() * (highest - lowest))
    return (MASK_RATIO_MEAN + MASK_RATIO_STD * normal).clamp(minimum, 1.0)


def random_mask(rng: SampleRng, tokens: int, minimum: float) -> Tensor:
    """Draw the hidden tokens of training samples, (B, T) bool; draws "mask_ratio" and "order"."""
    counts = (mask_ratios(rng.uniform("mask_ratio"), minimum) * tokens).ceil().long()
    return mask_first(rng.permutation("order", tokens), counts)


def unmasking_schedule(tokens: int, num_steps: int) -> list[int]:
    """Hidden tokens after each sampling step: cosine, at least one fewer per step, one left before the last."""
    hidden, schedule = tokens, []
    for step in range(1, num_steps):
        hidden = max(1, min(hidden - 1, math.floor(tokens * math.cos(math.pi / 2 * step / num_steps))))
        schedule.append(hidden)
    return [*schedule, 0]


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for query, key and value."""

    def __init__(self, width: int, heads: int, attn_dropout: float, proj_dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.drop_weights, self.drop = SampleDropout(attn_dropout), SampleDropout(proj_dropout)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, keys: Tensor | None = None) -> Tensor:
        """Attend among states (B, L, D).

        Args:
            hidden: (B, L, D).
            attention_mask: Positions to attend to, (B, L) bool; ``None``: all.
            keys: Sample keys for dropout, (B,) int32; ``None``: no dropout.
        """
        query, key, value = self.qkv(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if attention_mask is None else attention_mask[:, None, None]
        if self.drop_weights.is_active(keys):  # fused kernels draw their own masks
            scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
            scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
            mixed = self.drop_weights(scores.softmax(-1), keys) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.drop(self.proj(mixed.transpose(1, 2).flatten(2)), keys)


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, ratio: float, rate: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)
        self.drop_inner, self.drop = SampleDropout(rate), SampleDropout(rate)

    def forward(self, hidden: Tensor, keys: Tensor | None = None) -> Tensor:
        """States (B, L, D), keys as in :class:`Attention`."""
        return self.drop(self.fc2(self.drop_inner(F.gelu(self.fc1(hidden)), keys)), keys)


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, sizes: MarSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = Attention(width, heads, sizes.attn_dropout, sizes.proj_dropout)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = Mlp(width, sizes.mlp_ratio, sizes.proj_dropout)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, keys: Tensor | None = None) -> Tensor:
        """See :class:`Attention`."""
        hidden = hidden + self.attn(self.norm1(hidden), attention_mask, keys)
        return hidden + self.mlp(self.norm2(hidden), keys)


class Mar(nn.Module):
    """Encoder, decoder and diffusion head."""

    def __init__(self, sizes: MarSizes) -> None:
        super().__init__()
        self.sizes = sizes
        encoder_width, decoder_width = sizes.encoder_embed_dim, sizes.decoder_embed_dim
        positions = sizes.buffer_size + sizes.grid**2
        self.z_proj = nn.Linear(sizes.channels, encoder_width)
        self.z_proj_ln = nn.LayerNorm(encoder_width, eps=EPSILON)
        self.class_emb = nn.Embedding(sizes.class_num, encoder_width)  # in every checkpoint, unused by Harmon's tasks
        self.fake_latent = nn.Parameter(torch.zeros(1, encoder_width))
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, positions, encoder_width))
        self.encoder_blocks = nn.ModuleList(
            Block(encoder_width, sizes.encoder_num_heads, sizes) for _ in range(sizes.encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(encoder_width, eps=EPSILON)
        self.decoder_embed = nn.Linear(encoder_width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, positions, decoder_width))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, sizes.decoder_num_heads, sizes) for _ in range(sizes.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=EPSILON)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, sizes.grid**2, decoder_width))
        for table in self.parameters(recurse=False):
            nn.init.normal_(table, std=0.02)
        self.apply(_initialize)
        number_dropout_layers(self)
        self.diffloss = DiffusionHead(
            sizes.channels, decoder_width, sizes.diffloss_w, sizes.diffloss_d, int(sizes.num_sampling_steps)
        )

    def tokens(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> tokens (B, T, C * p * p), row by row."""
        return F.pixel_unshuffle(latents, self.sizes.patch_size).flatten(2).transpose(1, 2)

    def latents(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Invert :meth:`tokens`."""
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), self.sizes.patch_size)

    def encode(
        self, tokens: Tensor, grid: tuple[int, int], visible: VisibleTokens | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """Encode buffers and visible tokens: (B, T, C) -> (B, n + V, D).

        Args:
            tokens: All tokens of the images; hidden ones are not read.
            grid: Rows and columns, T = rows * columns.
            visible: Visible tokens; ``None``: all.
            keys: Sample keys for dropout, (B,) int32; ``None``: no dropout.
        """
        buffers = self.sizes.buffer_size
        positions = self._positions(self.encoder_pos_embed_learned, grid, buffers).expand(len(tokens), -1, -1)
        token_positions = positions[:, buffers:]
        if visible is not None:
            tokens = gather_tokens(tokens, visible.indices)
            token_positions = gather_tokens(token_positions, visible.indices)
        fake = self.fake_latent.expand(len(tokens), buffers, -1) + positions[:, :buffers]
        hidden = self.z_proj_ln(torch.cat([fake, self.z_proj(tokens) + token_positions], dim=1))
        attention_mask = self.attention_mask(visible)
        for block in self.encoder_blocks:
            hidden = block(hidden, attention_mask, keys)
        return self.encoder_norm(hidden)

    def attention_mask(self, visible: VisibleTokens | None) -> Tensor | None:
        """Mask (B, n + V) bool of buffers and visible tokens, False at padding; ``None``: no padding."""
        if visible is None or not visible.has_padding:
            return None
        return F.pad(visible.is_visible, (self.sizes.buffer_size, 0), value=True)

    def decode(
        self, hidden: Tensor, grid: tuple[int, int], visible: VisibleTokens, keys: Tensor | None = None
    ) -> Tensor:
        """Decode states (B, n + V, D), in :meth:`encode`'s order, to one condition per token (B, T, D')."""
        buffers, (rows, columns) = self.sizes.buffer_size, grid
        embedded = self.decoder_embed(hidden)
        mask_token = self.mask_token.to(embedded.dtype)
        visible_states = torch.where(visible.is_visible[..., None], embedded[:, buffers:], mask_token)
        masked = mask_token.expand(len(hidden), rows * columns, -1)
        indices = visible.indices[..., None].expand(-1, -1, embedded.shape[-1])
        states = torch.cat([embedded[:, :buffers], masked.scatter(1, indices, visible_states)], dim=1)
        states = states + self._positions(self.decoder_pos_embed_learned, grid, buffers)
        for block in self.decoder_blocks:
            states = block(states, None, keys)
        states = self.decoder_norm(states)[:, buffers:]
        return states + self._positions(self.diffusion_pos_embed_learned, grid, 0)

    def _positions(self, table: Tensor, grid: tuple[int, int], buffers: int) -> Tensor:
        """Interpolate learnt positions bilinearly to another grid: (1, n + T, D)."""
        side = self.sizes.grid
        if grid == (side, side):
            return table
        squares = table[:, buffers:].transpose(1, 2).unflatten(2, (side, side))
        squares = F.interpolate(squares.float(), size=grid, mode="bilinear", align_corners=False).to(table.dtype)
        return torch.cat([table[:, :buffers], squares.flatten(2).transpose(1, 2)], dim=1)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
