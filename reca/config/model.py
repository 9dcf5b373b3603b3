"""The ``model`` section, one class a family: where its checkpoint lies, what moves, and the family's own options."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from reca.config.base import Fraction, Section


class _Model(Section):
    """Which model is aligned, and which of its parts move."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """The preset's name; the registered model is ``reca-<name>``."""
    checkpoint: str
    """Folder in the official layout, relative to the project."""
    parts: dict[str, str] = Field(default_factory=dict)
    """What the official layout keeps elsewhere: the family's name for it -> a folder inside ``checkpoint``'s."""
    hub: dict[str, str] = Field(default_factory=dict)
    """Where a missing folder is fetched from: ``checkpoint`` or a part -> ``REPOSITORY@REVISION``, or
    ``REPOSITORY@REVISION#PATTERN`` where only some of its files are wanted."""
    understanding_size: PositiveInt | None = None
    """Side in pixels of the image that is understood; ``None``: the lowest that the encoder accepts (paper)."""
    generation_size: PositiveInt | None = None
    """Side in pixels of the image that is drawn; ``None``: the checkpoint's own."""
    train_vision: bool = False
    """Train the understanding encoder too, where it is separable. Off: its embeddings may be cached."""
    prompt_dropout: Fraction
    """How often a training sample loses its condition, for classifier-free guidance."""

    @model_validator(mode="after")
    def _hub_fills_known_folders(self) -> Self:
        if unknown := self.hub.keys() - {"checkpoint", *self.parts}:
            raise ValueError(f"hub.{min(unknown)} is neither `checkpoint` nor one of the parts {sorted(self.parts)}")
        return self

    def load_options(self, root: Path) -> dict[str, Any]:
        """What a family is loaded with: this section, options unfolded, folders as absolute paths."""
        values = self.model_dump()
        places = {part: str(root / place) for part, place in self.parts.items()}
        return {**values, "parts": places, **values.pop("options", {})}


class JanusOptions(Section):
    """Janus has none."""


class JanusModel(_Model):
    """Janus, Janus-Pro: nothing beyond what all families have."""

    family: Literal["janus"]
    options: JanusOptions = JanusOptions()


class OpenUniOptions(Section):
    """What only OpenUni has."""

    weights: str | None = None
    """Name of the trained file in ``checkpoint``, where there are several; ``None``: the only one."""
    train_transformer: bool = True
    """Train SANA along with connector, projector and queries (paper); off: these three only."""


class OpenUniModel(_Model):
    """OpenUni. ``parts``: ``lmm`` (InternVL3), ``sana``, ``vae`` (DC-AE), unless the checkpoint holds all of them."""

    family: Literal["openuni"]
    options: OpenUniOptions = OpenUniOptions()


class ShowoOptions(Section):
    """What only Show-o has."""

    train_condition: bool = False
    """Let L_RecA train CLIP's projector and the embedding table too; the official code runs both without gradient."""
    template_tokens: PositiveInt = 125
    """Text slots of a reconstruction with CLIP. They set the distance from image to codes: keep it as trained."""
    system_prompt: str | None = None
    """Text before an image that is asked about, with CLIP; ``None``: the official one, empty: none."""


class ShowoModel(_Model):
    """Show-o. ``parts``: ``phi`` (config and tokenizer), ``clip``, ``magvit``, unless they lie in the checkpoint."""

    family: Literal["showo"]
    options: ShowoOptions = ShowoOptions()


class BagelOptions(Section):
    """What only BAGEL has."""

    resize: Literal["fit", "crop", "stretch"] = "fit"
    """What becomes of an image that is no square: it keeps its shape (paper), or is cut or stretched to one."""
    freeze_understanding: bool = True
    """Train the drawing expert only, with no gradient through the other (paper); off: all but the vision tower."""
    training_shift: PositiveFloat = 1.0
    """How far times are moved towards noise in training; 1: not at all (paper)."""
    sampling_shift: PositiveFloat = 3.0
    """The same for drawing."""
    guidance_interval: tuple[Fraction, Fraction] = (0.4, 1.0)
    """Guidance acts at times in (first, second]; 1 is noise. The official GenEval script has (0, 1)."""
    guidance_renorm: Literal["global", "channel", "text_channel"] = "global"
    """Over what a guided velocity is kept as short as the unguided one: image, token, token before image guidance."""
    edit_guidance_interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    """As ``guidance_interval``, for editing."""
    edit_guidance_renorm: Literal["global", "channel", "text_channel"] = "text_channel"
    """As ``guidance_renorm``, for editing."""


class BagelModel(_Model):
    """BAGEL. ``parts.base``: a complete checkpoint for what this one lacks (RecA's repositories hold weights only)."""

    family: Literal["bagel"]
    options: BagelOptions = BagelOptions()


class HarmonOptions(Section):
    """What only Harmon has."""

    resize: Literal["stretch", "crop"] = "stretch"
    """How an image becomes a square: stretched (paper), or its middle cut out."""
    weights: str | None = None
    """Name of the weights in ``checkpoint``, where there are several; ``None``: the only one."""
    gradient_scale: NonNegativeFloat = 0.1
    """Factor of the gradient that flows through the condition into the encoder (released RecA)."""
    train_encoder: bool = True
    """Train MAR's encoder and its way into the language model (paper). Off: the embeddings may be cached."""
    train_llm: bool = True
    """Train the language model (paper)."""


class HarmonModel(_Model):
    """Harmon. ``parts``: ``llm`` (Qwen2.5), ``tokenizer``, ``vae`` (``kl16.ckpt``), unless the checkpoint holds them.

    Its encoder serves both tasks, so ``train_vision`` does not apply; the three options below do.
    """

    family: Literal["harmon"]
    options: HarmonOptions = HarmonOptions()


ModelSection = Annotated[
    JanusModel | OpenUniModel | ShowoModel | BagelModel | HarmonModel, Field(discriminator="family")
]
