"""What BAGEL's network is asked for: errors of its velocities, images drawn step by step, words one by one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reca.data.resize import Resize
from reca.models import flow
from reca.models.bagel.network import BagelNetwork, Context
from reca.models.bagel.packing import Segment
from reca.models.bagel.patches import patchify


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
    renorm: flow.Renorm
    num_steps: int
    shift: float
    """Of the times; see :func:`reca.models.flow.shift_times`."""


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
        time = flow.shift_times(drawing.time.to(device).sigmoid(), shift)
        grid = (drawing.latents.shape[1] // patch, drawing.latents.shape[2] // patch)
        shown = network.drawn(flow.noised(clean, noise, time), grid, time)
        samples.append([*condition(network, drawing.semantic, drawing.prompt), shown])
        wanted.append(flow.velocity(clean, noise))
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
        return flow.guide(full, without_text, without_image, *scales, guidance.renorm)

    return flow.integrate(noise.to(device), velocity_at, guidance.num_steps, guidance.shift)


@torch.no_grad()
def answer_ids(
    network: BagelNetwork, images: Sequence[Tensor], questions: Sequence[Sequence[int]], max_tokens: int
) -> list[list[int]]:
    """Greedy answers to one question about each image (3, H_i, W_i), as token ids without markers."""
    seen = network.see(images)
    _, context = network.read([condition(network, *pair) for pair in zip(seen, questions, strict=True)])
    newest = [network.markers.bos] * len(questions)
    rows: list[list[int]] = [[] for _ in questions]
    ended = [False] * len(questions)
    for _ in range(max_tokens):
        hidden, context = _read_tokens(network, newest, context)
        newest = network.language_model.lm_head(hidden).argmax(dim=-1).tolist()
        ended = [was or token == network.markers.eos for was, token in zip(ended, newest, strict=True)]
        for row, token, over in zip(rows, newest, ended, strict=True):
            if not over:
                row.append(token)
        if all(ended):
            break
    return rows


def _read_tokens(network: BagelNetwork, tokens: Sequence[int], context: Context) -> tuple[Tensor, Context]:
    hidden, context = network.read([[Segment(each[None], causal=True)] for each in network.embed(tokens)], context)
    return hidden[:, 0], context


def fit(image: Tensor, resize: Resize) -> Tensor:
    """Resize (3, H, W) in [-1, 1]; an image that fits as it is stays as it is."""
    size = resize.size(*image.shape[1:])
    if size == image.shape[1:]:
        return image
    resized = F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(-1, 1)
