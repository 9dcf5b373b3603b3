"""Harmon: a language model and a masked autoencoder that understands and draws in one space (arXiv 2503.21979).

The networks and their wiring are :mod:`reca.models.harmon.network`; this file adds what RecA needs around them.

    h_v  = proj_in(MAR encoder(KL16(image)))                          the condition
    L    = diffusion loss of the hidden latents given the visible ones and [user turn: h_v, template]

The encoder is shared, so RecA trains it and h_v moves: only the latents may be cached. Gradients into h_v are scaled
by 0.1 (official RecA). Prompts are Qwen's chat turns without a system turn; h_v stands behind the opening of the user
turn.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer
from transformers.cache_utils import DynamicCache

from reca.models.base import (
    RECONSTRUCTION_PROMPT,
    Cacheable,
    Dialogue,
    ImageSpec,
    Loss,
    Sampling,
    Semantic,
    Target,
    UnifiedModel,
)
from reca.models.harmon.checkpoint import load_network
from reca.models.harmon.diffusion_head import TRAINING_STEPS
from reca.models.harmon.mar import Visible, hide_first, random_mask, revealing_schedule, take
from reca.models.harmon.network import UNUSED, HarmonNetwork, Prefix
from reca.models.sampling import greedy_decode
from reca.models.tokens import IGNORE_INDEX, masked_indices, next_token_loss
from reca.models.weights import write_weights
from reca.runtime.files import atomic_folder, write_json
from reca.runtime.seeding import SampleRng

USER, END, ASSISTANT = "<|im_start|>user\n", "<|im_end|>", "\n<|im_start|>assistant\n"
DRAW, DRAW_ANYTHING = "Generate an image: {}", "Generate an image."
NUM_STEPS = 64
"""Steps of drawing unless the caller chooses (official; guidance 3.0)."""
MAX_ANSWER_TOKENS = 64
ENCODER = ("mar.z_proj.", "mar.z_proj_ln.", "mar.fake_latent", "mar.encoder_", "proj_in.")
"""Beginnings of the names of what makes h_v of latents."""
LATENTS = ("network.vae.encoder.", "network.vae.quant_conv.")


@dataclass(frozen=True)
class ChatTurn:
    """Token ids of one sample, and where among them an image goes."""

    ids: Sequence[int]
    image: Tensor | None = None
    """Embeddings (N, D), put before ``ids[place]``."""
    place: int = 0
    labels: Sequence[int] | None = None
    """What is asked for at each of ``ids``; ``IGNORE_INDEX``: nothing."""


class Harmon(UnifiedModel):
    """Harmon behind the contract of :class:`UnifiedModel`.

    Options beyond those of all families: ``gradient_scale``, ``train_encoder``, ``train_llm``; see ``HarmonModel`` in
    ``reca/config/model.py``.

    Raises:
        ValueError: A size is no multiple of what one token stands for.
    """

    family: ClassVar[str] = "harmon"
    encoder_prefixes: ClassVar[Mapping[Cacheable, tuple[str, ...]]] = {
        "semantic": (*LATENTS, *(f"network.{name}" for name in ENCODER)),
        "target": LATENTS,
    }
    no_weight_decay: ClassVar[tuple[str, ...]] = ("network.mar.diffloss.",)

    def __init__(
        self, network: HarmonNetwork, config: Mapping[str, Any], tokenizer: Any, options: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.network, self.tokenizer = network, tokenizer
        self.config = dict(config)
        self.prompt_dropout = float(options["prompt_dropout"])
        self.gradient_scale = float(options["gradient_scale"])
        self.train_encoder = bool(options["train_encoder"])
        self.train_llm = bool(options["train_llm"])
        sizes = network.mar.sizes
        generation_size = int(options["generation_size"] or sizes.img_size)
        understanding_size = int(options["understanding_size"] or generation_size)
        for name, size in (("generation_size", generation_size), ("understanding_size", understanding_size)):
            if size % sizes.pixels:
                raise ValueError(f"model.{name} is {size}: it must be a multiple of {sizes.pixels}, the pixels a token")
        self.spec = ImageSpec.square(
            understanding_size=understanding_size,
            generation_size=generation_size,
            semantic_tokens=(understanding_size // sizes.pixels) ** 2 + sizes.buffer_size,
            target_tokens=(generation_size // sizes.pixels) ** 2,
            rule=options["resize"],
        )
        self.cacheable = frozenset({"target"} if self.train_encoder else {"semantic", "target"})
        self.freeze()

    @classmethod
    def load(cls, checkpoint: Path, options: Mapping[str, Any], device: torch.device | None) -> Self:
        """See :meth:`UnifiedModel.load`; both published layouts (:mod:`reca.models.harmon.checkpoint`)."""
        parts = options["parts"]
        network, config = load_network(checkpoint, parts, options["weights"])
        places = [checkpoint, *(Path(parts[name]) for name in ("tokenizer", "llm") if name in parts)]
        place = next((place for place in places if (place / "tokenizer.json").is_file()), None)
        if place is None:
            raise FileNotFoundError(
                f"{checkpoint / 'tokenizer.json'} is missing: put Qwen2.5's tokenizer files there, or set "
                "model.parts.tokenizer to their folder"
            )
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        return cls(network, config, tokenizer, options).to_eval(device)

    def save_official(self, path: Path) -> None:
        """See :meth:`UnifiedModel.save_official`; always the whole layout, autoencoder included."""
        with atomic_folder(path) as folder:
            write_json(folder / "config.json", self.config)
            write_weights(self.network.official_state(), folder)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)

    def trainable(self) -> Iterable[str]:
        """All but the autoencoder (paper), and what the switches freeze."""
        frozen = ["vae.", UNUSED]
        frozen += [] if self.train_encoder else ENCODER
        frozen += [] if self.train_llm else ["llm."]
        beginnings = tuple(f"network.{name}" for name in frozen)
        return [name for name, _ in self.named_parameters() if not name.startswith(beginnings)]

    # -- what goes in ---------------------------------------------------------------------------------------

    def encode_semantic(self, images: Tensor, rng: SampleRng | None = None) -> Semantic:
        """h_v of images (B, 3, S, S), S any multiple of a token's pixels: (B, N + buffers, D)."""
        return self.semantic_of(Target(self._latents(images)), rng)

    def semantic_of(self, target: Target, rng: SampleRng | None = None) -> Semantic:
        """h_v from latents that are there already, e.g. cached ones, if both images have one size."""
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            keys = None if rng is None else rng.keys("semantic_dropout").to(target.values.device)
            return Semantic(self.network.understand(target.values, keys))

    def encode_target(self, images: Tensor, rng: SampleRng) -> Target:
        """Scaled latents (B, C, h, w): the posterior's mode, so nothing is drawn."""
        return Target(self._latents(images))

    def _latents(self, images: Tensor) -> Tensor:
        pixels = self.network.mar.sizes.pixels
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have the shape (B, 3, H, W), these have {tuple(images.shape)}")
        if any(side == 0 or side % pixels for side in images.shape[2:]):
            size = f"{images.shape[3]} x {images.shape[2]}"
            raise ValueError(f"images of {size} pixels: both sides must be multiples of {pixels}")
        return self.network.to_latents(images)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _drawing_turns(self, texts: Sequence[str], images: Tensor | None = None) -> list[ChatTurn]:
        """User turns; an image stands behind the opening, whose newline the text's own may have merged with."""
        opening = len(self._ids(USER))
        return [
            ChatTurn(self._ids(USER + text + END + ASSISTANT), None if images is None else images[row], opening)
            for row, text in enumerate(texts)
        ]

    def prefix(self, turns: Sequence[ChatTurn], room: int = 0) -> tuple[Prefix, Tensor]:
        """Turns as the language model reads them, padded on the right, and their labels (B, L) on the CPU.

        Args:
            turns: One a sample.
            room: Positions that must be left behind them.

        Raises:
            ValueError: A turn does not fit into the context.
        """
        limit = self.network.llm.config.max_position_embeddings - room
        device = self.network.llm.device
        embeds, labels = [], []
        for turn in turns:
            row = self.network.llm.model.embed_tokens(torch.tensor(turn.ids, dtype=torch.long, device=device))
            asked = torch.full((len(row),), IGNORE_INDEX) if turn.labels is None else torch.tensor(turn.labels)
            if turn.image is not None:
                row = torch.cat([row[: turn.place], turn.image.to(row), row[turn.place :]])
                unasked = torch.full((len(turn.image),), IGNORE_INDEX)
                asked = torch.cat([asked[: turn.place], unasked, asked[turn.place :]])
            if len(row) > limit:
                raise ValueError(
                    f"a prompt has {len(row)} tokens, its image's included, and {limit} fit "
                    f"({self.network.llm.config.max_position_embeddings} in all): shorten it"
                )
            embeds.append(row)
            labels.append(asked)
        lengths = [len(row) for row in embeds]
        mask = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
        return Prefix(pad_sequence(embeds, batch_first=True), mask), pad_sequence(labels, True, IGNORE_INDEX)

    def _texts(self, texts: Sequence[str], rng: SampleRng) -> list[str]:
        """Texts after prompt dropout, which leaves images where they are."""
        if (dropped := self.condition_dropout_mask(rng)) is None:
            return list(texts)
        return [DRAW_ANYTHING if gone else text for text, gone in zip(texts, dropped.tolist(), strict=True)]

    # -- losses ---------------------------------------------------------------------------------------------

    def reconstruction_loss(self, semantic: Semantic, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """The drawing loss given h_v and a template; see :meth:`drawing_loss`."""
        texts = self._texts([f"\n{text}" for text in prompts], rng)
        return self._drawing(self._drawing_turns(texts, self.scaled(semantic)), target, rng)

    def scaled(self, semantic: Semantic) -> Tensor:
        """h_v as it is, its gradient times ``gradient_scale``."""
        still = semantic.embeds.detach()
        return still + self.gradient_scale * (semantic.embeds - still)

    def text_to_image_loss(self, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """The drawing loss given a caption."""
        texts = self._texts([DRAW.format(text) for text in prompts], rng)
        return self._drawing(self._drawing_turns(texts), target, rng)

    def _drawing(self, turns: Sequence[ChatTurn], target: Target, rng: SampleRng) -> Loss:
        length, sizes = math.prod(self.network.grid(target.values)), self.network.mar.sizes
        prefix, _ = self.prefix(turns, length + sizes.buffer_size)
        hidden = random_mask(rng, length, sizes.mask_ratio_min)
        return self.drawing_loss(prefix, target, hidden, rng)

    def drawing_loss(self, prefix: Prefix, target: Target, hidden: Tensor, rng: SampleRng) -> Loss:
        """Squared error of the noise and the variance's bound, over hidden latents (arXiv 2406.11838, section 3.2).

        Args:
            prefix: What the image is drawn from.
            target: Latents (B, C, h, w).
            hidden: (B, T) bool, which tokens are hidden; see :func:`masked_indices`.
            rng: Draws "timestep" (k, T), uniform, and "noise" (k, T, C), where k = ``diffusion_batch_mul`` is how often
                each token is noised.
        """
        sizes, device = self.network.mar.sizes, target.values.device
        repeats = sizes.diffusion_batch_mul
        tokens, grid = self.network.mar.tokens(target.values), self.network.grid(target.values)
        keys = rng.keys("dropout").to(device)
        conditions = self.network.conditions(prefix, tokens, grid, Visible.of(hidden, device), keys=keys)
        shape = (repeats, tokens.shape[1])
        steps = (rng.uniform("timestep", shape).to(device) * TRAINING_STEPS).long().clamp(max=TRAINING_STEPS - 1)
        noise = rng.normal("noise", (*shape, tokens.shape[2])).to(device)
        row, place = masked_indices(hidden, device)
        latents, wanted = tokens[row, place], conditions[row, place]
        error, bits = self.network.mar.diffloss.loss(
            latents.repeat_interleave(repeats, 0),
            wanted.repeat_interleave(repeats, 0),
            steps[row, :, place].flatten(),
            noise[row, :, place].flatten(0, 1),
        )
        return Loss((error + bits).mean(), len(row))

    def understanding_loss(self, images: Tensor, dialogues: Sequence[Dialogue], rng: SampleRng) -> Loss:
        """Cross-entropy of the answer tokens, end included."""
        semantic, turns = self.encode_semantic(images, rng), []
        for image, dialogue in zip(semantic.embeds, dialogues, strict=True):
            asked = self._question(dialogue.question, image)
            answer = self._ids(dialogue.answer + END)
            labels = [IGNORE_INDEX] * len(asked.ids) + answer
            turns.append(ChatTurn([*asked.ids, *answer], image, asked.place, labels))
        return self.answer_loss(turns)

    def answer_loss(self, turns: Sequence[ChatTurn]) -> Loss:
        """Cross-entropy over all labels."""
        prefix, labels = self.prefix(turns)
        states, ids = self.network.read(prefix.embeds, prefix.mask), labels.to(prefix.mask.device)
        return next_token_loss(states, ids, labels != IGNORE_INDEX, self.network.llm.lm_head)

    def _question(self, question: str, image: Tensor) -> ChatTurn:
        opening = self._ids(USER)
        return ChatTurn([*opening, *self._ids(f"\n{question}{END}{ASSISTANT}")], image, len(opening))

    # -- what comes out -------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        """Draw one image per prompt."""
        return self._draw(self._drawing_turns([DRAW.format(text) for text in prompts]), sampling, rng)

    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        """Draw images from their own understanding embeddings, under a fixed template."""
        prompts = [f"\n{RECONSTRUCTION_PROMPT}"] * len(semantic.embeds)
        return self._draw(self._drawing_turns(prompts, semantic.embeds), sampling, rng)

    @torch.no_grad()
    def _draw(self, turns: Sequence[ChatTurn], sampling: Sampling, rng: SampleRng) -> Tensor:
        if sampling.guidance_scale != 1:  # the unconditional half knows neither text nor image
            turns = [*turns, *self._drawing_turns([DRAW_ANYTHING] * len(turns))]
        side = self.spec.generation_size // self.network.mar.sizes.pixels
        return self.network.to_images(self.draw_latents(turns, (side, side), sampling, rng)).clamp(-1, 1)

    @torch.no_grad()
    def draw_latents(
        self, turns: Sequence[ChatTurn], grid: tuple[int, int], sampling: Sampling, rng: SampleRng
    ) -> Tensor:
        """Latents (B, C, h, w), a few tokens at a time in a random order (arXiv 2406.11838, section 3.3).

        Args:
            turns: B, followed by B unconditional ones if guidance is wanted.
            grid: Rows and columns of tokens.
            sampling: ``num_steps`` is how often tokens are revealed, at most once each.
            rng: Draws "order", and what :meth:`DiffusionHead.sample` draws.
        """
        network, batch, length = self.network, len(rng), math.prod(grid)
        copies = len(turns) // batch
        prefix, _ = self.prefix(turns, length + network.mar.sizes.buffer_size)
        cache = DynamicCache()
        network.read(prefix.embeds, prefix.mask, cache)
        orders = rng.permutation("order", length).to(prefix.embeds.device)
        hidden = torch.ones_like(orders, dtype=torch.bool)
        tokens = prefix.embeds.new_zeros(batch, length, network.mar.sizes.channels)
        for left in revealing_schedule(length, min(sampling.num_steps or NUM_STEPS, length)):
            remaining = hide_first(orders, torch.full((batch,), left, device=orders.device))
            places = (hidden & ~remaining).nonzero()[:, 1].view(batch, -1)
            states = network.conditions(
                prefix, tokens.repeat(copies, 1, 1), grid, Visible.of(hidden.repeat(copies, 1)), cache
            )
            wanted, *plain = take(states, places.repeat(copies, 1)).chunk(copies)
            drawn = network.mar.diffloss.sample(
                wanted, rng, sampling.temperature, plain[0] if plain else None, sampling.guidance_scale
            )
            tokens = tokens.scatter(1, places[..., None].expand_as(drawn), drawn.to(tokens))
            hidden = remaining
        return network.mar.latents(tokens, grid)

    @torch.no_grad()
    def answer(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Greedy answers, at most ``MAX_ANSWER_TOKENS`` tokens each."""
        semantic = self.encode_semantic(images)
        pairs = zip(questions, semantic.embeds, strict=True)
        prefix, _ = self.prefix([self._question(text, image) for text, image in pairs], MAX_ANSWER_TOKENS)
        cache, mask = DynamicCache(), prefix.mask
        states = self.network.read(prefix.embeds, mask, cache)
        last = states[torch.arange(len(states)), mask.sum(1) - 1]

        def next_logits(tokens: Tensor) -> Tensor:
            nonlocal mask
            mask = F.pad(mask, (0, 1), value=True)
            embeds = self.network.llm.model.embed_tokens(tokens[:, None])
            return self.network.llm.lm_head(self.network.read(embeds, mask, cache)[:, -1])

        eos_id = self.tokenizer.convert_tokens_to_ids(END)
        answers = greedy_decode(self.network.llm.lm_head(last), next_logits, eos_id, MAX_ANSWER_TOKENS)
        return [text.strip() for text in self.tokenizer.batch_decode(answers)]
