"""The model card of a base: how it was made and what it can do, from ``card.json``."""

from collections.abc import Mapping
from typing import Any

DEFAULT = """The base that the embedded default aligns: the stock `JanusForConditionalGeneration` with small numbers
(`config.json`), trained from nothing on scenes rendered by `reca/data/synthetic/scenes.py`. It understands more than
it was ever told to draw, because its captions for drawing are sparse; that is the gap RecA closes.
Not for use on photographs.

Made by `python -m tools.tiny_bases` (`tools/tiny_bases/`); the recipe is below, and in `card.json` for machines."""
"""What is said of ``janus_tiny``; other cards bring their own ``about``."""
GROUPS = (
    ("Answers on held-out scenes, by kind of question", "answer_"),
    ("What the gist states hold, by linear probe: images", "probe_image_"),
    ("What the gist states hold, by linear probe: sentences", "probe_text_"),
    ("Text and image in one space", ("retrieval_", "cosine_")),
    ("Image tokenizer: what the scene detector still finds in decoded images", "tokenizer_"),
)


def model_card(card: Mapping[str, Any]) -> str:
    """Markdown for ``README.md`` beside the weights."""
    recipe, scores = card["recipe"], card["scores"]
    lines = [f"# {card['model']}", "", card.get("about", DEFAULT), ""]
    for title, prefix in GROUPS:
        found = {name: value for name, value in scores.items() if name.startswith(prefix)}
        if found:
            lines += [f"## {title}", "", "| | |", "|---|---|"]
            lines += [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in found.items()] + [""]
    lines += ["## Recipe", "", "| | |", "|---|---|"]
    for name, value in recipe.items():
        entries = value.items() if isinstance(value, dict) else [("", value)]
        lines += [f"| {name} {key.replace('_', ' ')} | {setting} |" for key, setting in entries]
    lines += [f"| scenes: {name} | stream {pool['seed']} |" for name, pool in card["scene_streams"].items()]
    lines += [f"| seconds: {name} | {value} |" for name, value in card["train_seconds"].items()]
    lines += [f"| torch | {card['torch']} |", "", *card.get("notes", [])]
    return "\n".join(lines).rstrip() + "\n"
