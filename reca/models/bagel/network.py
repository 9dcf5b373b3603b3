"""BAGEL's network under its official names (ByteDance-Seed/Bagel, arXiv 2505.14683).

    image to understand   <soi> connector(SigLIP(image)) + positions <eoi>
    image to generate     <soi> vae2llm(2 x 2 latents) + time embedding + positions <eoi>
    text                  <bos> ids <eos>

Positions are fixed sines and cosines. The velocity is llm2vae of the last hidden states of the latent tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, SiglipVisionConfig
from transformers.activations import ACT2FN

from reca.models.bagel.packing import Segment, SequenceCursor, pack
from reca.models.bagel.transformer import KVCache, MixtureOfTransformers
from reca.models.bagel.vision import NavitVision
from reca.models.positions import GridPositions, TimestepEmbedder, grid_cells


@dataclass(frozen=True)
class Markers:
    """Ids of the marker tokens around texts and images."""

    bos: int
    """Before a text: ``<|im_start|>``."""
    eos: int
    """After a text: ``<|im_end|>``."""
    start_of_image: int
    """``<|vision_start|>``"""
    end_of_image: int
    """``<|vision_end|>``"""


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts; they determine the shapes of the weights."""

    text: Qwen2Config
    vision: SiglipVisionConfig
    latent_patch: int
    """Latents per side of a latent token."""
    latent_channels: int
    max_latent_size: int
    """Latent tokens per side of the largest image to generate."""
    vision_side: int
    """Patches per side of the largest image to understand."""
    connector_act: str = "gelu_pytorch_tanh"
    time_waves: int = 256


class Connector(nn.Module):
    """The MLP from the vision tower's width to the language model's."""

    def __init__(self, inputs: int, outputs: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, outputs)
        self.activation = ACT2FN[activation]
        self.fc2 = nn.Linear(outputs, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (N, inputs) to (N, outputs)."""
        return self.fc2(self.activation(self.fc1(tokens)))


@dataclass(frozen=True)
class Context:
    """The cached sequences of a batch, which later segments continue."""

    cache: KVCache | None
    """``None`` as long as all sequences are empty."""
    cursors: list[SequenceCursor]

    def rows(self, rows: slice) -> "Context":
        """Return a slice of the batch."""
        return Context(self.cache.rows(rows) if self.cache else None, self.cursors[rows])


class BagelNetwork(nn.Module):
    """BAGEL without the image autoencoder."""

    def __init__(self, sizes: Sizes, markers: Markers) -> None:
        super().__init__()
        self.sizes, self.markers = sizes, markers
        width, latent = sizes.text.hidden_size, sizes.latent_patch**2 * sizes.latent_channels
        self.language_model = MixtureOfTransformers(sizes.text)
        self.vit_model = NavitVision(sizes.vision, sizes.vision_side)
        self.connector = Connector(sizes.vision.hidden_size, width, sizes.connector_act)
        self.vit_pos_embed = GridPositions(sizes.vision_side, width)
        self.vae2llm = nn.Linear(latent, width)
        self.llm2vae = nn.Linear(width, latent)
        self.time_embedder = TimestepEmbedder(width, sizes.time_waves)
        self.latent_pos_embed = GridPositions(sizes.max_latent_size, width)

    def embed(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Embed token ids (N,) as (N, D)."""
        table = self.language_model.model.embed_tokens
        return table(torch.as_tensor(ids, dtype=torch.long, device=table.weight.device))

    def encode_images(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return understanding embeddings (N_i, D) of images (3, H_i, W_i), whose sides are multiples of the patch."""
        patch = self.sizes.vision.patch_size
        grids = [(image.shape[1] // patch, image.shape[2] // patch) for image in images]
        for grid in grids:
            grid_cells(*grid, self.sizes.vision_side)  # raises for an image that is too large before any computation
        tokens = self.vit_model(images)
        embeds = self.connector(torch.cat(tokens)).split([len(rows) for rows in tokens])
        return [rows + self.vit_pos_embed(*grid) for rows, grid in zip(embeds, grids, strict=True)]

    def text_segment(self, ids: Sequence[int]) -> Segment:
        """Return a text between its markers."""
        return Segment(self.embed([self.markers.bos, *ids, self.markers.eos]), causal=True)

    def image_segment(self, embeds: Tensor) -> Segment:
        """Return an image to understand, from its embeddings (N, D)."""
        first, last = self._image_markers().split(1)
        return Segment(torch.cat([first, embeds.to(first.dtype), last]))

    def latent_segment(self, latents: Tensor, grid: tuple[int, int], time: Tensor) -> Segment:
        """Return an image to generate, from latent tokens (T, C) at a time (scalar) between 0, clean, and 1, noise."""
        latents = latents.to(self.vae2llm.bias.dtype)  # the matrix itself may be stored in fewer bits
        tokens = self.vae2llm(latents) + self.time_embedder(time.view(1)) + self.latent_pos_embed(*grid)
        return Segment(self._image_markers(), tokens)

    def _image_markers(self) -> Tensor:
        return self.embed([self.markers.start_of_image, self.markers.end_of_image])

    def prefill(self, samples: Sequence[Sequence[Segment]], context: Context | None = None) -> tuple[Tensor, Context]:
        """Append segments to the cached sequences.

        Returns:
            Last hidden states of the understanding expert (B, U, D), padded on the right, and the extended context.
        """
        batch = pack(samples, context.cursors if context else None, self._like())
        cache = context.cache if context else None
        if not batch.layout.index.numel():
            return batch.understanding, Context(cache, batch.cursors)
        hidden, _, cache = self.language_model(
            batch.understanding, batch.generation, batch.layout, cache, return_cache=True
        )
        return hidden, Context(cache, batch.cursors)

    def velocities(self, samples: Sequence[Sequence[Segment]], context: Context | None = None) -> list[Tensor]:
        """Return velocities (T_i, C) of the latent segment that ends each sample, its only latent segment."""
        batch = pack(samples, context.cursors if context else None, self._like())
        cache = context.cache if context else None
        _, hidden, _ = self.language_model(batch.understanding, batch.generation, batch.layout, cache)
        unpadded = [row[:length] for row, length in zip(hidden, batch.latent_lengths, strict=True)]
        return list(self.llm2vae(torch.cat(unpadded)).split(batch.latent_lengths))

    def _like(self) -> Tensor:
        weight: Tensor = self.language_model.model.embed_tokens.weight
        return weight[:0]
