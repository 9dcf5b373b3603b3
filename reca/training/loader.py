"""Batches of training: which samples form a step, and reading them while earlier ones are computed.

The order of samples is a pure function of (seed, stream, step), so a resumed run needs no saved sampler state.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from reca.config import TrainSection
from reca.data.dialogues import Dialogues
from reca.data.embeddings import Embeddings
from reca.data.images import ImageReader, resize_images
from reca.data.resize import Resize
from reca.models.base import Cacheable, Dialogue, Images, Semantic, Target, UnifiedModel
from reca.runtime.distributed import SINGLE_PROCESS, DistributedContext
from reca.runtime.prefetch import Prefetcher
from reca.runtime.seeding import derive_seed
from reca.training.losses import Kind, TrainingBatch, choose_templates
from reca.training.mixture import Mixture
from reca.training.samples import check_stored, read_samples

HELD_OUT = "held_out"
EPOCHS_IN_MEMORY = 2  # a batch may straddle two epochs
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

    Gradients, and sharded parameters, pass through collectives in every pass, so all ranks need equally many
    micro-batches: a rank with fewer samples pads with a sample of another rank, whose loss does not count.
    """
    shard = distributed.shard(ids)
    micro_batches = [MicroBatch(kind, noise_key, shard[start : start + size]) for start in range(0, len(shard), size)]
    largest_shard = -(-len(ids) // distributed.world_size)
    padding = -(-largest_shard // size) - len(micro_batches)
    return micro_batches + [MicroBatch(kind, noise_key, ids[:1], is_padding=True)] * padding


class EpochSampler:
    """An endless stream of ids: every epoch is a new permutation of all ids.

    The order depends on the set of ids, the seed and the stream's name; not on the order in which the ids are
    given, nor on the world size: every rank computes the whole step and takes its shard.

    Args:
        ids: Distinct names of the samples.
        seed: The run's seed.
        stream: Name of the stream; streams with the same seed are independent.

    Raises:
        ValueError: There are no ids, or an id occurs twice.
    """

    def __init__(self, ids: Iterable[str], seed: int, stream: str) -> None:
        self._ids: Sequence[str] = sorted(ids)
        if not self._ids:
            raise ValueError(f"the stream {stream!r} has no samples to draw from")
        if len(set(self._ids)) < len(self._ids):
            raise ValueError(f"the stream {stream!r} was given an id twice")
        self._seed, self._stream = seed, stream
        self._order = lru_cache(EPOCHS_IN_MEMORY)(self._permutation)

    def step(self, step: int, size: int) -> list[str]:
        """Return the ``size`` ids of a step; steps count from 1."""
        positions = (divmod(position, len(self._ids)) for position in range((step - 1) * size, step * size))
        return [self._ids[self._order(epoch)[index]] for epoch, index in positions]

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng(derive_seed(self._seed, self._stream, epoch)).permutation(len(self._ids))


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
        self._seed, self._templates, self._dialogues = seed, settings.prompt_templates, dialogues
        self._reader = ImageReader(dataset)
        counts = mixture.counts
        need_questions = counts["understanding"] > 0 and dialogues is None
        samples = read_samples(dataset, settings.captions, counts["text_to_image"] > 0, need_questions)
        check_stored(embeddings, model.cacheable, [*samples.train, *samples.held_out])
        self.held_out, self._captions, self._questions = samples.held_out, samples.captions, samples.questions
        # Both image losses share one stream, so that RecA and its control see the same images.
        self._images = EpochSampler(samples.train, seed, "images")
        names: Iterable[str] = samples.questions if dialogues is None else dialogues.conversations
        self._conversations = EpochSampler(names, seed, "dialogues") if counts["understanding"] else None

    @property
    def held_out_kinds(self) -> tuple[Kind, ...]:
        """Losses that can be measured on the held-out images."""
        if not self.held_out:
            return ()
        captioned = all(name in self._captions for name in self.held_out)
        return ("reconstruction", "text_to_image") if captioned else ("reconstruction",)

    def step(self, step: int) -> dict[Kind, Sequence[str]]:
        """Return a step's ids by loss."""
        counts = self.mixture.counts
        images = self._images.step(step, counts["reconstruction"] + counts["text_to_image"])
        ids: dict[Kind, Sequence[str]] = {
            "reconstruction": images[: counts["reconstruction"]],
            "text_to_image": images[counts["reconstruction"] :],
        }
        if self._conversations is not None:
            ids["understanding"] = self._conversations.step(step, counts["understanding"])
        return {kind: names for kind, names in ids.items() if names}

    def read(self, kind: Kind, ids: Sequence[str], noise_key: tuple[object, ...]) -> TrainingBatch:
        """Return the batch of some samples on the CPU; the only method that reads files."""
        seeds = [derive_seed(self._seed, *noise_key, kind, name) for name in ids]
        if kind == "understanding":
            images, dialogues = zip(*map(self._read_dialogue, ids, seeds), strict=True)
            return TrainingBatch(kind, seeds, resize_images(images, self._spec.understanding), dialogues=dialogues)
        target = self._read_cached("target", ids, Target) or self._read_pixels(ids, self._spec.generation)
        if kind == "text_to_image":
            return TrainingBatch(kind, seeds, None, target, [self._captions[name] for name in ids])
        condition = self._read_cached("semantic", ids, Semantic) or self._read_pixels(ids, self._spec.understanding)
        return TrainingBatch(kind, seeds, condition, target, choose_templates(seeds, self._templates))

    def _read_cached(self, field: Cacheable, ids: Sequence[str], kind: type[Stored]) -> Stored | None:
        return kind.from_rows(self._embeddings.rows(field, ids)) if field in self._cacheable else None

    def _read_pixels(self, ids: Sequence[str], resize: Resize) -> Images:
        return resize_images([self._reader.load(name) for name in ids], resize)

    def _read_dialogue(self, name: str, seed: int) -> tuple[Image.Image, Dialogue]:
        if self._dialogues is not None:
            image, pair = self._dialogues.take(name, seed)
            return image, Dialogue(*pair)
        questions = self._questions[name]
        question = questions[derive_seed("question", seed) % len(questions)]
        return self._reader.load(name), Dialogue(question["text"], question["answer"])


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
