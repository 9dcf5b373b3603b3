"""The sections of the configuration, named after the stages that read them: keys, ranges and meanings."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from reca.config.base import Fraction, Section
from reca.config.evaluate import BenchmarkName, HubId, JudgeLimits, PublishedSettings
from reca.config.model import ModelSection


class ScenesData(Section):
    """Scenes rendered from a seed; ``path`` is the preset, so that DVC has a file to watch."""

    source: Literal["scenes"]
    path: str
    num_images: PositiveInt
    image_size: PositiveInt
    """Side in pixels, also of the benchmarks' scenes."""
    held_out: Literal["conf/data/scenes.yaml"] = "conf/data/scenes.yaml"
    """Dependency of the held-out benchmarks in ``dvc.yaml``: they render their scenes, independent of the data set."""
    held_out_fraction: Fraction
    max_bad_fraction: Fraction


class CollagesData(Section):
    """Collages of photographic cut-outs, composed from a seed; by default those of tuxpaint-stamps-default."""

    source: Literal["collages"]
    path: str
    """The folder of cut-outs; a user's own folder is put under DVC when a run is prepared."""
    num_images: PositiveInt
    image_size: int = Field(ge=96)
    """Side in pixels; thin objects would be invisible in smaller images."""
    held_out: Literal["outputs/dataset"] = "outputs/dataset"
    held_out_fraction: Fraction
    max_bad_fraction: Fraction


class _ExternalImages(Section):
    """Settings of every source of existing images."""

    path: str
    num_images: PositiveInt | None = None
    """At most this many images, the first in order of content hash; ``None``: all."""
    image_size: None = None
    """Images keep their sizes."""
    held_out: Literal["outputs/dataset"] = "outputs/dataset"
    held_out_fraction: Fraction
    max_bad_fraction: Fraction
    """Share of unreadable files above which the stage stops."""
    max_pixels: PositiveInt
    """Images with more pixels are rejected before they are decoded (decompression bombs)."""
    min_side: PositiveInt
    """Images with a shorter side, in pixels, go to the quarantine."""


class FolderData(_ExternalImages):
    """A folder of photographs, put under DVC when a run is prepared."""

    source: Literal["folder"]


class WebDatasetData(_ExternalImages):
    """Tar shards in webdataset layout: a local pattern, or URLs such as ``https://host/{0000..0009}.tar``."""

    source: Literal["webdataset"]
    urls: str


class HubData(_ExternalImages):
    """A data set on the hub, or a local folder that ``datasets.load_dataset`` reads."""

    source: Literal["hub"]
    dataset: str
    revision: str | None = None
    split: str = "train"
    image_column: str = "image"
    caption_column: str | None = None
    """Column with the captions; ``None``: there are no captions."""


DataSection = Annotated[
    ScenesData | CollagesData | FolderData | WebDatasetData | HubData, Field(discriminator="source")
]


class ExtractSection(Section):
    """Storage of embeddings and targets."""

    dtype: Literal["bfloat16", "float32"]
    images_per_shard: PositiveInt


class MixtureSection(Section):
    """Weights λ of the three losses (paper, equation 3).

    The two image losses split ``train.global_batch_size`` images in proportion to their weights, so 1 : 1 (RecA)
    and 0 : 1 (its control) train on equally many images. A weight of 0 leaves that loss out.
    """

    reconstruction: NonNegativeFloat
    """L_RecA: reconstruct the image from its own understanding embeddings."""
    text_to_image: NonNegativeFloat
    """L_t2i: generate the image of a caption; every training image needs one."""
    understanding: NonNegativeFloat
    """L_i2t: answer questions about images; dialogues per image of the other two losses, in addition to them."""

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        if self.reconstruction + self.text_to_image + self.understanding == 0:
            raise ValueError("all three losses have weight 0: nothing would be trained")
        return self


class AdapterSection(Section):
    """Low-rank adapters (LoRA) on linear layers that RecA trains; all other parameters are frozen."""

    rank: PositiveInt
    alpha: PositiveFloat
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the adapter's input."""
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Patterns of layer names, such as ``*.q_proj``; ``None``: all except output heads."""
    dora: bool = False
    """Also learn the row norms of the sum (DoRA), at the cost of copying each weight in every forward pass."""
    rslora: bool = False
    """Scale by alpha / √rank, so that high ranks do not learn more slowly."""


class TrainSection(Section):
    """The recipe; every key except ``save_every``, ``eval_every``, ``keep_checkpoints`` changes the weights."""

    max_steps: PositiveInt
    """Optimizer steps."""
    global_batch_size: PositiveInt
    """Images per optimizer step, of both image losses, over all ranks and accumulation steps."""
    learning_rate: PositiveFloat = Field(le=1)
    lr_schedule: Literal["constant", "cosine"]
    lr_decay_steps: PositiveInt | None = None
    """Length of the cosine if longer than the run, as in recipes that stop early; ``None``: ``max_steps``."""
    min_lr_ratio: Fraction
    """Learning rate at the end of the cosine, as a share of the peak."""
    warmup_steps: NonNegativeInt
    betas: tuple[Fraction, Fraction]
    eps: PositiveFloat
    """AdamW's epsilon, in the unit of a gradient."""
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat
    precision: Literal["float32", "bfloat16"]
    """Autocast dtype of forward and backward; trained weights and their gradients stay float32."""
    optimizer_state_dtype: Literal["float32", "bfloat16", "8bit"]
    """Storage of AdamW's two moments between steps: 8, 4 or about 2 bytes per trained parameter."""
    adapter: AdapterSection | None = None
    """Train low-rank adapters and merge them at the end; ``None``: train the weights (paper)."""
    mixture: MixtureSection
    captions: Literal["sparse", "full"]
    """Caption of the text-to-image loss, where the data has both: the two controls of docs/experiments.md."""
    prompt_templates: PositiveInt | None
    """Number of prompt templates for L_RecA; ``None``: all of reca/training/losses.txt."""
    dialogues: str | None = None
    """JSON file in LLaVA's format for the understanding loss; ``None``: the data's own questions."""
    dialogue_images: str | None = None
    """Folder that its image paths are relative to; ``None``: the folder of the file."""
    dialogues_digest: str | None = None
    """Digest of that file and its images, so that DVC sees a change; written by `reca compose`, never by hand."""
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


BAGELS_SAMPLING = ("image_guidance_scale", "guidance_interval", "guidance_renorm", "guidance_renorm_min")
SAMPLING_OF_ONE_FAMILY = {**dict.fromkeys(BAGELS_SAMPLING, "bagel"), "guidance_schedule": "harmon"}


class SamplingSettings(Section):
    """Sampling of images; ``None``: the default in ``reca/models/sampling.py``, which also says what the keys mean."""

    guidance_scale: NonNegativeFloat | None = None
    temperature: PositiveFloat | None = None
    num_steps: PositiveInt | None = None
    image_guidance_scale: NonNegativeFloat | None = None
    guidance_interval: tuple[Fraction, Fraction] | None = None
    guidance_renorm: Literal["global", "channel", "text_channel"] | None = None
    guidance_renorm_min: Fraction | None = None
    guidance_schedule: Literal["constant", "linear"] | None = None


class GenerateSection(SamplingSettings):
    """Sampling of benchmark images."""

    guidance_scale: NonNegativeFloat
    temperature: PositiveFloat
    benchmarks: dict[BenchmarkName, SamplingSettings] = Field(default_factory=dict)
    """Values of single benchmarks, which win over the general ones."""


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
    """Image encoders that also compare reconstruction and original, such as ``openai/clip-vit-large-patch14@COMMIT``
    and ``facebook/dinov2-base@COMMIT``; stored in ``data/judges/``, not part of the overall score."""


class EvaluateSection(PublishedSettings):
    """Benchmarks of the base and the aligned model."""

    benchmarks: tuple[BenchmarkName, ...] = Field(min_length=1)
    scenes: ScenesSettings
    understanding: UnderstandingSettings
    fidelity: FidelitySettings
    confidence: float = Field(gt=0.5, lt=1)
    """Coverage of the intervals."""
    bootstrap_resamples: PositiveInt

    @model_validator(mode="after")
    def _benchmarks_are_unique(self) -> Self:
        if len(set(self.benchmarks)) < len(self.benchmarks):
            raise ValueError(f"a benchmark is named twice: {', '.join(self.benchmarks)}")
        return self

    def uses_local_judge(self, benchmark: str) -> bool:
        """Return whether a network on this machine judges a benchmark, so that several devices can share the work.

        The scene detector does not count: it takes seconds.
        """
        settings = getattr(self, benchmark)
        judge = getattr(settings, "judge", None)
        return any((getattr(settings, "detector", None), getattr(settings, "encoders", None), judge and judge.folder))


class PromotionRule(Section):
    """A condition for promotion: a bound on the delta of a score."""

    benchmark: BenchmarkName
    category: str = "overall"
    versus: Literal["base", "champion"]
    bound: Literal["lower", "estimate"]
    """``lower``: the whole interval must be above ``minimum``; ``estimate``: the delta itself must reach it."""
    minimum: float
    """Smallest acceptable delta, in the score's own unit (scores run from 0 to 1)."""


class RegisterSection(Section):
    """Conditions for becoming champion."""

    promotion_rules: tuple[PromotionRule, ...] = Field(min_length=1)


class HardwareSection(Section):
    """Speed and location. On one device type no key changes a result, up to rounding.

    Micro-batch sizes, ``compile``, ``flex_attention``, ``shard`` and the number of processes change the order of
    floating-point sums, hence the last bits. Data order, noise and all other decisions do not depend on them, except
    ``train.adapter.dropout``, which peft draws once per forward pass.
    """

    device: Literal["auto", "cpu", "cuda"]
    processes: PositiveInt
    """Processes per node in training, and in extraction, generation and scoring by Ray: one per device."""
    nodes: PositiveInt
    """Hosts, each with ``processes``; all see the project and ``paths.state`` on a shared disk."""
    multinode_launcher: str
    """Command prefix that starts a command once on every node, such as srun or mpirun; ``{nodes}`` in it is replaced by
    their number."""
    ray: str | None = Field(pattern=r"^(local|.+:\d+)$")
    """Devices of extraction, generation and scoring: ``local`` starts Ray on this host, HOST:PORT joins a cluster;
    ``None``: one device, without Ray."""
    shard: Literal["none", "host", "all"]
    """Training processes over which all parameters are sharded (FSDP2): none, every process then has the whole model;
    those of a host, which replicates it across hosts (HSDP); or all. No effect on a single process."""
    micro_batch_size: PositiveInt
    """Images per forward pass in training and extraction."""
    generate_batch_size: PositiveInt
    threads: PositiveInt
    """CPU threads of ingestion, extraction and training."""
    generate_threads: PositiveInt
    """CPU threads of generation and scoring, which run at the same time as training; more threads than cores
    slow each other down."""
    gradient_checkpointing: bool
    """Recompute activations inside a block in the backward pass: less memory, a third more time."""
    compile: bool
    """Compile the model's blocks for training: minutes before the first step, faster kernels after it."""
    flex_attention: bool
    """Use PyTorch's FlexAttention where a family masks attention itself (bagel); GPU only."""
    prefetch: NonNegativeInt
    """Micro-batches of training and batches of extraction that threads read ahead; 0: none."""
    forecast_gpu: Literal["h100", "h200", "a100_80g", "a100_40g", "l40s"] | None
    """The GPU that `reca doctor` predicts for; ``None``: the one of this machine."""
    price_per_hour: NonNegativeFloat | None
    """US dollars per device and hour, read by the prediction only; ``None``: unknown."""
    parallel_stages: PositiveInt
    """Stages that may run at the same time."""
    judge: JudgeLimits
    """Limits on the requests to judges at endpoints."""

    @property
    def devices(self) -> int:
        """Number of processes over all nodes."""
        return self.processes * self.nodes


class TrackingSection(Section):
    """The MLflow store of runs and versions."""

    uri: str | None = None
    """MLflow tracking URI; ``None``: SQLite at ``mlruns/mlflow.db``."""
    experiment: str
    copy_limit_mib: NonNegativeInt
    """Weights up to this size are copied into MLflow; larger ones are registered by their DVC hash."""


class PathsSection(Section):
    """Folders that are neither code nor results."""

    state: str
    """Checkpoints, locks, Prefect's home; relative to the project unless absolute."""


class AllSections(Section):
    """The sections of the configuration; ``conf/config.yaml`` has their values."""

    seed: NonNegativeInt
    model: ModelSection
    data: DataSection
    extract: ExtractSection
    train: TrainSection
    generate: GenerateSection
    evaluate: EvaluateSection
    register_: RegisterSection = Field(alias="register")
    hardware: HardwareSection
    tracking: TrackingSection
    paths: PathsSection

    @model_validator(mode="after")
    def _sampling_is_the_familys(self) -> Self:
        settings = (self.generate, *self.generate.benchmarks.values())
        for key, family in SAMPLING_OF_ONE_FAMILY.items():
            is_set = any(getattr(values, key) is not None for values in settings)
            if is_set and family != self.model.family:
                raise ValueError(f"generate: {key} belongs to {family}, and {self.model.family} would ignore it")
        return self
