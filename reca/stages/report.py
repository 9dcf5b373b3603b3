"""Report: base against aligned, in numbers, pictures and a verdict.

Reads scores, samples and curves; writes ``outputs/report/``: ``index.html`` (one self-contained page),
``deltas.json``, ``verdict.json``, ``model_card.md``, ``figures/overview.png`` and ``result.json``. It is pure: the
champion is asked about by ``register``, under the registry's lock.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from reca import lineage
from reca.config import Config, GateRule
from reca.digest import weights_digest
from reca.files import whole_folder, write_json, write_text
from reca.reporting.card import licence_of, render_card
from reca.reporting.figure import draw_overview
from reca.reporting.inputs import Measured, Pair, Record, read_curve, read_optional, read_pair
from reca.reporting.page import Report, render_page
from reca.reporting.words import benchmark_words, category_words, points
from reca.stages.result import write_result
from reca.statistics import OVERALL, Values, paired_delta
from reca.verdict import Verdict, judge

AT_REGISTRATION = "compared when the model is registered, with the champion of that moment"


def report(config: Config, root: Path) -> None:
    """Compare base and aligned, and judge.

    Args:
        config: The composed configuration.
        root: The project folder.

    Raises:
        UserError: Scores or samples are missing, broken, or were measured differently; the message names the file
            and the stage to run again.
    """
    outputs = root / "outputs"
    pairs = {name: read_pair(outputs, name) for name in config.evaluate.benchmarks}
    deltas = {name: compare(pair, config) for name, pair in pairs.items()}
    verdict = judge(config.register_.gate, deltas, no_champion=AT_REGISTRATION)
    record = verdict_record(config, pairs, verdict)
    origin = lineage_rows(config, root)
    shown = in_plain_words(record, config.register_.gate)
    page = render_page(
        Report(
            config=config,
            pairs=pairs,
            deltas=deltas,
            verdict=shown,
            train_curve=read_curve(outputs / "curves/train.csv"),
            held_out_curve=read_curve(outputs / "curves/held_out.csv"),
            training=read_optional(outputs / "model/result.json"),
            lineage=origin,
        )
    )
    licence = licence_of(root / config.model.checkpoint, config.model.revision)
    with whole_folder(outputs / "report") as folder:
        (folder / "figures").mkdir()
        draw_overview(folder / "figures/overview.png", pairs, deltas, config.evaluate.confidence)
        write_json(folder / "deltas.json", deltas)
        write_json(folder / "verdict.json", record)
        write_text(folder / "model_card.md", render_card(config, pairs, deltas, shown, origin, licence))
        write_text(folder / "index.html", page)
        write_result(folder, "report", config, ("evaluate", "register"), passed=verdict.passed)
    _tell(deltas, verdict, outputs / "report/index.html")


def compare(pair: Pair, config: Config) -> Record:
    """One benchmark's entry of ``deltas.json``: ``{"overall": …, "categories": {name: …}}``."""
    evaluate = config.evaluate
    found = paired_delta(
        values_of(pair.base), values_of(pair.aligned), evaluate.confidence, evaluate.bootstrap_draws, config.seed
    )
    records = {name: asdict(delta) for name, delta in found.items()}
    return {"overall": records[OVERALL], "categories": {name: records[name] for name in pair.categories}}


def values_of(measured: Measured) -> Values:
    """The items as :mod:`reca.statistics` takes them: category -> prompt id -> values."""
    values: dict[str, dict[str, Sequence[float]]] = {}
    for prompt_id, item in measured.item.items():
        values.setdefault(str(item["category"]), {})[prompt_id] = item["values"]
    return values


def verdict_record(config: Config, pairs: Mapping[str, Pair], verdict: Verdict) -> Record:
    """``verdict.json``: the rules' outcome and what is needed to compare this model with another one."""
    sides = {"base": [pair.base for pair in pairs.values()], "aligned": [pair.aligned for pair in pairs.values()]}
    return {
        **verdict.to_dict(),
        "benchmark_set": benchmark_set(config, pairs),
        "config_digest": config.digest(*lineage.RESULT_SECTIONS),
        "checkpoint": {which: side[0].score.get("checkpoint") for which, side in sides.items()},
        "scores": {which: {one.benchmark: _plain_scores(one.score) for one in side} for which, side in sides.items()},
    }


def _plain_scores(score: Record) -> dict[str, float]:
    categories = {name: category["value"] for name, category in score["categories"].items()}
    return {"overall": score["overall"]["value"], **categories}


def benchmark_set(config: Config, pairs: Mapping[str, Pair]) -> str:
    """What was asked and how it was judged, as a digest: scores are comparable only where it is equal.

    It covers the ``evaluate`` section, every prompt or question with its expected answer, and the judges; not the
    model, and not how its images were drawn.
    """
    asked = {
        name: {
            "prompts": [_asked(sample) for sample in pair.base.samples],
            "protocol": pair.base.score.get("protocol"),
            "judge": pair.base.score.get("judge"),
        }
        for name, pair in sorted(pairs.items())
    }
    text = json.dumps([config.to_dict()["evaluate"], asked], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _asked(sample: Record) -> list[Any]:
    return [sample.get(key) for key in ("prompt_id", "category", "prompt", "question", "expected", "seed", "metadata")]


def in_plain_words(record: Record, rules: Sequence[GateRule]) -> Record:
    """The verdict with each rule as a sentence for readers."""
    told = [{**result, "text": rule_words(rule)} for rule, result in zip(rules, record["rules"], strict=True)]
    return {**record, "rules": told}


def rule_words(rule: GateRule) -> str:
    """One rule of the gate as a sentence."""
    score = f"{benchmark_words(rule.benchmark).short}, {category_words(rule.category)}"
    what = "even the low end of the interval of the change" if rule.bound == "lower" else "the change"
    return f"{score}: against the {rule.versus}, {what} must be at least {points(rule.minimum)} points."


def lineage_rows(config: Config, root: Path) -> list[tuple[str, str]]:
    """Where the aligned model comes from, as far as it is known, as (what, value) rows."""
    git = lineage.read_git(root)
    hashes = lineage.recorded_hashes(lineage.read_lock(root))
    rows = [
        ("git commit", git.commit or git.note),
        ("uncommitted changes", git.note if git.commit else ""),
        ("data", f"{config.data.source}: {config.data.path}"),
        ("data hash (DVC)", hashes.get(config.data.path, "")),
        ("data set hash (DVC)", hashes.get("outputs/dataset", "not recorded: DVC did not run the earlier stages")),
        ("configuration digest", config.digest(*lineage.RESULT_SECTIONS)),
        ("base model", config.model.checkpoint),
        ("base weights", lineage.base_digest(config, root)),
        ("aligned weights", _digest_or_note(root / "outputs/model")),
        ("training fingerprint", str(read_optional(root / "outputs/model/result.json").get("fingerprint", ""))),
        ("device", config.hardware.device),
        ("versions", ", ".join(_versions())),
    ]
    return [(what, value) for what, value in rows if value]


def _digest_or_note(folder: Path) -> str:
    return weights_digest(folder) if any(folder.glob("*.safetensors")) else f"{folder.name} holds no weights"


def _versions() -> list[str]:
    found = []
    for package in lineage.PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


def _tell(deltas: Mapping[str, Record], verdict: Verdict, page: Path) -> None:
    for name, delta in deltas.items():
        overall = delta["overall"]
        interval = f"[{points(overall['low'])}, {points(overall['high'])}]"
        print(f"{name}: {overall['base']:.3f} -> {overall['aligned']:.3f}, {points(overall['delta'])} points {interval}")
    print("verdict: " + ("passed" if verdict.passed else "refused: " + "; ".join(verdict.reasons)))
    print(f"report: {page}")
