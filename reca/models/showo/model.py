"""Show-o: one Phi that reads text and images, and draws by filling in masked codes (arXiv 2408.12528).

The language model is the stock ``PhiForCausalLM`` with normed queries and keys, the eyes are the stock
``CLIPVisionModel``, the image tokenizer is :class:`reca.models.showo.autoencoder.Magvit`. Two variants share this file:

    CLIP (primary)   h_v = CLIP features, layer -2; the projector to Phi's width belongs to what is trained
    codes            h_v = codes of a smaller copy of the image, as their bits (-1, 1): Show-o without CLIP. At equal
                     size condition and target would be the same codes, and the model a copier (RecA's guide, rule 1)

    L_RecA = CE(Phi(sequence with cos(pi/2 * u) of the codes hidden), hidden codes)          positions are not shifted

Official layout: ``config.json`` and ``pytorch_model.safetensors`` (``showo.*``, ``mm_projector.*``). What it keeps in
other repositories is looked for in its folders ``phi``, ``clip`` and ``magvit``, then in ``model.parts``.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
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
from reca.models.sampling import classifier_free_guidance, greedy_decode
from reca.models.showo.checkpoint import ShowoParts, read_checkpoint, write_checkpoint
from reca.models.showo.sampling import draw_codes, random_mask
from reca.models.showo.sequence import FEATURE, Packed, drawing, reading, rebuilding
from reca.models.tokens import masked_indices, next_token_loss
from reca.runtime.seeding import SampleRng

RECONSTRUCTION_TEXT = "USER: \n {} ASSISTANT:"
QUESTION_TEXT = "USER: \n{} ASSISTANT:"
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Stands before an image that is asked about, in the variant with CLIP (LLaVA's prompt)."""
NUM_STEPS = 50
"""Sampler steps where the configuration names none: the official benchmarks'."""
MAX_ANSWER_TOKENS = 32


class Showo(UnifiedModel):
    """Show-o behind the contract of :class:`UnifiedModel`."""

    family: ClassVar[str] = "showo"
    encoder_prefixes: ClassVar[Mapping[Cacheable, tuple[str, ...]]] = {
        "semantic": ("clip.", "magvit.encoder."),
        "target": ("magvit.encoder.",),
    }

    def __init__(self, parts: ShowoParts, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.parts = parts
        self.showo, self.mm_projector = parts.phi, parts.projector
        self.clip, self.magvit = parts.clip, parts.magvit
        self.tokenizer, self.vocabulary = parts.tokenizer, parts.vocabulary
        self.train_vision = bool(options["train_vision"])
        self.train_condition = bool(options["train_condition"])
        self.prompt_dropout = float(options["prompt_dropout"])
        self.template_tokens = int(options["template_tokens"])
        system_prompt = options["system_prompt"]
        self.system_prompt = SYSTEM_PROMPT if system_prompt is None else str(system_prompt)
        self.select_layer = int(parts.config.get("clip_select_layer", -2))
        if self.train_vision and self.clip is None:
            raise ValueError("model.train_vision: this Show-o has no CLIP, and its image tokenizer is never trained")
        self.spec = self._sizes(options)
        self.cacheable = frozenset({"target"} if self.train_vision else {"semantic", "target"})
        self.freeze()

    def _sizes(self, options: Mapping[str, Any]) -> ImageSpec:
        step = self.magvit.sizes.downsampling
        own = round(int(self.parts.config["num_vq_tokens"]) ** 0.5) * step
        drawn = int(options["generation_size"] or own)
        read = options["understanding_size"]
        if self.clip is None:
            read = int(read or drawn // 2)
            semantic = (read // step) ** 2
        else:
            read = int(read or self.clip.config.image_size)
            semantic = (int(self.clip.config.image_size) // int(self.clip.config.patch_size)) ** 2
        for name, size in (("generation_size", drawn), ("understanding_size", read)):
            if size % step and (self.clip is None or name == "generation_size"):
                raise ValueError(f"model.{name} is {size}; the image tokenizer wants a multiple of {step}")
        return ImageSpec.square(read, drawn, semantic, (drawn // step) ** 2)

    @classmethod
    def load(cls, checkpoint: Path, options: Mapping[str, Any], device: torch.device | None) -> Self:
        """See :meth:`UnifiedModel.load`; ``options["parts"]`` says where ``phi``, ``clip`` and ``magvit`` lie."""
        return cls(read_checkpoint(checkpoint, options["parts"]), options).to_eval(device)

    def save_official(self, path: Path) -> None:
        """See :meth:`UnifiedModel.save_official`."""
        write_checkpoint(path, self.parts, clip_moved=self.train_vision)

    def trainable(self) -> Iterable[str]:
        """Phi and the projector; CLIP up to the layer that is read if ``train_vision``; never the image tokenizer."""
        frozen = ["magvit."]
        if self.clip is not None and self.train_vision:
            layers = int(self.clip.config.num_hidden_layers)
            unread = range(self.select_layer % (layers + 1), layers)
            frozen += ["clip.post_layernorm.", *(f"clip.encoder.layers.{layer}." for layer in unread)]
        else:
            frozen.append("clip.")
        return [name for name, _ in self.named_parameters() if not name.startswith(tuple(frozen))]

    # -- what goes in ---------------------------------------------------------------------------------------

    def encode_semantic(self, images: Tensor, rng: SampleRng | None = None) -> Semantic:
        """CLIP features (B, N, D), or the bits of the codes (B, N, d) in {-1, 1}.

        Images of another size are resized bilinearly. CLIP gets them in [-1, 1], without its own normalisation, as in
        the official code. The projector is not applied here: it is trained, and what is stored must not move.
        """
        if self.clip is None:
            return Semantic(self.magvit.signs(self._codes(_resized(images, self.spec.understanding_size))))
        with torch.set_grad_enabled(self.train_vision and torch.is_grad_enabled()):
            seen = self.clip(_resized(images, self.clip.config.image_size), output_hidden_states=True)
            return Semantic(seen.hidden_states[self.select_layer][:, 1:])

    def encode_target(self, images: Tensor, rng: SampleRng) -> Target:
        """MAGVIT-v2 codes (B, T) int64. Nothing random here."""
        return Target(self._codes(images))

    @torch.no_grad()
    def _codes(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):  # a rounded code would be another code
            return self.magvit.encode(images)

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, nothing added."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def embed(self, packed: Packed, semantic: Semantic | None = None) -> Tensor:
        """Embeddings (B, L, D) of packed sequences; CLIP features pass through the projector."""
        places = packed.ids == FEATURE
        embeds = self.showo.model.embed_tokens(packed.ids.masked_fill(places, self.vocabulary.pad))
        if semantic is not None and self.mm_projector is not None:
            projected = self.mm_projector(semantic.embeds.to(embeds.dtype)).to(embeds.dtype)
            embeds = embeds.masked_scatter(places[..., None], projected)
        return embeds

    def run(self, embeds: Tensor, visible: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """Phi's last states (B, L, D) of the newest L positions; ``visible`` (B, L, K) over all K so far."""
        limit = int(self.showo.config.max_position_embeddings)
        if visible.shape[-1] > limit:
            raise ValueError(
                f"prompt and image need {visible.shape[-1]} tokens, and the model takes {limit}: shorten the prompt"
            )
        # Additive, since only this form of a mask is taken by every attention implementation.
        blocked = torch.zeros(visible.shape, dtype=embeds.dtype, device=embeds.device)
        blocked.masked_fill_(~visible, torch.finfo(embeds.dtype).min)
        return self.showo.model(
            inputs_embeds=embeds,
            attention_mask=blocked[:, None],
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def pack(self, texts: Sequence[str], codes: Tensor, semantic: Semantic | None) -> Packed:
        """Sequences in which ``codes`` (B, T) are drawn: from text, or from an image and a template."""
        if semantic is None:
            return drawing(self.vocabulary, self.text_ids(texts), codes)
        rows = self.text_ids([RECONSTRUCTION_TEXT.format(text) for text in texts])
        if self.clip is None:
            return drawing(self.vocabulary, rows, codes, self._condition_codes(semantic))
        return rebuilding(self.vocabulary, rows, codes, semantic.embeds.shape[1], self.template_tokens)

    def _condition_codes(self, semantic: Semantic) -> Tensor:
        return self.magvit.quantize(semantic.embeds.movedim(-1, 1))

    # -- losses ---------------------------------------------------------------------------------------------

    def reconstruction_loss(self, semantic: Semantic, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Cross-entropy of the hidden codes, given h_v and a template. No dropout here (official recipe).

        With CLIP all embeddings are made without gradient, as in the official code: neither the projector nor the
        embedding table learns from this loss, unless ``train_condition``.
        """
        codes = target.values
        hidden = random_mask(rng, codes.shape[1])
        row, place = masked_indices(hidden, codes.device)
        packed = self.pack(prompts, codes.masked_fill(hidden.to(codes.device), self.vocabulary.codebook), semantic)
        with torch.set_grad_enabled((self.clip is None or self.train_condition) and torch.is_grad_enabled()):
            embeds = self.embed(packed, semantic)
        states = self.run(embeds, packed.visible)[:, packed.codes]
        logits = self.showo.lm_head(states[row, place])
        value = F.cross_entropy(logits.float(), codes[row, place] + self.vocabulary.first_code)
        return Loss(value, len(row))

    def text_to_image_loss(self, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Cross-entropy of the hidden codes given a caption; [soi] and [eoi] count as targets too (official)."""
        codes = target.values
        hidden = random_mask(rng, codes.shape[1])
        if (dropped := self.condition_dropout_mask(rng)) is not None:
            prompts = ["" if gone else prompt for prompt, gone in zip(prompts, dropped.tolist(), strict=True)]
        row, place = masked_indices(F.pad(hidden, (1, 1), value=True), codes.device)
        packed = self.pack(prompts, codes.masked_fill(hidden.to(codes.device), self.vocabulary.codebook), None)
        span = slice(packed.codes.start - 1, packed.codes.stop + 1)
        truth = packed.ids[:, span].clone()
        truth[:, 1:-1] = codes + self.vocabulary.first_code
        states = self.run(self.embed(packed), packed.visible)[:, span]
        value = F.cross_entropy(self.showo.lm_head(states[row, place]).float(), truth[row, place])
        return Loss(value, len(row))

    def understanding_loss(self, images: Tensor, dialogues: Sequence[Dialogue], rng: SampleRng) -> Loss:
        """Cross-entropy of the answer tokens, end included.

        Without CLIP the model reads codes of an image of ``spec.understanding_size`` (the official code: of the full
        size; the contract gives all losses one size).
        """
        semantic = self.encode_semantic(images)
        questions = self._questions([d.question for d in dialogues])
        answers = [[*ids, self.vocabulary.eos] for ids in self.text_ids([f" {d.answer}" for d in dialogues])]
        packed = self.pack_reading([q + a for q, a in zip(questions, answers, strict=True)], semantic)
        start = packed.ids.shape[1] - max(len(q) + len(a) for q, a in zip(questions, answers, strict=True))
        loss_mask = torch.zeros(packed.ids.shape, dtype=torch.bool)
        for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            loss_mask[row, start + len(question) : start + len(question) + len(answer)] = True
        return self.reading_loss(packed, semantic, loss_mask)

    def reading_loss(self, packed: Packed, semantic: Semantic, loss_mask: Tensor) -> Loss:
        """Cross-entropy of tokens given those before them; ``loss_mask`` (B, L) bool says which count."""
        states = self.run(self.embed(packed, semantic), packed.visible)
        return next_token_loss(states, packed.ids, loss_mask, self.showo.lm_head)

    def _questions(self, questions: Sequence[str]) -> list[list[int]]:
        rows = self.text_ids([QUESTION_TEXT.format(question) for question in questions])
        return [self.vocabulary.framed(row)[:-1] for row in rows] if self.clip is None else rows

    def pack_reading(self, texts: Sequence[Sequence[int]], semantic: Semantic, left: bool = False) -> Packed:
        """Sequences in which an image and then a text (token ids) is read."""
        if self.clip is None:
            return reading(self.vocabulary, [], self._condition_codes(semantic), texts, left)
        system = self.text_ids([self.system_prompt])[0] if self.system_prompt else []
        return reading(self.vocabulary, system, semantic.embeds, texts, left)

    # -- what comes out -------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        """Draw one image per prompt in ``sampling.num_steps`` steps (:mod:`reca.models.showo.sampling`)."""
        return self.show(self.draw(prompts, None, sampling, rng))

    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        """Draw images from their own understanding embeddings, under a fixed template."""
        prompts = [RECONSTRUCTION_PROMPT] * len(semantic.embeds)
        return self.show(self.draw(prompts, semantic, sampling, rng))

    @torch.no_grad()
    def show(self, codes: Tensor) -> Tensor:
        """Images of codes (B, T), in [-1, 1]."""
        return self.magvit.decode(codes).clamp(-1, 1)

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], semantic: Semantic | None, sampling: Sampling, rng: SampleRng) -> Tensor:
        """Codes (B, T). Guidance is away from the empty prompt: logits = w * conditional - (w - 1) * empty.

        What stands before [soi] sees nothing of the image, so it is run once, and each step runs the image only.
        Guidance scale g of the official code is w = g + 1 here.
        """
        guided = sampling.guidance_scale != 1
        device = self.showo.lm_head.weight.device
        codes = torch.full((len(prompts), self.spec.target_tokens), self.vocabulary.codebook, device=device)
        packed = self.both(prompts, codes, semantic) if guided else self.pack(prompts, codes, semantic)
        start = packed.codes.start - 1
        embeds, cache = self.embed(packed, semantic), DynamicCache()
        if start:
            self.run(embeds[:, :start], packed.visible[:, :start, :start], cache)
        first, last = embeds[:, start : start + 1], embeds[:, packed.codes.stop :]
        code_range = slice(self.vocabulary.first_code, self.vocabulary.first_code + self.vocabulary.codebook)

        def predict(codes: Tensor) -> Tensor:
            inside = self.showo.model.embed_tokens(codes + self.vocabulary.first_code)
            inside = inside.repeat(len(packed.ids) // len(codes), 1, 1)
            states = self.run(torch.cat([first, inside, last], dim=1), packed.visible[:, start:], cache)[:, 1:-1]
            cache.crop(-(codes.shape[1] + 2))
            return self.guide(self.showo.lm_head(states)[..., code_range].float(), sampling)

        num_steps = sampling.num_steps or min(NUM_STEPS, codes.shape[1])
        return draw_codes(predict, codes, self.vocabulary.codebook, num_steps, sampling.temperature, rng)

    def both(self, prompts: Sequence[str], codes: Tensor, semantic: Semantic | None) -> Packed:
        """Sequences with their condition, then as many with an empty prompt (and no image): (2B, L)."""
        if semantic is None:
            return self.pack([*prompts, *[""] * len(prompts)], codes.repeat(2, 1), None)
        packed = self.pack(prompts, codes, semantic)
        empty = drawing(self.vocabulary, [[]] * len(prompts), codes, length=packed.codes.stop + 1)
        return packed.joined(empty)

    def guide(self, logits: Tensor, sampling: Sampling) -> Tensor:
        """Guided logits (B, ...) of conditional and empty ones (2B, ...); without guidance, as they are."""
        if sampling.guidance_scale == 1:
            return logits
        conditional, empty = logits.chunk(2)
        return classifier_free_guidance(conditional, empty, sampling.guidance_scale)

    @torch.no_grad()
    def answer(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Greedy answers, at most ``MAX_ANSWER_TOKENS`` tokens each."""
        semantic = self.encode_semantic(images)
        packed = self.pack_reading(self._questions(questions), semantic, left=True)
        embeds, visible, cache = self.embed(packed, semantic), packed.visible, DynamicCache()

        def next_logits(tokens: Tensor) -> Tensor:
            nonlocal visible
            visible = F.pad(visible[:, -1:], (0, 1), value=True)
            embeds = self.showo.model.embed_tokens(tokens[:, None])
            return self.showo.lm_head(self.run(embeds, visible, cache)[:, -1])

        logits = self.showo.lm_head(self.run(embeds, visible, cache)[:, -1])
        rows = greedy_decode(logits, next_logits, self.vocabulary.eos, MAX_ANSWER_TOKENS)
        words = [[token for token in row if token < self.vocabulary.pad] for row in rows]
        return [text.strip() for text in self.tokenizer.batch_decode(words)]


def _resized(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, size, size), bilinear and without smoothing, as the official code does."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
