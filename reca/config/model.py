"""The ``model`` section, one class per family: checkpoint, trained parts and the family's own options."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from reca.config.base import Fraction, Section


class _Model(Section):
    """Checkpoint and trained parts of the model."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """The preset's name; the registered model is ``reca-<name>``."""
    checkpoint: str
    """Folder in the official layout, relative to the project."""
    parts: dict[str, str] = Field(default_factory=dict)
    """Parts that the official layout stores elsewhere: the family's name for the part -> its folder."""
    hub: dict[str, str] = Field(default_factory=dict)
    """Sources of absent folders: ``checkpoint`` or a part -> ``REPOSITORY@REVISION``, or
    ``REPOSITORY@REVISION#PATTERN`` for some of its files."""
    understanding_size: PositiveInt | None = None
    """Side in pixels of the understanding encoder's input; ``None``: the smallest that it accepts (paper)."""
    generation_size: PositiveInt | None = None
    """Side in pixels of generated images; ``None``: the checkpoint's size."""
    train_vision: bool = False
    """Also train the understanding encoder, where it is separate. Off: its embeddings can be cached."""
    prompt_dropout: Fraction
    """Probability that a training sample loses its condition, for classifier-free guidance."""

    @model_validator(mode="after")
    def _hub_fills_known_folders(self) -> Self:
        if unknown := self.hub.keys() - {"checkpoint", *self.parts}:
            raise ValueError(f"hub.{min(unknown)} is neither `checkpoint` nor one of the parts {sorted(self.parts)}")
        return self

    def load_options(self, root: Path) -> dict[str, Any]:
        """Return the arguments of a family's loader: this section with its options merged in and absolute folders."""
        values = self.model_dump()
        folders = {part: str(root / folder) for part, folder in self.parts.items()}
        return {**values, "parts": folders, **values.pop("options", {})}


class JanusOptions(Section):
    """Options of Janus."""

    system_prompt: str | None = None
    """Text before a question; ``None``: the official text; empty: no text."""


class JanusModel(_Model):
    """Janus and Janus-Pro."""

    family: Literal["janus"]
    options: JanusOptions = JanusOptions()


class OpenUniOptions(Section):
    """Options of OpenUni."""

    weights: str | None = None
    """Name of the weights file in the base's folder if there are several; ``None``: the only one."""
    train_transformer: bool = True
    """Train SANA with connector, projector and queries (paper); off: these three only."""


class OpenUniModel(_Model):
    """OpenUni. ``parts``: ``lmm`` (InternVL3), ``sana``, ``vae`` (DC-AE), unless the checkpoint has them."""

    family: Literal["openuni"]
    options: OpenUniOptions = OpenUniOptions()


class ShowoOptions(Section):
    """Options of Show-o."""

    resize: Literal["stretch", "crop"] = "stretch"
    """Resizing to a square: ``stretch`` (released RecA) or the centre ``crop``."""
    clip_normalization: bool = True
    """Show CLIP the images of questions in its own normalization (official); off: in [-1, 1], as for L_RecA."""
    train_condition: bool = False
    """Also train CLIP's projector and the embedding table by L_RecA; the official code runs both without gradient."""
    template_tokens: PositiveInt = 125
    """Text positions of a reconstruction with CLIP; they set the distance from image to codes: keep as trained."""
    system_prompt: str | None = None
    """Text before the image of a question, with CLIP; ``None``: the official text; empty: no text."""


class ShowoModel(_Model):
    """Show-o. ``parts``: ``phi`` (config and tokenizer), ``clip``, ``magvit``, unless the checkpoint has them."""

    family: Literal["showo"]
    options: ShowoOptions = ShowoOptions()


class BagelOptions(Section):
    """Options of BAGEL."""

    resize: Literal["fit", "crop", "stretch"] = "fit"
    """Resizing: ``fit`` keeps an image's shape (paper), ``crop`` and ``stretch`` make it a square."""
    freeze_understanding: bool = True
    """Train the generation expert only, with the other one detached (paper); off: all but the vision tower."""
    training_shift: PositiveFloat = 1.0
    """Shift of the training timesteps towards noise; 1: none (paper)."""
    sampling_shift: PositiveFloat = 3.0
    """Shift of the sampling timesteps."""


class BagelModel(_Model):
    """BAGEL. ``parts.base``: a complete checkpoint for absent files (RecA's repositories hold weights only)."""

    family: Literal["bagel"]
    options: BagelOptions = BagelOptions()


class HarmonOptions(Section):
    """Options of Harmon."""

    resize: Literal["stretch", "crop"] = "stretch"
    """Resizing to a square: ``stretch`` (paper) or the centre ``crop``."""
    weights: str | None = None
    """Name of the weights file in the base's folder if there are several; ``None``: the only one."""
    gradient_scale: NonNegativeFloat = 0.1
    """Scale of the gradient that flows through the condition into the encoder (released RecA)."""
    train_encoder: bool = True
    """Train MAR's encoder and its projection into the language model (paper). Off: embeddings can be cached."""
    train_llm: bool = True
    """Train the language model (paper)."""


class HarmonModel(_Model):
    """Harmon. ``parts``: ``llm`` (Qwen2.5), ``tokenizer``, ``vae`` (``kl16.ckpt``), unless the checkpoint has them.

    Its encoder serves both tasks, so ``train_vision`` does not apply.
    """

    family: Literal["harmon"]
    options: HarmonOptions = HarmonOptions()


ModelSection = Annotated[
    JanusModel | OpenUniModel | ShowoModel | BagelModel | HarmonModel, Field(discriminator="family")
]
