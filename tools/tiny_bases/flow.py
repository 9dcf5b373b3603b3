"""Drawing in the long recipe: OpenUni's SANA learns it from sparse captions.

What reads captions is frozen, so the states of all captions are computed once, and a step costs connector, projector
and SANA only.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from reca.models.openuni.model import OpenUni
from tools.tiny_bases import openuni_tiny
from tools.tiny_bases.evaluation import drawing_scores
from tools.tiny_bases.optimization import optimize

NAME_SIZE = 1.25
"""Of a query's name, in standard deviations of a state's numbers."""


@dataclass(frozen=True)
class DrawingRecipe:
    """Steps and sizes of the stage."""

    steps: int = 4500
    batch_size: int = 128
    learning_rate: float = 2e-3
    dropout: float = 0.1
    """Share of samples without a caption, for classifier-free guidance."""


@dataclass(frozen=True)
class Gallery:
    """Images to learn drawing from, encoded."""

    latents: Tensor
    """(N, C, h, w) float16, scaled"""
    states: Tensor
    """(N + 1, Q, D) float16: of a sparse caption per image, and of no caption"""


@torch.no_grad()
def caption_states(model: OpenUni, captions: Sequence[str], batch: int = 500) -> Tensor:
    """Return the query states of captions (N, Q, D), and of no caption in a last row."""
    blocks = [list(captions[start : start + batch]) for start in range(0, len(captions), batch)]
    states = [model.network.query_states(*model.prompt_embeds(block)) for block in blocks]
    nothing = model.prompt_embeds([""], None, torch.ones(1, dtype=torch.bool))
    return torch.cat([*states, model.network.query_states(*nothing)])


def named_states(states: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix (D, D) that scales states (N, Q, D) and adds to each the name of its query, and their mean.

    Nearly all of a state's offset is common to all queries, and which query it belongs to is a small part of it, so
    that SANA, whose condition has no positions, would confuse the kinds of shapes. The names are read from the states
    by least squares, where the states that say something count most, and put where states hardly vary.
    """
    count, width = states.shape[1:]
    mean = states.mean((0, 1))
    rows = (states - mean).flatten(0, 1).double()
    says = (states - states.mean(0)).pow(2).mean(-1)
    weights = (says / says.mean() + 0.1).flatten().double()[:, None]
    names = (torch.eye(count, dtype=torch.float64) - 1 / count).repeat(len(states), 1)
    moments = rows.T @ (weights * rows)
    moments += 1e-4 * moments.diagonal().mean() * torch.eye(width)
    reading = torch.linalg.solve(moments, rows.T @ (weights * names))
    free = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, :count]
    scaling = torch.eye(width) / rows.std()
    return (scaling + NAME_SIZE * width**0.5 * free @ reading.T).float(), mean


@torch.no_grad()
def prepare(model: OpenUni, states: Tensor) -> None:
    """Initialize connector, projector and SANA: conditions are centered states with names, blocks near-identities."""
    network = model.network
    weight, mean = named_states(states)
    network.projector.weight.copy_(weight)
    network.projector.bias.copy_(-weight @ mean)
    for layer in network.connector.layers:
        for last in (layer.self_attn.out_proj, layer.mlp.fc2):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    transformer = network.transformer
    width = transformer.proj_out.in_features
    for gate in (2, 5):  # of self-attention and feed-forward
        transformer.time_embed.linear.bias[gate * width : (gate + 1) * width] = 1
    for block in transformer.transformer_blocks:
        for last in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.conv_point):
            nn.init.normal_(last.weight, std=0.02)
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)


def train(folder: Path, model: OpenUni, make_gallery: Callable[[], Gallery], recipe: DrawingRecipe, seed: int) -> float:
    """Train connector, projector and SANA in place; return the CPU seconds."""
    make_gallery = functools.cache(make_gallery)  # a finished stage needs none
    torch.manual_seed(seed)
    if not (folder / "drawing.pt").is_file():
        prepare(model, make_gallery().states.float())
    model.requires_grad_(False)
    model.train()
    weights = {name: value for name, value in model.named_parameters() if openuni_tiny.learns_generation(name)}
    for value in weights.values():
        value.requires_grad_(True)

    def loss_at(step: int) -> tuple[Tensor, str]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        gallery = make_gallery()
        rows = torch.randint(len(gallery.latents), (recipe.batch_size,), generator=generator)
        is_dropped = torch.rand(len(rows), generator=generator) < recipe.dropout
        given = gallery.states[torch.where(is_dropped, len(gallery.latents), rows)].float()
        target = gallery.latents[rows].float()
        noise = torch.randn(target.shape, generator=generator)
        sigma = torch.randn(len(rows), generator=generator).sigmoid()  # the middle of the path teaches most
        mixed = torch.lerp(target, noise, sigma[:, None, None, None])
        velocity = model.network.velocity(mixed, 1000 * sigma, model.network.condition(given))
        loss = (velocity - (noise - target)).pow(2).mean()
        return loss, f"loss {loss.item():.4f}"

    def evaluate() -> str:
        model.eval()
        scores = drawing_scores(model, prompts_per_category=20, images_per_prompt=1)
        model.train()
        return str(scores)

    seconds = optimize(
        folder / "drawing.pt",
        weights,
        loss_at,
        steps=recipe.steps,
        rate=recipe.learning_rate,
        is_inner=openuni_tiny.is_inner,
        evaluate=evaluate,
    )
    model.eval()
    return seconds
