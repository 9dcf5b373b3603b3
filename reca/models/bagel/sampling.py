"""What BAGEL's network is asked for: errors of its velocities, images drawn step by step, words one by one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from reca.data.resize import Resize
from reca.models.bagel.network import BagelNetwork
from reca.models.bagel.packing import Segment
from reca.models.bagel.vision import patchify
from reca.models.sampling import classifier_free_guidance, greedy_decode

Renorm = Literal["global", "channel", "text_channel"]
"""Over what a guided velocity is shrunk back to the length of the unguided one: the whole image, every token, or every
token after the guidance by text but before the one by image."""


@dataclass(frozen=True)
class FlowSample:
    """One image that is to be learnt, its noise, and what it is drawn from."""

    latents: Tensor
    """Clean and scaled, (C, h, w)."""
    noise: Tensor
    """Of its latent tokens, (T, p · p · C)."""
    time: Tensor
    """Scalar from N(0, 1), before sigmoid and shift."""
    semantic: Tensor | None = None
    """Understanding embeddings (N, D)."""
    prompt: Sequence[int] | None = None
    """Token ids; ``None``: dropped."""


@dataclass(frozen=True)
class Conditions:
    """What images are drawn from, per sample, in full and without parts of it, for guidance."""

    full: Sequence[Sequence[Segment]]
    without_text: Sequence[Sequence[Segment]] | None = None
    without_image: Sequence[Sequence[Segment]] | None = None


@dataclass(frozen=True)
class Guidance:
    """How velocities are guided, and how many are asked for."""

    text_scale: float
    image_scale: float
    interval: tuple[float, float]
    """Guidance acts where t, after the shift, is in (first, second]."""
    renorm: Renorm
    num_steps: int
    shift: float
    """Of the times; see :func:`shift_times`."""


def condition(network: BagelNetwork, semantic: Tensor | None, prompt: Sequence[int] | None) -> list[Segment]:
    """An image by its understanding embeddings (N, D), then a text; either may be missing."""
    stretches = [] if semantic is None else [network.seen(semantic)]
    return stretches if prompt is None else [*stretches, network.text(prompt)]


def squared_errors(network: BagelNetwork, drawings: Sequence[FlowSample], shift: float) -> list[Tensor]:
    """|v - (ε - x_0)|² of every latent token, (T_i, p · p · C) float32 each; images may differ in size."""
    device, patch = network.vae2llm.weight.device, network.sizes.latent_patch
    samples, wanted = [], []
    for drawing in drawings:
        clean = patchify(drawing.latents.to(device), patch)
        noise = drawing.noise.to(device)
        time = shift_times(drawing.time.to(device).sigmoid(), shift)
        grid = (drawing.latents.shape[1] // patch, drawing.latents.shape[2] // patch)
        shown = network.drawn(noised(clean, noise, time), grid, time)
        samples.append([*condition(network, drawing.semantic, drawing.prompt), shown])
        wanted.append(velocity(clean, noise))
    found = network.velocities(samples)
    return [(ours.float() - truth).square() for ours, truth in zip(found, wanted, strict=True)]


@torch.no_grad()
def draw_latents(
    network: BagelNetwork, conditions: Conditions, grid: tuple[int, int], noise: Tensor, guidance: Guidance
) -> Tensor:
    """Integrate from noise to latent tokens, (B, T, p · p · C) both; ``conditions`` are read once, before that.

    The guided and the unguided velocities come from one forward pass over the batch, two or three times as long.
    """
    parts = [part for part in (conditions.full, conditions.without_text, conditions.without_image) if part]
    _, context = network.read([sample for part in parts for sample in part])
    device, batch = network.vae2llm.weight.device, len(noise)

    def velocity_at(state: Tensor, time: float) -> Tensor:
        count = len(parts) if guidance.interval[0] < time <= guidance.interval[1] else 1
        moment = torch.tensor(time, device=device)
        samples = [[network.drawn(row, grid, moment)] for _ in range(count) for row in state]
        found = torch.stack(network.velocities(samples, context.rows(slice(0, count * batch)))).float()
        full, *others = found.chunk(count)
        if not others:
            return full
        without_text = others.pop(0) if conditions.without_text else None
        without_image = others.pop(0) if conditions.without_image else None
        scales = guidance.text_scale, guidance.image_scale
        return guide(full, without_text, without_image, *scales, guidance.renorm)

    return integrate(noise.to(device), velocity_at, guidance.num_steps, guidance.shift)


@torch.no_grad()
def answer_ids(
    network: BagelNetwork, images: Sequence[Tensor], questions: Sequence[Sequence[int]], max_tokens: int
) -> list[list[int]]:
    """Greedy answers to one question about each image (3, H_i, W_i), as token ids without markers."""
    seen = network.see(images)
    _, context = network.read([condition(network, *pair) for pair in zip(seen, questions, strict=True)])

    def next_logits(tokens: Tensor) -> Tensor:
        nonlocal context
        segments = [[Segment(embed[None], causal=True)] for embed in network.embed(tokens)]
        hidden, context = network.read(segments, context)
        return network.language_model.lm_head(hidden[:, 0])

    first = torch.full((len(questions),), network.markers.bos)
    return greedy_decode(next_logits(first), next_logits, network.markers.eos, max_tokens)


def fit(image: Tensor, resize: Resize) -> Tensor:
    """Resize (3, H, W) in [-1, 1]; an image that fits as it is stays as it is."""
    size = resize.size(*image.shape[1:])
    if size == image.shape[1:]:
        return image
    resized = F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(-1, 1)


def shift_times(times: Tensor, shift: float) -> Tensor:
    """Move times towards noise: s t / (1 + (s - 1) t) (Esser et al., arXiv 2403.03206, equation 23)."""
    return shift * times / (1 + (shift - 1) * times)


def noised(clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """x_t; ``times`` broadcasts against the images."""
    return (1 - times) * clean + times * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """What a network is to say at x_t, whatever t."""
    return noise - clean


def guide(
    full: Tensor,
    without_text: Tensor | None,
    without_image: Tensor | None,
    text_scale: float,
    image_scale: float,
    renorm: Renorm,
) -> Tensor:
    """Classifier-free guidance by text and by image (Brooks et al., arXiv 2211.09800), without growing the velocity.

    Args:
        full: Velocities given text and image, (B, T, C).
        without_text: Given the image only; ``None``: no guidance by text.
        without_image: Given the text only; ``None``: no guidance by image.
        text_scale: Weight of the text; 1 changes nothing.
        image_scale: Weight of the image; 1 changes nothing.
        renorm: Over what lengths are compared; a guided velocity is never longer than ``full``.
    """
    guided = full if without_text is None else classifier_free_guidance(full, without_text, text_scale)
    if renorm == "text_channel":
        guided = _no_longer(guided, full, (-1,))
    if without_image is not None:
        guided = classifier_free_guidance(guided, without_image, image_scale)
    if renorm == "text_channel":
        return guided
    return _no_longer(guided, full, (-2, -1) if renorm == "global" else (-1,))


def _no_longer(vectors: Tensor, than: Tensor, dims: tuple[int, ...]) -> Tensor:
    lengths = [torch.linalg.vector_norm(each, dim=dims, keepdim=True) for each in (than, vectors)]
    return vectors * (lengths[0] / (lengths[1] + 1e-8)).clamp(max=1)


def integrate(noise: Tensor, velocity_at: Callable[[Tensor, float], Tensor], num_steps: int, shift: float) -> Tensor:
    """Euler's method from t = 1 to 0.

    Args:
        noise: x_1.
        velocity_at: (x_t, t) -> velocities.
        num_steps: Calls of ``velocity_at``; the times between are even before they are shifted.
        shift: See :func:`shift_times`.

    Raises:
        ValueError: There is not a single step.
    """
    if num_steps < 1:
        raise ValueError(f"drawing needs at least one step, got num_steps={num_steps}")
    times = shift_times(torch.linspace(1, 0, num_steps + 1), shift)
    state = noise
    for now, then in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        state = state - (now - then) * velocity_at(state, now)
    return state
