"""``report``: compare base and aligned; write the page, the model card, the deltas and the promotion decision.

Reads scores, samples and curves; writes ``outputs/report/``: ``index.html`` (one self-contained page),
``deltas.json``, ``verdict.json``, ``model_card.md``, ``figures/overview.png`` and ``result.json``. It depends on files
of the project only: the champion is compared by ``register``, under the registry's lock.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reca.config import Config
from reca.evaluation.benchmark import Scores
from reca.evaluation.promotion import PromotionDecision, describe_delta, evaluate_rules
from reca.evaluation.statistics import OVERALL, BenchmarkDelta, paired_delta
from reca.reporting.card import read_licence, render_card
from reca.reporting.charts import draw_overview
from reca.reporting.inputs import MissingInput, ResultPair, read_curve, read_optional, read_result_pair
from reca.reporting.page import ReportData, render_page
from reca.runtime.files import atomic_folder, write_json, write_text
from reca.runtime.hashing import json_digest
from reca.stages.result import write_result
from reca.tracking import lineage

AT_REGISTRATION = "compared at registration, with the champion of that moment"


def report(config: Config, root: Path) -> None:
    """Compare base and aligned, and apply the promotion rules that need no champion.

    Raises:
        UserError: Scores or samples are missing, broken, or were measured differently; the message names the file
            and the stage to run again.
    """
    outputs = root / "outputs"
    pairs: dict[str, ResultPair] = {name: read_result_pair(outputs, name) for name in config.evaluate.benchmarks}
    _check_same_weights(pairs)
    deltas: dict[str, BenchmarkDelta] = {name: compare(pair, config) for name, pair in pairs.items()}
    verdict = evaluate_rules(config.register_.promotion_rules, deltas, AT_REGISTRATION)
    first = next(iter(pairs.values()))
    origin = lineage_rows(config, root, first.aligned.scores, first.base.scores)
    page = render_page(
        ReportData(
            config=config,
            pairs=pairs,
            deltas=deltas,
            verdict=verdict,
            train_curve=read_curve(outputs / "curves/train.csv"),
            held_out_curve=read_curve(outputs / "curves/held_out.csv"),
            training=read_optional(outputs / "curves/result.json"),
            lineage=origin,
        )
    )
    licence = read_licence(root / config.model.checkpoint, bool(config.model.hub))
    with atomic_folder(outputs / "report") as folder:
        (folder / "figures").mkdir()
        draw_overview(folder / "figures/overview.png", pairs, deltas, config.evaluate.confidence)
        write_json(folder / "deltas.json", {name: asdict(delta) for name, delta in deltas.items()})
        write_json(folder / "verdict.json", verdict_record(config, pairs, verdict))
        write_text(folder / "model_card.md", render_card(config, pairs, deltas, verdict, origin, licence))
        write_text(folder / "index.html", page)
        write_result(folder, "report", config, ("evaluate", "register"), passed=verdict.passed)
    print_summary(deltas, verdict, outputs / "report/index.html")


def _check_same_weights(pairs: Mapping[str, ResultPair]) -> None:
    """Refuse scores of different weights under one name."""
    for variant in ("base", "aligned"):
        checkpoints = {getattr(pair, variant).scores.checkpoint: name for name, pair in pairs.items()}
        if len(checkpoints) > 1:
            listing = ", ".join(f"{name}: {checkpoint[:12]}" for checkpoint, name in checkpoints.items())
            raise MissingInput(
                f"outputs/scores/{variant} holds scores of different weights ({listing}): some samples are out of "
                "date; run `dvc repro`, or the whole pipeline: `reca run`"
            )


def compare(pair: ResultPair, config: Config) -> BenchmarkDelta:
    """Compute one benchmark's entry of ``deltas.json``."""
    evaluate = config.evaluate
    weights = pair.base.scores.weights
    return paired_delta(*pair.values, evaluate.confidence, evaluate.bootstrap_resamples, config.seed, weights)


def verdict_record(config: Config, pairs: Mapping[str, ResultPair], verdict: PromotionDecision) -> dict[str, Any]:
    """Return ``verdict.json``: the outcome of the rules, and the facts needed to compare this model with others."""
    sides = {variant: [getattr(pair, variant).scores for pair in pairs.values()] for variant in ("base", "aligned")}
    return {
        **verdict.to_dict(),
        "benchmark_set": benchmark_set(config, pairs),
        "config_digest": json_digest(config.to_dict(*lineage.RESULT_SECTIONS), 16),
        "checkpoint": {variant: scores[0].checkpoint for variant, scores in sides.items()},
        "scores": {
            variant: {score.benchmark: _plain_scores(score) for score in scores} for variant, scores in sides.items()
        },
    }


def _plain_scores(scores: Scores) -> dict[str, float]:
    return {OVERALL: scores.overall.value, **{name: score.value for name, score in scores.categories.items()}}


def benchmark_set(config: Config, pairs: Mapping[str, ResultPair]) -> str:
    """Return a digest of the prompts and judges: scores are comparable only where it is equal.

    It covers the settings of the benchmarks that ran, every prompt or question with its expected answer, and the
    judges; not the model, not its sampling, and not benchmarks that did not run.
    """
    evaluate = config.to_dict()["evaluate"]
    content = {
        name: {
            # An empty list is the same as no setting: a new one must not separate a model from older champions.
            "settings": {key: value for key, value in evaluate[name].items() if value != []},
            "prompts": [_prompt(sample) for sample in pair.base.samples],
            "protocol": pair.base.scores.protocol,
            "judge": pair.base.scores.judge.model_dump(),
        }
        for name, pair in sorted(pairs.items())
    }
    return json_digest(content)


def _prompt(sample: Mapping[str, Any]) -> list[Any]:
    return [sample.get(key) for key in ("prompt_id", "category", "prompt", "question", "expected", "seed", "metadata")]


def lineage_rows(config: Config, root: Path, scores: Scores, base_scores: Scores) -> list[tuple[str, str]]:
    """Return the origin of the aligned model, as far as it is known, as (name, value) rows."""
    git = lineage.read_git(root)
    hashes = lineage.recorded_hashes(lineage.read_lock(root))
    versions = lineage.current_versions()
    rows = [
        ("git commit", git.commit or git.note),
        ("uncommitted changes", git.note if git.commit else ""),
        ("data", f"{config.data.source}: {config.data.path}"),
        ("data hash (DVC)", hashes.get(config.data.path, "")),
        ("data set hash (DVC)", hashes.get("outputs/dataset", "not recorded: DVC did not run the earlier stages")),
        ("configuration digest", json_digest(config.to_dict(*lineage.RESULT_SECTIONS), 16)),
        ("base model", config.model.checkpoint),
        ("base weights", base_scores.checkpoint),
        ("aligned weights", scores.checkpoint),
        ("versions", ", ".join(f"{package} {version}" for package, version in versions.items())),
    ]
    return [(name, value) for name, value in rows if value]


def print_summary(deltas: Mapping[str, BenchmarkDelta], verdict: PromotionDecision, page: Path) -> None:
    """Print the overall scores, the verdict, and the path of the page."""
    for name, benchmark in deltas.items():
        delta = benchmark.overall
        print(f"{name}: {delta.base:.3f} -> {delta.aligned:.3f}, {describe_delta(delta)}")
    print("verdict: " + ("passed" if verdict.passed else "refused: " + "; ".join(verdict.reasons)))
    print(f"report: {page}")
