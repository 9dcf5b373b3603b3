"""OpenUni: InternVL3 reads, learnable queries carry what it read to SANA, which draws (arXiv 2505.23661).

    h_v  = mlp1(InternViT(image))                                    the condition
    c    = projector(connector(LM([user turn: h_v, template] [queries])))
    L    = |SANA(x_t, t, c) - (e - x)|^2,   x_t = (1 - s) x + s e    x: DC-AE latents, s from a uniform grid

InternVL and DC-AE are frozen; SANA, the connector, the projector and the queries are trained (the authors' release:
``image2image_loss`` with the image as its own target). The networks stand in :mod:`reca.models.openuni.network`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer
from transformers.cache_utils import DynamicCache
from transformers.initialization import no_init_weights

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
from reca.models.openuni.checkpoint import read_checkpoint
from reca.models.openuni.network import OpenUniNetwork
from reca.models.sampling import greedy_decode
from reca.models.tokens import last_tokens_mask, next_token_loss, pad_token_ids
from reca.models.weights import load_strictly, write_weights
from reca.runtime.files import atomic_folder
from reca.runtime.seeding import SampleRng

IMAGE, IMAGE_START, IMAGE_END = "<IMG_CONTEXT>", "<img>", "</img>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
USER, ASSISTANT = f"{TURN_START}user\n", f"{TURN_END}\n{TURN_START}assistant\n"
GENERATE, UNCONDITIONAL = "Generate an image: {}", "Generate an image."
NUM_STEPS = 20
"""Steps of DPM-Solver++ in the authors' evaluation."""
MAX_ANSWER_TOKENS = 16


class OpenUni(UnifiedModel):
    """OpenUni behind the contract of :class:`UnifiedModel`."""

    family: ClassVar[str] = "openuni"
    encoder_prefixes: ClassVar[Mapping[Cacheable, tuple[str, ...]]] = {
        "semantic": ("network.lmm.vision_model.", "network.lmm.mlp1."),
        "target": ("network.vae.encoder.",),
    }

    def __init__(self, network: OpenUniNetwork, tokenizer: Any, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.train_vision = bool(options["train_vision"])
        self.train_transformer = bool(options["train_transformer"])
        self.prompt_dropout = float(options["prompt_dropout"])
        understanding_size = options["understanding_size"] or network.config["vit_input_size"]
        transformer = network.transformer.config
        generation_size = options["generation_size"] or transformer.sample_size * network.pixels_per_latent
        pixels_per_target = network.pixels_per_latent * transformer.patch_size
        for name, size, unit in (
            ("understanding_size", understanding_size, network.patch),
            ("generation_size", generation_size, pixels_per_target),
        ):
            if size % unit:
                raise ValueError(f"model.{name} is {size}: it must be a multiple of {unit} pixels")
        self.spec = ImageSpec.square(
            understanding_size=understanding_size,
            generation_size=generation_size,
            semantic_tokens=network.image_tokens(understanding_size),
            target_tokens=(generation_size // pixels_per_target) ** 2,
        )
        self.cacheable = frozenset({"target"} if self.train_vision else {"semantic", "target"})
        self._image_text = IMAGE_START + IMAGE * self.spec.semantic_tokens + IMAGE_END + "\n"
        self.freeze()

    @classmethod
    def load(cls, checkpoint: Path, options: Mapping[str, Any], device: torch.device | None) -> Self:
        """See :meth:`UnifiedModel.load`; the layouts are those of :mod:`reca.models.openuni.checkpoint`."""
        parts = {name: Path(place) for name, place in options["parts"].items()}
        found = read_checkpoint(Path(checkpoint), parts, options["weights"])
        with no_init_weights():
            network = OpenUniNetwork(found.config)
        tied = network.lmm.language_model.config.tie_word_embeddings
        head = ["lmm.language_model.lm_head.weight"] if tied else []
        load_strictly(network, network.from_official(found.state), found.source, may_lack=head)
        network.lmm.language_model.tie_weights()
        if not (found.tokenizer / "tokenizer_config.json").is_file():
            raise FileNotFoundError(f"{found.tokenizer / 'tokenizer_config.json'} is missing: no tokenizer there")
        tokenizer = AutoTokenizer.from_pretrained(found.tokenizer, local_files_only=True)
        return cls(network, tokenizer, options).to_eval(device)

    def save_official(self, path: Path) -> None:
        """See :meth:`UnifiedModel.save_official`; always the whole layout, whichever was loaded."""
        with atomic_folder(path) as folder:
            (folder / "config.json").write_text(json.dumps(self.network.config, indent=2) + "\n")
            write_weights(self.network.to_official(), folder)
            self.tokenizer.save_pretrained(folder)

    def trainable(self) -> Iterable[str]:
        """Connector, projector and queries; SANA too (off: ``train_transformer``); InternViT if ``train_vision``."""
        trained = ["network.connector.", "network.projector.", "network.meta_queries"]
        if self.train_transformer:
            trained.append("network.transformer.")
        if self.train_vision:
            trained += ["network.lmm.vision_model.", "network.lmm.mlp1."]
        return [name for name, _ in self.named_parameters() if name.startswith(tuple(trained))]

    # -- what goes in ---------------------------------------------------------------------------------------

    def encode_semantic(self, images: Tensor, rng: SampleRng | None = None) -> Semantic:
        """h_v = mlp1(InternViT(image)): (B, 3, S, S) -> (B, N, D); images of other sizes are resized as officially.

        Raises:
            ValueError: These are no images.
        """
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images should have the shape (B, 3, S, S), these have {tuple(images.shape)}")
        size = (self.spec.understanding_size, self.spec.understanding_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear")
        with torch.set_grad_enabled(self.train_vision and torch.is_grad_enabled()):
            return Semantic(self.network.lmm.see(images))

    @torch.no_grad()
    def encode_target(self, images: Tensor, rng: SampleRng) -> Target:
        """Scaled latents of DC-AE: (B, 3, S, S) -> (B, C, h, w). Nothing random here.

        Raises:
            ValueError: The sides are no multiples of what one latent covers.
        """
        unit = self.network.pixels_per_latent
        if images.ndim != 4 or images.shape[1] != 3 or any(side % unit or side == 0 for side in images.shape[-2:]):
            raise ValueError(f"images should be (B, 3, S, S) with S a multiple of {unit}, not {tuple(images.shape)}")
        return Target(self.network.encode(images))

    def turns(
        self, prompts: Sequence[str], semantic: Semantic | None = None, dropped: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """User turns up to the place where the queries take over: embeddings (B, L, D) and mask (B, L).

        Args:
            prompts: One text a sample: a caption, or with ``semantic`` a template.
            semantic: Embeddings of one image a sample, put before the text.
            dropped: (B,) bool, the samples that get the unconditional turn instead.

        Raises:
            ValueError: A turn and the queries do not fit into the model's context.
        """
        lost = [False] * len(prompts) if dropped is None else dropped.tolist()
        full = GENERATE if semantic is None else self._image_text + "{}"
        contents = [UNCONDITIONAL if gone else full.format(text) for text, gone in zip(prompts, lost, strict=True)]
        ids, mask = self._ids([USER + content + ASSISTANT + IMAGE_START for content in contents])
        embeds = self._embed(ids)
        if semantic is not None:
            kept = semantic.embeds[~torch.tensor(lost, device=semantic.embeds.device)]
            embeds = self._put(kept, ids, embeds)
        return embeds, mask

    def condition(self, turns: tuple[Tensor, Tensor]) -> Tensor:
        """What SANA is told of a turn: (B, Q, caption_channels)."""
        return self.network.condition(self.network.read(*turns))

    def _ids(self, texts: Sequence[str], left: bool = False, room: int | None = None) -> tuple[Tensor, Tensor]:
        """Token ids and mask (B, L), padded on the right or the left; ``room`` tokens must fit behind them."""
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        longest = max(map(len, rows))
        after = len(self.network.meta_queries) if room is None else room
        limit = self.network.lmm.language_model.config.max_position_embeddings - after
        if longest > limit:
            text = max(zip(map(len, rows), texts, strict=True))[1]
            raise ValueError(f"a prompt has {longest} tokens, and the model takes {limit}: {text[-80:]!r}")
        return pad_token_ids(rows, self.tokenizer.pad_token_id, left, self.network.meta_queries.device)

    def _embed(self, ids: Tensor) -> Tensor:
        embeds: Tensor = self.network.lmm.language_model.get_input_embeddings()(ids)
        return embeds

    def _put(self, tokens: Tensor, ids: Tensor, embeds: Tensor) -> Tensor:
        """Image tokens (B', N, D) in their places, in order."""
        places = ids == self.tokenizer.convert_tokens_to_ids(IMAGE)
        if int(places.sum()) != tokens.shape[0] * tokens.shape[1]:
            raise ValueError(f"{int(places.sum())} places for {tokens.shape[0]} images of {tokens.shape[1]} tokens")
        return embeds.masked_scatter(places[..., None], tokens.to(embeds.dtype))

    # -- losses ---------------------------------------------------------------------------------------------

    def reconstruction_loss(self, semantic: Semantic, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Flow-matching loss of an image's latents given h_v and a template; the authors drop nothing here."""
        return self._flow_loss(self.turns(prompts, semantic, self.condition_dropout_mask(rng)), target, rng)

    def text_to_image_loss(self, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Flow-matching loss of an image's latents given its caption."""
        return self._flow_loss(self.turns(prompts, None, self.condition_dropout_mask(rng)), target, rng)

    def _flow_loss(self, turns: tuple[Tensor, Tensor], target: Target, rng: SampleRng) -> Loss:
        """Mean over all values of |v - (e - x)|^2, one uniform timestep per sample, no weighting."""
        condition = self.condition(turns)
        latents = target.values.to(condition)
        noise = rng.normal("noise", latents.shape[1:]).to(latents)
        noised, timesteps = self.network.noised(latents, noise, rng.uniform("timestep"))
        value = F.mse_loss(self.network.velocity(noised, timesteps, condition).float(), (noise - latents).float())
        tokens = latents[:, 0].numel() // self.network.transformer.config.patch_size**2
        return Loss(value, tokens)

    def understanding_loss(self, images: Tensor, dialogues: Sequence[Dialogue], rng: SampleRng) -> Loss:
        """Cross-entropy of the answer tokens, end included.

        InternVL is frozen, so this trains nothing unless ``train_vision``; without it the value has no gradient.
        """
        questions = [USER + self._image_text + dialogue.question + ASSISTANT for dialogue in dialogues]
        answers = [dialogue.answer + TURN_END for dialogue in dialogues]
        ids, mask = self._ids([q + a for q, a in zip(questions, answers, strict=True)], left=True, room=0)
        embeds = self._put(self.encode_semantic(images).embeds, ids, self._embed(ids))
        answered = self.tokenizer(answers, add_special_tokens=False)["input_ids"]
        loss_mask = last_tokens_mask([len(tokens) for tokens in answered], ids.shape[1])
        hidden = self.network.lmm.language_model.model(
            inputs_embeds=embeds, attention_mask=mask.long(), position_ids=_positions(mask), use_cache=False
        ).last_hidden_state
        return next_token_loss(hidden, ids, loss_mask, self.network.lmm.language_model.lm_head)

    # -- what comes out -------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        """Draw one image per prompt."""
        return self._decode(self.draw(prompts, None, sampling, rng))

    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        """Draw images from their own understanding embeddings, under a fixed template."""
        return self._decode(self.draw([RECONSTRUCTION_PROMPT] * len(semantic.embeds), semantic, sampling, rng))

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], semantic: Semantic | None, sampling: Sampling, rng: SampleRng) -> Tensor:
        """Latents (B, C, h, w) of new images; guidance is away from ``UNCONDITIONAL``."""
        condition = self.condition(self.turns(prompts, semantic))
        unconditional = None
        if sampling.guidance_scale != 1:
            everything = torch.ones(1, dtype=torch.bool)
            unconditional = self.condition(self.turns([""], None, everything)).expand_as(condition)
        side = self.spec.generation_size // self.network.pixels_per_latent
        noise = rng.normal("latents", (self.network.transformer.config.in_channels, side, side)).to(condition)
        steps = sampling.num_steps or NUM_STEPS
        return self.network.sample(noise, condition, unconditional, sampling.guidance_scale, steps)

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).clamp(-1, 1)

    @torch.no_grad()
    def answer(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Greedy answers, at most ``MAX_ANSWER_TOKENS`` tokens each."""
        texts = [USER + self._image_text + question + ASSISTANT for question in questions]
        ids, mask = self._ids(texts, left=True, room=MAX_ANSWER_TOKENS)
        embeds = self._put(self.encode_semantic(images).embeds, ids, self._embed(ids))
        language_model, cache = self.network.lmm.language_model, DynamicCache()

        def last_logits(embeds: Tensor) -> Tensor:
            states = language_model.model(
                inputs_embeds=embeds,
                attention_mask=mask.long(),
                position_ids=_positions(mask)[:, -embeds.shape[1] :],
                past_key_values=cache,
            ).last_hidden_state
            return language_model.lm_head(states[:, -1])

        def next_logits(tokens: Tensor) -> Tensor:
            nonlocal mask
            mask = F.pad(mask, (0, 1), value=True)
            return last_logits(self._embed(tokens[:, None]))

        eos_id = self.tokenizer.convert_tokens_to_ids(TURN_END)
        answers = greedy_decode(last_logits(embeds), next_logits, eos_id, MAX_ANSWER_TOKENS)
        return [text.strip() for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]


def _positions(mask: Tensor) -> Tensor:
    """Positions (B, L) that count real tokens only."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)
