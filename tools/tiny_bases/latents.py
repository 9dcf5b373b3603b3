"""What the short recipe asks of every autoencoder's latents: zero mean, unit variance, nothing in small numbers."""

from torch import Tensor

LATENT_NOISE = 0.1
"""Standard deviation of the noise that a decoder must bear, when the latents' is 1: what is sampled is never exact."""
WEIGHT = 0.1


def statistics_loss(latents: Tensor) -> Tensor:
    """How far the channels' means and variances over a batch (B, C, h, w) are from 0 and 1."""
    mean, variance = latents.mean((0, 2, 3)), latents.var((0, 2, 3))
    return WEIGHT * (mean.pow(2) + (variance - 1).pow(2)).mean()
