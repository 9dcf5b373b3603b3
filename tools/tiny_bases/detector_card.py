"""The scene detector's model card, from the numbers in its ``card.json``."""

from collections.abc import Mapping
from typing import Any


def model_card(card: Mapping[str, Any]) -> str:
    """Return Markdown: purpose, training and held-out accuracy of the detector."""
    recipe, accuracy = card["recipe"], card["accuracy"]
    train, held_out = recipe["train_scenes"], recipe["held_out_scenes"]
    rows = [
        ("exact scene (shapes and colors)", "exact_scene"),
        ("exact scene, scores above 0.9 only", "confident"),
        ("number of objects", "count"),
        ("objects detected within two pixels", "objects"),
        ("shape of a detected object", "shape"),
        ("color of a detected object", "color"),
        ("box overlap (mean IoU)", "box_iou"),
    ]
    table = "\n".join(f"| {text} | {accuracy[key]:.2%} |" for text, key in rows)
    return f"""# scene_detector

The judge of the `scenes` benchmark: a CenterNet-like convolutional network ({card["parameters"]:,} parameters,
`reca/evaluation/judges/scene_detector.py`) that detects shapes, colors and boxes in rendered scenes. It was trained on
{train["count"]:,} scenes of `reca/data/synthetic/scenes.py` (seed {train["seed"]}) and on noise, and is of no use on
photographs.

Measured on {held_out["count"]:,} scenes of seed {held_out["seed"]} at a score above {card["score_threshold"]}:

| correct share of | held-out renders |
|---|---|
{table}

Made by `python -m tools.tiny_bases scene_detector --seed {recipe["seed"]}`: {recipe["steps"]:,} steps with batches of
{recipe["batch_size"]}, AdamW at {recipe["learning_rate"]} falling to zero, color jitter, blur, noise and errors by
patch; {recipe["negatives"]:.0%} of the inputs show no shape. {card["train_seconds"]:,} seconds of wall time on one
shared CPU core with torch {card["torch"]}. SHA-256 of the weights: `{card["sha256"]}`.
"""
