"""Show-o: one Phi that reads text and images, and generates by filling in masked codes (arXiv 2408.12528).

The language model is the stock ``PhiForCausalLM`` with normed queries and keys, the vision tower is the stock
``CLIPVisionModel``, the image tokenizer is :class:`reca.models.showo.autoencoder.Magvit`. Two variants share this file:

    CLIP (primary)   h_v = CLIP features, layer -2; the projector to Phi's width is trained
    codes            h_v = codes of a smaller copy of the image, as their bits (-1, 1): Show-o without CLIP. At equal
                     size condition and target would be the same codes, and copying would solve it (RecA's guide,
                     rule 1)

    L_RecA = CE(Phi(sequence with cos(pi/2 * u) of the codes hidden), hidden codes)          no shift by one

Official layout: ``config.json`` and ``pytorch_model.safetensors`` (``showo.*``, ``mm_projector.*``). Parts that the
authors publish in other repositories are read from its folders ``phi``, ``clip`` and ``magvit``, or ``model.parts``.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache

from reca.models.base import RECONSTRUCTION_PROMPT, Cacheable, Dialogue, ImageSpec, Loss, Semantic, Target, UnifiedModel
from reca.models.sampling import Sampling, classifier_free_guidance, greedy_decode
from reca.models.showo.checkpoint import ShowoParts, read_checkpoint, write_checkpoint
from reca.models.showo.sampling import random_mask, sample_codes
from reca.models.showo.sequence import (
    FEATURE_ID,
    TokenBatch,
    generation_sequences,
    reconstruction_sequences,
    understanding_sequences,
)
from reca.models.tokens import masked_indices, next_token_loss
from reca.runtime.seeding import SampleRng

RECONSTRUCTION_TEXT = "USER: \n {} ASSISTANT:"
QUESTION_TEXT = "USER: \n{} ASSISTANT:"
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Precedes the image of a question, in the variant with CLIP (LLaVA's prompt)."""
CLIP_NORMALIZATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Means and standard deviations of red, green and blue in [0, 1], as CLIP was trained with."""
NUM_STEPS = 50
"""Default sampling steps: the official benchmarks'."""
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
        self.clip_normalization = bool(options["clip_normalization"])
        system_prompt = options["system_prompt"]
        self.system_prompt = SYSTEM_PROMPT if system_prompt is None else str(system_prompt)
        self.select_layer = int(parts.config.get("clip_select_layer", -2))
        if self.train_vision and self.clip is None:
            raise ValueError("model.train_vision: this Show-o has no CLIP, and its image tokenizer is never trained")
        self.spec = self._image_spec(options)
        self.cacheable = frozenset({"target"} if self.train_vision else {"semantic", "target"})
        self.freeze()

    def _image_spec(self, options: Mapping[str, Any]) -> ImageSpec:
        step = self.magvit.sizes.downsampling
        default_size = round(int(self.parts.config["num_vq_tokens"]) ** 0.5) * step
        generation_size = int(options["generation_size"] or default_size)
        if self.clip is None:
            understanding_size = int(options["understanding_size"] or generation_size // 2)
            semantic_tokens = (understanding_size // step) ** 2
        else:
            clip_size = int(self.clip.config.image_size)
            understanding_size = int(options["understanding_size"] or clip_size)
            semantic_tokens = (clip_size // int(self.clip.config.patch_size)) ** 2
        for name, size in (("generation_size", generation_size), ("understanding_size", understanding_size)):
            if size % step and (self.clip is None or name == "generation_size"):
                raise ValueError(f"model.{name} is {size}: it must be a multiple of {step}, the pixels per code")
        sizes = (understanding_size, generation_size, semantic_tokens, (generation_size // step) ** 2)
        return ImageSpec.square(*sizes, rule=options["resize"])

    @classmethod
    def load(cls, checkpoint: Path, options: Mapping[str, Any], device: torch.device | None) -> Self:
        """See :meth:`UnifiedModel.load`; ``options["parts"]`` has the paths of ``phi``, ``clip`` and ``magvit``."""
        return cls(read_checkpoint(checkpoint, options["parts"]), options).to_eval(device)

    def save_official(self, path: Path, for_scripts: bool = False) -> None:
        """See :meth:`UnifiedModel.save_official`."""
        write_checkpoint(path, self.parts, self.train_vision, not for_scripts)

    def trainable(self) -> Iterable[str]:
        """Phi and the projector; with ``train_vision`` CLIP up to ``clip_select_layer``; never the image tokenizer."""
        frozen = ["magvit."]
        if self.clip is not None and self.train_vision:
            layers = int(self.clip.config.num_hidden_layers)
            unused = range(self.select_layer % (layers + 1), layers)
            frozen += ["clip.post_layernorm.", *(f"clip.encoder.layers.{layer}." for layer in unused)]
        else:
            frozen.append("clip.")
        return [name for name, _ in self.named_parameters() if not name.startswith(tuple(frozen))]

    def encode_semantic(self, images: Tensor, rng: SampleRng | None = None) -> Semantic:
        """CLIP features (B, N, D), or the bits of the codes (B, N, d) in {-1, 1}.

        Images of another size are resized bilinearly. For L_RecA CLIP gets them in [-1, 1], without its own
        normalization, as in the official code. The projector is not applied here: it is trained, and cached embeddings
        must stay valid.
        """
        if self.clip is None:
            return Semantic(self.magvit.signs(self._codes(_resize(images, self.spec.understanding_size))))
        with torch.set_grad_enabled(self.train_vision and torch.is_grad_enabled()):
            outputs = self.clip(_resize(images, self.clip.config.image_size), output_hidden_states=True)
            return Semantic(outputs.hidden_states[self.select_layer][:, 1:])

    def _asked_about(self, images: Tensor) -> Tensor:
        """Images of questions, which CLIP gets in its own normalization (official code)."""
        if self.clip is None or not self.clip_normalization:
            return images
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in CLIP_NORMALIZATION)
        return ((images + 1) / 2 - mean) / std

    def encode_target(self, images: Tensor, rng: SampleRng) -> Target:
        """MAGVIT-v2 codes (B, T) int64; the encoding draws no noise."""
        return Target(self._codes(images))

    @torch.no_grad()
    def _codes(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):  # rounding could flip a sign, hence change a code
            return self.magvit.encode(images)

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids per text, without special tokens."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def embed(self, batch: TokenBatch, semantic: Semantic | None = None) -> Tensor:
        """Embeddings (B, L, D) of a batch; CLIP features pass through the projector."""
        is_feature = batch.ids == FEATURE_ID
        embeds = self.showo.model.embed_tokens(batch.ids.masked_fill(is_feature, self.vocabulary.pad))
        if semantic is not None and self.mm_projector is not None:
            projected = self.mm_projector(semantic.embeds.to(embeds.dtype)).to(embeds.dtype)
            embeds = embeds.masked_scatter(is_feature[..., None], projected)
        return embeds

    def run_phi(self, embeds: Tensor, attention_mask: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """Last hidden states (B, L, D) of the newest L positions; the mask (B, L, K) covers all K so far.

        Raises:
            ValueError: K is beyond Phi's context.
        """
        context = int(self.showo.config.max_position_embeddings)
        length = attention_mask.shape[-1]
        if length > context:
            raise ValueError(
                f"prompt and image need {length} tokens, but the model takes {context}: shorten the prompt"
            )
        # Additive, the only form of a mask that every attention implementation takes.
        bias = torch.zeros(attention_mask.shape, dtype=embeds.dtype, device=embeds.device)
        bias.masked_fill_(~attention_mask, torch.finfo(embeds.dtype).min)
        return self.showo.model(
            inputs_embeds=embeds,
            attention_mask=bias[:, None],
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def generation_batch(self, texts: Sequence[str], codes: Tensor, semantic: Semantic | None) -> TokenBatch:
        """Build sequences that generate ``codes`` (B, T): from text, or from an image and a template."""
        if semantic is None:
            return generation_sequences(self.vocabulary, self.text_ids(texts), codes)
        ids = self.text_ids([RECONSTRUCTION_TEXT.format(text) for text in texts])
        if self.clip is None:
            return generation_sequences(self.vocabulary, ids, codes, self._condition_codes(semantic))
        return reconstruction_sequences(self.vocabulary, ids, codes, semantic.embeds.shape[1], self.template_tokens)

    def _condition_codes(self, semantic: Semantic) -> Tensor:
        return self.magvit.quantize(semantic.embeds.movedim(-1, 1))

    def reconstruction_loss(self, semantic: Semantic, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Cross-entropy of the hidden codes, given h_v and a template. No prompt dropout (official recipe).

        With CLIP all embeddings are made without gradient, as in the official code: neither the projector nor the
        embedding table learns from this loss, unless ``train_condition``.
        """
        codes = target.values
        hidden = random_mask(rng, codes.shape[1])
        row, column = masked_indices(hidden, codes.device)
        masked_codes = codes.masked_fill(hidden.to(codes.device), self.vocabulary.codebook)
        batch = self.generation_batch(prompts, masked_codes, semantic)
        with torch.set_grad_enabled((self.clip is None or self.train_condition) and torch.is_grad_enabled()):
            embeds = self.embed(batch, semantic)
        states = self.run_phi(embeds, batch.attention_mask)[:, batch.codes]
        logits = self.showo.lm_head(states[row, column])
        return Loss(F.cross_entropy(logits.float(), codes[row, column] + self.vocabulary.first_code), len(row))

    def text_to_image_loss(self, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Cross-entropy of the hidden codes given a caption; [soi] and [eoi] count as targets too (official)."""
        codes = target.values
        hidden = random_mask(rng, codes.shape[1])
        if (drop_mask := self.condition_dropout_mask(rng)) is not None:
            prompts = ["" if drop else prompt for prompt, drop in zip(prompts, drop_mask.tolist(), strict=True)]
        row, column = masked_indices(F.pad(hidden, (1, 1), value=True), codes.device)
        masked_codes = codes.masked_fill(hidden.to(codes.device), self.vocabulary.codebook)
        batch = self.generation_batch(prompts, masked_codes, None)
        span = slice(batch.codes.start - 1, batch.codes.stop + 1)
        labels = batch.ids[:, span].clone()
        labels[:, 1:-1] = codes + self.vocabulary.first_code
        states = self.run_phi(self.embed(batch), batch.attention_mask)[:, span]
        logits = self.showo.lm_head(states[row, column])
        return Loss(F.cross_entropy(logits.float(), labels[row, column]), len(row))

    def understanding_loss(self, images: Tensor, dialogues: Sequence[Dialogue], rng: SampleRng) -> Loss:
        """Cross-entropy of the answer tokens, end included.

        Without CLIP the model reads codes of an image of ``spec.understanding_size`` (the official code: of the full
        size; the contract gives all losses one size).
        """
        semantic = self.encode_semantic(self._asked_about(images))
        questions = self._question_ids([dialogue.question for dialogue in dialogues])
        answers = [[*ids, self.vocabulary.eos] for ids in self.text_ids([f" {d.answer}" for d in dialogues])]
        texts = [question + answer for question, answer in zip(questions, answers, strict=True)]
        batch = self.understanding_batch(texts, semantic)
        start = batch.ids.shape[1] - max(map(len, texts))
        loss_mask = torch.zeros(batch.ids.shape, dtype=torch.bool)
        for row, (question, text) in enumerate(zip(questions, texts, strict=True)):
            loss_mask[row, start + len(question) : start + len(text)] = True
        return self.answer_loss(batch, semantic, loss_mask)

    def answer_loss(self, batch: TokenBatch, semantic: Semantic, loss_mask: Tensor) -> Loss:
        """Next-token cross-entropy of the tokens in ``loss_mask`` (B, L) bool."""
        states = self.run_phi(self.embed(batch, semantic), batch.attention_mask)
        return next_token_loss(states, batch.ids, loss_mask, self.showo.lm_head)

    def _question_ids(self, questions: Sequence[str]) -> list[list[int]]:
        rows = self.text_ids([QUESTION_TEXT.format(question) for question in questions])
        return [self.vocabulary.with_bos_eos(row)[:-1] for row in rows] if self.clip is None else rows

    def understanding_batch(
        self, texts: Sequence[Sequence[int]], semantic: Semantic, pad_left: bool = False
    ) -> TokenBatch:
        """Build sequences of an image followed by a text (token ids)."""
        if self.clip is None:
            return understanding_sequences(self.vocabulary, [], self._condition_codes(semantic), texts, pad_left)
        system = self.text_ids([self.system_prompt])[0] if self.system_prompt else []
        return understanding_sequences(self.vocabulary, system, semantic.embeds, texts, pad_left)

    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        """Generate one image per prompt in ``sampling.num_steps`` steps (:mod:`reca.models.showo.sampling`)."""
        return self.decode(self.sample(prompts, None, sampling, rng))

    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        """Generate images from their own understanding embeddings, with a fixed template."""
        prompts = [RECONSTRUCTION_PROMPT] * len(semantic.embeds)
        return self.decode(self.sample(prompts, semantic, sampling, rng))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (B, T) to images in [-1, 1]."""
        return self.magvit.decode(codes).clamp(-1, 1)

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], semantic: Semantic | None, sampling: Sampling, rng: SampleRng) -> Tensor:
        """Sample codes (B, T). Guidance: logits = w * conditional - (w - 1) * unconditional (empty prompt).

        Positions before [soi] do not attend to the image, so they run once, and each step runs the image only.
        Guidance scale g of the official code is w = g + 1 here.
        """
        sampling.refuse_other_sizes(self.spec.generation_size)
        guided = sampling.guidance_scale != 1
        device = self.showo.lm_head.weight.device
        codes = torch.full((len(prompts), self.spec.target_tokens), self.vocabulary.codebook, device=device)
        build = self.guided_batch if guided else self.generation_batch
        batch = build(prompts, codes, semantic)
        start = batch.codes.start - 1
        embeds, cache = self.embed(batch, semantic), DynamicCache()
        if start:
            self.run_phi(embeds[:, :start], batch.attention_mask[:, :start, :start], cache)
        soi, eoi = embeds[:, start : start + 1], embeds[:, batch.codes.stop :]
        code_range = slice(self.vocabulary.first_code, self.vocabulary.first_code + self.vocabulary.codebook)

        def predict(codes: Tensor) -> Tensor:
            code_embeds = self.showo.model.embed_tokens(codes + self.vocabulary.first_code)
            code_embeds = code_embeds.repeat(len(batch.ids) // len(codes), 1, 1)
            inputs = torch.cat([soi, code_embeds, eoi], dim=1)
            states = self.run_phi(inputs, batch.attention_mask[:, start:], cache)[:, 1:-1]
            cache.crop(-(codes.shape[1] + 2))
            logits = self.showo.lm_head(states)[..., code_range].float()
            if not guided:
                return logits
            conditional, unconditional = logits.chunk(2)
            return classifier_free_guidance(conditional, unconditional, sampling.guidance_scale)

        num_steps = sampling.num_steps or min(NUM_STEPS, codes.shape[1])
        return sample_codes(predict, codes, self.vocabulary.codebook, num_steps, sampling.temperature, rng)

    def guided_batch(self, prompts: Sequence[str], codes: Tensor, semantic: Semantic | None) -> TokenBatch:
        """Build sequences with their condition, then as many with an empty prompt (and no image): (2B, L)."""
        if semantic is None:
            return self.generation_batch([*prompts, *[""] * len(prompts)], codes.repeat(2, 1), None)
        conditional = self.generation_batch(prompts, codes, semantic)
        length = conditional.codes.stop + 1
        unconditional = generation_sequences(self.vocabulary, [[]] * len(prompts), codes, length=length)
        return conditional.concat(unconditional)

    @torch.no_grad()
    def answer(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Greedy answers, at most ``MAX_ANSWER_TOKENS`` tokens each."""
        semantic = self.encode_semantic(self._asked_about(images))
        batch = self.understanding_batch(self._question_ids(questions), semantic, pad_left=True)
        embeds, mask, cache = self.embed(batch, semantic), batch.attention_mask, DynamicCache()

        def next_logits(tokens: Tensor) -> Tensor:
            nonlocal mask
            mask = F.pad(mask[:, -1:], (0, 1), value=True)
            embeds = self.showo.model.embed_tokens(tokens[:, None])
            return self.showo.lm_head(self.run_phi(embeds, mask, cache)[:, -1])

        logits = self.showo.lm_head(self.run_phi(embeds, mask, cache)[:, -1])
        rows = greedy_decode(logits, next_logits, self.vocabulary.eos, MAX_ANSWER_TOKENS)
        words = [[token for token in row if token < self.vocabulary.pad] for row in rows]
        return [text.strip() for text in self.tokenizer.batch_decode(words)]


def _resize(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, size, size), bilinear and without antialiasing, as in the official code."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
