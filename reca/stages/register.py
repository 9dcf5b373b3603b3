"""``register``: add the aligned model to the registry, and make it champion if the promotion rules pass.

Not a DVC stage: it changes the registry, which is outside the project's outputs. It may be killed anywhere and run
again; the same lineage gives the same version. A refusal is an outcome, with its reasons, not an error.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reca.config import Config
from reca.config.evaluate import sampling_arguments
from reca.evaluation.benchmark import read_items, read_scores, values_of
from reca.evaluation.promotion import Champion, Deltas, PromotionDecision, describe_delta, evaluate_champion_rules
from reca.evaluation.statistics import BenchmarkDelta, paired_delta, scored_pairs
from reca.runtime import system_metrics
from reca.runtime.errors import UserError
from reca.runtime.files import write_json
from reca.tracking import registry, runs
from reca.tracking.lineage import Lineage, check_params, check_up_to_date, collect_lineage, uncommitted_patch
from reca.tracking.registry import Version

MODEL, REPORT, SCORES, CURVES = "outputs/model", "outputs/report", "outputs/scores", "outputs/curves"
REQUIREMENTS = ("mlflow", "torch", "transformers", "diffusers", "safetensors", "numpy", "pillow")
"""Packages that the registered model needs to generate images."""
NO_CHAMPION = "there is no champion yet"
STATE_FILE = "register.json"


def register(config: Config, root: Path) -> None:
    """Register the model in ``outputs/`` as ``challenger``, and as ``champion`` too if the promotion rules pass.

    Raises:
        UserError: A stage is stale, an output is missing or was changed by hand, or MLflow's store cannot be used.
    """
    check_params(root)
    check_up_to_date(root)
    lineage = collect_lineage(config, root)
    report = _read_json(root / REPORT / "verdict.json")
    deltas = {name: BenchmarkDelta.from_dict(d) for name, d in _read_json(root / REPORT / "deltas.json").items()}
    _check_report(report, lineage)
    name = registry.model_name(config.model.name)
    store = runs.locate_store(config, root)
    with runs.open_store(store) as client:
        experiment = runs.get_or_create_experiment(client, store)
        for run_id in runs.mark_killed_runs(client, experiment):
            print(f"run {run_id} was left RUNNING by a process that has ended; marked as KILLED")
        champion = _compare_with_champion(client, config, root, name, report["benchmark_set"], lineage)
        rules = config.register_.promotion_rules
        verdict = evaluate_champion_rules(PromotionDecision.from_dict(report), rules, champion, NO_CHAMPION)
        version = registry.find_version(client, name, lineage.digest)
        is_new = version is None
        if version is None:
            version = _create(client, experiment, config, root, lineage, report, deltas, verdict)
        if not registry.was_champion(client, version):
            registry.update_version(client, version, _verdict_tags(verdict), _description(verdict, deltas))
            registry.set_challenger(client, version)
            if verdict.passed:
                registry.promote(client, version)
        version = registry.get_version(client, f"{name}/{version.number}")
        current = registry.get_champion(client, name)
    print_summary(version, current, is_new)
    write_json(root / config.paths.state / STATE_FILE, _record(version, current, is_new))


def _create(
    client: Any,
    experiment: str,
    config: Config,
    root: Path,
    lineage: Lineage,
    report: Mapping[str, Any],
    deltas: Deltas,
    verdict: PromotionDecision,
) -> Version:
    """Create a version from a new run, or from the finished run that a killed registration left behind."""
    name = registry.model_name(config.model.name)
    run = runs.find_finished_run(client, experiment, lineage.digest)
    if run is None:
        run_id = _log_run(client, experiment, config, root, lineage, deltas)
        run = client.get_run(run_id)
    scores = {f"score.{key}": f"{value:.6f}" for key, value in _flat_scores(deltas).items()}
    tags = {
        **runs.lineage_tags(lineage),
        **scores,
        "benchmark_set": report["benchmark_set"],
        **_verdict_tags(verdict),
    }
    model_id = run.data.tags["model.id"]
    return registry.create_version(client, name, run.info.run_id, model_id, tags, _description(verdict, deltas))


def _log_run(client: Any, experiment: str, config: Config, root: Path, lineage: Lineage, deltas: Deltas) -> str:
    title = f"{config.model.name} {lineage.config_digest[:6]} {lineage.digest[:6]}"
    with runs.start_run(client, experiment, title, runs.run_tags(lineage, _score_table(deltas))) as run_id:
        runs.log_params(client, run_id, config.flat())
        runs.log_dataset(client, run_id, lineage)
        model_id = _log_model(config, root, lineage)
        runs.log_metrics(client, run_id, _flat_scores(deltas), model_id)
        curves = sorted((root / CURVES).glob("*.csv"))
        system = [Path(name)] if (name := os.environ.get(system_metrics.FILE_VARIABLE)) else []
        points = runs.log_curves(client, run_id, [*curves, *system])
        _log_files(client, run_id, root, lineage)
        client.set_tag(run_id, "model.id", model_id)
    print(f"run {run_id}: {points} points of curves, the report, the scores and the model are logged")
    return run_id


def _log_model(config: Config, root: Path, lineage: Lineage) -> str:
    settings: dict[str, Any] = {
        "family": config.model.family,
        "options": config.model.load_options(Path()),
        "sampling": sampling_arguments(config.to_dict()["generate"]),
        "batch_size": config.hardware.generate_batch_size,
    }
    # A local part of a version ("2.13.0+cpu") names a build of this machine; the index has the release only.
    requirements = [f"{name}=={lineage.versions[name].split('+')[0]}" for name in REQUIREMENTS]
    size = sum(path.stat().st_size for path in (root / MODEL).rglob("*") if path.is_file())
    copied = size <= config.tracking.copy_limit_mib * 2**20
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder)
        write_json(written / "settings.json", settings)
        artifacts = {"settings": written / "settings.json"}
        if copied:
            artifacts["checkpoint"] = root / MODEL
        else:
            write_json(written / "reference.json", runs.dvc_reference(root, MODEL, lineage))
            artifacts["reference"] = written / "reference.json"
            print(f"the model has {size / 2**20:,.0f} MiB: registered by its DVC hash, not copied")
        numbers = {name: value for name, value in settings["sampling"].items() if isinstance(value, int | float)}
        return registry.log_model(artifacts, requirements, {"seed": 0, **numbers})


def _log_files(client: Any, run_id: str, root: Path, lineage: Lineage) -> None:
    for file in ("params.yaml", "dvc.lock", lineage.data_pointer):
        if file and (root / file).is_file():
            client.log_artifact(run_id, str(root / file))
    client.log_artifacts(run_id, str(root / REPORT), "report")
    client.log_artifacts(run_id, str(root / SCORES), "scores")
    client.log_dict(run_id, lineage.to_dict(), "lineage.json")
    patch = uncommitted_patch(root) if lineage.git.dirty else None
    if patch:
        client.log_text(run_id, patch, "uncommitted.patch")


def _compare_with_champion(
    client: Any, config: Config, root: Path, name: str, benchmark_set: str, lineage: Lineage
) -> Champion | None:
    """Return the champion with the deltas of this model against it, or with the reason why there are none."""
    champion = registry.get_champion(client, name)
    if champion is None or champion.tags.get(runs.LINEAGE_TAG) == lineage.digest:
        return None
    champion_set = champion.tags.get("benchmark_set", "")
    if champion_set != benchmark_set:
        obstacle = (
            f"it was measured on another benchmark set ({champion_set[:8] or 'unknown'}, here {benchmark_set[:8]}): "
            "other prompts, seeds or judges. Measure with its `evaluate` settings, or remove the champion rules from "
            "register.promotion_rules for this run"
        )
        return Champion(champion.number, None, obstacle)
    evaluate = config.evaluate
    deltas: dict[str, BenchmarkDelta] = {}
    for benchmark in evaluate.benchmarks:
        file = f"aligned/{benchmark}.items.jsonl"
        after = values_of(read_items(root / SCORES / file))
        weights = read_scores(root / SCORES / f"aligned/{benchmark}.json").weights
        try:
            before = values_of(read_items(runs.download_artifact(client, champion.run_id, f"scores/{file}")))
            pairs = scored_pairs(before, after)
            deltas[benchmark] = paired_delta(
                *pairs, evaluate.confidence, evaluate.bootstrap_resamples, config.seed, weights
            )
        except (OSError, ValueError, UserError) as error:
            return Champion(champion.number, None, f"its answers to {benchmark} cannot be used ({error})")
    return Champion(champion.number, deltas)


def _check_report(report: Mapping[str, Any], lineage: Lineage) -> None:
    """Refuse a report about other weights: its scores would be registered with this model."""
    reported = report["checkpoint"]["aligned"]
    if reported != lineage.weights_digest:
        raise UserError(
            f"{REPORT} is about other weights ({str(reported)[:12]}…) than those in {MODEL} "
            f"({lineage.weights_digest[:12]}…); run `reca run`, which measures again"
        )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run `reca report`") from None


def _flat_scores(deltas: Deltas) -> dict[str, float]:
    """Return ``{"scenes/overall/delta": …}``, MLflow's names of metrics."""
    return {
        f"{benchmark}/{category}/{name}": value
        for benchmark, scores in deltas.items()
        for category, delta in scores.by_name().items()
        for name, value in asdict(delta).items()
    }


def _verdict_tags(verdict: PromotionDecision) -> dict[str, str]:
    rules = json.dumps(verdict.to_dict()["rules"])
    return {
        "verdict": "passed" if verdict.passed else "refused",
        "verdict.reasons": "; ".join(verdict.reasons)[:5000] or "none",
        "verdict.rules": rules if len(rules) <= 5000 else "[]",
    }


def _description(verdict: PromotionDecision, deltas: Deltas) -> str:
    head = "**Passed.**" if verdict.passed else "**Refused**: it may not become champion."
    return "\n".join([head, "", *(f"- {rule}" for rule in verdict.rules), "", _score_table(deltas)])


def _score_table(deltas: Deltas) -> str:
    lines = ["| benchmark | base | aligned | delta |", "|---|---|---|---|"]
    for benchmark, scores in deltas.items():
        delta = scores.overall
        lines.append(f"| {benchmark} | {delta.base:.3f} | {delta.aligned:.3f} | {describe_delta(delta)} |")
    return "\n".join(lines)


def _record(version: Version, champion: Version | None, is_new: bool) -> dict[str, Any]:
    aliases = [alias for alias in (registry.CHAMPION, registry.CHALLENGER) if alias in version.aliases]
    return {
        "name": version.name,
        "version": version.number,
        "alias": aliases[0] if aliases else "none",
        "run_id": version.run_id,
        "verdict": version.tags.get("verdict", ""),
        "reasons": version.tags.get("verdict.reasons", ""),
        "rules": json.loads(version.tags.get("verdict.rules", "[]")),
        "champion": champion.number if champion else None,
        "new": is_new,
    }


def print_summary(version: Version, champion: Version | None, is_new: bool) -> None:
    """Print the version with its aliases, its verdict, and the current champion."""
    aliases = ", ".join(version.aliases) or "none"
    print(f"{version} {'registered' if is_new else 'was registered before'}; aliases: {aliases}")
    verdict, reasons = version.tags.get("verdict", ""), version.tags.get("verdict.reasons", "none")
    print(f"verdict: {verdict}" + (f" ({reasons})" if reasons != "none" else ""))
    if registry.ROLLED_BACK_TAG in version.tags:
        print(f"it was rolled back {version.tags[registry.ROLLED_BACK_TAG]} and is not promoted again")
    print(f"champion: {champion if champion else 'none'}")
