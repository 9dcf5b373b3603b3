"""The model card: origin, recipe, scores and limits of the aligned model."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from reca.config import Config
from reca.evaluation.promotion import PromotionDecision
from reca.evaluation.statistics import BenchmarkDelta, Delta
from reca.reporting.inputs import ResultPair
from reca.reporting.text import benchmark_text, category_label, format_percent, format_points

OWN_LICENCE = "apache-2.0"
"""Licence of this project, and of the small base models in data/bases."""


def render_card(
    config: Config,
    pairs: Mapping[str, ResultPair],
    deltas: Mapping[str, BenchmarkDelta],
    verdict: PromotionDecision,
    lineage: list[tuple[str, str]],
    licence: str,
) -> str:
    """Render the card as Markdown with the hub's YAML head."""
    name = f"reca-{config.model.name}"
    head = {
        "license": licence,
        "base_model": config.model.checkpoint,
        "pipeline_tag": "any-to-any",
        "tags": ["reconstruction-alignment", config.model.family, "unified-multimodal"],
    }
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {name}",
        _description(config),
        "## Scores\n\n" + "\n".join(_score_table(pairs, deltas, config)),
        "## Verdict\n\n" + "\n".join(_verdict(verdict)),
        "## Recipe\n\n" + "\n".join(_recipe(config)),
        "## Lineage\n\n" + _table([("item", "value"), *((key, f"`{value}`") for key, value in lineage)]),
        "## Intended use\n\n" + _INTENDED,
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(config)),
        f"## Licence\n\n{_licence_note(licence)}",
    ]
    return "\n\n".join(parts) + "\n"


def read_licence(checkpoint: Path, published: bool) -> str:
    """Return the base's licence, from the head of its own card; this project's for a base that was made here."""
    card = checkpoint / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        if text.startswith("---\n") and (end := text.find("\n---", 4)) > 0:
            try:
                head = yaml.safe_load(text[4:end])
            except yaml.YAMLError:
                head = None
            if isinstance(head, dict) and isinstance(head.get("license"), str):
                return str(head["license"])
    return "other" if published else OWN_LICENCE


def _description(config: Config) -> str:
    return (
        f"A unified multimodal model of the `{config.model.family}` family (one network that understands and draws "
        f"images), post-trained from `{config.model.checkpoint}` by reconstruction alignment (RecA, "
        "[arXiv 2509.07295](https://arxiv.org/abs/2509.07295)): it learned to draw images from the embeddings with "
        "which it understands them. The weights are in the family's official layout."
    )


def _score_table(
    pairs: Mapping[str, ResultPair], deltas: Mapping[str, BenchmarkDelta], config: Config
) -> Iterator[str]:
    interval = f"{100 * config.evaluate.confidence:g} % interval"
    rows: list[tuple[str, ...]] = [("benchmark", "n", "base", "aligned", "change", interval)]
    for name, pair in pairs.items():
        delta, title = deltas[name], benchmark_text(name).short
        prompts = {prompt for ids in pair.categories.values() for prompt in ids}
        rows.append(_score_row(f"**{title}**", len(prompts), delta.overall))
        if len(delta.categories) > 1:
            rows += [
                _score_row(category_label(category), len(ids), delta.categories[category])
                for category, ids in pair.categories.items()
            ]
    yield _table(rows)
    yield (
        "\nScores in per cent, changes in points; n counts prompts or questions. Base and aligned were measured by the "
        "same code on the same prompts and seeds; intervals are from a paired bootstrap over prompts, and say nothing "
        "about the luck of the training seed."
    )
    for pair in pairs.values():
        yield f"\n{benchmark_text(pair.name).short}: {_cell(pair.aligned.scores.protocol)}."


def _score_row(label: str, n: int, delta: Delta) -> tuple[str, ...]:
    return (
        label, str(n), format_percent(delta.base), format_percent(delta.aligned), format_points(delta.delta),
        f"{format_points(delta.low)} to {format_points(delta.high)}",
    )  # fmt: skip


def _verdict(verdict: PromotionDecision) -> Iterator[str]:
    yield "**Passed.**\n" if verdict.passed else "**Refused**: it may not become champion.\n"
    for rule in verdict.rules:
        state = "left to registration" if rule.skipped else "met" if rule.passed else "not met"
        yield f"- {rule.text}: {state} ({rule.reason})"


def _recipe(config: Config) -> Iterator[str]:
    train = config.train
    yield f"- Data: `{config.data.source}` (`{config.data.path}`)"
    yield f"- {train.max_steps} optimizer steps of {train.global_batch_size} images, seed {config.seed}"
    yield f"- Learning rate {train.learning_rate:g}, {train.lr_schedule}, {train.warmup_steps} steps of warm-up"
    mixture = ", ".join(f"{name.replace('_', ' ')} {weight:g}" for name, weight in train.mixture.model_dump().items())
    yield f"- Weights of the losses: {mixture}"
    yield f"- Sampling in the benchmarks: `{json.dumps(config.generate.model_dump())}`"


_INTENDED = (
    "Research on unified multimodal models and on post-training them; a start for further training. The base and the "
    "scores above decide what else it is good for."
)


def _limits(config: Config) -> Iterator[str]:
    yield (
        "RecA passes on what the understanding half knows; what that half does not know, or knows wrongly, is not "
        "repaired, and may be reinforced."
    )
    yield "Biases of the base model and of the images are biases of this model too; no safety filter was trained."
    if config.data.source == "scenes":
        yield (
            "Trained and measured on rendered shapes on plain backgrounds: a small model for showing and testing the "
            "method, not for pictures of the world. The drawing benchmark has GenEval's rules, but it is not the "
            "published GenEval."
        )


def _licence_note(licence: str) -> str:
    if licence == OWN_LICENCE:
        return "Apache-2.0, as this project; see `LICENSE` in its repository."
    return (
        f"`{_cell(licence)}`, as the base model that these weights are derived from; read its card before you use them."
    )


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _cell(text: str) -> str:
    """Escape text that would break out of a table or be read as HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
