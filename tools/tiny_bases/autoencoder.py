"""The image autoencoder in the long recipe."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tools.tiny_bases.optimization import optimize
from tools.tiny_bases.training import pixels


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Steps and sizes of the stage."""

    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 2e-3


def train(
    folder: Path,
    autoencoder: nn.Module,
    reconstruct: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: Tensor,
    recipe: AutoencoderRecipe,
    seed: int,
) -> float:
    """Train an autoencoder in place on pixel errors (L1 and four times L2) and its own loss on the latents.

    Args:
        folder: Of the checkpoint, see :func:`optimize`.
        autoencoder: The module to train.
        reconstruct: Returns decoded images and a loss on the latents; in training it may draw noise.
        images: (N, 3, S, S) uint8.
        recipe: Steps and sizes.
        seed: Of batches and noise.
    """

    def loss_at(step: int) -> tuple[Tensor, str]:
        torch.manual_seed(seed * 1_000_003 + step)
        batch = pixels(images[torch.randint(len(images), (recipe.batch_size,))])
        decoded, latent_loss = reconstruct(batch)
        error = decoded - batch
        loss = error.abs().mean() + 4 * error.pow(2).mean() + latent_loss
        return loss, f"error {error.pow(2).mean().item():.4f}, latents {latent_loss.item():.3f}"

    autoencoder.requires_grad_(True)
    autoencoder.train()
    weights = dict(autoencoder.named_parameters())
    seconds = optimize(folder / "autoencoder.pt", weights, loss_at, steps=recipe.steps, rate=recipe.learning_rate)
    autoencoder.eval()
    return seconds
