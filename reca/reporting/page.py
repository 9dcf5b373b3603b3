"""The page: what stands on it, in which order, in which words. The template only lays it out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reca.config import Config, flatten
from reca.reporting import charts, gallery
from reca.reporting.inputs import Pair, Record
from reca.reporting.text import BENCHMARKS, benchmark_words, category_words, per_cent, points

TEMPLATES = Path(__file__).parent / "templates"
SWATCHES = {
    "red": "#dc2828", "orange": "#f58c1e", "yellow": "#f0e128", "green": "#28a53c", "blue": "#2850e1",
    "purple": "#872da5", "pink": "#fa96cd", "brown": "#7d4b28", "black": "#111111", "white": "#ffffff",
}  # fmt: skip
"""GenEval's colour names; any other is shown without a swatch."""
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


@dataclass(frozen=True)
class Report:
    """Everything that is shown; nothing is read or computed after this."""

    config: Config
    pairs: Mapping[str, Pair]
    deltas: Mapping[str, Record]
    """As in ``deltas.json``."""
    verdict: Record
    """As in ``verdict.json``."""
    train_curve: Mapping[str, list[float]]
    held_out_curve: Mapping[str, list[float]]
    training: Record
    """``result.json`` of the curves, or empty."""
    lineage: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Row:
    """One line of the forest chart, ready to print."""

    label: str
    overall: bool
    n: int | None
    base: str
    aligned: str
    delta: str
    low: str
    high: str
    direction: str
    dumbbell: Markup
    interval: Markup


def render_page(report: Report) -> str:
    """The whole page as HTML; the same inputs give the same text."""
    views = [_view(report, name) for name in report.pairs]
    return _template().render(
        name=f"reca-{report.config.model.name}",
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        sections=[{"anchor": view["name"], "title": view["short"]} for view in views]
        + [{"anchor": name, "title": title} for name, title in _FIXED_SECTIONS],
        verdict=report.verdict,
        verdict_word="Passed" if report.verdict["passed"] else "Refused",
        verdict_sentence=_verdict_sentence(report.verdict),
        tiles=[{"title": view["short"], **vars(view["rows"][0])} for view in views],
        interval_words=_interval_words(report.config),
        draws=f"{report.config.evaluate.bootstrap_resamples:,}".replace(",", " "),
        scenes_words=_SCENES_WORDS if "scenes" in report.pairs else "",
        benchmarks=views,
        absent=[
            (words.title, f"Not measured: evaluate.benchmarks does not name {name!r}.")
            for name, words in BENCHMARKS.items()
            if name not in report.pairs
        ],
        curves=list(_curves(report, CURVES)),
        more_curves=list(_curves(report, MORE_CURVES)),
        training_facts=_training_facts(report),
        lineage=report.lineage,
        settings=list(_settings(report.config)),
        config_digest=report.config.digest(),
        swatches=SWATCHES,
        prompts_shown=gallery.PROMPTS_SHOWN,
        images_shown=gallery.IMAGES_SHOWN,
        questions_shown=gallery.QUESTIONS_SHOWN,
    )


_FIXED_SECTIONS = (("training", "Training"), ("lineage", "Lineage"), ("settings", "Settings"))
_SCENES_WORDS = (
    "The drawing benchmark is not the published GenEval: it has its six categories, wording and scoring rules, but "
    "asks for shapes that we render and trusts a detector trained on those; compare its numbers with reports like this "
    "one only."
)


@cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html")


def _interval_words(config: Config) -> str:
    return f"{100 * config.evaluate.confidence:g} % interval"


def _verdict_sentence(verdict: Record) -> str:
    open_rules = sum(bool(rule["skipped"]) for rule in verdict["rules"])
    failed = sum(not rule["passed"] and not rule["skipped"] for rule in verdict["rules"])
    if not verdict["passed"]:
        rules = "one rule is" if failed == 1 else f"{failed} rules are"
        return f"The aligned model may not become champion: {rules} not met. It is registered all the same, as refused."
    if open_rules:
        rest = "the comparison with the present champion follows" if open_rules == 1 else f"{open_rules} rules follow"
        return f"Every rule that this report can judge is met; {rest} at registration."
    return "Every rule is met: the aligned model may become champion."


def _view(report: Report, name: str) -> dict[str, Any]:
    pair, deltas, words = report.pairs[name], report.deltas[name], benchmark_words(name)
    bounds = [deltas["overall"], *deltas["categories"].values()]
    scale = charts.delta_scale([bound[end] for bound in bounds for end in ("low", "high")])
    sizes = {category: len(prompts) for category, prompts in pair.values[0].items()}
    rows = [_row("overall", deltas["overall"], scale, len({p for prompts in pair.values[0].values() for p in prompts}))]
    if len(deltas["categories"]) > 1:
        rows += [_row(category, deltas["categories"][category], scale, sizes.get(category)) for category in sizes]
    pictured, originals, questions = (
        any(key in row for row in pair.base.samples) for key in ("file", "original", "answer")
    )
    counted = "images" if originals else "prompts" if pictured else "questions"
    return {
        "name": name,
        "title": words.title,
        "short": words.short,
        "question": words.question,
        "caption": f"Scores and paired changes; n is the number of {counted}.",
        "categories": sizes,
        "rows": rows,
        "score_axis": charts.axis(charts.PERCENT),
        "delta_axis": charts.axis(scale, signed=True),
        "measured": _measured_words(pair),
        "groups": gallery.drawn(pair) if pictured and not originals else (),
        "rebuilt": gallery.rebuilt(pair) if originals else (),
        "answers": gallery.answered(pair) if questions else (),
    }


def _row(category: str, delta: Record, scale: charts.Scale, n: int | None) -> Row:
    label = category_words(category)
    return Row(
        label=label,
        overall=category == "overall",
        n=n,
        base=per_cent(delta["base"]),
        aligned=per_cent(delta["aligned"]),
        delta=points(delta["delta"]),
        low=points(delta["low"]),
        high=points(delta["high"]),
        direction=charts.direction(delta["low"], delta["high"]),
        dumbbell=charts.dumbbell(label, delta["base"], delta["aligned"]),
        interval=charts.interval(label, delta["delta"], delta["low"], delta["high"], scale),
    )


def _measured_words(pair: Pair) -> str:
    scores = pair.aligned.scores
    judge, parts = scores.judge, [f"Protocol: {scores.protocol}."]
    known = ", ".join(f"{kind.replace('_', ' ')} {100 * value:.4g} %" for kind, value in judge.accuracy.items())
    parts.append(
        f"Judge: {judge.name} {judge.version}"
        + (f"; measured on cases whose truth is known: {known}." if known else ".")
    )
    failed = [one.scores.failed for one in pair.sides]
    if any(failed):
        parts.append(f"Could not be scored, and left out: base {failed[0]}, aligned {failed[1]} of {scores.expected}.")
    else:
        parts.append(f"All {scores.expected} values of either model could be scored.")
    return " ".join(parts)


def _curves(report: Report, wanted: Sequence[tuple[str, str, str]]) -> Iterator[dict[str, Any]]:
    for title, train_column, held_out_column in wanted:
        series = [
            charts.Series("training batches", "train", _points(report.train_curve, train_column)),
            charts.Series("held-out images", "held-out", _points(report.held_out_curve, held_out_column)),
        ]
        if any(y == y for line in series for _, y in line.points):
            yield {"title": title, "drawing": charts.curves(title, series)}


def _points(curve: Mapping[str, list[float]], column: str) -> tuple[tuple[float, float], ...]:
    return tuple(zip(curve.get("step", []), curve.get(column, []), strict=False))


def _training_facts(report: Report) -> str:
    train, seconds = report.config.train, report.training.get("wall_seconds")
    took = f" in {seconds / 60:.1f} minutes" if isinstance(seconds, int | float) else ""
    mixture = ", ".join(f"{name.replace('_', ' ')} {weight:g}" for name, weight in train.mixture.model_dump().items())
    return (
        f"{train.max_steps} optimizer steps of {train.global_batch_size} images{took}; learning rate "
        f"{train.learning_rate:g} ({train.lr_schedule}); weights of the losses: {mixture}."
    )


def _settings(config: Config) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for section, values in config.to_dict().items():
        flat = flatten(values) if isinstance(values, dict) else {section: values}
        yield section, [(key, "none" if value is None else str(value)) for key, value in flat.items()]
