"""From ids to what losses are computed from: which images stand in a step, and what is read of each."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.compute as pc
import torch

from reca.config import TrainSection
from reca.data.dialogues import Dialogues
from reca.data.embeddings import Embeddings
from reca.data.images import resize_images
from reca.data.manifest import ImageReader, read_manifest
from reca.data.packed import pin_memory
from reca.data.resize import Resize
from reca.data.sampler import EpochSampler
from reca.models.base import Cacheable, Dialogue, Images, Loss, Semantic, Target, UnifiedModel
from reca.runtime.errors import UserError
from reca.runtime.seeding import derive_seed
from reca.training.losses import Losses, Sources
from reca.training.mixture import Kind, Mixture

HELD_OUT_IMAGES = 128
"""Enough for a loss whose noise is far below its change; more would only cost time."""
CAPTION_COLUMNS = {"sparse": "caption", "full": "full_caption"}
Stored = TypeVar("Stored", Semantic, Target)


class Samples:
    """The training samples of a run, and the held-out ones.

    What the model declares cacheable is read from the extract cache, everything else is computed from the images.
    All noise of a sample is a function of (seed, step, kind, id).

    Args:
        model: Whose losses are asked for.
        dataset: The folder that ``ingest`` wrote.
        embeddings: The extract cache.
        settings: The ``train`` section.
        mixture: Samples of each kind in a step.
        seed: The run's seed.
        device: Where the model is.
        dialogues: What is asked in place of the data's own questions.

    Raises:
        UserError: The data has no training images, or not the captions or questions that the mixture needs, or
            the cache does not hold what the model needs.
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
        self._model, self._embeddings, self._device, self._seed = model, embeddings, device, seed
        self._own = dialogues
        self._losses = Losses(model, device, settings.prompt_templates, settings.precision == "bfloat16")
        self._reader = ImageReader(dataset)
        self.mixture = mixture
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
        self._images = EpochSampler(ids, seed, "images") if mixture.images else None
        self._dialogues: EpochSampler | None = None
        if mixture.counts["understanding"] and dialogues is not None:
            self._dialogues = EpochSampler(dialogues.conversations, seed, "dialogues")
        elif mixture.counts["understanding"]:
            self._questions = _questions(train)
            if not self._questions:
                raise UserError(
                    "train.mixture.understanding is positive, but no training image has questions; "
                    "set train.mixture.understanding=0, or train.dialogues to a JSON file in LLaVA's format"
                )
            self._dialogues = EpochSampler(self._questions, seed, "dialogues")

    def _check_cache(self, ids: Sequence[str]) -> None:
        known = set(self._embeddings.ids)
        missing = [name for name in ids if name not in known] if self._model.cacheable else []
        if missing:
            raise UserError(
                f"{len(missing)} of {len(ids)} images are not in {self._embeddings.folder} (the first is "
                f"{missing[0]}); run `reca extract` again"
            )
        for name in sorted(self._model.cacheable):
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
    def per_step(self) -> int:
        """Samples of a step, of all kinds."""
        return sum(self.mixture.counts.values())

    @property
    def held_out_kinds(self) -> tuple[Kind, ...]:
        """The losses that can be measured on the held-out images."""
        if not self.held_out:
            return ()
        captioned = all(name in self._captions for name in self.held_out)
        return ("reconstruction", "text_to_image") if captioned else ("reconstruction",)

    def step(self, step: int) -> dict[Kind, list[str]]:
        """The ids of a step by kind; the image losses share one stream, so RecA and control see the same images."""
        counts = self.mixture.counts
        found: dict[Kind, list[str]] = {}
        if self._images is not None:
            images = self._images.step(step, self.mixture.images)
            found["reconstruction"] = images[: counts["reconstruction"]]
            found["text_to_image"] = images[counts["reconstruction"] :]
        if self._dialogues is not None:
            found["understanding"] = self._dialogues.step(step, counts["understanding"])
        return {kind: ids for kind, ids in found.items() if ids}

    def read(self, kind: Kind, ids: Sequence[str], moment: tuple[object, ...]) -> Sources:
        """What a loss over some samples is computed from, still on the CPU; the only method that reads files.

        Args:
            kind: Which loss.
            ids: Its images.
            moment: What the noise depends on besides (seed, kind, id): ``("train", step)``.
        """
        seeds = [derive_seed(self._seed, *moment, kind, name) for name in ids]
        if kind == "understanding":
            images, dialogues = self._asked(ids, seeds)
            return Sources(seeds, pin_memory(images, self._device), dialogues=dialogues)
        drawn = self._stored("target", ids, Target) or self._pixels(ids, self._model.spec.generation)
        if kind == "text_to_image":
            return Sources(seeds, None, pin_memory(drawn, self._device), [self._captions[name] for name in ids])
        seen = self._stored("semantic", ids, Semantic) or self._pixels(ids, self._model.spec.understanding)
        return Sources(seeds, pin_memory(seen, self._device), pin_memory(drawn, self._device))

    def loss(self, kind: Kind, sources: Sources) -> Loss:
        """The mean loss of some samples, from what :meth:`read` has read of them."""
        return self._losses.of(kind, sources)

    def _stored(self, field: Cacheable, ids: Sequence[str], kind: type[Stored]) -> Stored | None:
        return kind.from_rows(self._embeddings.rows(field, ids)) if field in self._model.cacheable else None

    def _pixels(self, ids: Sequence[str], resize: Resize) -> Images:
        return resize_images([self._reader.load(name) for name in ids], resize)

    def _asked(self, ids: Sequence[str], seeds: Sequence[int]) -> tuple[Images, list[Dialogue]]:
        """Images as they are understood, and one question about each."""
        resize = self._model.spec.understanding
        if self._own is None:
            return self._pixels(ids, resize), [self._dialogue(*each) for each in zip(ids, seeds, strict=True)]
        taken = [self._own.take(name, seed) for name, seed in zip(ids, seeds, strict=True)]
        dialogues = [Dialogue(question, answer) for _, (question, answer) in taken]
        return resize_images([image for image, _ in taken], resize), dialogues

    def _dialogue(self, name: str, seed: int) -> Dialogue:
        questions = self._questions[name]
        chosen = questions[derive_seed("question", seed) % len(questions)]
        return Dialogue(chosen["text"], chosen["answer"])


def _captions(table: Any, column: str) -> dict[str, str]:
    pairs = zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True)
    return {name: caption for name, caption in pairs if caption}


def _questions(table: Any) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for name, text in zip(table["id"].to_pylist(), table["ground_truth"].to_pylist(), strict=True):
        truth: Mapping[str, Any] = json.loads(text) if text else {}
        if truth.get("questions"):
            found[name] = truth["questions"]
    return found
