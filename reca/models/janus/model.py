"""Janus and Janus-Pro: one decoder that reads SigLIP tokens and writes VQ codes (arXiv 2410.13848, 2501.17811).

The network is the stock ``JanusForConditionalGeneration``; this file adds what RecA needs around it.

    h_v  = aligner(SigLIP(image))                     the condition
    L    = CE(generation_head(LM([user turn: h_v, template] [boi] codes)), codes)

An image turn is ``<bos><|User|>: <boi> h_v <eoi> text <|Assistant|>:`` as in the official processor; drawing
continues with ``<boi>`` and the codes, one by one.

**Gist tokens** (Mu et al., arXiv 2304.08467), optional, named in the checkpoint's ``config.json`` as
``"gist": {"tokens": n, "layer": r, "scale": s}``: n reserved tokens close every user turn. The first r layers read the
turn; from there on the codes see the n gist states and nothing else of it. Text and image thus meet in the
same n states, which is the information bottleneck that RecA asks for (method notes, "rules for porting"), and
the layers that read are the understanding half: they stay frozen while the others learn to draw.
What varies among gist states is small beside their mean, so the drawing layers see (state - centre) / s; the centres
stand in the embedding table, under the reserved tokens ``<gist_mean_0>`` and so on (:meth:`Janus.centre_gists`).
Without the entry (the official checkpoints) all layers read everything.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, JanusConfig, JanusForConditionalGeneration
from transformers.cache_utils import DynamicCache
from transformers.utils import logging as transformers_logging

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
from reca.models.tokens import last_tokens_mask, next_token_loss, pad_token_ids
from reca.models.weights import read_weights
from reca.runtime.files import atomic_folder
from reca.runtime.seeding import SampleRng

BOI, EOI, IMAGE = "<begin_of_image>", "<end_of_image>", "<image_placeholder>"
USER, ASSISTANT = "<|User|>:", "<|Assistant|>:"
MAX_ANSWER_TOKENS = 16


@dataclass(frozen=True)
class PromptEmbeds:
    """User turns of a batch, padded on the left: embeddings (B, L, D) and which of them are real (B, L)."""

    embeds: Tensor
    mask: Tensor


def read_config(checkpoint: Path) -> JanusConfig:
    """The checkpoint's own sizes; the stock class overwrites the grid of codes with that of the vision tower."""
    config = JanusConfig.from_pretrained(checkpoint)
    raw = json.loads((checkpoint / "config.json").read_text())
    config.vq_config.num_patches = raw.get("vq_config", {}).get("num_patches", config.vq_config.num_patches)
    return config


class Janus(UnifiedModel):
    """Janus behind the contract of :class:`UnifiedModel`."""

    family: ClassVar[str] = "janus"
    encoder_prefixes: ClassVar[Mapping[Cacheable, tuple[str, ...]]] = {
        "semantic": ("network.model.vision_model.", "network.model.aligner."),
        "target": tuple(f"network.model.vqmodel.{part}." for part in ("encoder", "quant_conv", "quantize")),
    }

    def __init__(self, network: JanusForConditionalGeneration, tokenizer: Any, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.train_vision = bool(options["train_vision"])
        self.prompt_dropout = float(options["prompt_dropout"])
        config: JanusConfig = network.config
        gist = getattr(config, "gist", None) or {"tokens": 0, "layer": 0, "scale": 1.0}
        self.gist_tokens, self.gist_layer = int(gist["tokens"]), int(gist["layer"])
        self.spec = ImageSpec.square(
            understanding_size=config.vision_config.image_size,
            generation_size=config.vq_config.num_patches * 2 ** (len(config.vq_config.channel_multiplier) - 1),
            semantic_tokens=(config.vision_config.image_size // config.vision_config.patch_size) ** 2,
            target_tokens=config.vq_config.num_patches**2,
        )
        self.cacheable = frozenset({"target"} if self.train_vision else {"semantic", "target"})
        self._image_text = BOI + IMAGE * self.spec.semantic_tokens + EOI + "\n"
        self._gist_text = "".join(f"<gist_{number}>" for number in range(self.gist_tokens))
        self.freeze()

    @classmethod
    def load(cls, checkpoint: Path, options: Mapping[str, Any], device: torch.device | None) -> Self:
        """See :meth:`UnifiedModel.load`; the layout is that of the transformers-native repositories."""
        for name in ("config.json", "tokenizer.json"):
            if not (checkpoint / name).is_file():
                raise FileNotFoundError(f"{checkpoint / name} is missing: {checkpoint} is no Janus checkpoint")
        transformers_logging.disable_progress_bar()
        try:
            network, report = JanusForConditionalGeneration.from_pretrained(
                checkpoint,
                config=read_config(checkpoint),
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                # Not the config's: it may be narrower than what the file holds. Nothing is converted, nothing copied.
                dtype=reduce(torch.promote_types, {value.dtype for value in read_weights(checkpoint).values()}),
            )
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ValueError(f"the weights of {checkpoint} (model.safetensors) cannot be read: {error}") from None
        wrong = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
        if wrong:
            raise ValueError(f"{checkpoint} does not fit its own config.json: {wrong}")
        for part in (network.config, *(getattr(network.config, name) for name in network.config.sub_configs)):
            part.dtype = torch.float32  # what is written back, whatever was read
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        return cls(network, tokenizer, options).to_eval(device)

    def save_official(self, path: Path) -> None:
        """See :meth:`UnifiedModel.save_official`."""
        transformers_logging.disable_progress_bar()
        with atomic_folder(path) as folder:
            self.network.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            (folder / "model.safetensors").chmod(0o644)

    def trainable(self) -> Iterable[str]:
        """All but the VQ tokenizer and, unless ``train_vision``, what makes h_v; with gists, only what draws.

        With gist tokens the embeddings and the layers below the gist layer are the understanding half; frozen,
        they keep text and image in one space while the layers above learn to draw from it.
        """
        frozen = ["network.model.vqmodel."]
        if not self.train_vision:  # h_v is stored then, so nothing that makes it may move
            frozen += ["network.model.vision_model.", "network.model.aligner."]
        if self.gist_tokens:
            frozen += ["network.model.aligner.", "network.model.vision_model.", "network.model.language_model.embed"]
            frozen += [f"network.model.language_model.layers.{layer}." for layer in range(self.gist_layer)]
        return [name for name, _ in self.named_parameters() if not name.startswith(tuple(frozen))]

    # -- what goes in ---------------------------------------------------------------------------------------

    def encode_semantic(self, images: Tensor, rng: SampleRng | None = None) -> Semantic:
        """h_v = aligner(SigLIP(image)): (B, 3, S, S) -> (B, N, D)."""
        with torch.set_grad_enabled(self.train_vision and torch.is_grad_enabled()):
            tokens = self.network.model.vision_model(pixel_values=images).last_hidden_state
            return Semantic(self.network.model.aligner(tokens))

    @torch.no_grad()
    def encode_target(self, images: Tensor, rng: SampleRng) -> Target:
        """VQ codes: (B, 3, S, S) -> (B, T) int64. Nothing random here."""
        codes = self.network.model.vqmodel.encode(images).image_tokens
        return Target(codes.view(len(images), -1))

    def read(
        self, texts: Sequence[str], semantic: Semantic | None = None, dropped: Tensor | None = None
    ) -> PromptEmbeds:
        """User turns, gist tokens included, ready for the language model.

        Args:
            texts: One text a sample.
            semantic: Embeddings of one image a sample, put before the text; ``None``: no image.
            dropped: (B,) bool, the samples whose condition is replaced by padding tokens that *are* attended,
                as Janus does for the unconditional half of classifier-free guidance.

        Raises:
            ValueError: A turn and its answer or image do not fit into the model's context.
        """
        image = "" if semantic is None else self._image_text
        turns = [f"{self.tokenizer.bos_token}{USER} {image}{text}\n\n{self._gist_text}" for text in texts]
        closing = "" if self.gist_tokens else ASSISTANT
        ids, mask = self._ids([turn + closing for turn in turns])
        if dropped is not None:
            content = mask & (ids != self.tokenizer.bos_token_id)
            if self.gist_tokens:
                content[:, -self.gist_tokens :] = False
            hidden = content & dropped.to(ids.device)[:, None]
        else:
            hidden = torch.zeros_like(mask)
        embeds = self._embed(ids)
        if semantic is not None:
            places = ids == self._id(IMAGE)
            embeds = embeds.masked_scatter(places[..., None], semantic.embeds.to(embeds.dtype))
        pad = self._embed(torch.tensor(self.tokenizer.pad_token_id, device=ids.device))
        return PromptEmbeds(torch.where(hidden[..., None], pad, embeds), mask)

    def _ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask (B, L), padded on the left."""
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        longest = max(map(len, rows))
        limit = self.network.config.text_config.max_position_embeddings - self.spec.target_tokens - 1
        if longest > limit:
            raise ValueError(f"a prompt has {longest} tokens, and the model takes {limit}: {texts[0][:80]!r}…")
        return pad_token_ids(rows, self.tokenizer.pad_token_id, left=True, device=self.network.device)

    def _id(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def _embed(self, ids: Tensor) -> Tensor:
        return self.network.model.language_model.embed_tokens(ids)

    # -- the language model ---------------------------------------------------------------------------------

    def run_layers(
        self, hidden: Tensor, mask: Tensor, first: int, last: int | None = None, cache: DynamicCache | None = None
    ) -> Tensor:
        """Layers ``first`` to ``last`` over the newest positions: (B, L, D) -> (B, L, D).

        ``mask`` (B, K) says which of all K positions so far are real; the newest L of them are ``hidden``.
        """
        language_model = self.network.model.language_model
        new, total = hidden.shape[1], mask.shape[1]
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, total - new :]
        attention = None
        if not bool(mask.all()):
            causal = torch.ones(new, total, dtype=torch.bool, device=mask.device).tril(total - new)
            # A padding query sees itself: a row without any key would turn into NaN.
            alone = torch.eye(total, dtype=torch.bool, device=mask.device)[total - new :]
            attention = ((causal & mask[:, None]) | alone)[:, None]
        rotary = language_model.rotary_emb(hidden, position_ids=positions)
        for layer in language_model.layers[first:last]:
            hidden = layer(
                hidden,
                attention_mask=attention,
                position_ids=positions,
                position_embeddings=rotary,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return hidden

    def gist_states(self, turn: PromptEmbeds) -> Tensor:
        """The states (B, n, D) through which the layers above see a turn."""
        states = self.run_layers(turn.embeds, turn.mask, 0, self.gist_layer)
        return states[:, -self.gist_tokens :]

    def centre_gists(self, states: Tensor) -> None:
        """Set what the drawing layers subtract from gist states and divide them by, from states (B, n, D).

        They then see what varies, at unit size, plus what tells the n gists apart (their means' own differences, at
        unit size too). Without the latter all gists look alike: the probes that shaped them read every one the same
        way, and rotary positions name a gist only by its distance, which is another one at every code.
        """
        means = states.mean(dim=0)
        scale = (states - means).std()
        identity = means - means.mean(dim=0)
        with torch.no_grad():
            centre = means - scale * identity / identity.std()
            self.network.model.language_model.embed_tokens.weight[self._gist_means()] = centre
        self.network.config.gist = {**self.network.config.gist, "scale": float(scale)}

    def _gist_means(self) -> Tensor:
        names = [f"<gist_mean_{number}>" for number in range(self.gist_tokens)]
        return torch.tensor(self.tokenizer.convert_tokens_to_ids(names), device=self.network.device)

    def prefix(self, turn: PromptEmbeds) -> PromptEmbeds:
        """What the drawing layers see of a turn: its gists (frozen half, hence no gradient), or all of it."""
        if not self.gist_tokens:
            return turn
        with torch.no_grad():
            states = self.gist_states(turn) - self._embed(self._gist_means())
            states = states / self.network.config.gist["scale"]
        return PromptEmbeds(states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device))

    def _code_embeds(self, codes: Tensor) -> Tensor:
        return self.network.prepare_embeddings_for_image_generation(codes)

    def code_states(self, prefix: PromptEmbeds, codes: Tensor) -> Tensor:
        """What the generation head predicts codes (B, T) from, each out of the prefix and the codes before it."""
        boi = self._embed(torch.full((len(codes), 1), self._id(BOI), device=codes.device))
        hidden = torch.cat([prefix.embeds, boi, self._code_embeds(codes[:, :-1])], dim=1)
        mask = F.pad(prefix.mask, (0, codes.shape[1]), value=True)
        hidden = self.run_layers(hidden, mask, self.gist_layer)[:, -codes.shape[1] :]
        return self.network.model.language_model.norm(hidden)

    def _code_loss(self, turn: PromptEmbeds, codes: Tensor) -> Loss:
        logits = self.network.model.generation_head(self.code_states(self.prefix(turn), codes))
        value = F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())
        return Loss(value, codes.numel())

    # -- losses ---------------------------------------------------------------------------------------------

    def reconstruction_loss(self, semantic: Semantic, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Cross-entropy of an image's codes given h_v and a template (ours: no official RecA for Janus exists)."""
        return self._code_loss(self.read(prompts, semantic, self.condition_dropout_mask(rng)), target.values)

    def text_to_image_loss(self, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Cross-entropy of an image's codes given its caption."""
        return self._code_loss(self.read(prompts, None, self.condition_dropout_mask(rng)), target.values)

    def understanding_loss(self, images: Tensor, dialogues: Sequence[Dialogue], rng: SampleRng) -> Loss:
        """Cross-entropy of the answer tokens, end included."""
        questions = [f"{self.tokenizer.bos_token}{USER} {self._image_text}{d.question}" for d in dialogues]
        ends = [f"\n\n{self._gist_text}{ASSISTANT} {d.answer}{self.tokenizer.eos_token}" for d in dialogues]
        ids, mask = self._ids([question + end for question, end in zip(questions, ends, strict=True)])
        answers = self.tokenizer(
            [f" {d.answer}{self.tokenizer.eos_token}" for d in dialogues], add_special_tokens=False
        )
        embeds = self._embed(ids)
        semantic = self.encode_semantic(images)
        places = ids == self._id(IMAGE)
        embeds = embeds.masked_scatter(places[..., None], semantic.embeds.to(embeds.dtype))
        hidden = self.network.model.language_model.norm(self.run_layers(embeds, mask, 0))
        loss_mask = last_tokens_mask([len(tokens) for tokens in answers["input_ids"]], ids.shape[1])
        return next_token_loss(hidden, ids, loss_mask, self.network.lm_head)

    # -- what comes out -------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        """Draw one image per prompt, code by code."""
        return self._draw(self._both(prompts, None, sampling), sampling, rng)

    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        """Draw images from their own understanding embeddings, under a fixed template."""
        prompts = [RECONSTRUCTION_PROMPT] * len(semantic.embeds)
        return self._draw(self._both(prompts, semantic, sampling), sampling, rng)

    def _both(self, prompts: Sequence[str], semantic: Semantic | None, sampling: Sampling) -> PromptEmbeds:
        """Conditional turns, followed by the unconditional ones when guidance wants them."""
        everything = torch.ones(len(prompts), dtype=torch.bool)
        turns = [self.read(prompts, semantic)]
        if sampling.guidance_scale != 1:
            turns.append(self.read(prompts, semantic, everything))
        return PromptEmbeds(torch.cat([turn.embeds for turn in turns]), torch.cat([turn.mask for turn in turns]))

    @torch.no_grad()
    def _draw(self, turn: PromptEmbeds, sampling: Sampling, rng: SampleRng) -> Tensor:
        prefix, cache, codes = self.prefix(turn), DynamicCache(), []
        boi = self._embed(torch.full((len(turn.embeds), 1), self._id(BOI), device=turn.embeds.device))
        hidden, mask = torch.cat([prefix.embeds, boi], dim=1), F.pad(prefix.mask, (0, 1), value=True)
        for _ in range(self.spec.target_tokens):
            states = self.run_layers(hidden, mask, self.gist_layer, cache=cache)[:, -1]
            logits = self.network.model.generation_head(self.network.model.language_model.norm(states)).float()
            if len(logits) != len(rng):
                conditional, unconditional = logits.chunk(2)
                logits = classifier_free_guidance(conditional, unconditional, sampling.guidance_scale)
            codes.append(rng.categorical("codes", logits / sampling.temperature))
            hidden = self._code_embeds(codes[-1][:, None]).repeat(len(turn.embeds) // len(rng), 1, 1)
            mask = F.pad(mask, (0, 1), value=True)
        return self.network.model.vqmodel.decode(torch.stack(codes, dim=1)).clamp(-1, 1)

    @torch.no_grad()
    def answer(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Greedy answers, at most ``MAX_ANSWER_TOKENS`` tokens each."""
        turn = self.read(questions, self.encode_semantic(images))
        hidden, mask, cache = turn.embeds, turn.mask, DynamicCache()
        if self.gist_tokens:  # the turn ended with the gists; the assistant's marker follows them
            marker = self._embed(torch.full((len(hidden), 1), self._id(ASSISTANT), device=hidden.device))
            hidden, mask = torch.cat([hidden, marker], dim=1), F.pad(mask, (0, 1), value=True)

        def last_logits(hidden: Tensor) -> Tensor:
            states = self.run_layers(hidden, mask, 0, cache=cache)[:, -1]
            return self.network.lm_head(self.network.model.language_model.norm(states))

        def next_logits(tokens: Tensor) -> Tensor:
            nonlocal mask
            mask = F.pad(mask, (0, 1), value=True)
            return last_logits(self._embed(tokens[:, None]))

        answers = greedy_decode(last_logits(hidden), next_logits, self.tokenizer.eos_token_id, MAX_ANSWER_TOKENS)
        return [text.strip() for text in self.tokenizer.batch_decode(answers)]
