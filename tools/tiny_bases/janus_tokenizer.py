"""Stage 2 of the long recipe: the VQ tokenizer, in three steps.

1. *The codebook.* A patch of a scene is a background, a color and the outline between them. k-means over outlines,
   times all colors on all backgrounds, gives a codebook in product form. A codebook trained end to end (4,000 steps,
   26 minutes, 2,048 codes) kept colors and lost shapes: the detector found the whole scene in 73 % of decoded images
   (docs/decisions.md).
2. *The encoder* learns to classify each patch: cross-entropy over all codes, whose vectors (unit length, as the stock
   decoder takes them) are trained too. Targets are soft, so that nearly equal codes count nearly equally: with the
   nearest code as the only target, it got 75 % of codes right and lost more by the rest than it does now.
3. *The decoder* learns to decode the encoder's codes. As in VQGAN (arXiv 2012.09841) its loss is on pixels and on
   perceptual features, here those of the model's own vision tower.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAE

from reca.data.synthetic.scenes import BACKGROUNDS, COLORS, Scene, render
from tools.tiny_bases.training import Report, one_cycle, pixels, update


@dataclass(frozen=True)
class TokenizerRecipe:
    """Steps and sizes of the stage."""

    outline_scenes: int = 6000
    encoder_steps: int = 1200
    encoder_batch_size: int = 64
    decoder_steps: int = 2500
    decoder_batch_size: int = 32
    learning_rate: float = 2e-3
    sharpness: float = 40.0
    """Inverse temperature of the softmax over codes, whose logits are cosines."""
    softness: float = 0.03
    """Temperature of the soft targets: squared error of a whole patch, pixels in [0, 1]."""
    feature_weight: float = 0.5


@dataclass(frozen=True)
class Codebook:
    """All kinds of patches: a background, a color, or an outline between the two. No two kinds look the same."""

    patches: Tensor
    """Their pixels, (K, 3 * p * p) in [0, 1]."""
    vectors: Tensor
    """Initial vectors, (K, D)."""
    paint: Tensor
    """Index of the colors, (K,): single backgrounds, single colors, then all pairs of both."""
    outline: Tensor
    """Index of the outline, (K,): empty, full, then the mixed ones."""

    def distances(self, images: Tensor, patch: int) -> Tensor:
        """Squared errors of every kind at every patch, up to a constant a patch: (N, 3, S, S) -> (N * T, K)."""
        flat = F.unfold(images.float() / 255, patch, stride=patch).transpose(1, 2).flatten(0, 1)
        return self.patches.pow(2).sum(1) - 2 * flat @ self.patches.T


def codebook_size(outlines: int) -> int:
    """Number of codes with that many mixed outlines."""
    return len(BACKGROUNDS) + len(COLORS) + len(BACKGROUNDS) * len(COLORS) * outlines


def build_codebook(scenes: Sequence[Scene], size: int, patch: int, outlines: int, width: int, seed: int) -> Codebook:
    """Build outlines by k-means, times every color on every background, plus each single background and color.

    Args:
        scenes: Scenes whose outlines are clustered.
        size: Side of the images in pixels.
        patch: Side of a patch in pixels.
        outlines: Number of mixed outlines, which cover a part of the patch.
        width: D, length of a code's vector: six numbers for the two colors, the rest for the outline.
        seed: Seed of k-means.
    """
    white, black = dict.fromkeys(COLORS, (255, 255, 255)), dict.fromkeys(BACKGROUNDS, (0, 0, 0))
    rendered = render([replace(scene, shade=0.0) for scene in scenes], size, white, black)[..., :1]
    covered = torch.from_numpy(rendered).permute(0, 3, 1, 2).float() / 255
    mixed = kmeans(F.unfold(covered, patch, stride=patch).transpose(1, 2).flatten(0, 1), outlines, seed)
    shapes = torch.cat([torch.zeros(1, patch * patch), torch.ones(1, patch * patch), mixed])
    ground = torch.tensor(list(BACKGROUNDS.values())).float() / 255
    color = torch.tensor(list(COLORS.values())).float() / 255
    both = torch.cartesian_prod(torch.arange(len(ground)), torch.arange(len(color)))
    paints = torch.cat([ground.repeat(1, 2), color.repeat(1, 2), torch.cat([ground[both[:, 0]], color[both[:, 1]]], 1)])
    singles = len(ground) + len(color)
    pairs = torch.cartesian_prod(torch.arange(singles, len(paints)), torch.arange(2, len(shapes)))
    paint = torch.cat([torch.arange(singles), pairs[:, 0]])
    outline = torch.cat([torch.zeros(len(ground)).long(), torch.ones(len(color)).long(), pairs[:, 1]])
    share = shapes[outline][:, None]  # (K, 1, p*p)
    looks = paints[paint][:, :3, None] * (1 - share) + paints[paint][:, 3:, None] * share
    _, _, axes = torch.pca_lowrank(mixed, q=width - 6)
    parts = [
        F.normalize(paints - paints.mean(0), dim=-1)[paint],
        F.normalize((shapes - mixed.mean(0)) @ axes, dim=-1)[outline],
    ]
    return Codebook(looks.flatten(1), F.normalize(torch.cat(parts, dim=1), dim=-1), paint, outline)


def kmeans(points: Tensor, clusters: int, seed: int, rounds: int = 25) -> Tensor:
    """Return the centers (clusters, d) of the outlines (N, d) that are neither empty nor full."""
    generator = torch.Generator().manual_seed(seed)
    mixed = points[(points.max(1).values > 0.02) & (points.min(1).values < 0.98)]
    centers = mixed[torch.randperm(len(mixed), generator=generator)[:clusters]].clone()
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(block, centers).argmin(1) for block in mixed.split(20_000)])
        number = torch.bincount(nearest, minlength=clusters).float()[:, None]
        sums = torch.zeros_like(centers).index_add_(0, nearest, mixed)
        fresh = mixed[torch.randint(len(mixed), (clusters,), generator=generator)]
        centers = torch.where(number > 0, sums / number.clamp(min=1), fresh)
    return centers


def train_encoder(
    vq: JanusVQVAE, codebook: Codebook, images: Tensor, recipe: TokenizerRecipe, seed: int, report: Report
) -> None:
    """Steps 1 and 2 in place: the encoder and the codes' vectors.

    Args:
        vq: The stock tokenizer.
        codebook: All codes.
        images: (N, 3, S, S) uint8.
        recipe: Steps and sizes.
        seed: Seed of the batches.
        report: Called after every step.
    """
    generator = torch.Generator().manual_seed(seed)
    grid = int(vq.config.num_patches)
    vectors = nn.Parameter(codebook.vectors.clone())
    vq.requires_grad_(True)
    vq.to(memory_format=torch.channels_last).train()
    weights = [*vq.encoder.parameters(), *vq.quant_conv.parameters(), vectors]
    optimizer = torch.optim.AdamW(weights, recipe.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4)
    for step in range(recipe.encoder_steps):
        rows = torch.randint(len(images), (recipe.encoder_batch_size,), generator=generator)
        latents = vq.quant_conv(vq.encoder(_channels_last(images[rows]))).permute(0, 2, 3, 1).flatten(0, 2)
        cosines = F.normalize(latents, dim=-1) @ F.normalize(vectors, dim=-1).T
        errors = codebook.distances(images[rows], images.shape[-1] // grid)
        loss = F.cross_entropy(recipe.sharpness * cosines, torch.softmax(-errors / recipe.softness, dim=1))
        update(optimizer, loss, weights, one_cycle(step, recipe.encoder_steps, recipe.learning_rate))
        accuracy = (cosines.argmax(1) == errors.argmin(1)).float().mean().item()
        report(step + 1, recipe.encoder_steps, f"codes {loss.item():.3f}, accuracy {accuracy:.3f}")
    with torch.no_grad():
        vq.quantize.embedding.weight.copy_(F.normalize(vectors, dim=-1))
    vq.to(memory_format=torch.contiguous_format).eval()


@torch.no_grad()
def encode(vq: JanusVQVAE, images: Tensor, batch: int = 250) -> Tensor:
    """Encode uint8 images (N, 3, S, S) to codes (N, T)."""
    vq.eval()
    return torch.cat([vq.encode(pixels(block)).image_tokens.view(len(block), -1) for block in images.split(batch)])


def train_decoder(
    vq: JanusVQVAE, vision: nn.Module, images: Tensor, recipe: TokenizerRecipe, seed: int, report: Report
) -> None:
    """Step 3 in place: the decoder, on the encoder's codes; ``vision`` gives the perceptual features."""
    generator = torch.Generator().manual_seed(seed)
    grid = int(vq.config.num_patches)
    vision.requires_grad_(False)
    vq.requires_grad_(True)
    codes = encode(vq, images)
    vq.to(memory_format=torch.channels_last).train()
    weights = [*vq.decoder.parameters(), *vq.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(weights, recipe.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4)
    vectors = vq.quantize.embedding.weight.detach()
    for step in range(recipe.decoder_steps):
        rows = torch.randint(len(images), (recipe.decoder_batch_size,), generator=generator)
        latents = vectors[codes[rows]].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
        decoded = vq.decoder(vq.post_quant_conv(latents.contiguous(memory_format=torch.channels_last)))
        loss = perceptual_loss(vision, decoded, _channels_last(images[rows]), recipe.feature_weight)
        update(optimizer, loss, weights, one_cycle(step, recipe.decoder_steps, recipe.learning_rate))
        report(step + 1, recipe.decoder_steps, f"pixels and features {loss.item():.4f}")
    vq.to(memory_format=torch.contiguous_format).eval()


def perceptual_loss(vision: nn.Module, decoded: Tensor, original: Tensor, feature_weight: float) -> Tensor:
    """Pixel errors (L1 and four times L2) and the vision tower's features (cosine distance)."""
    error = decoded - original
    decoded_features = vision(pixel_values=decoded).last_hidden_state
    with torch.no_grad():
        original_features = vision(pixel_values=original).last_hidden_state
    features = 1 - F.cosine_similarity(decoded_features, original_features, dim=-1).mean()
    return error.abs().mean() + 4 * error.pow(2).mean() + feature_weight * features


def _channels_last(images: Tensor) -> Tensor:
    return pixels(images).contiguous(memory_format=torch.channels_last)
