"""BAGEL's network under its official names (ByteDance-Seed/Bagel, arXiv 2505.14683), and how it reads and draws.

A seen image is connector(SigLIP) + sin-cos positions, a drawn one vae2llm(2 x 2 latents) + time + sin-cos positions,
both between ``<soi>`` and ``<eoi>``; a text stands between ``<bos>`` and ``<eos>``. Velocities are llm2vae of the
latents' last states.
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
    """Ids of the tokens around texts and images."""

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
    """Everything that the shapes of the weights depend on."""

    text: Qwen2Config
    vision: SiglipVisionConfig
    latent_patch: int
    """Latents per side of a latent token."""
    latent_channels: int
    max_latent_size: int
    """Latent tokens per side of the largest image that can be drawn."""
    vision_side: int
    """Patches per side of the largest image that can be seen."""
    connector_act: str = "gelu_pytorch_tanh"
    time_waves: int = 256


class Connector(nn.Module):
    """From the vision tower's width to that of the language model."""

    def __init__(self, inputs: int, outputs: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, outputs)
        self.activation = ACT2FN[activation]
        self.fc2 = nn.Linear(outputs, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, inputs) -> (N, outputs)."""
        return self.fc2(self.activation(self.fc1(tokens)))


@dataclass(frozen=True)
class Context:
    """What samples have read so far, and where each goes on; ``memory`` is ``None`` as long as nothing was read."""

    memory: KVCache | None
    ends: list[SequenceCursor]

    def rows(self, rows: slice) -> "Context":
        """Some samples of the batch."""
        return Context(self.memory.rows(rows) if self.memory else None, self.ends[rows])


class BagelNetwork(nn.Module):
    """All of BAGEL but the image autoencoder.

    Args:
        sizes: See :class:`Sizes`.
        markers: See :class:`Markers`.
    """

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
        """Token ids (N,) -> (N, D)."""
        table = self.language_model.model.embed_tokens
        return table(torch.as_tensor(ids, dtype=torch.long, device=table.weight.device))

    def see(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Understanding embeddings of images (3, H_i, W_i), whose sides are multiples of the patch: (N_i, D) each."""
        patch = self.sizes.vision.patch_size
        grids = [(image.shape[1] // patch, image.shape[2] // patch) for image in images]
        for grid in grids:
            grid_cells(*grid, self.sizes.vision_side)  # complains about what is too large before anything is computed
        tokens = self.vit_model(images)
        lengths = [len(each) for each in tokens]
        rows = self.connector(torch.cat(tokens)).split(lengths)
        return [row + self.vit_pos_embed(*grid) for row, grid in zip(rows, grids, strict=True)]

    def text(self, ids: Sequence[int]) -> Segment:
        """A text without its markers."""
        return Segment(self.embed([self.markers.bos, *ids, self.markers.eos]), causal=True)

    def seen(self, tokens: Tensor) -> Segment:
        """An image by its understanding embeddings (N, D)."""
        first, last = self._image_markers().split(1)
        return Segment(torch.cat([first, tokens.to(first.dtype), last]))

    def drawn(self, latents: Tensor, grid: tuple[int, int], time: Tensor) -> Segment:
        """An image by its latent tokens (T, C) at a time (scalar) between 0, clean, and 1, noise."""
        latents = latents.to(self.vae2llm.bias.dtype)  # the matrix itself may be kept in fewer bits
        tokens = self.vae2llm(latents) + self.time_embedder(time.view(1)) + self.latent_pos_embed(*grid)
        return Segment(self._image_markers(), tokens)

    def _image_markers(self) -> Tensor:
        return self.embed([self.markers.start_of_image, self.markers.end_of_image])

    def read(self, samples: Sequence[Sequence[Segment]], context: Context | None = None) -> tuple[Tensor, Context]:
        """Read whole stretches.

        Returns:
            Last hidden states of the reading expert's tokens (B, U, D), padded behind, and the context from here on.
        """
        batch = pack(samples, context.ends if context else None, self._like())
        memory = context.memory if context else None
        if not batch.layout.place.numel():
            return batch.read, Context(memory, batch.ends)
        hidden, _, memory = self.language_model(batch.read, batch.drawn, batch.layout, memory, keep=True)
        return hidden, Context(memory, batch.ends)

    def velocities(self, samples: Sequence[Sequence[Segment]], context: Context | None = None) -> list[Tensor]:
        """Velocities (T_i, C) of the drawn image that ends each sample; a sample draws no other."""
        batch = pack(samples, context.ends if context else None, self._like())
        memory = context.memory if context else None
        _, hidden, _ = self.language_model(batch.read, batch.drawn, batch.layout, memory)
        flat = self.llm2vae(torch.cat([row[:length] for row, length in zip(hidden, batch.drawn_lengths, strict=True)]))
        return list(flat.split(batch.drawn_lengths))

    def _like(self) -> Tensor:
        weight: Tensor = self.language_model.model.embed_tokens.weight
        return weight[:0]
