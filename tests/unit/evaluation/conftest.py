"""Two fake models, one that answers perfectly and one that produces noise, and a project folder to run them in."""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
from torch import Tensor, nn

from reca.config import ROOT, Config, compose
from reca.data.synthetic.scenes import COLORS, NUMBERS, SHAPES, Scene, Shape, plural, relation, render
from reca.evaluation.judges.scene_detector import SceneDetector
from reca.evaluation.samples import to_tensor
from reca.models import loading
from reca.models.base import ImageSpec, Semantic
from reca.models.sampling import Sampling
from reca.runtime.seeding import SampleRng

DETECTOR = ROOT / "data/bases/scene_detector"
SINGULAR = {plural(kind): kind for kind in SHAPES}
PLACES = ((0.25, 0.25), (0.75, 0.75), (0.75, 0.25), (0.25, 0.75))
OFFSETS = {"left of": (-0.25, 0.0), "right of": (0.25, 0.0), "above": (0.0, -0.25), "below": (0.0, 0.25)}


class Perfect(nn.Module):
    """Draws its prompts exactly, answers from the image, and uses whole images as embeddings."""

    spec = ImageSpec.square(understanding_size=24, generation_size=24, semantic_tokens=1, target_tokens=36)
    drawn_prompts: ClassVar[list[str]] = []
    """Every prompt drawn by any instance since the test began."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.detector = SceneDetector.load(DETECTOR)

    @classmethod
    def load(cls, checkpoint: Path, options: Mapping[str, Any], device: torch.device) -> Self:
        return cls().to(device)

    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        Perfect.drawn_prompts.extend(prompts)
        dice = rng.uniform("dice", (8,)).tolist()
        scenes = [imagine(prompt, row) for prompt, row in zip(prompts, dice, strict=True)]
        return to_tensor(list(render(scenes, 24)))

    def encode_semantic(self, images: Tensor) -> Semantic:
        return Semantic(images.flatten(1)[:, None])

    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        return semantic.embeds.reshape(-1, 3, 24, 24)

    def answer(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        scenes = []
        for detections in self.detector.detect(images):
            shapes = [
                Shape(d.name, d.color, d.box[0] + d.box[2], d.box[1] + d.box[3], 1) for d in detections if d.score > 0.3
            ]
            scenes.append(Scene(tuple(shapes), "", 0))
        return [reply(scene, question) for scene, question in zip(scenes, questions, strict=True)]


class Noise(Perfect):
    """Draws noise and answers "mumble"."""

    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        return rng.uniform("noise", (3, 24, 24)) * 2 - 1

    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        return rng.uniform("noise", (3, 24, 24)) * 2 - 1

    def answer(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        return ["mumble"] * len(questions)


def imagine(prompt: str, dice: Sequence[float]) -> Scene:
    """Return a scene for a prompt of ``benchmark_prompts``; the dice decide the properties that it leaves open."""
    words = prompt.removeprefix("a photo of ")
    where = next((name for name in OFFSETS if f" {name} " in words), None)
    objects: list[tuple[str, str]] = []
    for part in re.split(f" and | {where} ", words):
        *adjectives, noun = part.split()
        kind = SINGULAR.get(noun, noun)
        color = next((word for word in adjectives if word in COLORS), list(COLORS)[int(dice[len(objects)] * 8)])
        objects += [(kind, color)] * next((NUMBERS.index(word) for word in adjectives if word in NUMBERS), 1)
    if where:
        dx, dy = OFFSETS[where]
        places: Sequence[tuple[float, float]] = ((0.5 + dx, 0.5 + dy), (0.5 - dx, 0.5 - dy))
    else:
        places = PLACES
    shapes = tuple(Shape(kind, color, x, y, 3.6 / 24) for (kind, color), (x, y) in zip(objects, places, strict=False))
    return Scene(shapes, ("light", "grey", "dark")[int(dice[7] * 3)], 0)


def reply(scene: Scene, question: str) -> str:
    """Return the answer to a question of :func:`reca.data.synthetic.scenes.questions`."""
    words, groups = question.split(), scene.groups()
    match words:
        case ["what", "color", *_, kind]:
            return groups[kind][0].color if kind in groups else "none"
        case ["how", "many", kinds, *_]:
            return NUMBERS[len(groups.get(SINGULAR[kinds], ()))]
        case ["what", "shape", "is", color]:
            return next((shape.kind for shape in scene.shapes if shape.color == color), "none")
        case ["where", "is", "the", first, "relative", "to", "the", second]:
            return relation(groups[first][0], groups[second][0]) if {first, second} <= groups.keys() else "none"
        case ["is", "there", _, color, kind]:
            return "yes" if any((s.color, s.kind) == (color, kind) for s in scene.shapes) else "no"
    raise AssertionError(question)


@pytest.fixture
def config() -> Config:
    """The default configuration, made small."""
    return compose(
        [
            "evaluate.scenes.prompts_per_category=5",
            "evaluate.scenes.images_per_prompt=2",
            "evaluate.understanding.num_images=20",
            "evaluate.fidelity.num_images=20",
            "evaluate.bootstrap_resamples=200",
            "hardware.generate_batch_size=16",
            "hardware.threads=1",
        ]
    )


@pytest.fixture
def project(tmp_path: Path, config: Config) -> Path:
    """A project folder with a base, an aligned model and the detector."""
    shutil.copytree(DETECTOR, tmp_path / "data/bases/scene_detector")
    for folder, weights in ((config.model.checkpoint, b"base"), ("outputs/model", b"aligned")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.safetensors").write_bytes(weights)
    return tmp_path


@pytest.fixture
def use_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """``use_model(kind)`` makes the stages load an instance of ``kind`` as the configured family."""
    monkeypatch.setattr(Perfect, "drawn_prompts", [])

    def use(kind: type) -> None:
        monkeypatch.setattr(loading, "family_class", lambda family: kind)

    use(Perfect)
    return use


@pytest.fixture
def perfect() -> type[Perfect]:
    """The perfect model."""
    return Perfect


@pytest.fixture
def noise() -> type[Noise]:
    """The model that produces noise."""
    return Noise
