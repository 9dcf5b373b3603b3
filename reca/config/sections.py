"""The sections of the configuration, named after the stages that read them: keys, ranges, what each means."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from reca.config.base import Fraction, Section
from reca.config.evaluate import HubId, JudgeLimits, PublishedSettings

BenchmarkName = Literal[
    "scenes",
    "understanding",
    "fidelity",
    "geneval",
    "dpgbench",
    "wise",
    "imgedit",
    "gedit",
    "mme",
    "pope",
    "mmmu",
    "scene_editing",
]


class ScenesData(Section):
    """Scenes rendered from a seed; ``path`` is the recipe, so that DVC has a file to watch."""

    source: Literal["scenes"]
    path: str
    num_images: PositiveInt
    image_size: PositiveInt
    """Side in pixels, of the benchmarks' rendered scenes too."""
    held_out: Literal["conf/data/scenes.yaml"] = "conf/data/scenes.yaml"
    """What benchmarks of held-out images depend on in ``dvc.yaml``: scenes are rendered anew, whatever was ingested."""
    held_out_fraction: Fraction
    max_bad_fraction: Fraction


class CollagesData(Section):
    """Collages of photographic cut-outs, composed from a seed; by default those of tuxpaint-stamps-default."""

    source: Literal["collages"]
    path: str
    """The folder of cut-outs; one of the user's own is put under DVC when a run is prepared."""
    num_images: PositiveInt
    image_size: int = Field(ge=96)
    """Side in pixels; on smaller images, thin things could not be seen."""
    held_out: Literal["outputs/dataset"] = "outputs/dataset"
    held_out_fraction: Fraction
    max_bad_fraction: Fraction


class _FoundImages(Section):
    """What every source of images as they come has in common."""

    path: str
    num_images: PositiveInt | None = None
    """At most this many images, the first in order of content hash; ``None``: all."""
    image_size: None = None
    """Images keep their own sizes."""
    held_out: Literal["outputs/dataset"] = "outputs/dataset"
    held_out_fraction: Fraction
    max_bad_fraction: Fraction
    """More unreadable files than this share of all stop the stage."""
    max_pixels: PositiveInt
    """Larger images are refused before they are decoded (decompression bombs)."""
    min_side: PositiveInt
    """Images with a shorter side, in pixels, go to the quarantine."""


class FolderData(_FoundImages):
    """A folder of photographs as it comes; put under DVC when a run is prepared."""

    source: Literal["folder"]


class WebDatasetData(_FoundImages):
    """Tar shards in webdataset layout: a local pattern, or URLs such as ``https://host/{0000..0009}.tar``."""

    source: Literal["webdataset"]
    urls: str


class HubData(_FoundImages):
    """A data set of the hub, or a local folder that ``datasets.load_dataset`` reads."""

    source: Literal["hub"]
    dataset: str
    revision: str | None = None
    split: str = "train"
    image_column: str = "image"
    caption_column: str | None = None
    """The column whose text is an image's caption; ``None``: images have none."""


DataSection = Annotated[
    ScenesData | CollagesData | FolderData | WebDatasetData | HubData, Field(discriminator="source")
]


class ExtractSection(Section):
    """How embeddings and targets are stored."""

    dtype: Literal["bfloat16", "float32"]
    images_per_shard: PositiveInt


class MixtureSection(Section):
    """Weights λ of the three losses (paper, equation 3).

    The two image losses split ``train.global_batch_size`` images in proportion to their weights, so 1 : 1 (RecA)
    and 0 : 1 (its control) see equally many images. A weight of 0 leaves that loss out.
    """

    reconstruction: NonNegativeFloat
    """Rebuild the image from its own understanding embeddings: L_RecA."""
    text_to_image: NonNegativeFloat
    """Draw the image of a caption: L_t2i; every training image needs one."""
    understanding: NonNegativeFloat
    """Answer questions about images, L_i2t: so many dialogues per image of the other two, on top of them."""

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        if self.reconstruction + self.text_to_image + self.understanding == 0:
            raise ValueError("all three losses have weight 0: nothing would be trained")
        return self


class AdapterSection(Section):
    """Low-rank adapters (LoRA) on linear layers that RecA trains; nothing else moves then."""

    rank: PositiveInt
    alpha: PositiveFloat
    """The adapter counts alpha / rank times."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the adapter's input."""
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Patterns of layers' names, such as ``*.q_proj``; ``None``: all, but those that give logits."""
    dora: bool = False
    """Learn the lengths of the rows of the sum too (DoRA): a copy of each weight is made in every pass."""
    rslora: bool = False
    """alpha / √rank instead, so that high ranks do not learn more slowly."""


class TrainSection(Section):
    """The recipe; everything here changes the weights that come out."""

    max_steps: PositiveInt
    """Optimizer steps."""
    global_batch_size: PositiveInt
    """Images per optimizer step, of both image losses together, over all devices and accumulation."""
    learning_rate: PositiveFloat = Field(le=1)
    lr_schedule: Literal["constant", "cosine"]
    lr_decay_steps: PositiveInt | None = None
    """Length of the cosine where it is longer than the run, as in recipes that are stopped early; ``None``: the run."""
    min_lr_ratio: Fraction
    """Where the cosine ends, as a share of the peak."""
    warmup_steps: NonNegativeInt
    betas: tuple[Fraction, Fraction]
    eps: PositiveFloat
    """AdamW's ε, in the unit of a gradient."""
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat
    precision: Literal["float32", "bfloat16"]
    """Of the forward and backward pass; weights and gradients of what is trained stay float32."""
    optimizer_state_dtype: Literal["float32", "bfloat16", "8bit"]
    """How AdamW's two moments are kept between steps: 8, 4 or some 2 bytes a trained parameter."""
    adapter: AdapterSection | None = None
    """Train low-rank adapters and merge them at the end; ``None``: the weights themselves (paper)."""
    mixture: MixtureSection
    captions: Literal["sparse", "full"]
    """Which caption the text-to-image loss reads, where the data has both: the two controls of docs/experiments.md."""
    prompt_templates: PositiveInt | None
    """How many prompt templates L_RecA draws from; ``None``: all of reca/models/prompts.py."""
    dialogues: str | None = None
    """A JSON file in LLaVA's format for the understanding loss; ``None``: the questions that the data come with."""
    dialogue_images: str | None = None
    """Folder that its images are relative to; ``None``: the one that the file lies in."""
    dialogues_digest: str | None = None
    """Of that file and its images, so that DVC sees a change; written by `reca compose`, never by hand."""
    save_every: PositiveInt
    eval_every: PositiveInt
    keep_checkpoints: PositiveInt

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_steps > self.max_steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) is larger than max_steps ({self.max_steps})")
        if self.lr_decay_steps is not None and self.lr_decay_steps < self.max_steps:
            raise ValueError(f"lr_decay_steps ({self.lr_decay_steps}) is smaller than max_steps ({self.max_steps})")
        return self

    @model_validator(mode="after")
    def _dialogues_are_used(self) -> Self:
        if self.dialogues and not self.mixture.understanding:
            raise ValueError("dialogues are given, but mixture.understanding is 0: set it (the paper: 1)")
        if self.dialogue_images and not self.dialogues:
            raise ValueError("dialogue_images is given without dialogues")
        return self


class GenerateSection(Section):
    """How benchmark images are drawn."""

    guidance_scale: NonNegativeFloat
    temperature: PositiveFloat
    num_steps: PositiveInt | None = None


class ScenesSettings(Section):
    """GenEval's six categories over rendered scenes."""

    prompts_per_category: PositiveInt
    images_per_prompt: PositiveInt
    seed: NonNegativeInt


class UnderstandingSettings(Section):
    """Questions about held-out scenes."""

    num_images: PositiveInt
    seed: NonNegativeInt


class FidelitySettings(Section):
    """Reconstruction of held-out images from their own embeddings."""

    num_images: PositiveInt
    seed: NonNegativeInt
    encoders: tuple[HubId, ...]
    """Image encoders that compare drawing and original as well, such as ``openai/clip-vit-large-patch14@COMMIT`` and
    ``facebook/dinov2-base@COMMIT``; in ``data/judges/``, outside the overall score."""


class EvaluateSection(PublishedSettings):
    """What is measured, on the base and on the aligned model alike."""

    benchmarks: tuple[BenchmarkName, ...] = Field(min_length=1)
    scenes: ScenesSettings
    understanding: UnderstandingSettings
    fidelity: FidelitySettings
    confidence: float = Field(gt=0.5, lt=1)
    """Coverage of the intervals."""
    bootstrap_resamples: PositiveInt

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.benchmarks)) < len(self.benchmarks):
            raise ValueError(f"a benchmark is named twice: {', '.join(self.benchmarks)}")
        return self


class PromotionRule(Section):
    """One condition for promotion, on the delta of one score."""

    benchmark: BenchmarkName
    category: str = "overall"
    versus: Literal["base", "champion"]
    bound: Literal["lower", "estimate"]
    """``lower``: the whole interval must lie above ``minimum``; ``estimate``: the delta itself must reach it."""
    minimum: float
    """Smallest acceptable delta, in the score's own unit (scores run from 0 to 1)."""


class RegisterSection(Section):
    """When a model may become champion."""

    promotion_rules: tuple[PromotionRule, ...] = Field(min_length=1)


class HardwareSection(Section):
    """Speed and place; nothing here changes a result (on one device type)."""

    device: Literal["auto", "cpu", "cuda"]
    processes: PositiveInt
    """Processes of a node that share extraction, training, generation and scoring: one for each of its devices."""
    nodes: PositiveInt
    """Hosts that share them, each with ``processes``; they see the project and ``paths.state`` on one disk."""
    multinode_launcher: str
    """What starts the command that follows it once on every node and tells it which one it is: srun, mpirun, a script
    that sets RECA_NODE_RANK. ``{nodes}`` in it is their number."""
    shard: bool
    """Split the parameters that train, and the frozen ones, over the processes of training (FSDP2), in place of a whole
    model on each device; on one process it changes nothing."""
    micro_batch_size: PositiveInt
    """Images per forward pass in training and extraction."""
    generate_batch_size: PositiveInt
    threads: PositiveInt
    """CPU threads of ingestion, extraction and training."""
    generate_threads: PositiveInt
    """CPU threads of generation and scoring, which run beside one another and beside training: more threads than cores
    wait for each other."""
    gradient_checkpointing: bool
    """Keep no activations inside a block, compute them again in the backward pass: less memory, a third more time."""
    compile: bool
    """Compile the blocks of the model for training: minutes before the first step, faster kernels after it."""
    flex_attention: bool
    """Attend with PyTorch's FlexAttention where a family masks attention itself (bagel); a GPU only."""
    prefetch: NonNegativeInt
    """Passes of training, and batches of extraction, that a thread reads before they are due; 0: none."""
    forecast_gpu: Literal["h100", "h200", "a100_80g", "a100_40g", "l40s"] | None
    """The GPU that `reca doctor` predicts for; ``None``: the one that is here."""
    price_per_hour: NonNegativeFloat | None
    """US dollars for one device for one hour, for the prediction only; ``None``: not known."""
    parallel_stages: PositiveInt
    """Stages that may run side by side."""
    judge: JudgeLimits
    """How judges at endpoints are treated."""

    @property
    def devices(self) -> int:
        """Processes of all nodes."""
        return self.processes * self.nodes


class TrackingSection(Section):
    """Where runs and versions are remembered."""

    uri: str | None = None
    """MLflow tracking URI; ``None``: SQLite at ``mlruns/mlflow.db``."""
    experiment: str
    copy_limit_mib: NonNegativeInt
    """Weights up to this size are copied into MLflow; bigger ones are registered by their DVC hash."""


class PathsSection(Section):
    """Folders that are neither code nor results."""

    state: str
    """Checkpoints, locks, Prefect's home; relative to the project unless absolute."""
