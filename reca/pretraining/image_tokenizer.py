"""Stage 1 of pre-training: the VQ tokenizer, an auto-encoder whose latents snap to a codebook.

Codes live on the unit sphere (the stock decoder normalises them), so the nearest code is the one with the
largest inner product. First the auto-encoder alone learns with a little noise on its latents, then k-means
over its latents makes the codebook, which from there on follows them as a running mean (VQ-VAE,
arXiv 1711.00937, appendix A); codes that nobody uses are moved onto latents of the batch.
The loss is on pixels and, as in VQGAN (arXiv 2012.09841), on features that know what matters: here the
model's own vision tower, after its patch tags (understanding stage) are learnt.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAE

from reca.pretraining.schedule import Report, one_cycle, pixels, update


@dataclass(frozen=True)
class Recipe:
    """Steps and sizes of the stage."""

    plain_steps: int = 600
    """Steps before there is a codebook."""
    steps: int = 4000
    batch_size: int = 32
    learning_rate: float = 2e-3
    noise: float = 0.1
    commitment: float = 0.25
    feature_weight: float = 0.5
    decay: float = 0.98
    """Of the running means that the codes follow."""


class Codebook:
    """Unit vectors (K, D) that follow the latents assigned to them."""

    def __init__(self, latents: Tensor, size: int, decay: float, generator: torch.Generator) -> None:
        self.decay, self.generator = decay, generator
        self.vectors = spherical_kmeans(latents, size, generator)
        self.sums, self.counts = self.vectors.clone(), torch.ones(size)

    def assign(self, latents: Tensor) -> Tensor:
        """Nearest code of each latent: (N, D) -> (N,)."""
        return (latents @ self.vectors.T).argmax(dim=1)

    def follow(self, latents: Tensor, assigned: Tensor, revive: bool) -> None:
        """Move every code towards the mean of its latents; ``revive`` gives unused codes a new place."""
        sums = torch.zeros_like(self.sums).index_add_(0, assigned, latents)
        counts = torch.bincount(assigned, minlength=len(self.counts)).float()
        self.sums.lerp_(sums, 1 - self.decay)
        self.counts.lerp_(counts, 1 - self.decay)
        if revive and bool((unused := self.counts < 0.02).any()):
            rows = torch.randint(len(latents), (int(unused.sum()),), generator=self.generator)
            self.sums[unused], self.counts[unused] = latents[rows] * 0.5, 0.5
        self.vectors = F.normalize(self.sums, dim=-1)


def spherical_kmeans(points: Tensor, clusters: int, generator: torch.Generator, rounds: int = 10) -> Tensor:
    """Unit vectors (clusters, D) around which unit vectors (N, D) gather; empty clusters restart at a point."""
    centres = points[torch.randperm(len(points), generator=generator)[:clusters]].clone()
    for _ in range(rounds):
        nearest = torch.cat([(block @ centres.T).argmax(1) for block in points.split(8192)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        used = torch.bincount(nearest, minlength=clusters) > 0
        fresh = points[torch.randint(len(points), (clusters,), generator=generator)]
        centres = torch.where(used[:, None], F.normalize(sums, dim=-1), fresh)
    return centres


def encode(vq: JanusVQVAE, images: Tensor) -> Tensor:
    """Latents on the unit sphere: (B, 3, S, S) -> (B, h, w, D)."""
    return F.normalize(vq.quant_conv(vq.encoder(images)).permute(0, 2, 3, 1), dim=-1)


def decode(vq: JanusVQVAE, latents: Tensor) -> Tensor:
    """Images of latents: (B, h, w, D) -> (B, 3, S, S)."""
    return vq.decoder(vq.post_quant_conv(latents.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)))


def train(vq: JanusVQVAE, vision: nn.Module, images: Tensor, recipe: Recipe, seed: int, report: Report) -> None:
    """Train the tokenizer in place.

    Args:
        vq: The stock tokenizer, its codebook overwritten at the end.
        vision: The vision tower whose features the decoded images must keep; frozen here.
        images: (N, 3, S, S) uint8.
        recipe: Steps and sizes.
        seed: Of batches, noise and codebook.
        report: Called after every step.
    """
    generator = torch.Generator().manual_seed(seed)
    vision.requires_grad_(False)
    vq.requires_grad_(True)
    vq.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    weights = [p for name, p in vq.named_parameters() if not name.startswith("quantize.")]
    optimizer = torch.optim.AdamW(weights, recipe.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4)
    codebook: Codebook | None = None
    for step in range(recipe.steps):
        rows = torch.randint(len(images), (recipe.batch_size,), generator=generator)
        wanted = pixels(images[rows]).contiguous(memory_format=torch.channels_last)
        if step == recipe.plain_steps:
            with torch.no_grad():
                blocks = images[:3000].split(250)
                latents = torch.cat([encode(vq, pixels(block)).flatten(0, 2) for block in blocks])
            codebook = Codebook(latents, vq.config.num_embeddings, recipe.decay, generator)
        latents = encode(vq, wanted)
        if codebook is None:
            noise = torch.randn(latents.shape, generator=generator) * recipe.noise
            quantized, commitment = F.normalize(latents + noise, dim=-1), torch.zeros(())
        else:
            flat = latents.detach().flatten(0, 2)
            assigned = codebook.assign(flat)
            codes = codebook.vectors[assigned].view_as(latents)
            commitment = (latents - codes).pow(2).sum(-1).mean()
            quantized = latents + (codes - latents).detach()  # straight-through: the gradient skips the snap
            codebook.follow(flat, assigned, revive=step % 20 == 0 and step < 0.8 * recipe.steps)
        drawn = decode(vq, quantized)
        loss = reconstruction_loss(vision, drawn, wanted, recipe.feature_weight) + recipe.commitment * commitment
        update(optimizer, loss, weights, one_cycle(step, recipe.steps, recipe.learning_rate))
        report(step + 1, recipe.steps, f"reconstruction {loss.item():.4f}")
    assert codebook is not None, "plain_steps must be smaller than steps"
    with torch.no_grad():
        vq.quantize.embedding.weight.copy_(codebook.vectors)
    vq.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def reconstruction_loss(vision: nn.Module, drawn: Tensor, wanted: Tensor, feature_weight: float) -> Tensor:
    """Pixels (L1 and four times L2) and the vision tower's features (cosine distance)."""
    error = drawn - wanted
    seen = vision(pixel_values=drawn).last_hidden_state
    with torch.no_grad():
        shown = vision(pixel_values=wanted).last_hidden_state
    features = 1 - F.cosine_similarity(seen, shown, dim=-1).mean()
    return error.abs().mean() + 4 * error.pow(2).mean() + feature_weight * features
