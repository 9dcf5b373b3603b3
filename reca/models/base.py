"""The contract of a model family: what every unified multimodal model must be able to do here.

Images are float tensors (B, 3, H, W) in [-1, 1]; where a family lets them keep their shapes (``ImageSpec``), lists of
(3, H, W). All randomness comes from the ``rng`` argument
(:class:`reca.runtime.seeding.SampleRng`), one stream per sample, so a result depends on its own seed only.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca.data.packed import PackedTensor
from reca.data.resize import Resize
from reca.runtime.seeding import SampleRng

Cacheable = Literal["semantic", "target"]

FAMILIES = {
    "janus": "reca.models.janus.model:Janus",
    "openuni": "reca.models.openuni.model:OpenUni",
    "showo": "reca.models.showo.model:Showo",
    "bagel": "reca.models.bagel.model:Bagel",
    "harmon": "reca.models.harmon.model:Harmon",
}
"""Where each family lives; a new family is one more line."""


RECONSTRUCTION_PROMPT = "describe the image in detail"
"""The one template under which every family rebuilds images when it is measured."""
IGNORE_INDEX = -100
"""Label of a token that has no loss, as in PyTorch and transformers."""
Images = Any
"""(B, 3, S, S); where ``ImageSpec`` lets images keep their shapes (B, 3, H, W), or a list of (3, H, W).
Families narrow it."""


@dataclass(frozen=True)
class ImageSpec:
    """Sizes a family wants its images in; condition and target are two resizes of one image."""

    understanding: Resize
    """Of the image that the understanding encoder reads."""
    generation: Resize
    """Of the image that is drawn."""
    semantic_tokens: int
    """Understanding embeddings per image (N of h_v), at most."""
    target_tokens: int
    """Generation tokens per image: codes, latent patches; at most."""

    @classmethod
    def square(
        cls,
        understanding_size: int,
        generation_size: int,
        semantic_tokens: int,
        target_tokens: int,
        rule: Literal["crop", "stretch"] = "crop",
    ) -> Self:
        """Of a family whose images are all squares, by their sides in pixels."""
        resizes = Resize(rule, understanding_size), Resize(rule, generation_size)
        return cls(*resizes, semantic_tokens, target_tokens)

    @property
    def understanding_size(self) -> int:
        """Side in pixels of a square image that is understood."""
        return self.understanding.max_side

    @property
    def generation_size(self) -> int:
        """Side in pixels of a square image that is drawn."""
        return self.generation.max_side


class Semantic(PackedTensor):
    """Understanding embeddings of a batch: h_v in the paper (section 3.1), (N_i, D) of each image."""

    @property
    def embeds(self) -> Tensor:
        """(B, N, D); of images of unlike shapes all numbers in a row, see :class:`reca.data.packed.PackedTensor`."""
        return self.values


class Target(PackedTensor):
    """What the drawing half is trained to produce, never with gradient.

    Codes (B, T) int64, or latents (B, C, h, w), or posterior moments (B, 2C, h, w); of images of unlike shapes all
    numbers in a row, see :class:`reca.data.packed.PackedTensor`.
    """


@dataclass(frozen=True)
class Loss:
    """A loss as a mean over targets, and over how many, so that unequal micro-batches can be weighted exactly."""

    value: Tensor
    """Scalar: mean over ``n_targets``."""
    n_targets: int
    """Targets that the mean runs over (codes, latent tokens, answer tokens)."""

    @property
    def sums(self) -> Tensor:
        """The sum over the targets, and their number: (2,) float64, detached, where the value is; passes add up so."""
        value = self.value.detach().double()
        return torch.stack([value * self.n_targets, torch.full_like(value, self.n_targets)])


@dataclass(frozen=True)
class Sampling:
    """How images are drawn; the names are diffusers'."""

    guidance_scale: float
    """Classifier-free guidance weight; 1 switches guidance off."""
    temperature: float = 1.0
    num_steps: int | None = None
    """Sampler steps for families that choose; ``None``: as the family does (codes are drawn one by one)."""
    image_guidance_scale: float = 1.0
    """Second guidance weight of editing, towards the source image; 1 switches it off."""
    size: tuple[int, int] | None = None
    """Height and width in pixels, where ``ImageSpec`` lets images keep their shapes; ``None``: the family's square."""


@dataclass(frozen=True)
class Dialogue:
    """One question about one image, or about a text when the model is asked without image."""

    question: str
    answer: str


class UnifiedModel(nn.Module, ABC):
    """One network that understands and generates images."""

    family: ClassVar[str]
    spec: ImageSpec
    cacheable: frozenset[Cacheable]
    """Which of {"semantic", "target"} are frozen under this configuration, so that ``extract`` may store them."""
    encoders: ClassVar[Mapping[Cacheable, tuple[str, ...]]]
    """Beginnings of the names of the parameters that :meth:`encode_semantic` and :meth:`encode_target` read."""
    prompt_dropout: float
    """How often a training sample loses its condition, for classifier-free guidance."""
    no_weight_decay: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of matrices that weight decay leaves alone, as the authors do."""

    @classmethod
    @abstractmethod
    def load(cls, checkpoint: Path, options: Mapping[str, Any], device: torch.device | None) -> Self:
        """Build from a checkpoint folder in the official layout, with a strict key report.

        Args:
            checkpoint: Folder with the family's official files; sizes are read from its own config files.
            options: The family's switches, the ``model`` section of the configuration.
            device: Where the parameters go; see :meth:`placed`.

        Raises:
            FileNotFoundError: A file of the layout is missing.
            ValueError: Keys are missing or unexpected, or sizes differ.
        """

    @abstractmethod
    def save_official(self, path: Path) -> None:
        """Write the official layout back, atomically; load -> save -> load is the identity."""

    @abstractmethod
    def trainable(self) -> Iterable[str]:
        """Names of the parameters that RecA trains; all others are frozen for real."""

    def to_eval(self, device: torch.device | None) -> Self:
        """In evaluation mode, in float32 and on a device.

        ``None``: as the files have it, on the CPU. What was read from safetensors is a view of the file then, which
        all processes that read the same file share.
        """
        return (self if device is None else self.to(device, torch.float32)).eval()

    def encodes(self, name: str) -> bool:
        """Whether the parameter of this name is needed to make what is :attr:`cacheable`."""
        return name.startswith(tuple(beginning for field in self.cacheable for beginning in self.encoders[field]))

    def keep_encoders(self) -> Self:
        """Drop all other parameters; nothing but the encoders of what is :attr:`cacheable` works then."""
        for path, module in self.named_modules():
            for name in [name for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)]:
                if not self.encodes(f"{path}.{name}"):
                    delattr(module, name)  # None would pass for a norm without weights
        return self

    def freeze(self) -> None:
        """Let gradients reach exactly :meth:`trainable`."""
        wanted = set(self.trainable())
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in wanted)

    def condition_dropout_mask(self, rng: SampleRng) -> Tensor | None:
        """Which samples lose their condition in this step of training, (B,) bool; ``None``: none can."""
        if not self.training or self.prompt_dropout == 0:
            return None
        return rng.uniform("prompt_dropout") < self.prompt_dropout

    @abstractmethod
    def encode_semantic(self, images: Images, rng: SampleRng | None = None) -> Semantic:
        """Understanding embeddings h_v of images resized by ``spec.understanding``.

        Args:
            images: See ``Images``.
            rng: Of a training pass through an encoder that drops activations; ``None``: nothing is dropped.
        """

    @abstractmethod
    def encode_target(self, images: Images, rng: SampleRng) -> Target:
        """Latents or codes of images resized by ``spec.generation``."""

    @abstractmethod
    def reconstruction_loss(self, semantic: Semantic, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """L_RecA (paper, equation 2): rebuild the image from its own understanding embeddings."""

    @abstractmethod
    def understanding_loss(self, images: Images, dialogues: Sequence[Dialogue], rng: SampleRng) -> Loss:
        """L_i2t: answer a question about each image; keeps understanding where parameters are shared."""

    @abstractmethod
    def text_to_image_loss(self, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """L_t2i: draw the image of a caption; pre-training, and the control that RecA is measured against."""

    @abstractmethod
    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        """Draw one image per prompt: (B, 3, S, S) in [-1, 1], or (B, 3, H, W) as ``sampling.size`` says."""

    @abstractmethod
    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        """Draw the images that the embeddings were taken from: as :meth:`generate`."""

    @abstractmethod
    def answer(self, images: Images, questions: Sequence[str]) -> list[str]:
        """Greedy answers, one question per image, each resized by ``spec.understanding``."""


def padded(rows: Sequence[Sequence[int]], fill: int, left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of token ids as ids and mask (B, L), filled up on the left or on the right."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), fill, device=device)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool, device=device)
    for row, tokens in enumerate(rows):
        place = slice(longest - len(tokens), None) if left else slice(len(tokens))
        ids[row, place] = torch.tensor(tokens, device=device)
        mask[row, place] = True
    return ids, mask


def last_tokens(counts: Sequence[int], length: int) -> Tensor:
    """Which tokens are the last of their rows, ``counts`` of each: (B, length) bool, on the CPU."""
    return torch.arange(length) >= length - torch.tensor(counts)[:, None]


def masked_indices(mask: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of all places that a mask (B, T) chooses, on a device.

    The mask should lie on the CPU: of one on a GPU nobody knows how many these are until the GPU has come so far.
    """
    row, column = mask.nonzero(as_tuple=True)
    return row.to(device, non_blocking=True), column.to(device, non_blocking=True)


def next_token_loss(states: Tensor, ids: Tensor, loss_mask: Tensor, head: nn.Module) -> Loss:
    """Cross-entropy of tokens given those before them.

    Args:
        states: Last hidden states (B, L, D).
        ids: Tokens (B, L), on the same device.
        loss_mask: Tokens that count, (B, L) bool; see :func:`masked_indices`.
        head: Last states -> logits.
    """
    row, place = masked_indices(loss_mask[:, 1:], states.device)
    value = F.cross_entropy(head(states[row, place]).float(), ids[row, place + 1])
    return Loss(value, len(row))


def truncate_at_eos(tokens: Sequence[Tensor], end: int) -> list[list[int]]:
    """Drawn tokens, step by step (B,) each, as one row a sample that stops before its end token."""
    rows = torch.stack(list(tokens), dim=1).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


class ImageEditor(ABC):
    """A family that also edits images."""

    @abstractmethod
    def edit(
        self, images: Sequence[Tensor], instructions: Sequence[str], sampling: Sampling, rng: SampleRng
    ) -> list[Tensor]:
        """Change each image (3, H, W) in [-1, 1] as its instruction says; results have the family's own sizes."""


def load_model(family: str, checkpoint: Path, options: Mapping[str, Any], device: torch.device | None) -> UnifiedModel:
    """Load a checkpoint of ``family``; see :meth:`UnifiedModel.load`."""
    if family not in FAMILIES:
        raise ValueError(f"unknown model family {family!r}; known: {', '.join(FAMILIES)}")
    module, name = FAMILIES[family].split(":")
    model: UnifiedModel = getattr(import_module(module), name).load(checkpoint, options, device)
    return model
