"""The page: its content, order and wording. The template does the layout."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reca.config import Config, flatten
from reca.evaluation.promotion import PromotionDecision
from reca.evaluation.statistics import BenchmarkDelta, Delta
from reca.reporting import charts, gallery
from reca.reporting.inputs import ResultPair
from reca.reporting.text import BENCHMARKS, benchmark_text, category_label, format_percent, format_points
from reca.runtime.hashing import json_digest

TEMPLATES = Path(__file__).parent / "templates"
SWATCHES = {
    "red": "#dc2828", "orange": "#f58c1e", "yellow": "#f0e128", "green": "#28a53c", "blue": "#2850e1",
    "purple": "#872da5", "pink": "#fa96cd", "brown": "#7d4b28", "black": "#111111", "white": "#ffffff",
}  # fmt: skip
"""GenEval's colour names; any other is printed without a swatch."""
CURVES = (  # title, column of train.csv, column of held_out.csv
    ("Reconstruction loss (RecA)", "loss_reconstruction", "reconstruction_loss"),
    ("Text-to-image loss", "loss_text_to_image", "text_to_image_loss"),
    ("Understanding loss", "loss_understanding", ""),
)
MORE_CURVES = (
    ("All losses, weighted", "loss", ""),
    ("Gradient norm", "grad_norm", ""),
    ("Learning rate", "learning_rate", ""),
    ("Images per second", "images_per_second", ""),
)
SECTIONS = (("training", "Training"), ("lineage", "Lineage"), ("settings", "Settings"))
SCENES_CAVEAT = (
    "The drawing benchmark is not the published GenEval: it has its six categories, wording and scoring rules, but "
    "asks for shapes that we render and trusts a detector trained on those; compare its numbers with reports like this "
    "one only."
)


@dataclass(frozen=True)
class ReportData:
    """All content of the page; rendering reads no further file and computes no score."""

    config: Config
    pairs: Mapping[str, ResultPair]
    deltas: Mapping[str, BenchmarkDelta]
    verdict: PromotionDecision
    train_curve: Mapping[str, list[float]]
    held_out_curve: Mapping[str, list[float]]
    training: Mapping[str, Any]
    """``result.json`` of the curves, or empty."""
    lineage: Sequence[tuple[str, str]]


def render_page(report: ReportData) -> str:
    """Render the whole page as HTML; the same inputs give the same text."""
    views = [_view(report, name) for name in report.pairs]
    return _template().render(
        name=f"reca-{report.config.model.name}",
        style=Markup(
            charts.PALETTE.read_text(encoding="utf-8") + (TEMPLATES / "style.css").read_text(encoding="utf-8")
        ),
        sections=[{"anchor": view["name"], "title": view["short"]} for view in views]
        + [{"anchor": name, "title": title} for name, title in SECTIONS],
        verdict=report.verdict,
        verdict_sentence=_verdict_sentence(report.verdict),
        tiles=[{"title": view["short"], **view["rows"][0]} for view in views],
        interval_label=f"{100 * report.config.evaluate.confidence:g} % interval",
        draws=f"{report.config.evaluate.bootstrap_resamples:,}".replace(",", " "),
        caveat=SCENES_CAVEAT if "scenes" in report.pairs else "",
        benchmarks=views,
        absent=[
            (text.title, f"Not measured: evaluate.benchmarks does not name {name!r}.")
            for name, text in BENCHMARKS.items()
            if name not in report.pairs
        ],
        curves=list(_curves(report, CURVES)),
        more_curves=list(_curves(report, MORE_CURVES)),
        training_facts=_training_facts(report),
        lineage=report.lineage,
        settings=list(_settings(report.config)),
        config_digest=json_digest(report.config.to_dict(), 16),
        swatches=SWATCHES,
        gallery=gallery,
    )


@cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html")


def _verdict_sentence(verdict: PromotionDecision) -> str:
    skipped = sum(rule.skipped for rule in verdict.rules)
    failed = sum(not rule.passed and not rule.skipped for rule in verdict.rules)
    if not verdict.passed:
        rules = "one rule is" if failed == 1 else f"{failed} rules are"
        return f"The aligned model may not become champion: {rules} not met. It is registered all the same, as refused."
    if skipped:
        rest = "the comparison with the present champion follows" if skipped == 1 else f"{skipped} rules follow"
        return f"Every rule that this report can decide is met; {rest} at registration."
    return "Every rule is met: the aligned model may become champion."


def _view(report: ReportData, name: str) -> dict[str, Any]:
    pair, deltas, text = report.pairs[name], report.deltas[name], benchmark_text(name)
    sizes = {category: len(prompts) for category, prompts in pair.values[0].items()}
    prompts = {prompt for prompts in pair.values[0].values() for prompt in prompts}
    rows = [("overall", deltas.overall, len(prompts))]
    if len(deltas.categories) > 1:
        rows += [(category_label(category), deltas.categories[category], size) for category, size in sizes.items()]
    has_images, has_originals, has_answers = (
        any(key in row for row in pair.base.samples) for key in ("file", "original", "answer")
    )
    counted = "images" if has_originals else "prompts" if has_images else "questions"
    return {
        "name": name,
        "title": text.title,
        "short": text.short,
        "question": text.question,
        "caption": f"Scores and paired changes; n is the number of {counted}.",
        "categories": sizes,
        "rows": [_score_row(*row) for row in rows],
        "forest": charts.forest_chart(text.title, [(label, delta) for label, delta, _ in rows]),
        "protocol": _protocol(pair),
        "samples": gallery.select_samples(pair) if has_images and not has_originals else (),
        "reconstructions": gallery.select_reconstructions(pair) if has_originals else (),
        "answers": gallery.select_answers(pair) if has_answers else (),
    }


def _score_row(label: str, delta: Delta, n: int) -> dict[str, Any]:
    """Return one line of a score table, formatted."""
    return {
        "label": label,
        "overall": label == "overall",
        "n": n,
        "base": format_percent(delta.base),
        "aligned": format_percent(delta.aligned),
        "delta": format_points(delta.delta),
        "low": format_points(delta.low),
        "high": format_points(delta.high),
        "direction": charts.direction(delta),
    }


def _protocol(pair: ResultPair) -> str:
    scores = pair.aligned.scores
    judge, parts = scores.judge, [f"Protocol: {scores.protocol}."]
    accuracy = ", ".join(f"{kind.replace('_', ' ')} {100 * value:.4g} %" for kind, value in judge.accuracy.items())
    accuracy_note = f"; measured on cases whose truth is known: {accuracy}." if accuracy else "."
    parts.append(f"Judge: {judge.name} {judge.version}{accuracy_note}")
    failed = [result.scores.failed for result in pair.results]
    if any(failed):
        parts.append(f"Could not be scored, and left out: base {failed[0]}, aligned {failed[1]} of {scores.expected}.")
    else:
        parts.append(f"All {scores.expected} values of either model could be scored.")
    return " ".join(parts)


def _curves(report: ReportData, curves: Sequence[tuple[str, str, str]]) -> Iterator[tuple[str, charts.Chart]]:
    for title, train_column, held_out_column in curves:
        series = [
            charts.Series("training batches", "base", _points(report.train_curve, train_column)),
            charts.Series("held-out images", "aligned", _points(report.held_out_curve, held_out_column)),
        ]
        if any(y == y for line in series for _, y in line.points):
            yield title, charts.curve_chart(title, series)


def _points(curve: Mapping[str, list[float]], column: str) -> list[tuple[float, float]]:
    return list(zip(curve.get("step", []), curve.get(column, []), strict=False))


def _training_facts(report: ReportData) -> str:
    train, seconds = report.config.train, report.training.get("wall_seconds")
    duration = f" in {seconds / 60:.1f} minutes" if isinstance(seconds, int | float) else ""
    mixture = ", ".join(f"{name.replace('_', ' ')} {weight:g}" for name, weight in train.mixture.model_dump().items())
    return (
        f"{train.max_steps} optimizer steps of {train.global_batch_size} images{duration}; learning rate "
        f"{train.learning_rate:g} ({train.lr_schedule}); weights of the losses: {mixture}."
    )


def _settings(config: Config) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for section, values in config.to_dict().items():
        flat = flatten(values) if isinstance(values, dict) else {section: values}
        yield section, [(key, "none" if value is None else str(value)) for key, value in flat.items()]
