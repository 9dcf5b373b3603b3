"""Janus and Janus-Pro: one decoder for SigLIP tokens and VQ codes (arXiv 2410.13848, 2501.17811).

The network is the stock ``JanusForConditionalGeneration``.

    h_v    = aligner(SigLIP(image))                     the condition
    L_RecA = CE(generation_head(LM([user turn: h_v, template] [boi] codes)), codes)

An image turn is ``<bos><|User|>: <boi> h_v <eoi> text <|Assistant|>:`` as in the official processor;
generation continues with ``<boi>`` and the codes, one by one. A question has the official system prompt before it.

**Gist tokens** (Mu et al., arXiv 2304.08467), optional, named in the checkpoint's ``config.json`` as
``"gist": {"tokens": n, "layer": r, "scale": s}``: n reserved tokens close every user turn. The first r layers read the
turn; in the layers above, the codes attend to the n gist states only. Text and image thus meet in the same n states,
the information bottleneck that RecA needs. The first r layers are the understanding half: they are frozen while the
others learn to generate. Gist states vary little compared with their mean, so the upper layers get
(state - centre) / s; the centres are rows of the embedding table, under the reserved tokens ``<gist_mean_0>`` and so on
(:meth:`Janus.centre_gists`). Without the entry (official checkpoints) all layers attend to the whole turn.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration
from transformers.cache_utils import DynamicCache
from transformers.utils import logging as transformers_logging

from reca.models.base import RECONSTRUCTION_PROMPT, Cacheable, Dialogue, ImageSpec, Loss, Semantic, Target, UnifiedModel
from reca.models.sampling import Sampling, classifier_free_guidance, greedy_decode
from reca.models.tokens import last_tokens_mask, next_token_loss, pad_token_ids, read_tokenizer
from reca.models.weights import load_stock, read_json, read_weights
from reca.runtime.files import atomic_folder
from reca.runtime.seeding import SampleRng

BOI, EOI, IMAGE = "<begin_of_image>", "<end_of_image>", "<image_placeholder>"
USER, ASSISTANT = "<|User|>:", "<|Assistant|>:"
SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
"""Precedes a question, as in the official processor; prompts of generation have none."""
MAX_ANSWER_TOKENS = 16


@dataclass(frozen=True)
class PromptEmbeds:
    """User turns of a batch, padded on the left: embeddings (B, L, D) and attention mask (B, L)."""

    embeds: Tensor
    mask: Tensor


def read_config(checkpoint: Path) -> JanusConfig:
    """Return the checkpoint's configuration; the stock class replaces the grid of codes by the vision tower's."""
    raw = read_json(checkpoint / "config.json")
    config = JanusConfig.from_dict(raw)
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
        system_prompt = SYSTEM_PROMPT if options["system_prompt"] is None else options["system_prompt"]
        self._system_text = f"{system_prompt}\n\n" if system_prompt else ""
        self._gist_text = "".join(f"<gist_{number}>" for number in range(self.gist_tokens))
        self.freeze()

    @classmethod
    def load(cls, checkpoint: Path, options: Mapping[str, Any], device: torch.device | None) -> Self:
        """See :meth:`UnifiedModel.load`; the layout is that of the transformers-native repositories."""
        config, tokenizer = read_config(checkpoint), read_tokenizer(checkpoint)
        # The file's widest dtype, not the config's, so that no weight is converted or copied.
        dtype = reduce(torch.promote_types, {value.dtype for value in read_weights(checkpoint).values()})
        network = load_stock(JanusForConditionalGeneration, checkpoint, config=config, dtype=dtype)
        for part in (network.config, *(getattr(network.config, name) for name in network.config.sub_configs)):
            part.dtype = torch.float32  # the dtype in the config that save_official writes
        return cls(network, tokenizer, options).to_eval(device)

    def save_official(self, path: Path, for_scripts: bool = False) -> None:
        """See :meth:`UnifiedModel.save_official`; below 50 GB there is one file."""
        transformers_logging.disable_progress_bar()
        with atomic_folder(path) as folder:
            self.network.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            (folder / "model.safetensors").chmod(0o644)

    def trainable(self) -> Iterable[str]:
        """Return all parameters but the VQ tokenizer's, the frozen vision tower's and those below the gist layer.

        With gist tokens the embeddings and the layers below the gist layer are the understanding half. Frozen, they
        keep text and image in one space while the layers above learn to generate from it.
        """
        frozen = ["network.model.vqmodel."]
        if not self.train_vision:  # h_v is cached then, so its encoder must not change
            frozen += ["network.model.vision_model.", "network.model.aligner."]
        if self.gist_tokens:
            frozen += ["network.model.aligner.", "network.model.vision_model.", "network.model.language_model.embed"]
            frozen += [f"network.model.language_model.layers.{layer}." for layer in range(self.gist_layer)]
        return [name for name, _ in self.named_parameters() if not name.startswith(tuple(frozen))]

    def encode_semantic(self, images: Tensor, rng: SampleRng | None = None) -> Semantic:
        """Return h_v = aligner(SigLIP(image)), (B, N, D), for images (B, 3, S, S)."""
        with torch.set_grad_enabled(self.train_vision and torch.is_grad_enabled()):
            tokens = self.network.model.vision_model(pixel_values=images).last_hidden_state
            return Semantic(self.network.model.aligner(tokens))

    @torch.no_grad()
    def encode_target(self, images: Tensor, rng: SampleRng) -> Target:
        """Return VQ codes (B, T) int64 of images (B, 3, S, S); ``rng`` is not used."""
        codes = self.network.model.vqmodel.encode(images).image_tokens
        return Target(codes.view(len(images), -1))

    def prompt_embeds(
        self,
        texts: Sequence[str],
        semantic: Semantic | None = None,
        dropout_mask: Tensor | None = None,
        system_text: str = "",
    ) -> PromptEmbeds:
        """Return the embeddings of user turns, gist tokens included.

        Args:
            texts: A text per sample.
            semantic: Embeddings of an image per sample, inserted before the text; ``None``: no image.
            dropout_mask: Samples whose condition is replaced by padding tokens *inside* the attention mask, (B,) bool,
                as Janus does for the unconditional half of classifier-free guidance.
            system_text: Text before the turn.

        Raises:
            ValueError: A turn and its answer or image do not fit into the model's context.
        """
        image = "" if semantic is None else self._image_text
        opening = f"{self.tokenizer.bos_token}{system_text}{USER} {image}"
        turns = [f"{opening}{text}\n\n{self._gist_text}" for text in texts]
        closing = "" if self.gist_tokens else ASSISTANT
        ids, mask = self._ids([turn + closing for turn in turns])
        if dropout_mask is not None:
            content = mask & (ids != self.tokenizer.bos_token_id)
            if self.gist_tokens:
                content[:, -self.gist_tokens :] = False
            hidden = content & dropout_mask.to(ids.device)[:, None]
        else:
            hidden = torch.zeros_like(mask)
        embeds = self._embed(ids, semantic)
        pad = self._embed(torch.tensor(self.tokenizer.pad_token_id, device=ids.device))
        return PromptEmbeds(torch.where(hidden[..., None], pad, embeds), mask)

    def _ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return token ids and attention mask (B, L), padded on the left."""
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        longest = max(map(len, rows))
        limit = self.network.config.text_config.max_position_embeddings - self.spec.target_tokens - 1
        if longest > limit:
            raise ValueError(f"a prompt has {longest} tokens, and the model takes {limit}: {texts[0][:80]!r}…")
        return pad_token_ids(rows, self.tokenizer.pad_token_id, left=True, device=self.network.device)

    def _id(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def _embed(self, ids: Tensor, semantic: Semantic | None = None) -> Tensor:
        embeds = self.network.model.language_model.embed_tokens(ids)
        if semantic is None:
            return embeds
        return embeds.masked_scatter((ids == self._id(IMAGE))[..., None], semantic.embeds.to(embeds.dtype))

    def run_layers(
        self, hidden: Tensor, mask: Tensor, first: int, last: int | None = None, cache: DynamicCache | None = None
    ) -> Tensor:
        """Run layers ``first`` to ``last`` over the newest L positions, (B, L, D).

        ``mask`` (B, K) is the attention mask of all K positions so far, the newest L included.
        """
        language_model = self.network.model.language_model
        new, total = hidden.shape[1], mask.shape[1]
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, total - new :]
        attention = None
        if not bool(mask.all()):
            causal = torch.ones(new, total, dtype=torch.bool, device=mask.device).tril(total - new)
            # A padding query attends to itself: a row without keys would become NaN.
            diagonal = torch.eye(total, dtype=torch.bool, device=mask.device)[total - new :]
            attention = ((causal & mask[:, None]) | diagonal)[:, None]
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

    def gist_states(self, prompt: PromptEmbeds) -> Tensor:
        """Return the states (B, n, D) of the gist tokens after the first r layers."""
        states = self.run_layers(prompt.embeds, prompt.mask, 0, self.gist_layer)
        return states[:, -self.gist_tokens :]

    def centre_gists(self, states: Tensor) -> None:
        """Set the centres and the scale of gist states from states (B, n, D).

        The upper layers then get the variation at unit size, plus the differences between the n means, also at unit
        size. Without the latter all gists look alike: the probes that trained them are the same for every gist, and
        rotary positions encode only the distance to a gist, which differs at every code.
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

    def prefix(self, prompt: PromptEmbeds) -> PromptEmbeds:
        """Return the prompt for the layers above r: its gists (frozen, so without gradient), or the whole prompt."""
        if not self.gist_tokens:
            return prompt
        with torch.no_grad():
            states = self.gist_states(prompt) - self._embed(self._gist_means())
            states = states / self.network.config.gist["scale"]
        return PromptEmbeds(states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device))

    def _code_embeds(self, codes: Tensor) -> Tensor:
        return self.network.prepare_embeddings_for_image_generation(codes)

    def code_states(self, prefix: PromptEmbeds, codes: Tensor) -> Tensor:
        """Return the states (B, T, D) from which the generation head predicts codes (B, T)."""
        boi = self._embed(torch.full((len(codes), 1), self._id(BOI), device=codes.device))
        hidden = torch.cat([prefix.embeds, boi, self._code_embeds(codes[:, :-1])], dim=1)
        mask = F.pad(prefix.mask, (0, codes.shape[1]), value=True)
        hidden = self.run_layers(hidden, mask, self.gist_layer)[:, -codes.shape[1] :]
        return self.network.model.language_model.norm(hidden)

    def _code_loss(self, prompt: PromptEmbeds, codes: Tensor) -> Loss:
        logits = self.network.model.generation_head(self.code_states(self.prefix(prompt), codes))
        value = F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())
        return Loss(value, codes.numel())

    def reconstruction_loss(self, semantic: Semantic, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Return the cross-entropy of codes given h_v and a template; there is no official RecA for Janus."""
        return self._code_loss(self.prompt_embeds(prompts, semantic, self.condition_dropout_mask(rng)), target.values)

    def text_to_image_loss(self, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Return the cross-entropy of codes given a caption."""
        return self._code_loss(self.prompt_embeds(prompts, None, self.condition_dropout_mask(rng)), target.values)

    def understanding_loss(self, images: Tensor, dialogues: Sequence[Dialogue], rng: SampleRng) -> Loss:
        """Return the cross-entropy of the answer tokens, end token included."""
        opening = f"{self.tokenizer.bos_token}{self._system_text}{USER} {self._image_text}"
        questions = [f"{opening}{d.question}" for d in dialogues]
        ends = [f"\n\n{self._gist_text}{ASSISTANT} {d.answer}{self.tokenizer.eos_token}" for d in dialogues]
        ids, mask = self._ids([question + end for question, end in zip(questions, ends, strict=True)])
        answers = self.tokenizer(
            [f" {d.answer}{self.tokenizer.eos_token}" for d in dialogues], add_special_tokens=False
        )
        embeds = self._embed(ids, self.encode_semantic(images))
        hidden = self.network.model.language_model.norm(self.run_layers(embeds, mask, 0))
        loss_mask = last_tokens_mask([len(tokens) for tokens in answers["input_ids"]], ids.shape[1])
        return next_token_loss(hidden, ids, loss_mask, self.network.lm_head)

    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        """See :meth:`UnifiedModel.generate`; codes are sampled one by one."""
        return self._sample(self._guided_prompts(prompts, None, sampling), sampling, rng)

    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        """See :meth:`UnifiedModel.reconstruct`."""
        prompts = [RECONSTRUCTION_PROMPT] * len(semantic.embeds)
        return self._sample(self._guided_prompts(prompts, semantic, sampling), sampling, rng)

    def _guided_prompts(self, texts: Sequence[str], semantic: Semantic | None, sampling: Sampling) -> PromptEmbeds:
        """Return the conditional prompts, followed by the unconditional ones if there is guidance."""
        prompts = [self.prompt_embeds(texts, semantic)]
        if sampling.guidance_scale != 1:
            prompts.append(self.prompt_embeds(texts, semantic, torch.ones(len(texts), dtype=torch.bool)))
        embeds, masks = [prompt.embeds for prompt in prompts], [prompt.mask for prompt in prompts]
        return PromptEmbeds(torch.cat(embeds), torch.cat(masks))

    @torch.no_grad()
    def _sample(self, prompt: PromptEmbeds, sampling: Sampling, rng: SampleRng) -> Tensor:
        sampling.refuse_other_sizes(self.spec.generation_size)
        prefix, cache, codes = self.prefix(prompt), DynamicCache(), []
        boi = self._embed(torch.full((len(prompt.embeds), 1), self._id(BOI), device=prompt.embeds.device))
        hidden, mask = torch.cat([prefix.embeds, boi], dim=1), F.pad(prefix.mask, (0, 1), value=True)
        for _ in range(self.spec.target_tokens):
            states = self.run_layers(hidden, mask, self.gist_layer, cache=cache)[:, -1]
            logits = self.network.model.generation_head(self.network.model.language_model.norm(states)).float()
            if len(logits) != len(rng):
                conditional, unconditional = logits.chunk(2)
                logits = classifier_free_guidance(conditional, unconditional, sampling.guidance_scale)
            codes.append(rng.categorical("codes", logits / sampling.temperature))
            hidden = self._code_embeds(codes[-1][:, None]).repeat(len(prompt.embeds) // len(rng), 1, 1)
            mask = F.pad(mask, (0, 1), value=True)
        return self.network.model.vqmodel.decode(torch.stack(codes, dim=1)).clamp(-1, 1)

    @torch.no_grad()
    def answer(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Return greedy answers of at most ``MAX_ANSWER_TOKENS`` tokens."""
        prompt = self.prompt_embeds(questions, self.encode_semantic(images), system_text=self._system_text)
        hidden, mask, cache = prompt.embeds, prompt.mask, DynamicCache()
        if self.gist_tokens:  # prompts end with the gists; the assistant's marker follows them
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
