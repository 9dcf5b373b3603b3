"""The scene detector's model card, written from the numbers in its ``card.json``."""

from collections.abc import Mapping
from typing import Any


def model_card(card: Mapping[str, Any]) -> str:
    """Markdown with what the detector is, how it was made and how well it works on held-out scenes."""
    recipe, accuracy = card["recipe"], card["accuracy"]
    train, held_out = recipe["train_scenes"], recipe["held_out_scenes"]
    tokenized = card["accuracy_after_tokenizer"]
    columns = [accuracy, *([tokenized] if tokenized else [])]
    header = "| held-out renders |" + (" the same through the image tokenizer |" if tokenized else "")
    rows = [
        ("exact scene (shapes and colours)", "exact_scene"),
        ("exact scene, scores above 0.9 only", "confident"),
        ("number of objects", "count"),
        ("objects found within two pixels", "objects"),
        ("shape of a found object", "shape"),
        ("colour of a found object", "color"),
        ("box overlap (mean IoU)", "box_iou"),
    ]
    table = "\n".join(f"| {text} | " + " | ".join(f"{c[key]:.2%}" for c in columns) + " |" for text, key in rows)
    return f"""# scene_detector

The judge of the `scenes` benchmark: a CenterNet-like convolutional network ({card["parameters"]:,} parameters,
`reca/evaluation/judges/scene_detector.py`) that finds shapes, colours and boxes in rendered scenes. It is no model of
the world: it knows the {train["count"]:,} scenes of `reca/data/synthetic/scenes.py` (seed {train["seed"]}) and what
noise looks like.

Measured on {held_out["count"]:,} scenes of seed {held_out["seed"]} at a score above {card["score_threshold"]}:

| share that is right {header}
|---|{"---|" * len(columns)}
{table}

Made by `tools.tiny_bases.detector.train_detector(out, seed={recipe["seed"]}, steps={recipe["steps"]})`: batches of
{recipe["batch_size"]}, AdamW at {recipe["learning_rate"]} falling to zero, colour jitter, blur, noise and errors by
patch; {recipe["negatives"]:.0%} of the inputs show no shape, {recipe["reconstructed"]:.0%} passed through the image
tokenizer. {card["train_seconds"]:,} seconds of wall time on one shared CPU core with torch {card["torch"]}.
SHA-256 of the weights: `{card["sha256"]}`.
"""
