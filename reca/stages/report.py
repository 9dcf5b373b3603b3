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

from reca.config import Config, PromotionRule
from reca.evaluation.benchmark import Scores
from reca.evaluation.promotion import Verdict, judge
from reca.evaluation.statistics import OVERALL, paired_delta
from reca.reporting.card import licence_of, render_card
from reca.reporting.figure import draw_overview
from reca.reporting.inputs import MissingInput, Pair, Record, read_curve, read_optional, read_pair
from reca.reporting.page import Report, render_page
from reca.reporting.text import benchmark_words, category_words, points
from reca.runtime.files import atomic_folder, write_json, write_text
from reca.stages.result import write_result
from reca.tracking import lineage

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
    pairs: dict[str, Pair] = {name: read_pair(outputs, name) for name in config.evaluate.benchmarks}
    _check_one_model(pairs)
    deltas: dict[str, Record] = {name: compare(pair, config) for name, pair in pairs.items()}
    verdict = judge(config.register_.promotion_rules, deltas, no_champion=AT_REGISTRATION)
    record = verdict_record(config, pairs, verdict)
    first = next(iter(pairs.values()))
    origin = lineage_rows(config, root, first.aligned.scores, first.base.scores)
    shown = in_plain_words(record, config.register_.promotion_rules)
    page = render_page(
        Report(
            config=config,
            pairs=pairs,
            deltas=deltas,
            verdict=shown,
            train_curve=read_curve(outputs / "curves/train.csv"),
            held_out_curve=read_curve(outputs / "curves/held_out.csv"),
            training=read_optional(outputs / "curves/result.json"),
            lineage=origin,
        )
    )
    licence = licence_of(root / config.model.checkpoint, bool(config.model.hub))
    with atomic_folder(outputs / "report") as folder:
        (folder / "figures").mkdir()
        draw_overview(folder / "figures/overview.png", pairs, deltas, config.evaluate.confidence)
        write_json(folder / "deltas.json", deltas)
        write_json(folder / "verdict.json", record)
        write_text(folder / "model_card.md", render_card(config, pairs, deltas, shown, origin, licence))
        write_text(folder / "index.html", page)
        write_result(folder, "report", config, ("evaluate", "register"), passed=verdict.passed)
    _tell(deltas, verdict, outputs / "report/index.html")


def _check_one_model(pairs: Mapping[str, Pair]) -> None:
    """Refuse scores of different weights under one name."""
    for which in (0, 1):
        found = {pair.sides[which].scores.checkpoint: pair.name for pair in pairs.values()}
        if len(found) > 1:
            side = next(iter(pairs.values())).sides[which].scores.which
            told = ", ".join(f"{name}: {checkpoint[:12]}" for checkpoint, name in found.items())
            raise MissingInput(
                f"outputs/scores/{side} tells of different weights ({told}): some samples are out of date; "
                "run `dvc repro`, or the whole job: `reca run`"
            )


def compare(pair: Pair, config: Config) -> Record:
    """One benchmark's entry of ``deltas.json``: ``{"overall": …, "categories": {name: …}}``."""
    evaluate = config.evaluate
    weights = pair.base.scores.weights
    found = paired_delta(*pair.values, evaluate.confidence, evaluate.bootstrap_resamples, config.seed, weights)
    records = {name: asdict(delta) for name, delta in found.items()}
    return {"overall": records[OVERALL], "categories": {name: records[name] for name in pair.categories}}


def verdict_record(config: Config, pairs: Mapping[str, Pair], verdict: Verdict) -> Record:
    """``verdict.json``: the rules' outcome and what is needed to compare this model with another one."""
    base, aligned = ([pair.sides[which].scores for pair in pairs.values()] for which in (0, 1))
    return {
        **verdict.to_dict(),
        "benchmark_set": benchmark_set(config, pairs),
        "config_digest": config.digest(*lineage.RESULT_SECTIONS),
        "checkpoint": {"base": base[0].checkpoint, "aligned": aligned[0].checkpoint},
        "scores": {
            which: {one.benchmark: _plain_scores(one) for one in side}
            for which, side in (("base", base), ("aligned", aligned))
        },
    }


def _plain_scores(scores: Scores) -> dict[str, float]:
    return {OVERALL: scores.overall.value, **{name: one.value for name, one in scores.categories.items()}}


def benchmark_set(config: Config, pairs: Mapping[str, Pair]) -> str:
    """What was asked and how it was judged, as a digest: scores are comparable only where it is equal.

    It covers the settings of the benchmarks that ran, every prompt or question with its expected answer, and the
    judges; not the model, not how its images were drawn, and not what else could have been measured.
    """
    evaluate = config.to_dict()["evaluate"]
    asked = {
        name: {
            # A list that is empty asks for nothing: a new setting must not part a model from older champions.
            "settings": {key: value for key, value in evaluate[name].items() if value != []},
            "prompts": [_asked(sample) for sample in pair.base.samples],
            "protocol": pair.base.scores.protocol,
            "judge": pair.base.scores.judge.model_dump(),
        }
        for name, pair in sorted(pairs.items())
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _asked(sample: Record) -> list[Any]:
    return [sample.get(key) for key in ("prompt_id", "category", "prompt", "question", "expected", "seed", "metadata")]


def in_plain_words(record: Record, rules: Sequence[PromotionRule]) -> Record:
    """The verdict with each rule as a sentence for readers."""
    told = []
    for rule, result in zip(rules, record["rules"], strict=True):
        reason = result["reason"] if result["value"] is None else f"measured: {result['reason']}"
        told.append({**result, "text": rule_words(rule), "reason": reason})
    return {**record, "rules": told}


def rule_words(rule: PromotionRule) -> str:
    """One rule of the gate as a sentence."""
    score = f"{benchmark_words(rule.benchmark).short}, {category_words(rule.category)}"
    if rule.bound == "lower":
        asked = f"even the low end of the interval of the change must be above {points(rule.minimum)} points"
    else:
        asked = f"the change must be at least {points(rule.minimum)} points"
    return f"{score}: against the {rule.versus}, {asked}."


def lineage_rows(config: Config, root: Path, scores: Scores, base_scores: Scores) -> list[tuple[str, str]]:
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
        ("base weights", base_scores.checkpoint),
        ("aligned weights", scores.checkpoint),
        ("versions", ", ".join(_versions())),
    ]
    return [(what, value) for what, value in rows if value]


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
        print(
            f"{name}: {overall['base']:.3f} -> {overall['aligned']:.3f}, {points(overall['delta'])} points {interval}"
        )
    print("verdict: " + ("passed" if verdict.passed else "refused: " + "; ".join(verdict.reasons)))
    print(f"report: {page}")
