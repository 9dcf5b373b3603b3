"""Scores of the model cards: answers to questions, and scenes found in images after the tokenizer."""

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reca.config import ROOT
from reca.data.synthetic.scenes import Scene, SceneQuestion, render
from reca.evaluation.judges.scene_detector import SceneDetector
from reca.models.base import Dialogue, UnifiedModel
from reca.runtime.seeding import SampleRng
from tools.tiny_bases.scene_streams import IMAGE_SIZE
from tools.tiny_bases.training import pixels


def question_loss(
    model: UnifiedModel, images: Tensor, questions: Sequence[Sequence[SceneQuestion]], rng: random.Random
) -> Tensor:
    """Loss on a random question per image (B, 3, S, S) uint8; the model itself draws no noise."""
    selected = [rng.choice(choices) for choices in questions]
    dialogues = [Dialogue(question.text, question.answer) for question in selected]
    return model.understanding_loss(pixels(images), dialogues, SampleRng([])).value


@torch.no_grad()
def answer_scores(
    model: UnifiedModel, images: Tensor, questions: Sequence[Sequence[SceneQuestion]], batch: int = 250
) -> dict[str, float]:
    """Share of correct answers by kind of question (``answer_…``).

    Args:
        model: The model under test.
        images: (N, 3, S, S) in [-1, 1].
        questions: All questions about each image.
        batch: Questions per batch.
    """
    pairs = [(row, question) for row, choices in enumerate(questions) for question in choices]
    correct: dict[str, list[bool]] = {}
    for start in range(0, len(pairs), batch):
        block = pairs[start : start + batch]
        answers = model.answer(images[[row for row, _ in block]], [question.text for _, question in block])
        for (_, question), answer in zip(block, answers, strict=True):
            correct.setdefault(question.kind, []).append(answer == question.answer)
    return {f"answer_{kind}": sum(hits) / len(hits) for kind, hits in sorted(correct.items())}


@torch.no_grad()
def detector_scores(
    reconstruct: Callable[[Tensor], Tensor], scenes: Sequence[Scene], batch: int = 250
) -> dict[str, float]:
    """Shares of scenes and shapes that the scene detector finds in reconstructions, and their mean squared error."""
    detector = SceneDetector.load(ROOT / "data/bases/scene_detector")
    images = torch.from_numpy(render(scenes, IMAGE_SIZE)).permute(0, 3, 1, 2)
    exact, hits, total, error = 0, 0, 0, 0.0
    for start in range(0, len(scenes), batch):
        original = pixels(images[start : start + batch])
        decoded = reconstruct(original)
        error += float((decoded - original).pow(2).sum()) / images[0].numel() / 4  # on the scale 0..1
        for scene, detections in zip(scenes[start : start + batch], detector.detect(decoded, 0.3), strict=True):
            truth = sorted((shape.kind, shape.color) for shape in scene.shapes)
            detected = sorted((detection.name, detection.color) for detection in detections)
            exact += truth == detected
            total += len(truth)
            for shape in truth:
                if shape in detected:
                    detected.remove(shape)
                    hits += 1
    count = len(scenes)
    return {"tokenizer_exact": exact / count, "tokenizer_objects": hits / total, "tokenizer_mse": error / count}
