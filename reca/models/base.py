"""The contract of a model family: everything that RecA asks of a unified multimodal model.

A family is a folder ``reca/models/<family>`` whose ``model.py`` defines one subclass of :class:`UnifiedModel`.
Three rules hold for all families:

* Images are float tensors (B, 3, H, W) in [-1, 1]. A family that keeps the shape of images also takes a list of
  (3, H, W).
* All randomness comes from the ``rng`` argument (:class:`reca.runtime.seeding.SampleRng`), one stream per sample: a
  result depends on the seed of its sample, not on the batch, the world size or torch's global generator.
* A method calls the same modules for all samples. Where parameters are sharded, all processes gather them
  together, and a process that skipped a block would leave the others waiting.

``tests/contract`` runs over every family.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from reca.data.embeddings import PackedTensor
from reca.data.resize import Resize
from reca.models.sampling import Sampling
from reca.runtime.seeding import SampleRng

Cacheable = Literal["semantic", "target"]

RECONSTRUCTION_PROMPT = "describe the image in detail"
"""Template under which every family reconstructs images in evaluation."""

Images = Any
"""(B, 3, H, W), or a list of (3, H, W) where a family keeps the shape of images; families narrow the type."""


@dataclass(frozen=True)
class ImageSpec:
    """Image sizes of a model. Condition and target are two resizes of the same image."""

    understanding: Resize
    """Resize of the image that the understanding encoder sees."""
    generation: Resize
    """Resize of the image that the model learns to generate."""
    semantic_tokens: int
    """Understanding embeddings per image: N in (B, N, D), or the most where images keep their shape."""
    target_tokens: int
    """Generation tokens per image (codes or latent patches), or the most where images keep their shape."""

    @classmethod
    def square(
        cls,
        understanding_size: int,
        generation_size: int,
        semantic_tokens: int,
        target_tokens: int,
        rule: Literal["crop", "stretch"] = "crop",
    ) -> Self:
        """Return the spec of a family whose images are all squares; sizes are sides in pixels."""
        resizes = Resize(rule, understanding_size), Resize(rule, generation_size)
        return cls(*resizes, semantic_tokens, target_tokens)

    @property
    def understanding_size(self) -> int:
        """Side in pixels of a square image for the understanding encoder."""
        return self.understanding.max_side

    @property
    def generation_size(self) -> int:
        """Side in pixels of a square image to generate."""
        return self.generation.max_side


class Semantic(PackedTensor):
    """Understanding embeddings of a batch, h_v in the paper (section 3.1): (N_i, D) for image i."""

    @property
    def embeds(self) -> Tensor:
        """(B, N, D); flat where images differ in shape, see :class:`reca.data.embeddings.PackedTensor`."""
        return self.values


class Target(PackedTensor):
    """The training target of image generation; carries no gradient.

    Codes (B, T) int64, latents (B, C, h, w), or posterior moments (B, 2C, h, w); flat where images differ in
    shape, see :class:`reca.data.embeddings.PackedTensor`.
    """


@dataclass(frozen=True)
class Loss:
    """A mean over targets together with their number, so that unequal micro-batches can be weighted exactly."""

    value: Tensor
    """Scalar: the mean over ``n_targets``."""
    n_targets: int
    """Number of targets (codes, latent tokens or answer tokens)."""

    @property
    def sums(self) -> Tensor:
        """Sum over the targets and their number, (2,) float64, detached; micro-batches add up to the global batch."""
        value = self.value.detach().double()
        return torch.stack([value * self.n_targets, torch.full_like(value, self.n_targets)])


@dataclass(frozen=True)
class Dialogue:
    """A question about an image and its answer."""

    question: str
    answer: str


class UnifiedModel(nn.Module, ABC):
    """One network that understands and generates images."""

    family: ClassVar[str]
    """Name of the family's folder."""
    spec: ImageSpec
    cacheable: frozenset[Cacheable]
    """Outputs of frozen encoders under this configuration; ``extract`` stores them once for all epochs."""
    encoder_prefixes: ClassVar[Mapping[Cacheable, tuple[str, ...]]]
    """Name prefixes of the parameters that :meth:`encode_semantic` and :meth:`encode_target` read."""
    prompt_dropout: float
    """Probability that a training sample loses its condition, for classifier-free guidance."""
    no_weight_decay: ClassVar[tuple[str, ...]] = ()
    """Name prefixes of matrices without weight decay, beyond vectors and scalars, which never have it."""

    @classmethod
    @abstractmethod
    def load(cls, checkpoint: Path, options: Mapping[str, Any], device: torch.device | None) -> Self:
        """Build the model from a checkpoint folder in the family's official layout.

        Args:
            checkpoint: Folder with the official files. Network sizes are read from its own configuration files.
            options: The ``model`` section of the configuration with ``options`` unfolded into it.
            device: See :meth:`to_eval`.

        Raises:
            FileNotFoundError: A file of the layout is missing.
            ValueError: Keys are missing or unexpected, or shapes differ.
        """

    @abstractmethod
    def save_official(self, path: Path, for_scripts: bool = False) -> None:
        """Write the official layout, atomically and repeatably; or, ``for_scripts``, what the authors' scripts open."""

    @abstractmethod
    def trainable(self) -> Iterable[str]:
        """Return the names of the parameters that RecA trains; all others are frozen."""

    def to_eval(self, device: torch.device | None) -> Self:
        """Switch to evaluation mode, in float32 on ``device``.

        ``None`` keeps the dtype of the files on the CPU. Weights read from safetensors are views of the file then, and
        all processes that read it share its memory.
        """
        return (self if device is None else self.to(device, torch.float32)).eval()

    def freeze(self) -> None:
        """Let gradients reach exactly the :meth:`trainable` parameters."""
        trainable = set(self.trainable())
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trainable)

    def is_encoder_parameter(self, name: str) -> bool:
        """Return whether an encoder of :attr:`cacheable` reads this parameter."""
        return name.startswith(tuple(prefix for output in self.cacheable for prefix in self.encoder_prefixes[output]))

    def keep_encoders(self) -> Self:
        """Delete all parameters but those of the encoders of :attr:`cacheable`, which is all that ``extract`` runs."""
        for path, module in self.named_modules():
            for name in [name for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)]:
                if not self.is_encoder_parameter(f"{path}.{name}"):
                    delattr(module, name)  # None would pass for a norm without weights
        return self

    def enable_flex_attention(self) -> bool:
        """Use FlexAttention from now on; return False where the family's attention is its library's own code."""
        return False

    @abstractmethod
    def encode_semantic(self, images: Images, rng: SampleRng | None = None) -> Semantic:
        """Return the understanding embeddings h_v of images resized by ``spec.understanding``.

        Args:
            images: See ``Images``.
            rng: Seeds of the encoder's dropout in training; ``None``: no dropout.
        """

    @abstractmethod
    def encode_target(self, images: Images, rng: SampleRng) -> Target:
        """Return the codes or latents of images resized by ``spec.generation``."""

    @abstractmethod
    def reconstruction_loss(self, semantic: Semantic, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Return L_RecA (paper, equation 2): generate each image from its understanding embeddings and a template."""

    @abstractmethod
    def understanding_loss(self, images: Images, dialogues: Sequence[Dialogue], rng: SampleRng) -> Loss:
        """Return L_i2t, the cross-entropy of answers; it preserves understanding where both tasks share parameters."""

    @abstractmethod
    def text_to_image_loss(self, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """Return L_t2i: generate each image from its caption; pre-training, and the control of the experiments."""

    def condition_dropout_mask(self, rng: SampleRng) -> Tensor | None:
        """Return the samples that lose their condition in this training step, (B,) bool; ``None``: none can."""
        if not self.training or self.prompt_dropout == 0:
            return None
        return rng.uniform("prompt_dropout") < self.prompt_dropout

    @abstractmethod
    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        """Return one image per prompt, (B, 3, S, S) in [-1, 1], or (B, 3, H, W) for ``sampling.size``."""

    @abstractmethod
    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        """Return images generated from embeddings under ``RECONSTRUCTION_PROMPT``; shaped as in :meth:`generate`."""

    @abstractmethod
    def answer(self, images: Images, questions: Sequence[str]) -> list[str]:
        """Return a greedily decoded answer to one question per image; images are resized by ``spec.understanding``."""


class ImageEditor(ABC):
    """A family that also edits images."""

    @abstractmethod
    def edit(
        self, images: Sequence[Tensor], instructions: Sequence[str], sampling: Sampling, rng: SampleRng
    ) -> list[Tensor]:
        """Return each image (3, H, W) in [-1, 1] changed as its instruction says; the family chooses the size."""
