"""Effect of RecA: base, RecA and two controls with the same images and compute, on prompts fixed in advance.

    python -m bench.alignment --model janus_tiny --seeds 0 1

All arms start from the same base and take the same number of steps on the same images:

    reca     half reconstruction, half text-to-image on sparse captions (the default recipe)
    sparse   text-to-image on sparse captions only: the control that RecA must beat
    dense    text-to-image on full captions: oracle text that RecA does not need

900 prompts (150 in each of GenEval's six categories), 4 images each, scored once per arm and seed. Intervals:
paired bootstrap over prompts, the seeds of an arm averaged per prompt; they do not cover the choice of base.
The table is printed and written to bench/results/alignment-MODEL.json.
"""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.config import ROOT, Config, compose
from reca.evaluation.benchmark import read_items, values_of
from reca.evaluation.statistics import Values, means, paired_delta
from reca.runtime.files import write_json
from reca.runtime.hashing import weights_digest
from reca.stages.extract import extract
from reca.stages.generate import generate
from reca.stages.ingest import ingest
from reca.stages.score import score
from reca.stages.train import train

PROMPTS = (
    "evaluate.scenes.prompts_per_category=150",
    "evaluate.scenes.images_per_prompt=4",
    "evaluate.scenes.seed=31337",
    "evaluate.benchmarks=[scenes,fidelity,understanding]",
)
ARMS: dict[str, tuple[str, ...]] = {
    "reca": (),
    "sparse": ("train.mixture.reconstruction=0",),
    "dense": ("train.mixture.reconstruction=0", "train.captions=full"),
}
CPU_SECONDS = "cpu_seconds.json"
"""File in an arm's folder with the CPU seconds of training."""
COMPARISONS = (("reca", "sparse"), ("reca", "base"), ("sparse", "base"), ("dense", "sparse"), ("reca", "dense"))


def main() -> None:
    """Run the missing arms, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="janus_tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--work", type=Path, help="folder of the arms; default: .reca/alignment/MODEL")
    parser.add_argument("--compare-only", action="store_true", help="do not train; compare existing arms")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for all arms")
    options = parser.parse_args()
    work = (options.work or ROOT / ".reca/alignment" / options.model).resolve()  # links inside must be absolute
    shared = [f"model={options.model}", *PROMPTS, *options.overrides]
    if not options.compare_only:
        for seed in options.seeds:
            data = prepare(work / f"seed-{seed}", [*shared, f"seed={seed}"])
            for arm in options.arms:
                run_arm(work / f"seed-{seed}" / arm, data, compose([*shared, f"seed={seed}", *ARMS[arm]]))
        measure(work / "base", compose(shared), "base")
    base = weights_digest(ROOT / compose(shared).model.checkpoint)
    results = {"model": options.model, "base": base, **compare(work, options.seeds, options.arms)}
    write_json(ROOT / f"bench/results/alignment-{options.model}.json", results)
    print(table(results))


def prepare(work: Path, overrides: Sequence[str]) -> Path:
    """Prepare a seed's images and embeddings, shared by its arms."""
    root, config = work / "data", compose(overrides)
    link_inputs(root)
    if not (root / "outputs/embeddings/result.json").is_file():
        ingest(config, root)
        extract(config, root)
    return root


def link_inputs(root: Path) -> None:
    """Link the project's configuration and bases into a folder in which stages can run."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("conf", "data", "reca"):
        if not (root / name).exists():
            os.symlink(ROOT / name, root / name)


def run_arm(root: Path, data: Path, config: Config) -> None:
    """Train and measure one arm."""
    link_inputs(root)
    (root / "outputs").mkdir(exist_ok=True)
    for name in ("dataset", "embeddings"):
        if not (root / "outputs" / name).exists():
            os.symlink(data / "outputs" / name, root / "outputs" / name)
    if not (root / "outputs/model/result.json").is_file():
        start = time.process_time()
        train(config, root)
        write_json(root / CPU_SECONDS, {"train": round(time.process_time() - start, 1)})
    measure(root, config, "aligned")


def measure(root: Path, config: Config, variant: str) -> None:
    """Generate and score the missing benchmarks."""
    link_inputs(root)
    for benchmark in config.evaluate.benchmarks:
        if benchmark == "fidelity" and variant == "base":
            (root / "outputs").mkdir(exist_ok=True)
        if not (root / f"outputs/scores/{variant}/{benchmark}.json").is_file():
            generate(config, root, variant, benchmark)
            score(config, root, variant, benchmark)


def read_values(root: Path, variant: str, benchmark: str) -> dict[str, dict[str, list[float]]]:
    """Read values by category and prompt id."""
    return values_of(read_items(root / f"outputs/scores/{variant}/{benchmark}.items.jsonl"))


def pool_seeds(seeds: Sequence[Mapping[str, Mapping[str, list[float]]]]) -> Values:
    """Pool an arm's seeds: a prompt's images of all seeds form a cluster."""
    pooled: dict[str, dict[str, list[float]]] = {}
    for category, prompts in seeds[0].items():
        pooled[category] = {
            prompt: [value for values in seeds for value in values[category][prompt]] for prompt in prompts
        }
    return pooled


def compare(work: Path, seeds: Sequence[int], arms: Sequence[str]) -> dict[str, Any]:
    """Return means of all arms and paired differences, with seeds pooled and separately."""
    results: dict[str, Any] = {"seeds": list(seeds)}
    for benchmark in ("scenes", "fidelity", "understanding"):
        items = {"base": [read_values(work / "base", "base", benchmark)] * len(seeds)}
        for arm in arms:
            items[arm] = [read_values(work / f"seed-{seed}" / arm, "aligned", benchmark) for seed in seeds]
        entry: dict[str, Any] = {
            "means": {arm: means(pool_seeds(values)) for arm, values in items.items()},
            "deltas": {},
        }
        for after, before in COMPARISONS:
            if after in items and before in items:
                entry["deltas"][f"{after} - {before}"] = _deltas(items[before], items[after], seeds)
        results[benchmark] = entry
    return results


def _deltas(before: Sequence[Any], after: Sequence[Any], seeds: Sequence[int]) -> dict[str, Any]:
    pairs = {"all": (pool_seeds(before), pool_seeds(after))}
    pairs |= {f"seed {seed}": (before[number], after[number]) for number, seed in enumerate(seeds)}
    return {
        name: {
            category: [round(number, 4) for number in (delta.delta, delta.low, delta.high)]
            for category, delta in paired_delta(*pair).by_name().items()
        }
        for name, pair in pairs.items()
    }


def table(results: Mapping[str, Any]) -> str:
    """Format the results as Markdown for docs/experiments.md."""
    lines = []
    for benchmark in ("scenes", "fidelity", "understanding"):
        entry = results[benchmark]
        names = list(next(iter(entry["means"].values())))
        lines += [f"### {benchmark}", "", "| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for arm, values in entry["means"].items():
            lines.append(f"| {arm} | " + " | ".join(f"{values[name]:.3f}" for name in names) + " |")
        for comparison, poolings in entry["deltas"].items():
            for pooling, deltas in poolings.items():
                cells = [f"{deltas[n][0]:+.3f} [{deltas[n][1]:+.3f}, {deltas[n][2]:+.3f}]" for n in names]
                lines.append(f"| {comparison} ({pooling}) | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
