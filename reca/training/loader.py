"""Batches of training: which samples form a step, and reading them while earlier ones are computed."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.compute as pc
import torch

from reca.config import TrainSection
from reca.data.dialogues import Dialogues
from reca.data.embeddings import Embeddings
from reca.data.images import resize_images
from reca.data.manifest import ImageReader, read_manifest
from reca.data.resize import Resize
from reca.data.sampler import EpochSampler
from reca.models.base import Cacheable, Dialogue, Images, Semantic, Target, UnifiedModel
from reca.models.prompts import choose_templates
from reca.runtime.distributed import SINGLE_PROCESS, DistributedContext
from reca.runtime.errors import UserError
from reca.runtime.prefetch import Prefetcher
from reca.runtime.seeding import derive_seed
from reca.training.losses import Kind, Mixture, TrainingBatch

HELD_OUT = "held_out"
HELD_OUT_IMAGES = 128
"""Enough for a loss whose noise is far below its change during a run; more images only cost time."""
CAPTION_COLUMNS = {"sparse": "caption", "full": "full_caption"}
Stored = TypeVar("Stored", Semantic, Target)


@dataclass(frozen=True)
class MicroBatch:
    """Micro-batch of a loss: samples that go through the model together."""

    kind: Kind
    noise_key: tuple[object, ...]
    """Input of the noise seeds besides the run's seed, the loss and the sample: ``("train", step)``."""
    ids: Sequence[str]
    is_padding: bool = False
    """See :attr:`TrainingBatch.is_padding`."""


def split_micro_batches(
    kind: Kind,
    noise_key: tuple[object, ...],
    ids: Sequence[str],
    size: int,
    distributed: DistributedContext = SINGLE_PROCESS,
) -> list[MicroBatch]:
    """Return this rank's micro-batches of at most ``size`` samples.

    Sharded parameters are gathered by collectives in every forward pass, so all ranks then need equally many
    micro-batches: a rank with fewer samples pads with a sample of another rank, whose loss does not count.
    """
    shard = distributed.shard(ids)
    micro_batches = [MicroBatch(kind, noise_key, shard[start : start + size]) for start in range(0, len(shard), size)]
    if not distributed.sharded:
        return micro_batches
    largest_shard = -(-len(ids) // distributed.world_size)
    padding = -(-largest_shard // size) - len(micro_batches)
    return micro_batches + [MicroBatch(kind, noise_key, ids[:1], is_padding=True)] * padding


class TrainingData:
    """Training and held-out samples of a run.

    Fields that the model declares cacheable are read from the embeddings, others are computed from the images.
    All noise of a sample is a function of (seed, step, loss, id).

    Args:
        model: Its ``spec`` and ``cacheable`` decide which files are read.
        dataset: The folder that ``ingest`` wrote.
        embeddings: The output of ``extract``.
        settings: The ``train`` section.
        mixture: Sample counts by loss.
        seed: The run's seed.
        device: Of the model.
        dialogues: Questions that replace those of the data set.

    Raises:
        UserError: The data has no training images, or lacks captions or questions that the mixture needs, or the
            embeddings lack images.
    """

    def __init__(
        self,
        model: UnifiedModel,
        dataset: Path,
        embeddings: Embeddings,
        settings: TrainSection,
        mixture: Mixture,
        seed: int,
        device: torch.device,
        dialogues: Dialogues | None = None,
    ) -> None:
        self.mixture, self.device = mixture, device
        self._spec, self._cacheable, self._embeddings = model.spec, model.cacheable, embeddings
        self._seed, self._templates, self._custom_dialogues = seed, settings.prompt_templates, dialogues
        self._reader = ImageReader(dataset)
        column = CAPTION_COLUMNS[settings.captions]
        table = read_manifest(dataset, ["id", "split", column, "ground_truth"])
        train = table.filter(pc.equal(table["split"], "train"))
        held_out = table.filter(pc.equal(table["split"], "held_out")).slice(0, HELD_OUT_IMAGES)
        if not len(train):
            raise UserError(f"{dataset} has no training images; lower data.held_out_fraction or add images")
        ids = train["id"].to_pylist()
        self.held_out: list[str] = held_out["id"].to_pylist()
        self._captions = _captions(train, column) | _captions(held_out, column)
        self._questions: dict[str, list[dict[str, str]]] = {}
        self._check_cache([*ids, *self.held_out])
        if mixture.counts["text_to_image"]:
            self._check_captions(ids, column)
        self._image_sampler = EpochSampler(ids, seed, "images") if mixture.images else None
        self._dialogue_sampler: EpochSampler | None = None
        if mixture.counts["understanding"] and dialogues is not None:
            self._dialogue_sampler = EpochSampler(dialogues.conversations, seed, "dialogues")
        elif mixture.counts["understanding"]:
            self._questions = _questions(train)
            if not self._questions:
                raise UserError(
                    "train.mixture.understanding is positive, but no training image has questions; "
                    "set train.mixture.understanding=0, or train.dialogues to a JSON file in LLaVA's format"
                )
            self._dialogue_sampler = EpochSampler(self._questions, seed, "dialogues")

    def _check_cache(self, ids: Sequence[str]) -> None:
        stored = set(self._embeddings.ids)
        absent = [name for name in ids if name not in stored] if self._cacheable else []
        if absent:
            raise UserError(
                f"{len(absent)} of {len(ids)} images are not in {self._embeddings.folder} (the first is "
                f"{absent[0]}); run `reca extract` again"
            )
        for name in sorted(self._cacheable):
            self._embeddings.rows(name, ids[:1])

    def _check_captions(self, ids: Sequence[str], column: str) -> None:
        without = [name for name in ids if name not in self._captions]
        if without:
            raise UserError(
                f"train.mixture.text_to_image is positive, but {len(without)} of {len(ids)} training images have no "
                f"{column!r} in the manifest (the first is {without[0]}); set train.mixture.text_to_image=0, or give "
                "every image a caption"
            )

    @property
    def samples_per_step(self) -> int:
        """Samples of a step, of all losses."""
        return sum(self.mixture.counts.values())

    @property
    def held_out_kinds(self) -> tuple[Kind, ...]:
        """Losses that can be measured on the held-out images."""
        if not self.held_out:
            return ()
        captioned = all(name in self._captions for name in self.held_out)
        return ("reconstruction", "text_to_image") if captioned else ("reconstruction",)

    def step(self, step: int) -> dict[Kind, list[str]]:
        """Return a step's ids by loss; both image losses share one stream, so RecA and control see the same images."""
        counts = self.mixture.counts
        ids: dict[Kind, list[str]] = {}
        if self._image_sampler is not None:
            images = self._image_sampler.step(step, self.mixture.images)
            ids["reconstruction"] = images[: counts["reconstruction"]]
            ids["text_to_image"] = images[counts["reconstruction"] :]
        if self._dialogue_sampler is not None:
            ids["understanding"] = self._dialogue_sampler.step(step, counts["understanding"])
        return {kind: names for kind, names in ids.items() if names}

    def read(self, kind: Kind, ids: Sequence[str], noise_key: tuple[object, ...]) -> TrainingBatch:
        """Return the batch of some samples on the CPU; the only method that reads files."""
        seeds = [derive_seed(self._seed, *noise_key, kind, name) for name in ids]
        if kind == "understanding":
            images, dialogues = self._read_dialogues(ids, seeds)
            return TrainingBatch(kind, seeds, images, dialogues=dialogues)
        target = self._read_cached("target", ids, Target) or self._read_pixels(ids, self._spec.generation)
        if kind == "text_to_image":
            return TrainingBatch(kind, seeds, None, target, [self._captions[name] for name in ids])
        condition = self._read_cached("semantic", ids, Semantic) or self._read_pixels(ids, self._spec.understanding)
        return TrainingBatch(kind, seeds, condition, target, choose_templates(seeds, self._templates))

    def _read_cached(self, field: Cacheable, ids: Sequence[str], kind: type[Stored]) -> Stored | None:
        return kind.from_rows(self._embeddings.rows(field, ids)) if field in self._cacheable else None

    def _read_pixels(self, ids: Sequence[str], resize: Resize) -> Images:
        return resize_images([self._reader.load(name) for name in ids], resize)

    def _read_dialogues(self, ids: Sequence[str], seeds: Sequence[int]) -> tuple[Images, list[Dialogue]]:
        """Return images for the understanding encoder, and one question about each."""
        resize = self._spec.understanding
        if self._custom_dialogues is None:
            dialogues = [self._choose_question(name, seed) for name, seed in zip(ids, seeds, strict=True)]
            return self._read_pixels(ids, resize), dialogues
        pairs = [self._custom_dialogues.take(name, seed) for name, seed in zip(ids, seeds, strict=True)]
        dialogues = [Dialogue(question, answer) for _, (question, answer) in pairs]
        return resize_images([image for image, _ in pairs], resize), dialogues

    def _choose_question(self, name: str, seed: int) -> Dialogue:
        questions = self._questions[name]
        question = questions[derive_seed("question", seed) % len(questions)]
        return Dialogue(question["text"], question["answer"])


class MicroBatchLoader:
    """A run's batches on its device, in the order of the steps.

    Args:
        data: The run's samples.
        micro_batch_size: Samples in a batch, at most.
        distributed: The ranks of the run.
        steps: The training steps to come; later ones are not read.
        prefetch: Batches that are read ahead; see :class:`Prefetcher`.
    """

    def __init__(
        self, data: TrainingData, micro_batch_size: int, distributed: DistributedContext, steps: range, prefetch: int
    ) -> None:
        self._data, self._size, self._distributed = data, micro_batch_size, distributed
        upcoming = (micro_batch for step in steps for plan in self._plan(step).values() for micro_batch in plan)
        self._prefetcher = Prefetcher(self._read, upcoming, prefetch)

    def close(self) -> None:
        """Stop reading."""
        self._prefetcher.close()

    def step(self, step: int) -> dict[Kind, "LossBatches"]:
        """Return a training step's batches by loss."""
        return {kind: LossBatches(plan, self.load) for kind, plan in self._plan(step).items()}

    def held_out(self) -> dict[Kind, "LossBatches"]:
        """Return the batches of the held-out images by loss; their noise is the same every time."""
        ids = dict.fromkeys(self._data.held_out_kinds, self._data.held_out)
        return {kind: LossBatches(plan, self.load) for kind, plan in self._split(ids, (HELD_OUT,)).items()}

    def load(self, micro_batch: MicroBatch) -> TrainingBatch:
        """Return a batch on the device; training batches must be loaded in their order."""
        if micro_batch.noise_key == (HELD_OUT,):
            return self._prefetcher.load_now(micro_batch).to(self._data.device)
        expected, batch = next(self._prefetcher)
        assert expected == micro_batch, "training batches are loaded in their order"
        return batch.to(self._data.device)

    def _plan(self, step: int) -> dict[Kind, list[MicroBatch]]:
        return self._split(self._data.step(step), ("train", step))

    def _split(self, ids: Mapping[Kind, Sequence[str]], noise_key: tuple[object, ...]) -> dict[Kind, list[MicroBatch]]:
        size, distributed = self._size, self._distributed
        return {kind: split_micro_batches(kind, noise_key, names, size, distributed) for kind, names in ids.items()}

    def _read(self, micro_batch: MicroBatch) -> TrainingBatch:
        batch = self._data.read(micro_batch.kind, micro_batch.ids, micro_batch.noise_key)
        return replace(batch.pin_memory(self._data.device), is_padding=micro_batch.is_padding)


@dataclass(frozen=True)
class LossBatches:
    """This rank's batches of a loss in a step, loaded while they are iterated over."""

    micro_batches: Sequence[MicroBatch]
    load: Callable[[MicroBatch], TrainingBatch]

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __iter__(self) -> Iterator[TrainingBatch]:
        return map(self.load, self.micro_batches)


def _captions(table: Any, column: str) -> dict[str, str]:
    pairs = zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True)
    return {name: caption for name, caption in pairs if caption}


def _questions(table: Any) -> dict[str, list[dict[str, str]]]:
    questions: dict[str, list[dict[str, str]]] = {}
    for name, text in zip(table["id"].to_pylist(), table["ground_truth"].to_pylist(), strict=True):
        truth: Mapping[str, Any] = json.loads(text) if text else {}
        if truth.get("questions"):
            questions[name] = truth["questions"]
    return questions
