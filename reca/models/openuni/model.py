"""OpenUni: InternVL3 understands, learnable queries condition SANA, which generates (arXiv 2505.23661).

    h_v    = mlp1(InternViT(image))                                    the condition
    c      = projector(connector(LM([user turn: h_v, template] [queries])))
    L_RecA = |SANA(x_t, t, c) - (e - x)|^2,   x_t = (1 - s) x + s e    x: DC-AE latents, s from a uniform grid

InternVL and DC-AE are frozen; SANA, the connector, the projector and the queries are trained (the official
``image2image_loss`` with the image as its own target). :mod:`reca.models.openuni.network` has the networks.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.initialization import no_init_weights

from reca.models.base import RECONSTRUCTION_PROMPT, Cacheable, Dialogue, ImageSpec, Loss, Semantic, Target, UnifiedModel
from reca.models.openuni.checkpoint import read_checkpoint
from reca.models.openuni.network import OpenUniNetwork
from reca.models.sampling import Sampling, greedy_decode
from reca.models.tokens import last_tokens_mask, next_token_loss, pad_token_ids, read_tokenizer
from reca.models.weights import load_strictly, write_torch_file, write_weights
from reca.runtime.files import atomic_folder, write_json
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
        parts = {name: Path(folder) for name, folder in options["parts"].items()}
        files = read_checkpoint(Path(checkpoint), parts, options["weights"])
        with no_init_weights():
            network = OpenUniNetwork(files.config)
        tied = network.lmm.language_model.config.tie_word_embeddings
        head = ["lmm.language_model.lm_head.weight"] if tied else []
        load_strictly(network, network.from_official(files.state), files.source, may_lack=head)
        network.lmm.language_model.tie_weights()
        return cls(network, read_tokenizer(files.tokenizer), options).to_eval(device)

    def save_official(self, path: Path, for_scripts: bool = False) -> None:
        """See :meth:`UnifiedModel.save_official`; always writes the whole layout."""
        if for_scripts:  # a state dict to load over InternVL3, SANA and DC-AE; it has all parts
            write_torch_file(self.network.to_official(), path / "openuni.pth")
            return
        with atomic_folder(path) as folder:
            write_json(folder / "config.json", self.network.config)
            write_weights(self.network.to_official(), folder)
            self.tokenizer.save_pretrained(folder)

    def trainable(self) -> Iterable[str]:
        """Return connector, projector and queries; SANA if ``train_transformer``; InternViT if ``train_vision``."""
        prefixes = ["network.connector.", "network.projector.", "network.meta_queries"]
        if self.train_transformer:
            prefixes.append("network.transformer.")
        if self.train_vision:
            prefixes += ["network.lmm.vision_model.", "network.lmm.mlp1."]
        return [name for name, _ in self.named_parameters() if name.startswith(tuple(prefixes))]

    def encode_semantic(self, images: Tensor, rng: SampleRng | None = None) -> Semantic:
        """Return h_v = mlp1(InternViT(image)), (B, N, D); other sizes are resized as in the official code.

        Raises:
            ValueError: The images are not (B, 3, S, S).
        """
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images should have the shape (B, 3, S, S), these have {tuple(images.shape)}")
        size = (self.spec.understanding_size, self.spec.understanding_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear")
        with torch.set_grad_enabled(self.train_vision and torch.is_grad_enabled()):
            return Semantic(self.network.lmm.encode_images(images))

    @torch.no_grad()
    def encode_target(self, images: Tensor, rng: SampleRng) -> Target:
        """Return scaled DC-AE latents (B, C, h, w); ``rng`` is not used.

        Raises:
            ValueError: The sides are not multiples of a latent.
        """
        unit = self.network.pixels_per_latent
        if images.ndim != 4 or images.shape[1] != 3 or any(side % unit or side == 0 for side in images.shape[-2:]):
            raise ValueError(f"images should be (B, 3, S, S) with S a multiple of {unit}, not {tuple(images.shape)}")
        return Target(self.network.encode(images))

    def prompt_embeds(
        self, prompts: Sequence[str], semantic: Semantic | None = None, dropout_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings (B, L, D) and mask (B, L) of the prompts that precede the queries.

        Args:
            prompts: A caption per sample, or with ``semantic`` a template.
            semantic: Embeddings of an image per sample, inserted before the text.
            dropout_mask: Samples with the unconditional prompt instead, (B,) bool.

        Raises:
            ValueError: A prompt and the queries do not fit into the model's context.
        """
        is_dropped = [False] * len(prompts) if dropout_mask is None else dropout_mask.tolist()
        full = GENERATE if semantic is None else self._image_text + "{}"
        pairs = zip(prompts, is_dropped, strict=True)
        contents = [UNCONDITIONAL if drop_mask else full.format(text) for text, drop_mask in pairs]
        ids, mask = self._ids([USER + content + ASSISTANT + IMAGE_START for content in contents])
        embeds = self._embed(ids)
        if semantic is not None:
            conditional = ~torch.tensor(is_dropped, device=semantic.embeds.device)
            embeds = self._insert(semantic.embeds[conditional], ids, embeds)
        return embeds, mask

    def condition(self, prompts: tuple[Tensor, Tensor]) -> Tensor:
        """Return SANA's condition (B, Q, caption_channels) for :meth:`prompt_embeds`."""
        return self.network.condition(self.network.query_states(*prompts))

    def _ids(self, texts: Sequence[str], left: bool = False, room: int | None = None) -> tuple[Tensor, Tensor]:
        """Return token ids and mask (B, L); ``room`` tokens (``None``: the queries) must fit after them."""
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

    def _insert(self, tokens: Tensor, ids: Tensor, embeds: Tensor) -> Tensor:
        """Replace the embeddings of image placeholders by image tokens (B', N, D), in order."""
        is_image = ids == self.tokenizer.convert_tokens_to_ids(IMAGE)
        if int(is_image.sum()) != tokens.shape[0] * tokens.shape[1]:
            raise ValueError(
                f"{int(is_image.sum())} placeholders for {tokens.shape[0]} images of {tokens.shape[1]} tokens"
            )
        return embeds.masked_scatter(is_image[..., None], tokens.to(embeds.dtype))

    def reconstruction_loss(self, semantic: Semantic, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Return the flow-matching loss given h_v and a template; the official code has no dropout here."""
        return self._flow_loss(self.prompt_embeds(prompts, semantic, self.condition_dropout_mask(rng)), target, rng)

    def text_to_image_loss(self, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Return the flow-matching loss given a caption."""
        return self._flow_loss(self.prompt_embeds(prompts, None, self.condition_dropout_mask(rng)), target, rng)

    def _flow_loss(self, prompts: tuple[Tensor, Tensor], target: Target, rng: SampleRng) -> Loss:
        """Return the mean of |v - (e - x)|^2 with one uniform timestep per sample, unweighted."""
        condition = self.condition(prompts)
        latents = target.values.to(condition)
        noise = rng.normal("noise", latents.shape[1:]).to(latents)
        x_t, timesteps = self.network.add_noise(latents, noise, rng.uniform("timestep"))
        value = F.mse_loss(self.network.velocity(x_t, timesteps, condition).float(), (noise - latents).float())
        tokens = latents[:, 0].numel() // self.network.transformer.config.patch_size**2
        return Loss(value, tokens)

    def understanding_loss(self, images: Tensor, dialogues: Sequence[Dialogue], rng: SampleRng) -> Loss:
        """Return the cross-entropy of the answer tokens, end token included.

        InternVL is frozen, so without ``train_vision`` the value has no gradient.
        """
        questions = [USER + self._image_text + dialogue.question + ASSISTANT for dialogue in dialogues]
        answers = [dialogue.answer + TURN_END for dialogue in dialogues]
        ids, mask = self._ids([q + a for q, a in zip(questions, answers, strict=True)], left=True, room=0)
        embeds = self._insert(self.encode_semantic(images).embeds, ids, self._embed(ids))
        answer_ids = self.tokenizer(answers, add_special_tokens=False)["input_ids"]
        loss_mask = last_tokens_mask([len(tokens) for tokens in answer_ids], ids.shape[1])
        hidden = self.network.lmm.language_model.model(
            inputs_embeds=embeds, attention_mask=mask.long(), position_ids=_positions(mask), use_cache=False
        ).last_hidden_state
        return next_token_loss(hidden, ids, loss_mask, self.network.lmm.language_model.lm_head)

    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        """See :meth:`UnifiedModel.generate`."""
        return self._decode(self.sample_latents(prompts, None, sampling, rng))

    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        """See :meth:`UnifiedModel.reconstruct`."""
        prompts = [RECONSTRUCTION_PROMPT] * len(semantic.embeds)
        return self._decode(self.sample_latents(prompts, semantic, sampling, rng))

    @torch.no_grad()
    def sample_latents(
        self, prompts: Sequence[str], semantic: Semantic | None, sampling: Sampling, rng: SampleRng
    ) -> Tensor:
        """Return latents (B, C, h, w) of new images; guidance is away from ``UNCONDITIONAL``."""
        sampling.refuse_other_sizes(self.spec.generation_size)
        condition = self.condition(self.prompt_embeds(prompts, semantic))
        unconditional = None
        if sampling.guidance_scale != 1:
            dropout_mask = torch.ones(1, dtype=torch.bool)
            unconditional = self.condition(self.prompt_embeds([""], None, dropout_mask)).expand_as(condition)
        side = self.spec.generation_size // self.network.pixels_per_latent
        noise = rng.normal("latents", (self.network.transformer.config.in_channels, side, side)).to(condition)
        steps = sampling.num_steps or NUM_STEPS
        return self.network.sample(noise, condition, unconditional, sampling.guidance_scale, steps)

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).clamp(-1, 1)

    @torch.no_grad()
    def answer(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Return greedy answers of at most ``MAX_ANSWER_TOKENS`` tokens."""
        texts = [USER + self._image_text + question + ASSISTANT for question in questions]
        ids, mask = self._ids(texts, left=True, room=MAX_ANSWER_TOKENS)
        embeds = self._insert(self.encode_semantic(images).embeds, ids, self._embed(ids))
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
    """Return positions (B, L) that count unmasked tokens only."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)
