"""BAGEL: a Qwen2 with an understanding and a generation expert; images by rectified flow (arXiv 2505.14683).

    h_v    = connector(SigLIP(image)) + positions                                the condition
    L_RecA = |v(x_t; h_v, template, t) - (ε - x_0)|²,   t = sigmoid(N(0, 1))     x_0: FLUX latents of the image

By default only the generation expert is trained, and no gradient passes through the understanding expert.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from reca.data.resize import Resize
from reca.models.bagel.autoencoder import decode, encode, sample_latents
from reca.models.bagel.checkpoint import Configs, load_network, read_checkpoint, write_checkpoint
from reca.models.bagel.network import BagelNetwork, Markers
from reca.models.bagel.packing import Segment
from reca.models.bagel.sampling import (
    FlowSample,
    Samples,
    answer_ids,
    condition,
    fit,
    sample_latent_tokens,
    squared_errors,
)
from reca.models.bagel.vision import patchify, unpatchify
from reca.models.base import (
    RECONSTRUCTION_PROMPT,
    Cacheable,
    Dialogue,
    ImageEditor,
    ImageSpec,
    Loss,
    Semantic,
    Target,
    UnifiedModel,
)
from reca.models.sampling import Sampling
from reca.models.tokens import read_tokenizer
from reca.runtime.files import atomic_folder
from reca.runtime.seeding import SampleRng, derive_seed

MARKERS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
GENERATION_PREFIXES = ("network.vae2llm.", "network.llm2vae.", "network.time_embedder.")
UNDERSTANDING_SIZE = 224
"""Side in pixels of the condition in the paper: the lowest resolution that the vision tower was trained for."""
MAX_ANSWER_TOKENS = 16


class Bagel(UnifiedModel, ImageEditor):
    """BAGEL behind the contract of :class:`UnifiedModel`."""

    family: ClassVar[str] = "bagel"
    encoder_prefixes: ClassVar[Mapping[Cacheable, tuple[str, ...]]] = {
        "semantic": ("network.vit_model.", "network.connector."),
        "target": ("autoencoder.encoder.",),
    }

    def __init__(
        self,
        network: BagelNetwork,
        autoencoder: AutoencoderKL,
        tokenizer: Any,
        options: Mapping[str, Any],
        configs: Configs | None = None,
        stem: str = "model",
    ) -> None:
        super().__init__()
        self.network, self.autoencoder, self.tokenizer = network, autoencoder, tokenizer
        self._configs, self._stem = configs, stem
        self.train_vision = bool(options["train_vision"])
        self.freeze_understanding = bool(options["freeze_understanding"])
        self.prompt_dropout = float(options["prompt_dropout"])
        self.training_shift = float(options["training_shift"])
        self.sampling_shift = float(options["sampling_shift"])
        # A trained vision tower needs the gradient that passes through the understanding expert, frozen or not.
        network.language_model.detach_understanding = self.freeze_understanding and not self.train_vision
        self.spec = self._spec(options)
        frozen = self.freeze_understanding and not self.train_vision
        self.cacheable = frozenset({"semantic", "target"} if frozen else {"target"})
        self.freeze()

    def enable_flex_attention(self) -> bool:
        """See :meth:`UnifiedModel.enable_flex_attention`."""
        self.network.language_model.flex_attention = True
        return True

    @property
    def stride(self) -> int:
        """Side in pixels of a latent token."""
        return self.network.sizes.latent_patch * 2 ** (len(self.autoencoder.config.block_out_channels) - 1)

    def _spec(self, options: Mapping[str, Any]) -> ImageSpec:
        sizes = self.network.sizes
        patch = int(sizes.vision.patch_size)
        max_sizes = {"understanding": sizes.vision_side * patch, "generation": sizes.max_latent_size * self.stride}
        understanding = options["understanding_size"] or min(UNDERSTANDING_SIZE, max_sizes["understanding"])
        generation = options["generation_size"] or max_sizes["generation"]
        for name, size, step in (("understanding", understanding, patch), ("generation", generation, self.stride)):
            if size % step or not step <= size <= max_sizes[name]:
                raise ValueError(
                    f"model.{name}_size={size} must be a multiple of {step}, and at most {max_sizes[name]} (pixels)"
                )
        # The official transforms: 224 to 224 by 14 for understanding, 512 to 1024 by 16 for generation.
        resizes = (
            Resize(options["resize"], understanding, understanding, patch),
            Resize(options["resize"], generation, generation // 2, self.stride),
        )
        return ImageSpec(*resizes, (understanding // patch) ** 2, (generation // self.stride) ** 2)

    @classmethod
    def load(cls, checkpoint: Path, options: Mapping[str, Any], device: torch.device | None) -> Self:
        """See :meth:`UnifiedModel.load`; ``options["parts"]["base"]`` is a complete folder for missing files."""
        base = options["parts"].get("base")
        files = read_checkpoint(checkpoint, Path(base) if base else None)
        tokenizer = read_tokenizer(files.tokenizer)
        ids = tokenizer.convert_tokens_to_ids(list(MARKERS))
        if None in ids or tokenizer.unk_token_id in ids:
            raise ValueError(f"the tokenizer in {files.tokenizer} lacks one of BAGEL's markers {', '.join(MARKERS)}")
        channels = files.autoencoder.config.latent_channels
        text, vision = files.configs.text(), files.configs.vision()
        network = load_network(files.state, text, vision, channels, Markers(*ids), files.weights)
        return cls(network, files.autoencoder, tokenizer, options, files.configs, files.stem).to_eval(device)

    def save_official(self, path: Path, for_scripts: bool = False) -> None:
        """See :meth:`UnifiedModel.save_official`; weights in shards keep their file name."""
        if self._configs is None:
            raise ValueError("this model was not built from official configuration files, so there are none to save")
        with atomic_folder(path) as folder:
            stem = "ema" if for_scripts else self._stem
            write_checkpoint(folder, self._configs, self.network, self.autoencoder, stem, not for_scripts)
            self.tokenizer.save_pretrained(folder)

    def trainable(self) -> Iterable[str]:
        """Return the generation expert and its projections; also the understanding half unless it is frozen."""
        return [name for name, _ in self.named_parameters() if self._trains(name)]

    def _trains(self, name: str) -> bool:
        if name.startswith("network.vit_model."):
            return self.train_vision
        if name.startswith("network.connector."):
            return self.train_vision or not self.freeze_understanding
        generates = "_moe_gen." in name or name.startswith(GENERATION_PREFIXES)
        return name.startswith("network.") and (generates or not self.freeze_understanding)

    def encode_semantic(self, images: Tensor | Sequence[Tensor], rng: SampleRng | None = None) -> Semantic:
        """Return h_v, (N_i, D) for an image (3, H_i, W_i) of N_i patches.

        Raises:
            ValueError: The sides are not multiples of a patch, or exceed the position table.
        """
        return Semantic.from_rows(self.network.encode_images(list(images)))

    @torch.no_grad()
    def encode_target(self, images: Tensor | Sequence[Tensor], rng: SampleRng) -> Target:
        """Return posterior moments, (2C, h_i, w_i) for an image (3, H_i, W_i); the loss samples latents from them.

        Raises:
            ValueError: The sides are not multiples of a latent token, or exceed the position table.
        """
        for image in images:
            self._grid(*image.shape[1:])
        if isinstance(images, Tensor):
            return Target(encode(self.autoencoder, images))
        return Target.from_rows([encode(self.autoencoder, image[None])[0] for image in images])

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of an image's latent tokens."""
        max_side = self.network.sizes.max_latent_size * self.stride
        for side in (height, width):
            if side % self.stride or not self.stride <= side <= max_side:
                raise ValueError(
                    f"an image of {height} x {width} pixels cannot be generated: its sides must be multiples "
                    f"of {self.stride}, at most {max_side}; resize it"
                )
        return height // self.stride, width // self.stride

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        limit = int(self.network.sizes.text.max_position_embeddings)
        for text, row in zip(texts, rows, strict=True):
            # Two markers, and the positions of an image before and an image after the text.
            if len(row) + 5 > limit:
                raise ValueError(f"a prompt of {len(row)} tokens does not fit into {limit} positions: {text[:60]!r}…")
        return rows

    def _device(self) -> torch.device:
        return self.network.vae2llm.weight.device

    def reconstruction_loss(self, semantic: Semantic, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Return the flow-matching loss given h_v and a template; dropout drops the template only (official)."""
        return self._flow_loss(semantic.rows(), prompts, target, rng)

    def text_to_image_loss(self, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Return the flow-matching loss given a caption."""
        return self._flow_loss([None] * len(prompts), prompts, target, rng)

    def _flow_loss(
        self, semantic: Sequence[Tensor | None], prompts: Sequence[str], target: Target, rng: SampleRng
    ) -> Loss:
        moments = target.rows()
        if not len(semantic) == len(prompts) == len(moments):
            raise ValueError(f"{len(semantic)} conditions, {len(prompts)} prompts and {len(moments)} targets differ")
        patch = self.network.sizes.latent_patch
        shapes = [(row.shape[0] // 2, *row.shape[1:]) for row in moments]
        posteriors = rng.normals("posterior", shapes)
        times = rng.normal("time")
        noise = rng.normals("noise", [(h * w // patch**2, channels * patch**2) for channels, h, w in shapes])
        ids, dropout_mask = self._ids(prompts), self.condition_dropout_mask(rng)
        is_dropped = [False] * len(prompts) if dropout_mask is None else dropout_mask.tolist()
        batch = [
            FlowSample(
                sample_latents(self.autoencoder, moments[row][None], posteriors[row][None])[0],
                noise[row],
                times[row],
                semantic[row],
                None if is_dropped[row] else ids[row],
            )
            for row in range(len(prompts))
        ]
        errors = squared_errors(self.network, batch, self.training_shift)
        value = torch.cat(errors).mean()
        return Loss(value, sum(map(len, errors)))

    def understanding_loss(
        self, images: Tensor | Sequence[Tensor], dialogues: Sequence[Dialogue], rng: SampleRng
    ) -> Loss:
        """Return the cross-entropy of the answer tokens, end token included.

        Raises:
            ValueError: The understanding half is frozen, and the model is in training.
        """
        if self.training and torch.is_grad_enabled() and self.network.language_model.detach_understanding:
            raise ValueError(
                "model.options.freeze_understanding leaves the understanding loss nothing to train; set "
                "train.mixture.understanding=0, or model.options.freeze_understanding=false"
            )
        questions = self._ids([dialogue.question for dialogue in dialogues])
        answers = self._ids([dialogue.answer for dialogue in dialogues])
        bos, eos = self.network.markers.bos, self.network.markers.eos
        samples = []
        for embeds, question, answer in zip(self.network.encode_images(list(images)), questions, answers, strict=True):
            reply = Segment(self.network.embed([bos, *answer]), causal=True)
            samples.append([*condition(self.network, embeds, question), reply])
        hidden, _ = self.network.prefill(samples)
        lengths = [sum(map(len, segments)) for segments in samples]
        answer_states = [row[n - len(a) - 1 : n] for row, n, a in zip(hidden, lengths, answers, strict=True)]
        logits = self.network.language_model.lm_head(torch.cat(answer_states))
        labels = torch.tensor([token for answer in answers for token in [*answer, eos]], device=logits.device)
        value = F.cross_entropy(logits.float(), labels)
        return Loss(value, len(labels))

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        """Return one image per prompt; guidance is away from the empty prompt."""
        conditions = [condition(self.network, None, ids) for ids in self._ids(prompts)]
        return self._sample(conditions, conditions, sampling, rng)

    @torch.no_grad()
    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        """Return images generated from understanding embeddings; guidance is away from neither image nor template."""
        (template,) = self._ids([RECONSTRUCTION_PROMPT])
        conditions = [condition(self.network, tokens, template) for tokens in semantic.rows()]
        return self._sample(conditions, [condition(self.network, None, template)] * len(conditions), sampling, rng)

    def _sample(self, full: Samples, without_image: Samples, sampling: Sampling, rng: SampleRng) -> Tensor:
        grid = self._grid(*(sampling.size or [self.spec.generation_size] * 2))
        noise = rng.normal("noise", (grid[0] * grid[1], self.network.vae2llm.in_features))
        conditions = [full, [[]] * len(full), without_image]
        latents = sample_latent_tokens(self.network, conditions, grid, noise, sampling, self.sampling_shift)
        return self.decode_latents(latents, grid)

    @torch.no_grad()
    def decode_latents(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decode latent tokens (B, T, p · p · C) to images (B, 3, H, W) in [-1, 1]."""
        latents = unpatchify(tokens, *grid, self.network.sizes.latent_patch)
        return decode(self.autoencoder, latents).clamp(-1, 1)

    @torch.no_grad()
    def edit(
        self, images: Sequence[Tensor], instructions: Sequence[str], sampling: Sampling, rng: SampleRng
    ) -> list[Tensor]:
        """See :meth:`ImageEditor.edit`; a result has the size of its resized source.

        ``sampling.guidance_scale`` guides away from the image without the instruction, ``image_guidance_scale`` away
        from the instruction without the image.
        """
        # The amount of noise depends on an image's size, so every image gets its own stream.
        seeds = (rng.uniform("stream", (2,)).double() * 2**24).long().tolist()
        results = []
        for image, ids, seed in zip(images, self._ids(instructions), seeds, strict=True):
            source, understood = self.fit_for_editing(image.to(self._device()))
            latents = self.edit_latents(source, understood, ids, sampling, SampleRng([derive_seed(*seed)]))
            results.append(self.decode_latents(latents, self._grid(*source.shape[1:]))[0])
        return results

    def fit_for_editing(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return two resizes of a source (3, H, W): for the autoencoder and for the understanding encoder."""
        patch = int(self.network.sizes.vision.patch_size)
        max_side = self.network.sizes.vision_side * patch
        source = fit(image, replace(self.spec.generation, rule="fit"))
        return source, fit(source, replace(self.spec.understanding, rule="fit", max_side=max_side))

    @torch.no_grad()
    def edit_latents(
        self, source: Tensor, understood: Tensor, ids: Sequence[int], sampling: Sampling, rng: SampleRng
    ) -> Tensor:
        """Return the latent tokens (1, T, p · p · C) of an edited image.

        Args:
            source: Source image for the autoencoder, (3, H, W); the result has its size.
            understood: Source image for the understanding encoder, (3, H', W').
            ids: Token ids of the instruction.
            sampling: Guidance weights and number of steps.
            rng: One stream.
        """
        grid, patch = self._grid(*source.shape[1:]), self.network.sizes.latent_patch
        moments = encode(self.autoencoder, source[None])
        shape = (moments.shape[1] // 2, *moments.shape[2:])
        clean = sample_latents(self.autoencoder, moments, rng.normal("posterior", shape))[0]
        latents = self.network.latent_segment(patchify(clean, patch), grid, torch.zeros((), device=self._device()))
        image = [latents, self.network.image_segment(self.network.encode_images([understood])[0])]
        text = [self.network.text_segment(ids)]
        noise = rng.normal("noise", (grid[0] * grid[1], self.network.vae2llm.in_features))
        conditions = [[[*image, *text]], [image], [text]]
        return sample_latent_tokens(self.network, conditions, grid, noise, sampling, self.sampling_shift)

    def answer(self, images: Tensor | Sequence[Tensor], questions: Sequence[str]) -> list[str]:
        """Return greedy answers of at most ``MAX_ANSWER_TOKENS`` tokens."""
        rows = answer_ids(self.network, list(images), self._ids(questions), MAX_ANSWER_TOKENS)
        return [text.strip() for text in self.tokenizer.batch_decode(rows)]
