"""Harmon: a language model and a masked autoencoder that understands and generates in one space (arXiv 2503.21979).

The networks and their wiring are :mod:`reca.models.harmon.network`; this file adds the prompts, losses and samplers.

    h_v  = proj_in(MAR encoder(KL16(image)))                          the condition
    L    = diffusion loss of the hidden latents given the visible ones and [user turn: h_v, template]

The encoder is shared, so RecA trains it and h_v moves: only the latents may be cached. Gradients into h_v are scaled
by 0.1, those of answers too (official RecA). Prompts are Qwen's chat turns without a system turn; h_v follows the
opening of the user turn.
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
from transformers.cache_utils import DynamicCache

from reca.models.base import RECONSTRUCTION_PROMPT, Cacheable, Dialogue, ImageSpec, Loss, Semantic, Target, UnifiedModel
from reca.models.harmon.checkpoint import load_network
from reca.models.harmon.diffusion_head import TRAINING_STEPS
from reca.models.harmon.mar import VisibleTokens, gather_tokens, mask_first, random_mask, unmasking_schedule
from reca.models.harmon.network import CLASS_EMBEDDING, VAE, HarmonNetwork, Prefix
from reca.models.sampling import Sampling, greedy_decode
from reca.models.tokens import IGNORE_INDEX, masked_indices, next_token_loss, read_tokenizer
from reca.models.weights import write_torch_file, write_weights
from reca.runtime.files import atomic_folder, write_json
from reca.runtime.seeding import SampleRng

USER, END, ASSISTANT = "<|im_start|>user\n", "<|im_end|>", "\n<|im_start|>assistant\n"
GENERATION_PROMPT, UNCONDITIONAL_PROMPT = "Generate an image: {}", "Generate an image."
NUM_STEPS = 64
"""Default sampling steps (official; guidance 3.0)."""
MAX_ANSWER_TOKENS = 64
ENCODER_PREFIXES = ("mar.z_proj.", "mar.z_proj_ln.", "mar.fake_latent", "mar.encoder_", "proj_in.")
"""Parameter-name prefixes of the path from latents to h_v."""
LATENT_PREFIXES = ("network.vae.encoder.", "network.vae.quant_conv.")


@dataclass(frozen=True)
class ChatTurn:
    """Token ids of a sample's prompt, and the position of an image among them."""

    ids: Sequence[int]
    image: Tensor | None = None
    """Embeddings (N, D), inserted before ``ids[image_position]``."""
    image_position: int = 0
    labels: Sequence[int] | None = None
    """Labels of ``ids``, ``IGNORE_INDEX`` without a loss."""


class Harmon(UnifiedModel):
    """Harmon behind the contract of :class:`UnifiedModel`.

    Options beyond those of all families: ``gradient_scale``, ``train_encoder``, ``train_llm``; see ``HarmonModel`` in
    ``reca/config/model.py``.

    Raises:
        ValueError: A size is not a multiple of the pixels per token.
    """

    family: ClassVar[str] = "harmon"
    encoder_prefixes: ClassVar[Mapping[Cacheable, tuple[str, ...]]] = {
        "semantic": (*LATENT_PREFIXES, *(f"network.{name}" for name in ENCODER_PREFIXES)),
        "target": LATENT_PREFIXES,
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
        folders = [checkpoint, *(Path(parts[name]) for name in ("tokenizer", "llm") if name in parts)]
        folder = next((folder for folder in folders if (folder / "tokenizer_config.json").is_file()), checkpoint)
        return cls(network, config, read_tokenizer(folder), options).to_eval(device)

    def save_official(self, path: Path, for_scripts: bool = False) -> None:
        """See :meth:`UnifiedModel.save_official`; always the whole layout, autoencoder included."""
        state = self.network.official_state()
        if for_scripts:  # a state dict to load over Qwen2.5 and kl16.ckpt
            write_torch_file({key: state[key] for key in state if not key.startswith(VAE)}, path / "harmon.pth")
            return
        with atomic_folder(path) as folder:
            write_json(folder / "config.json", self.config)
            write_weights(state, folder)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)

    def trainable(self) -> Iterable[str]:
        """All parameters except the autoencoder's (paper), the unused class table's and those frozen by options."""
        frozen = ["vae.", CLASS_EMBEDDING]
        frozen += [] if self.train_encoder else ENCODER_PREFIXES
        frozen += [] if self.train_llm else ["llm."]
        prefixes = tuple(f"network.{name}" for name in frozen)
        return [name for name, _ in self.named_parameters() if not name.startswith(prefixes)]

    def encode_semantic(self, images: Tensor, rng: SampleRng | None = None) -> Semantic:
        """h_v of images (B, 3, S, S), S any multiple of a token's pixels: (B, N + buffers, D)."""
        return self.semantic_of(Target(self._latents(images)), rng)

    def semantic_of(self, target: Target, rng: SampleRng | None = None) -> Semantic:
        """h_v from existing (cached) latents, if condition and target have one size."""
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            keys = None if rng is None else rng.keys("semantic_dropout").to(target.values.device)
            return Semantic(self.network.encode_semantic(target.values, keys))

    def encode_target(self, images: Tensor, rng: SampleRng) -> Target:
        """Scaled latents (B, C, h, w): the posterior's mode, so the encoding draws no noise."""
        return Target(self._latents(images))

    def _latents(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have the shape (B, 3, H, W), these have {tuple(images.shape)}")
        self._grid(*images.shape[2:])
        return self.network.to_latents(images)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of an image's tokens."""
        pixels = self.network.mar.sizes.pixels
        if any(side <= 0 or side % pixels for side in (height, width)):
            raise ValueError(f"images of {width} x {height} pixels: both sides must be multiples of {pixels}")
        return height // pixels, width // pixels

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _generation_turns(self, texts: Sequence[str], images: Tensor | None = None) -> list[ChatTurn]:
        """User turns; an image follows the opening, whose newline may have merged with the text's own."""
        opening = len(self._ids(USER))
        return [
            ChatTurn(self._ids(USER + text + END + ASSISTANT), None if images is None else images[row], opening)
            for row, text in enumerate(texts)
        ]

    def prefix(self, turns: Sequence[ChatTurn], reserved: int = 0) -> tuple[Prefix, Tensor]:
        """Embed turns for the language model, padded on the right, with their labels (B, L) on the CPU.

        Args:
            turns: One per sample.
            reserved: Positions of the context that must stay free behind them.

        Raises:
            ValueError: A turn does not fit into the context.
        """
        context = self.network.llm.config.max_position_embeddings
        device = self.network.llm.device
        embeds, labels = [], []
        for turn in turns:
            row = self.network.llm.model.embed_tokens(torch.tensor(turn.ids, dtype=torch.long, device=device))
            row_labels = torch.full((len(row),), IGNORE_INDEX) if turn.labels is None else torch.tensor(turn.labels)
            if turn.image is not None:
                at = turn.image_position
                row = torch.cat([row[:at], turn.image.to(row), row[at:]])
                image_labels = torch.full((len(turn.image),), IGNORE_INDEX)
                row_labels = torch.cat([row_labels[:at], image_labels, row_labels[at:]])
            if len(row) > context - reserved:
                raise ValueError(
                    f"a prompt has {len(row)} tokens including its image, but only {context - reserved} of the "
                    f"{context} positions are free for it: shorten it"
                )
            embeds.append(row)
            labels.append(row_labels)
        lengths = [len(row) for row in embeds]
        mask = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
        return Prefix(pad_sequence(embeds, batch_first=True), mask), pad_sequence(labels, True, IGNORE_INDEX)

    def _drop_texts(self, texts: Sequence[str], rng: SampleRng) -> list[str]:
        """Replace texts by the unconditional prompt (prompt dropout); images stay."""
        if (drop_mask := self.condition_dropout_mask(rng)) is None:
            return list(texts)
        return [UNCONDITIONAL_PROMPT if drop else text for text, drop in zip(texts, drop_mask.tolist(), strict=True)]

    def reconstruction_loss(self, semantic: Semantic, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Diffusion loss given h_v and a template; see :meth:`diffusion_loss`."""
        texts = self._drop_texts([f"\n{text}" for text in prompts], rng)
        return self._generation_loss(self._generation_turns(texts, self.scale_gradient(semantic)), target, rng)

    def scale_gradient(self, semantic: Semantic) -> Tensor:
        """h_v unchanged, its gradient times ``gradient_scale``."""
        detached = semantic.embeds.detach()
        return detached + self.gradient_scale * (semantic.embeds - detached)

    def text_to_image_loss(self, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Diffusion loss given a caption."""
        texts = self._drop_texts([GENERATION_PROMPT.format(text) for text in prompts], rng)
        return self._generation_loss(self._generation_turns(texts), target, rng)

    def _generation_loss(self, turns: Sequence[ChatTurn], target: Target, rng: SampleRng) -> Loss:
        length, sizes = math.prod(self.network.grid(target.values)), self.network.mar.sizes
        prefix, _ = self.prefix(turns, length + sizes.buffer_size)
        hidden = random_mask(rng, length, sizes.mask_ratio_min)
        return self.diffusion_loss(prefix, target, hidden, rng)

    def diffusion_loss(self, prefix: Prefix, target: Target, hidden: Tensor, rng: SampleRng) -> Loss:
        """Squared error of the noise plus the variance's bound, over hidden tokens (arXiv 2406.11838, section 3.2).

        Args:
            prefix: Embedded prompts.
            target: Latents (B, C, h, w).
            hidden: Mask of hidden tokens, (B, T) bool, on the CPU; see :func:`masked_indices`.
            rng: Draws "timestep" (k, T), uniform, and "noise" (k, T, C), where k = ``diffusion_batch_mul`` is how often
                each token is noised.
        """
        sizes, device = self.network.mar.sizes, target.values.device
        repeats = sizes.diffusion_batch_mul
        tokens, grid = self.network.mar.tokens(target.values), self.network.grid(target.values)
        keys = rng.keys("dropout").to(device)
        visible = VisibleTokens.from_hidden(hidden, device)
        conditions = self.network.conditions(prefix, tokens, grid, visible, keys=keys)
        shape = (repeats, tokens.shape[1])
        steps = (rng.uniform("timestep", shape).to(device) * TRAINING_STEPS).long().clamp(max=TRAINING_STEPS - 1)
        noise = rng.normal("noise", (*shape, tokens.shape[2])).to(device)
        row, column = masked_indices(hidden, device)
        squared_error, bits = self.network.mar.diffloss.loss(
            tokens[row, column].repeat_interleave(repeats, 0),
            conditions[row, column].repeat_interleave(repeats, 0),
            steps[row, :, column].flatten(),
            noise[row, :, column].flatten(0, 1),
        )
        return Loss((squared_error + bits).mean(), len(row))

    def understanding_loss(self, images: Tensor, dialogues: Sequence[Dialogue], rng: SampleRng) -> Loss:
        """Cross-entropy of the answer tokens, end included."""
        semantic, turns = self.scale_gradient(self.encode_semantic(images, rng)), []
        for image, dialogue in zip(semantic, dialogues, strict=True):
            question = self._question(dialogue.question, image)
            answer = self._ids(dialogue.answer + END)
            labels = [IGNORE_INDEX] * len(question.ids) + answer
            turns.append(ChatTurn([*question.ids, *answer], image, question.image_position, labels))
        return self.answer_loss(turns)

    def answer_loss(self, turns: Sequence[ChatTurn]) -> Loss:
        """Cross-entropy over all labels."""
        prefix, labels = self.prefix(turns)
        states, ids = self.network.run_llm(prefix.embeds, prefix.mask), labels.to(prefix.mask.device)
        return next_token_loss(states, ids, labels != IGNORE_INDEX, self.network.llm.lm_head)

    def _question(self, question: str, image: Tensor) -> ChatTurn:
        opening = self._ids(USER)
        return ChatTurn([*opening, *self._ids(f"\n{question}{END}{ASSISTANT}")], image, len(opening))

    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        """Generate one image per prompt."""
        turns = self._generation_turns([GENERATION_PROMPT.format(text) for text in prompts])
        return self._sample_images(turns, sampling, rng)

    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        """Generate images from their own understanding embeddings, with a fixed template."""
        prompts = [f"\n{RECONSTRUCTION_PROMPT}"] * len(semantic.embeds)
        return self._sample_images(self._generation_turns(prompts, semantic.embeds), sampling, rng)

    @torch.no_grad()
    def _sample_images(self, turns: Sequence[ChatTurn], sampling: Sampling, rng: SampleRng) -> Tensor:
        if sampling.guidance_scale != 1:  # the unconditional half has neither text nor image
            turns = [*turns, *self._generation_turns([UNCONDITIONAL_PROMPT] * len(turns))]
        grid = self._grid(*(sampling.size or [self.spec.generation_size] * 2))
        return self.network.to_images(self.sample_latents(turns, grid, sampling, rng)).clamp(-1, 1)

    @torch.no_grad()
    def sample_latents(
        self, turns: Sequence[ChatTurn], grid: tuple[int, int], sampling: Sampling, rng: SampleRng
    ) -> Tensor:
        """Sample latents (B, C, h, w), a few tokens at a time in random order (arXiv 2406.11838, section 3.3).

        Args:
            turns: B, followed by B unconditional ones with guidance.
            grid: Rows and columns of tokens.
            sampling: ``num_steps`` steps, at most one per token.
            rng: Draws "order", and the draws of :meth:`DiffusionHead.sample`.
        """
        network, batch, length = self.network, len(rng), math.prod(grid)
        copies = len(turns) // batch
        prefix, _ = self.prefix(turns, length + network.mar.sizes.buffer_size)
        cache = DynamicCache()
        network.run_llm(prefix.embeds, prefix.mask, cache)
        orders = rng.permutation("order", length).to(prefix.embeds.device)
        hidden = torch.ones_like(orders, dtype=torch.bool)
        tokens = prefix.embeds.new_zeros(batch, length, network.mar.sizes.channels)
        for count in unmasking_schedule(length, min(sampling.num_steps or NUM_STEPS, length)):
            still_hidden = mask_first(orders, torch.full((batch,), count, device=orders.device))
            indices = (hidden & ~still_hidden).nonzero()[:, 1].view(batch, -1)
            visible = VisibleTokens.from_hidden(hidden.repeat(copies, 1))
            states = network.conditions(prefix, tokens.repeat(copies, 1, 1), grid, visible, cache)
            scale = sampling.guidance_scale
            if sampling.guidance_schedule == "linear":
                scale = 1 + (scale - 1) * (length - max(count, 1)) / length
            parts = gather_tokens(states, indices.repeat(copies, 1)).chunk(copies)
            unconditional = parts[1] if copies > 1 else None
            sampled = network.mar.diffloss.sample(parts[0], rng, sampling.temperature, unconditional, scale)
            tokens = tokens.scatter(1, indices[..., None].expand_as(sampled), sampled.to(tokens))
            hidden = still_hidden
        return network.mar.latents(tokens, grid)

    @torch.no_grad()
    def answer(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Greedy answers, at most ``MAX_ANSWER_TOKENS`` tokens each."""
        semantic = self.encode_semantic(images)
        pairs = zip(questions, semantic.embeds, strict=True)
        prefix, _ = self.prefix([self._question(text, image) for text, image in pairs], MAX_ANSWER_TOKENS)
        cache, mask = DynamicCache(), prefix.mask
        states = self.network.run_llm(prefix.embeds, mask, cache)
        last = states[torch.arange(len(states)), mask.sum(1) - 1]

        def next_logits(tokens: Tensor) -> Tensor:
            nonlocal mask
            mask = F.pad(mask, (0, 1), value=True)
            embeds = self.network.llm.model.embed_tokens(tokens[:, None])
            return self.network.llm.lm_head(self.network.run_llm(embeds, mask, cache)[:, -1])

        eos_id = self.tokenizer.convert_tokens_to_ids(END)
        answers = greedy_decode(self.network.llm.lm_head(last), next_logits, eos_id, MAX_ANSWER_TOKENS)
        return [text.strip() for text in self.tokenizer.batch_decode(answers)]
