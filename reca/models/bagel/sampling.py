"""BAGEL's rectified flow (Liu et al., arXiv 2209.03003) and its greedy answers.

    x_t = (1 - t) x_0 + t ε,   v = dx/dt = ε - x_0,   t in [0, 1]

Training compares v; sampling integrates it from noise (t = 1) to latents (t = 0) by Euler's method.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reca.data.resize import Resize
from reca.models.bagel.network import BagelNetwork
from reca.models.bagel.packing import Segment
from reca.models.bagel.vision import patchify
from reca.models.sampling import Sampling, classifier_free_guidance, greedy_decode

Samples = Sequence[Sequence[Segment]]
"""Segments of every sample's condition."""
NUM_STEPS = 49
"""Default steps: those between the official 50 points of time."""


@dataclass(frozen=True)
class FlowSample:
    """A training sample of the flow: clean latents, noise, time and condition."""

    latents: Tensor
    """x_0, scaled, (C, h, w)."""
    noise: Tensor
    """ε of the latent tokens, (T, p · p · C)."""
    time: Tensor
    """Scalar from N(0, 1), before sigmoid and shift."""
    semantic: Tensor | None = None
    """Understanding embeddings (N, D)."""
    prompt: Sequence[int] | None = None
    """Token ids; ``None``: dropped."""


def condition(network: BagelNetwork, semantic: Tensor | None, prompt: Sequence[int] | None) -> list[Segment]:
    """Return the segments of an image (embeddings (N, D)) and a text (token ids); either may be ``None``."""
    segments = [] if semantic is None else [network.image_segment(semantic)]
    return segments if prompt is None else [*segments, network.text_segment(prompt)]


def squared_errors(network: BagelNetwork, batch: Sequence[FlowSample], shift: float) -> list[Tensor]:
    """Return |v - (ε - x_0)|² of every latent token, (T_i, p · p · C) float32 each; images may differ in size."""
    device, patch = network.vae2llm.weight.device, network.sizes.latent_patch
    sequences, targets = [], []
    for sample in batch:
        clean = patchify(sample.latents.to(device), patch)
        noise = sample.noise.to(device)
        time = shift_times(sample.time.to(device).sigmoid(), shift)
        grid = (sample.latents.shape[1] // patch, sample.latents.shape[2] // patch)
        x_t = (1 - time) * clean + time * noise
        segments = condition(network, sample.semantic, sample.prompt)
        sequences.append([*segments, network.latent_segment(x_t, grid, time)])
        targets.append(noise - clean)
    velocities = network.velocities(sequences)
    return [(velocity.float() - target).square() for velocity, target in zip(velocities, targets, strict=True)]


@torch.no_grad()
def sample_latent_tokens(
    network: BagelNetwork,
    conditions: Sequence[Samples],
    grid: tuple[int, int],
    noise: Tensor,
    sampling: Sampling,
    shift: float,
) -> Tensor:
    """Integrate noise to latent tokens, (B, T, p · p · C) both; conditions are computed once and cached.

    Guided and unguided velocities come from one forward pass over a batch of two or three times the length.
    ``conditions`` are complete, without text, and without image; guidance takes as many as it needs. Without text
    guidance there is no image guidance (official).
    """
    branches = 1 if sampling.guidance_scale <= 1 else 2 if sampling.image_guidance_scale <= 1 else 3
    low, high = torch.tensor(sampling.guidance_interval).tolist()  # in float32, as the times
    _, context = network.prefill([sample for part in conditions[:branches] for sample in part])
    device, batch = network.vae2llm.weight.device, len(noise)

    def velocity_at(x_t: Tensor, time: float) -> Tensor:
        count = branches if low < time <= high else 1
        scalar = torch.tensor(time, device=device)
        samples = [[network.latent_segment(row, grid, scalar)] for _ in range(count) for row in x_t]
        velocities = torch.stack(network.velocities(samples, context.rows(slice(0, count * batch)))).float()
        return velocities if count == 1 else guide(sampling, *velocities.chunk(count))

    return integrate(noise.to(device), velocity_at, sampling.num_steps or NUM_STEPS, shift)


def shift_times(times: Tensor, shift: float) -> Tensor:
    """Move times towards noise: s t / (1 + (s - 1) t) (Esser et al., arXiv 2403.03206, equation 23)."""
    return shift * times / (1 + (shift - 1) * times)


def guide(sampling: Sampling, full: Tensor, without_text: Tensor, without_image: Tensor | None = None) -> Tensor:
    """Guide velocities by text and by image (Brooks et al., arXiv 2211.09800) without making them longer.

    Args:
        sampling: Scales, and the scope and lower limit of the renormalisation.
        full: Velocities given text and image, (B, T, C).
        without_text: Velocities given the image only.
        without_image: Velocities given the text only; ``None``: no image guidance.
    """
    renorm, minimum = sampling.guidance_renorm, sampling.guidance_renorm_min
    guided = classifier_free_guidance(full, without_text, sampling.guidance_scale)
    if renorm == "text_channel":
        guided = _clip_length(guided, full, (-1,), minimum)
    if without_image is not None:
        guided = classifier_free_guidance(guided, without_image, sampling.image_guidance_scale)
    if renorm == "text_channel":
        return guided
    return _clip_length(guided, full, (-2, -1) if renorm == "global" else (-1,), minimum)


def _clip_length(vectors: Tensor, reference: Tensor, dims: tuple[int, ...], minimum: float) -> Tensor:
    limit, length = (torch.linalg.vector_norm(values, dim=dims, keepdim=True) for values in (reference, vectors))
    return vectors * (limit / (length + 1e-8)).clamp(min=minimum, max=1)


def integrate(noise: Tensor, velocity_at: Callable[[Tensor, float], Tensor], num_steps: int, shift: float) -> Tensor:
    """Integrate from t = 1 to 0 by Euler's method."""
    times = shift_times(torch.linspace(1, 0, num_steps + 1), shift)
    x_t = noise
    for time, next_time in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        x_t = x_t - (time - next_time) * velocity_at(x_t, time)
    return x_t


@torch.no_grad()
def answer_ids(
    network: BagelNetwork, images: Sequence[Tensor], questions: Sequence[Sequence[int]], max_tokens: int
) -> list[list[int]]:
    """Return greedy answers to one question per image (3, H_i, W_i), as token ids without markers."""
    pairs = zip(network.encode_images(images), questions, strict=True)
    _, context = network.prefill([condition(network, embeds, question) for embeds, question in pairs])

    def next_logits(tokens: Tensor) -> Tensor:
        nonlocal context
        segments = [[Segment(embed[None], causal=True)] for embed in network.embed(tokens)]
        hidden, context = network.prefill(segments, context)
        return network.language_model.lm_head(hidden[:, 0])

    first = torch.full((len(questions),), network.markers.bos)
    return greedy_decode(next_logits(first), next_logits, network.markers.eos, max_tokens)


def fit(image: Tensor, resize: Resize) -> Tensor:
    """Resize (3, H, W) in [-1, 1]; an image that has the size already is returned unchanged."""
    size = resize.size(*image.shape[1:])
    if size == image.shape[1:]:
        return image
    resized = F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(-1, 1)
