"""Ablate the recipe of ``janus_tiny``: change one setting at a time and measure what RecA gains over the base.

    python -m bench.ablation --seeds 0 1 [--settings recipe sparse steps_150 ...]

Every setting starts from the same base and differs from the recipe in one thing: the share of reconstruction in the
mixture, the number of prompt templates, the learning rate, the number of images, the number of steps. ``sparse`` is the
control without reconstruction. 600 prompts (100 in each of GenEval's six categories, other prompts than
:mod:`bench.alignment`'s), 2 images each, scored once per setting and seed. Intervals: paired bootstrap over prompts,
the seeds pooled. CPU seconds are those of the training process alone. A setting that has finished is not run again, so
the command can be stopped and repeated. Writes bench/results/ablation.json and prints a table.
"""

import argparse
import json
import multiprocessing
import statistics
from pathlib import Path
from typing import Any

from bench.alignment import CPU_SECONDS, measure, pool_seeds, prepare, read_values, run_arm
from reca.config import ROOT, compose
from reca.evaluation.statistics import OVERALL, paired_delta
from reca.runtime.files import write_json
from reca.runtime.hashing import weights_digest

BENCHMARKS = ("scenes", "understanding")
FIXED = (
    "evaluate.scenes.prompts_per_category=100",
    "evaluate.scenes.images_per_prompt=2",
    "evaluate.scenes.seed=4711",
    f"evaluate.benchmarks=[{','.join(BENCHMARKS)}]",
    "hardware.threads=1",
)
SETTINGS: dict[str, tuple[str, ...]] = {
    "recipe": (),
    "sparse": ("train.mixture.reconstruction=0",),
    "share_0.25": ("train.mixture.reconstruction=1", "train.mixture.text_to_image=3"),
    "share_1": ("train.mixture.text_to_image=0",),
    "one_template": ("train.prompt_templates=1",),
    "learning_rate_2e-4": ("train.learning_rate=2e-4",),
    "learning_rate_2e-3": ("train.learning_rate=2e-3",),
    "images_500": ("data.num_images=500",),
    "images_2000": ("data.num_images=2000",),
    "images_32000": ("data.num_images=32000",),
    "steps_150": ("train.max_steps=150",),
    "steps_300": ("train.max_steps=300",),
    "steps_1200": ("train.max_steps=1200",),
}


def main() -> None:
    """Run the settings that have not finished, then compare all that have."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--work", type=Path, default=ROOT / ".reca/ablation", help="where finished settings are kept")
    options = parser.parse_args()
    work = options.work.resolve()
    measure(work / "base", compose(FIXED), "base")
    for seed in options.seeds:
        for setting in options.settings:
            run(work, setting, seed)
    results = compare(work, options.seeds)
    write_json(ROOT / "bench/results/ablation.json", results)
    print(table(results))


def run(work: Path, setting: str, seed: int) -> None:
    """Train and measure one setting with one seed, in a process of its own."""
    root = work / f"seed-{seed}" / setting
    if is_finished(root):
        return
    config = compose([*FIXED, f"seed={seed}", *SETTINGS[setting]])
    images = f"data.num_images={config.data.num_images}"
    data = prepare(work / f"seed-{seed}" / images, [*FIXED, f"seed={seed}", images])
    process = multiprocessing.get_context("spawn").Process(target=run_arm, args=(root, data, config))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{setting} with seed {seed} failed with exit status {process.exitcode}")


def is_finished(root: Path) -> bool:
    """Return whether a setting has been trained and all of its benchmarks scored."""
    return all((root / f"outputs/scores/aligned/{name}.json").is_file() for name in BENCHMARKS)


def compare(work: Path, seeds: list[int]) -> dict[str, Any]:
    """Return each finished setting's difference to the base, with intervals, and its CPU seconds."""
    results: dict[str, Any] = {"seeds": seeds, "base": weights_digest(ROOT / "data/bases/janus_tiny"), "settings": {}}
    for setting, overrides in SETTINGS.items():
        roots = [work / f"seed-{seed}" / setting for seed in seeds]
        roots = [root for root in roots if is_finished(root)]
        if not roots:
            continue
        entry: dict[str, Any] = {
            "overrides": list(overrides),
            "seeds": len(roots),
            "train_cpu_seconds": [json.loads((root / CPU_SECONDS).read_text())["train"] for root in roots],
        }
        for benchmark in BENCHMARKS:
            base = pool_seeds([read_values(work / "base", "base", benchmark)] * len(roots))
            aligned = pool_seeds([read_values(root, "aligned", benchmark) for root in roots])
            entry[benchmark] = {
                category: [round(number, 4) for number in (delta.delta, delta.low, delta.high)]
                for category, delta in paired_delta(base, aligned).by_name().items()
            }
        results["settings"][setting] = entry
    return results


def table(results: dict[str, Any]) -> str:
    """Return the differences as Markdown, in points."""
    rows = ["| setting | seeds | CPU s | drawing, aligned − base | understanding |", "|---|---|---|---|---|"]
    for setting, entry in results["settings"].items():
        cells = [_points(entry[benchmark][OVERALL]) for benchmark in BENCHMARKS]
        seconds = statistics.mean(entry["train_cpu_seconds"])
        rows.append(f"| {setting} | {entry['seeds']} | {seconds:.0f} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


def _points(delta: list[float]) -> str:
    value, low, high = (100 * number for number in delta)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    main()
