"""The contract of a model family: what every unified multimodal model must be able to do here.

Images are float tensors (B, 3, H, W) in [-1, 1]. All randomness comes from the ``rng`` argument
(:class:`reca.nn.random.SampleRng`), one stream per sample, so a result depends on its own seed only.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from reca.nn.random import SampleRng

Paradigm = Literal["autoregressive", "masked_autoregressive", "masked_token", "flow"]
Cacheable = Literal["semantic", "target"]

FAMILIES = {
    "janus": "reca.models.janus:Janus",
    "openuni": "reca.models.openuni:OpenUni",
    "showo": "reca.models.showo:Showo",
    "bagel": "reca.models.bagel:Bagel",
    "harmon": "reca.models.harmon:Harmon",
}
"""Where each family lives; a new family is one more line."""


@dataclass(frozen=True)
class Spec:
    """Sizes a family wants its images in; condition and target are two resizes of one image."""

    understanding_size: int
    """Side in pixels of the square image that the understanding encoder reads."""
    generation_size: int
    """Side in pixels of the square image that is drawn."""
    semantic_tokens: int
    """Understanding embeddings per image (N of h_v)."""
    target_tokens: int
    """Generation tokens per image: codes, latent patches."""


@dataclass(frozen=True)
class Semantic:
    """Understanding embeddings of a batch: h_v in the paper (section 3.1)."""

    embeds: Tensor
    """(B, N, D)"""


@dataclass(frozen=True)
class Target:
    """What the drawing half is trained to produce, never with gradient."""

    values: Tensor
    """Codes (B, T) int64, or latents (B, C, h, w), or posterior moments (B, 2C, h, w)."""


@dataclass(frozen=True)
class Loss:
    """A loss as a mean over targets, and over how many, so that unequal micro-batches can be weighted exactly."""

    value: Tensor
    """Scalar: mean over ``n_targets``."""
    n_targets: int
    """Targets that the mean runs over (codes, latent tokens, answer tokens)."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """Named scalars for the curves, detached."""


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


@dataclass(frozen=True)
class Dialogue:
    """One question about one image, or about a text when the model is asked without image."""

    question: str
    answer: str


class UnifiedModel(nn.Module, ABC):
    """One network that understands and generates images."""

    family: ClassVar[str]
    paradigm: ClassVar[Paradigm]
    spec: Spec
    cacheable: frozenset[Cacheable]
    """Which of {"semantic", "target"} are frozen under this configuration, so that ``extract`` may store them."""

    @classmethod
    @abstractmethod
    def load(cls, checkpoint: Path, options: Mapping[str, Any], device: torch.device) -> Self:
        """Build from a checkpoint folder in the official layout, with a strict key report.

        Args:
            checkpoint: Folder with the family's official files; sizes are read from its own config files.
            options: The family's switches, the ``model`` section of the configuration.
            device: Where the parameters go.

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

    @abstractmethod
    def encode_semantic(self, images: Tensor) -> Semantic:
        """Understanding embeddings h_v of images (B, 3, S, S) with S = ``spec.understanding_size``."""

    @abstractmethod
    def encode_target(self, images: Tensor, rng: SampleRng) -> Target:
        """Latents or codes of images (B, 3, S, S) with S = ``spec.generation_size``."""

    @abstractmethod
    def reconstruction_loss(self, semantic: Semantic, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """L_RecA (paper, equation 2): rebuild the image from its own understanding embeddings."""

    @abstractmethod
    def understanding_loss(self, images: Tensor, dialogues: Sequence[Dialogue], rng: SampleRng) -> Loss:
        """L_i2t: answer a question about each image; keeps understanding where parameters are shared."""

    @abstractmethod
    def text_to_image_loss(self, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """L_t2i: draw the image of a caption; pre-training, and the control that RecA is measured against."""

    @abstractmethod
    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        """Draw one image per prompt: (B, 3, S, S) in [-1, 1]."""

    @abstractmethod
    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        """Draw the images that the embeddings were taken from: (B, 3, S, S) in [-1, 1]."""

    @abstractmethod
    def answer(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Greedy answers, one question per image (B, 3, S, S) with S = ``spec.understanding_size``."""


class ImageEditor(ABC):
    """A family that also edits images."""

    @abstractmethod
    def edit(
        self, images: Sequence[Tensor], instructions: Sequence[str], sampling: Sampling, rng: SampleRng
    ) -> list[Tensor]:
        """Change each image (3, H, W) in [-1, 1] as its instruction says; results have the family's own sizes."""


def load_model(family: str, checkpoint: Path, options: Mapping[str, Any], device: torch.device) -> UnifiedModel:
    """Load a checkpoint of ``family``; see :meth:`UnifiedModel.load`."""
    if family not in FAMILIES:
        raise ValueError(f"unknown model family {family!r}; known: {', '.join(FAMILIES)}")
    module, name = FAMILIES[family].split(":")
    model: UnifiedModel = getattr(import_module(module), name).load(checkpoint, options, device)
    return model
