"""Stage 3 of the long recipe: generate images, first without a condition, then from sparse captions.

There are six thousand codes, most of them rare, and the head's last layer has a row per code. At first that
layer is therefore factored, as the codebook is: a code's logit is the sum of its colors' and its outline's
(:class:`FactoredHead`). Later it is expanded into the stock layer and trained as such.

Understanding is kept: its layers are frozen (they hold text and image in one space), and answers are practised along
the way because the upper layers serve both.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca.data.synthetic.scenes import BACKGROUNDS, COLORS, SceneQuestion
from reca.models.janus.model import Janus, PromptEmbeds
from tools.tiny_bases.evaluation import question_loss
from tools.tiny_bases.janus_tokenizer import Codebook
from tools.tiny_bases.training import Report, one_cycle, update


@dataclass(frozen=True)
class GenerationRecipe:
    """Steps and sizes of the stage."""

    plain_steps: int = 500
    """Steps without any condition."""
    caption_steps: int = 4000
    """Steps on captions with the factored head."""
    whole_steps: int = 1000
    """Steps on captions with the stock head, in which colors and outlines may depend on one another."""
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
    """Codes (N, T) of images to learn, one sparse caption each, and other scenes for the questions."""

    codes: Tensor
    codebook: Codebook
    captions: Sequence[str]
    images: Tensor
    """(M, 3, S, S) uint8"""
    questions: Sequence[Sequence[SceneQuestion]]


class FactoredHead(nn.Module):
    """Logits of codes as sums: colors' plus outline's, over those pairs that are codes.

    Args:
        width: D of the features.
        codebook: Colors and outlines of the codes.
    """

    def __init__(self, width: int, codebook: Codebook) -> None:
        super().__init__()
        self.codebook = codebook
        self.paint = nn.Linear(width, int(codebook.paint.max()) + 1)
        self.outline = nn.Linear(width, int(codebook.outline.max()) + 1)

    def loss(self, features: Tensor, codes: Tensor) -> Tensor:
        """Mean cross-entropy of codes (N,) given features (N, D)."""
        paint, outline = self.paint(features), self.outline(features)
        backgrounds, singles = len(BACKGROUNDS), len(BACKGROUNDS) + len(COLORS)
        log_normalizer = torch.stack(  # the sum over all codes without their logits: backgrounds, colors, pairs
            [
                paint[:, :backgrounds].logsumexp(1) + outline[:, 0],
                paint[:, backgrounds:singles].logsumexp(1) + outline[:, 1],
                paint[:, singles:].logsumexp(1) + outline[:, 2:].logsumexp(1),
            ]
        ).logsumexp(0)
        code_paint = paint.gather(1, self.codebook.paint[codes][:, None])
        code_outline = outline.gather(1, self.codebook.outline[codes][:, None])
        return (log_normalizer - (code_paint + code_outline)[:, 0]).mean()

    @torch.no_grad()
    def expand_into(self, stock: nn.Linear) -> None:
        """Copy the same logits into the stock layer, which has one row per code."""
        paint, outline = self.codebook.paint, self.codebook.outline
        stock.weight.copy_(self.paint.weight[paint] + self.outline.weight[outline])
        stock.bias.copy_(self.paint.bias[paint] + self.outline.bias[outline])


def prepare(model: Janus, captions: Sequence[str]) -> None:
    """Initialize a new model: similar codes get similar embeddings, gist states are centered on captions."""
    with torch.no_grad():
        model.network.model.generation_embeddings.weight.copy_(model.network.model.vqmodel.quantize.embedding.weight)
        blocks = [captions[start : start + 500] for start in range(0, 4000, 500)]
        model.centre_gists(torch.cat([model.gist_states(model.prompt_embeds(block)) for block in blocks]))


@torch.no_grad()
def caption_states(model: Janus, captions: Sequence[str], dropped: bool, batch: int = 500) -> Tensor:
    """Inputs (N, gists, D) of the generation layers, computed once because the layers below are frozen."""
    blocks = [captions[start : start + batch] for start in range(0, len(captions), batch)]
    states = []
    for block in blocks:
        is_dropped = torch.full((len(block),), dropped)
        states.append(model.prefix(model.prompt_embeds(block, None, is_dropped)).embeds)
    return torch.cat(states)


def train(model: Janus, gallery: Gallery, recipe: GenerationRecipe, seed: int, report: Report) -> None:
    """Train the generation layers in place, exactly :meth:`Janus.trainable`; :func:`prepare` a new model first."""
    model.freeze()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    conditional, unconditional = (caption_states(model, gallery.captions, drop) for drop in (False, True))
    model.train()
    head = model.network.model.generation_head
    factored = FactoredHead(head.vision_head.in_features, gallery.codebook)
    generator, rng = torch.Generator().manual_seed(seed), random.Random(f"drawing-{seed}")
    total = recipe.plain_steps + recipe.caption_steps + recipe.whole_steps
    finished = 0
    for phase, steps, rate, dropout in (
        ("image only", recipe.plain_steps, recipe.plain_learning_rate, 1.0),
        ("captions", recipe.caption_steps, recipe.caption_learning_rate, model.prompt_dropout),
        ("stock head", recipe.whole_steps, recipe.whole_learning_rate, model.prompt_dropout),
    ):
        use_stock_head = phase == "stock head"
        if use_stock_head and recipe.plain_steps + recipe.caption_steps:
            factored.expand_into(head.vision_head)
        parameters = weights if use_stock_head else [*weights, *factored.parameters()]
        optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.95), weight_decay=0.01)
        for step in range(steps):
            rows = torch.randint(len(gallery.codes), (recipe.batch_size,), generator=generator)
            drop_mask = torch.rand(len(rows), generator=generator) < dropout
            states = torch.where(drop_mask[:, None, None], unconditional[rows], conditional[rows])
            prefix = PromptEmbeds(states, torch.ones(states.shape[:2], dtype=torch.bool))
            codes = gallery.codes[rows].long()
            features = head.activation_fn(head.proj_out(model.code_states(prefix, codes))).flatten(0, 1)
            if use_stock_head:
                code_loss = F.cross_entropy(head.vision_head(features), codes.flatten())
            else:
                code_loss = factored.loss(features, codes.flatten())
            loss = code_loss
            if step % recipe.questions_every == 0:
                practice = torch.randint(len(gallery.images), (recipe.questions,), generator=generator)
                choices = [gallery.questions[row] for row in practice]
                answers = question_loss(model, gallery.images[practice], choices, rng)
                loss = code_loss + recipe.answer_weight * answers
            update(optimizer, loss, parameters, one_cycle(step, steps, rate))
            finished += 1
            report(finished, total, f"{phase}: codes {code_loss.item():.3f} answers {answers.item():.3f}")
    model.eval()
