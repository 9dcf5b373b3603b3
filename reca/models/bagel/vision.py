"""A SigLIP vision tower for images of any size and shape (NaViT, Dehghani et al., arXiv 2307.06304), and patches."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from reca.models.positions import grid_cells


class PatchEmbeddings(nn.Module):
    """Linear patch embeddings plus a learned position table; an image uses the table's upper left corner.

    Args:
        config: Sizes.
        side: Patches per side of the largest image: the row length of the table.
    """

    def __init__(self, config: SiglipVisionConfig, side: int) -> None:
        super().__init__()
        self.patch_size: int = config.patch_size
        self.side = side
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding((config.image_size // config.patch_size) ** 2, config.hidden_size)

    def forward(self, image: Tensor) -> Tensor:
        """Embed (3, H, W) as (N, D)."""
        rows, columns = image.shape[1] // self.patch_size, image.shape[2] // self.patch_size
        patches = patchify(image, self.patch_size).to(self.patch_embedding.weight.dtype)
        tokens = self.patch_embedding(patches)
        return tokens + self.position_embedding(grid_cells(rows, columns, self.side).to(image.device))


class VisionTransformer(nn.Module):
    """Embeddings, the stock encoder and the last norm, without SigLIP's pooling head."""

    def __init__(self, config: SiglipVisionConfig, side: int) -> None:
        super().__init__()
        config._attn_implementation = "sdpa"
        self.embeddings = PatchEmbeddings(config, side)
        self.encoder = SiglipEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Encode images (3, H_i, W_i) as (N_i, D); the batch is padded to its longest image."""
        embeds = [self.embeddings(image) for image in images]
        hidden = nn.utils.rnn.pad_sequence(embeds, batch_first=True)
        lengths = torch.tensor([len(tokens) for tokens in embeds])
        mask = torch.arange(hidden.shape[1]) < lengths[:, None]
        attention = None if bool(mask.all()) else mask[:, None, None].to(hidden.device)
        hidden = self.post_layernorm(self.encoder(hidden, attention_mask=attention).last_hidden_state)
        return [tokens[:length] for tokens, length in zip(hidden, lengths.tolist(), strict=True)]


class NavitVision(nn.Module):
    """The tower under its official name; see :class:`PatchEmbeddings` for the arguments."""

    def __init__(self, config: SiglipVisionConfig, side: int) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(config, side)

    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        """See :meth:`VisionTransformer.forward`."""
        return self.vision_model(images)


def patchify(image: Tensor, size: int) -> Tensor:
    """Cut (C, H, W) into (H/p · W/p, p · p · C): patches in row order, each flattened as rows, columns, channels.

    Raises:
        ValueError: A side is not a multiple of the patch.
    """
    channels, height, width = image.shape
    if height % size or width % size or not height or not width:
        raise ValueError(f"an image of {height} x {width} cannot be cut into patches of {size} x {size}")
    patches = image.reshape(channels, height // size, size, width // size, size)
    return patches.permute(1, 3, 2, 4, 0).reshape(-1, size * size * channels)


def unpatchify(patches: Tensor, rows: int, columns: int, size: int) -> Tensor:
    """Invert :func:`patchify` for a batch: (B, rows · columns, p · p · C) -> (B, C, rows · p, columns · p)."""
    grid = patches.reshape(len(patches), rows, columns, size, size, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, rows * size, columns * size)
