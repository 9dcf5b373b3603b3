"""Stage 3 of pre-training: draw, first from nothing, then from sparse captions until more of them gains nothing.

There are six thousand codes, most of them rare, and each has a row of its own in the head's last layer. While the
model is young that layer is therefore factored, as the codebook is: a code's logit is the sum of its colours' and its
outline's (:class:`FactoredHead`). Later it is unfolded into the stock layer and trained on as such.

What understanding has learnt stays: the reading layers are frozen (they hold text and image in one space),
and answers are practised along the way because the upper layers serve both.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca.data.synthetic.scenes import BACKGROUNDS, COLORS, Question
from reca.models.janus.model import Janus, PromptEmbeds
from tools.tiny_bases.janus_tokenizer import Codebook
from tools.tiny_bases.janus_understanding import asked_loss
from tools.tiny_bases.training import Report, one_cycle, update


@dataclass(frozen=True)
class Recipe:
    """Steps and sizes of the stage."""

    plain_steps: int = 500
    """Steps that learn what images look like, without any condition."""
    caption_steps: int = 4000
    """Steps on captions with the factored head."""
    whole_steps: int = 1000
    """Steps on captions with the stock head, in which colours and outlines may depend on one another."""
    batch_size: int = 64
    questions_every: int = 2
    """Steps between two batches of questions."""
    questions: int = 16
    plain_learning_rate: float = 2e-3
    caption_learning_rate: float = 2e-3
    whole_learning_rate: float = 7e-4
    answer_weight: float = 0.25


@dataclass(frozen=True)
class Gallery:
    """Images to learn to draw: codes (N, T), one sparse caption each, and scenes for the questions."""

    codes: Tensor
    codebook: Codebook
    captions: Sequence[str]
    images: Tensor
    """(M, 3, S, S) uint8"""
    questions: Sequence[Sequence[Question]]


class FactoredHead(nn.Module):
    """Logits of codes as sums: colours' plus outline's, over those pairs that are codes.

    Args:
        width: D of the features.
        codebook: Which colours and which outline a code has.
    """

    def __init__(self, width: int, codebook: Codebook) -> None:
        super().__init__()
        self.codebook = codebook
        self.paint = nn.Linear(width, int(codebook.paint.max()) + 1)
        self.outline = nn.Linear(width, int(codebook.outline.max()) + 1)

    def loss(self, features: Tensor, codes: Tensor) -> Tensor:
        """Mean cross-entropy of codes (N,) given features (N, D)."""
        paint, outline = self.paint(features), self.outline(features)
        grounds, alone = len(BACKGROUNDS), len(BACKGROUNDS) + len(COLORS)
        everything = torch.stack(  # the sum over all codes, without making them: backgrounds, colours, pairs
            [
                paint[:, :grounds].logsumexp(1) + outline[:, 0],
                paint[:, grounds:alone].logsumexp(1) + outline[:, 1],
                paint[:, alone:].logsumexp(1) + outline[:, 2:].logsumexp(1),
            ]
        ).logsumexp(0)
        right = paint.gather(1, self.codebook.paint[codes][:, None]) + outline.gather(
            1, self.codebook.outline[codes][:, None]
        )
        return (everything - right[:, 0]).mean()

    @torch.no_grad()
    def unfold(self, stock: nn.Linear) -> None:
        """Let the stock layer, one row a code, say the same."""
        paint, outline = self.codebook.paint, self.codebook.outline
        stock.weight.copy_(self.paint.weight[paint] + self.outline.weight[outline])
        stock.bias.copy_(self.paint.bias[paint] + self.outline.bias[outline])


def prepare(model: Janus, captions: Sequence[str]) -> None:
    """Before the first step: codes that look alike start alike, and the gist states are centred on captions."""
    with torch.no_grad():
        model.network.model.generation_embeddings.weight.copy_(model.network.model.vqmodel.quantize.embedding.weight)
        blocks = [captions[start : start + 500] for start in range(0, 4000, 500)]
        model.centre_gists(torch.cat([model.gist_states(model.prompt_embeds(block)) for block in blocks]))


@torch.no_grad()
def read_all(model: Janus, captions: Sequence[str], dropped: bool, batch: int = 500) -> Tensor:
    """What the drawing layers see of captions, (N, gists, D): the reading layers are frozen, so once is enough."""
    blocks = [captions[start : start + batch] for start in range(0, len(captions), batch)]
    seen = []
    for block in blocks:
        hidden = torch.full((len(block),), dropped)
        seen.append(model.prefix(model.prompt_embeds(block, None, hidden)).embeds)
    return torch.cat(seen)


def train(model: Janus, gallery: Gallery, recipe: Recipe, seed: int, report: Report) -> None:
    """Teach the drawing layers in place; what :meth:`Janus.trainable` leaves out does not move.

    A model that draws already goes on from where it is: :func:`prepare` is for new ones.
    """
    model.freeze()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    told, untold = (read_all(model, gallery.captions, dropped) for dropped in (False, True))
    model.train()
    head = model.network.model.generation_head
    factored = FactoredHead(head.vision_head.in_features, gallery.codebook)
    generator, rng = torch.Generator().manual_seed(seed), random.Random(f"drawing-{seed}")
    total = recipe.plain_steps + recipe.caption_steps + recipe.whole_steps
    done = 0
    for phase, steps, rate, dropout in (
        ("image only", recipe.plain_steps, recipe.plain_learning_rate, 1.0),
        ("captions", recipe.caption_steps, recipe.caption_learning_rate, model.prompt_dropout),
        ("whole head", recipe.whole_steps, recipe.whole_learning_rate, model.prompt_dropout),
    ):
        whole = phase == "whole head"
        if whole and recipe.plain_steps + recipe.caption_steps:
            factored.unfold(head.vision_head)
        moving = weights if whole else [*weights, *factored.parameters()]
        optimizer = torch.optim.AdamW(moving, rate, betas=(0.9, 0.95), weight_decay=0.01)
        for step in range(steps):
            rows = torch.randint(len(gallery.codes), (recipe.batch_size,), generator=generator)
            dropped = torch.rand(len(rows), generator=generator) < dropout
            states = torch.where(dropped[:, None, None], untold[rows], told[rows])
            prefix = PromptEmbeds(states, torch.ones(states.shape[:2], dtype=torch.bool))
            codes = gallery.codes[rows].long()
            features = head.activation_fn(head.proj_out(model.code_states(prefix, codes))).flatten(0, 1)
            if whole:
                drawing = F.cross_entropy(head.vision_head(features), codes.flatten())
            else:
                drawing = factored.loss(features, codes.flatten())
            loss = drawing
            if step % recipe.questions_every == 0:
                asked = torch.randint(len(gallery.images), (recipe.questions,), generator=generator)
                answers = asked_loss(model, gallery.images[asked], [gallery.questions[row] for row in asked], rng)
                loss = drawing + recipe.answer_weight * answers
            update(optimizer, loss, moving, one_cycle(step, steps, rate))
            done += 1
            report(done, total, f"{phase}: codes {drawing.item():.3f} answers {answers.item():.3f}")
    model.eval()
