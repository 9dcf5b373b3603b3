"""``card.json`` and ``README.md`` of a base: how it was made and how it scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from reca.runtime.files import write_json, write_text
from tools.tiny_bases.scene_streams import stream_digest

JANUS = """The base that the embedded default aligns: the stock `JanusForConditionalGeneration` with small numbers
(`config.json`), trained from random weights on scenes rendered by `reca/data/synthetic/scenes.py`. It understands more
than it can draw, because its captions for drawing are sparse; that is the gap RecA closes. Not for use on photographs.

Made by `python -m tools.tiny_bases` (`tools/tiny_bases/janus_recipe.py`); the recipe is below, and in `card.json` for
machines."""
OTHERS = """A base with small numbers for the pipeline's tests and first looks: the family's own classes and file
layout, trained from random weights on scenes rendered by `reca/data/synthetic/scenes.py`. Its recipe is short on
purpose (a few minutes on one core), so its scores are weak: they show that the network is not random, not how well
this architecture can learn. Not for use on photographs.

Made by `python -m tools.tiny_bases model={model}` (`tools/tiny_bases/short_recipe.py`); the recipe is below, and in
`card.json` for machines."""
SCORE_TABLES = (
    ("Answers on held-out scenes, by kind of question", "answer_"),
    ("Linear probes of the gist states: images", "probe_image_"),
    ("Linear probes of the gist states: sentences", "probe_text_"),
    ("Text and image in one space", ("retrieval_", "cosine_")),
    ("Image tokenizer: what the scene detector finds in decoded images", "tokenizer_"),
)


def write_card(
    folder: Path,
    model: str,
    recipe: Mapping[str, Any],
    seeds: Mapping[str, int],
    scores: Mapping[str, float],
    seconds: Mapping[str, float],
) -> None:
    """Write both files next to the weights."""
    card = {
        "model": model,
        "recipe": recipe,
        "scene_streams": {name: stream_digest(seed) for name, seed in seeds.items()},
        "scores": {name: round(value, 4) for name, value in scores.items()},
        "train_seconds": {name: round(value) for name, value in seconds.items()},
        "torch": torch.__version__,
    }
    write_json(folder / "card.json", card)
    write_text(folder / "README.md", model_card(card))


def model_card(card: Mapping[str, Any]) -> str:
    """Return the Markdown of ``README.md``."""
    recipe, scores = card["recipe"], card["scores"]
    about = JANUS if card["model"] == "janus_tiny" else OTHERS.format(model=card["model"])
    lines = [f"# {card['model']}", "", about, ""]
    for title, prefix in SCORE_TABLES:
        rows = {name: value for name, value in scores.items() if name.startswith(prefix)}
        if rows:
            lines += [f"## {title}", "", "| | |", "|---|---|"]
            lines += [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in rows.items()] + [""]
    lines += ["## Recipe", "", "| | |", "|---|---|"]
    for name, value in recipe.items():
        entries = value.items() if isinstance(value, dict) else [("", value)]
        lines += [f"| {f'{name} {key}'.strip().replace('_', ' ')} | {setting} |" for key, setting in entries]
    lines += [f"| scenes: {name} | seed {stream['seed']} |" for name, stream in card["scene_streams"].items()]
    lines += [f"| seconds: {name} | {value} |" for name, value in card["train_seconds"].items()]
    return "\n".join([*lines, f"| torch | {card['torch']} |"]) + "\n"
