"""Loss and noise on the latents of the short recipe's autoencoders: zero mean, unit variance, robust decoding."""

from torch import Tensor

LATENT_NOISE = 0.1
"""Standard deviation of the noise on latents of variance 1, because sampled latents are never exact."""
WEIGHT = 0.1


def statistics_loss(latents: Tensor) -> Tensor:
    """Squared distance of the channels' means and variances over a batch (B, C, h, w) from 0 and 1."""
    mean, variance = latents.mean((0, 2, 3)), latents.var((0, 2, 3))
    return WEIGHT * (mean.pow(2) + (variance - 1).pow(2)).mean()
