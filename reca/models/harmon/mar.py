"""MAR: a masked autoencoder over continuous latents (arXiv 2406.11838), as Harmon shares it between both its tasks.

    encoder   visible latents and n buffer tokens -> hidden states       nothing hidden: what an image is understood by
    decoder   those, and a mask token wherever nothing is visible -> one condition per latent
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
from reca.models.harmon.dropout import SampleDropout, tell_apart
from reca.runtime.seeding import SampleRng

EPSILON = 1e-6
RATIO_MODE, RATIO_SPREAD = 1.0, 0.25
"""Of the normal distribution, cut off at [mask_ratio_min, 1], that the share of hidden latents is drawn from."""


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
        """Read the entry; what does not bear on the network (gradient checkpointing, label dropping) is left out.

        Raises:
            ValueError: A size is missing.
        """
        known = {field.name for field in fields(cls)}
        try:
            return cls(**{name: value for name, value in config.items() if name in known})
        except TypeError as error:
            raise ValueError(f"the mar entry of config.json is not complete: {error}") from None

    @property
    def grid(self) -> int:
        """Side of the grid that positions are learnt for."""
        return self.img_size // self.vae_stride // self.patch_size

    @property
    def pixels(self) -> int:
        """Side in pixels of what one token stands for."""
        return self.vae_stride * self.patch_size

    @property
    def channels(self) -> int:
        """Numbers in one token."""
        return self.vae_embed_dim * self.patch_size**2


@dataclass(frozen=True)
class Visible:
    """Which tokens of a batch are visible: the first of each row of ``places`` that are ``real``.

    Rows differ in how many are visible; the shorter ones are filled up with hidden places, which nobody attends to.
    """

    places: Tensor
    """(B, V) int64, in reading order."""
    real: Tensor
    """(B, V) bool"""
    even: bool
    """Whether all are real."""

    @classmethod
    def of(cls, hidden: Tensor, device: torch.device | None = None) -> Self:
        """From which tokens are hidden, (B, T) bool, for a device; found where ``hidden`` is, so best on the CPU."""
        counts = (~hidden).sum(dim=1)
        longest = int(counts.max())
        places = hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
        real = torch.arange(longest, device=hidden.device) < counts[:, None]
        return cls(places.to(device, non_blocking=True), real.to(device, non_blocking=True), bool(real.all()))


def take(tokens: Tensor, places: Tensor) -> Tensor:
    """Some tokens of each row: (B, T, D) at places (B, V) -> (B, V, D)."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def hide_first(orders: Tensor, counts: Tensor) -> Tensor:
    """Hide the first ``counts`` (B,) tokens of each random order (B, T): (B, T) bool."""
    early = torch.arange(orders.shape[1], device=orders.device) < counts[:, None]
    return torch.zeros_like(orders, dtype=torch.bool).scatter(1, orders, early)


def masking_ratio(uniform: Tensor, minimum: float) -> Tensor:
    """Share of hidden tokens: uniform numbers (B,) -> numbers of the truncated normal distribution (B,)."""
    spread = uniform.double()
    lowest = torch.special.ndtr(torch.tensor((minimum - RATIO_MODE) / RATIO_SPREAD, dtype=torch.float64))
    highest = torch.special.ndtr(torch.tensor((1 - RATIO_MODE) / RATIO_SPREAD, dtype=torch.float64))
    drawn = torch.special.ndtri(lowest + spread * (highest - lowest))
    return (RATIO_MODE + RATIO_SPREAD * drawn).clamp(minimum, 1.0)


def random_mask(rng: SampleRng, tokens: int, minimum: float) -> Tensor:
    """Which tokens of a training sample are hidden, (B, T) bool; draws "mask_ratio" and "order"."""
    counts = (masking_ratio(rng.uniform("mask_ratio"), minimum) * tokens).ceil().long()
    return hide_first(rng.permutation("order", tokens), counts)


def revealing_schedule(tokens: int, num_steps: int) -> list[int]:
    """Hidden tokens after each step of drawing: cosine, at least one fewer a step and one left before the last."""
    hidden, after = tokens, []
    for step in range(1, num_steps):
        hidden = max(1, min(hidden - 1, math.floor(tokens * math.cos(math.pi / 2 * step / num_steps))))
        after.append(hidden)
    return [*after, 0]


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for query, key and value."""

    def __init__(self, width: int, heads: int, attn_dropout: float, proj_dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.drop_weights, self.drop = SampleDropout(attn_dropout), SampleDropout(proj_dropout)

    def forward(self, hidden: Tensor, seen: Tensor | None, keys: Tensor | None = None) -> Tensor:
        """States (B, L, D); ``seen`` (B, L) bool says which of them are attended to, ``None``: all.

        ``keys`` (B,) int32 are the samples', for dropout; ``None``: nothing is dropped.
        """
        query, key, value = self.qkv(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if seen is None else seen[:, None, None]
        if self.drop_weights.acts(keys):  # no kernel drops what we choose, so here the weights are made
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

    def forward(self, hidden: Tensor, seen: Tensor | None, keys: Tensor | None = None) -> Tensor:
        """See :class:`Attention`."""
        hidden = hidden + self.attn(self.norm1(hidden), seen, keys)
        return hidden + self.mlp(self.norm2(hidden), keys)


class Mar(nn.Module):
    """Encoder, decoder and diffusion head."""

    def __init__(self, sizes: MarSizes) -> None:
        super().__init__()
        self.sizes = sizes
        wide, deep = sizes.encoder_embed_dim, sizes.decoder_embed_dim
        places = sizes.buffer_size + sizes.grid**2
        self.z_proj = nn.Linear(sizes.channels, wide)
        self.z_proj_ln = nn.LayerNorm(wide, eps=EPSILON)
        self.class_emb = nn.Embedding(sizes.class_num, wide)  # in every checkpoint, used by none of Harmon's tasks
        self.fake_latent = nn.Parameter(torch.zeros(1, wide))
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, places, wide))
        self.encoder_blocks = nn.ModuleList(
            Block(wide, sizes.encoder_num_heads, sizes) for _ in range(sizes.encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(wide, eps=EPSILON)
        self.decoder_embed = nn.Linear(wide, deep)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, deep))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, places, deep))
        self.decoder_blocks = nn.ModuleList(
            Block(deep, sizes.decoder_num_heads, sizes) for _ in range(sizes.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(deep, eps=EPSILON)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, sizes.grid**2, deep))
        for table in self.parameters(recurse=False):
            nn.init.normal_(table, std=0.02)
        self.apply(_initialise)
        tell_apart(self)
        self.diffloss = DiffusionHead(
            sizes.channels, deep, sizes.diffloss_w, sizes.diffloss_d, int(sizes.num_sampling_steps)
        )

    def tokens(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> (B, T, C * p * p), row by row."""
        return F.pixel_unshuffle(latents, self.sizes.patch_size).flatten(2).transpose(1, 2)

    def latents(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The inverse of :meth:`tokens`."""
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), self.sizes.patch_size)

    def encode(
        self, tokens: Tensor, grid: tuple[int, int], visible: Visible | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """Hidden states of the buffers, then of the visible tokens: (B, T, C) -> (B, n + V, D).

        Args:
            tokens: All tokens of the images; what is hidden is not read.
            grid: Rows and columns, T = rows * columns.
            visible: ``None``: all of them.
            keys: Of the samples, for dropout, (B,) int32; ``None``: nothing is dropped.
        """
        buffers = self.sizes.buffer_size
        positions = self._positions(self.encoder_pos_embed_learned, grid, buffers).expand(len(tokens), -1, -1)
        places = positions[:, buffers:]
        if visible is not None:
            tokens, places = take(tokens, visible.places), take(places, visible.places)
        fake = self.fake_latent.expand(len(tokens), buffers, -1) + positions[:, :buffers]
        hidden = self.z_proj_ln(torch.cat([fake, self.z_proj(tokens) + places], dim=1))
        seen = self.seen(visible)
        for block in self.encoder_blocks:
            hidden = block(hidden, seen, keys)
        return self.encoder_norm(hidden)

    def seen(self, visible: Visible | None) -> Tensor | None:
        """Which of buffers and visible tokens are real, (B, n + V) bool; ``None``: all of them."""
        if visible is None or visible.even:
            return None
        return F.pad(visible.real, (self.sizes.buffer_size, 0), value=True)

    def decode(self, hidden: Tensor, grid: tuple[int, int], visible: Visible, keys: Tensor | None = None) -> Tensor:
        """A condition for every token: states (B, n + V, D) in :meth:`encode`'s order -> (B, T, D')."""
        buffers, (rows, columns) = self.sizes.buffer_size, grid
        embedded = self.decoder_embed(hidden)
        known = torch.where(visible.real[..., None], embedded[:, buffers:], self.mask_token.to(embedded.dtype))
        everywhere = self.mask_token.to(embedded.dtype).expand(len(hidden), rows * columns, -1)
        places = visible.places[..., None].expand(-1, -1, embedded.shape[-1])
        states = torch.cat([embedded[:, :buffers], everywhere.scatter(1, places, known)], dim=1)
        states = states + self._positions(self.decoder_pos_embed_learned, grid, buffers)
        for block in self.decoder_blocks:
            states = block(states, None, keys)
        states = self.decoder_norm(states)[:, buffers:]
        return states + self._positions(self.diffusion_pos_embed_learned, grid, 0)

    def _positions(self, table: Tensor, grid: tuple[int, int], buffers: int) -> Tensor:
        """Positions (1, n + T, D) of another grid, bilinearly between those that were learnt."""
        side = self.sizes.grid
        if grid == (side, side):
            return table
        squares = table[:, buffers:].transpose(1, 2).unflatten(2, (side, side))
        squares = F.interpolate(squares.float(), size=grid, mode="bilinear", align_corners=False).to(table.dtype)
        return torch.cat([table[:, :buffers], squares.flatten(2).transpose(1, 2)], dim=1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
