"""``reca evaluate``: measure a checkpoint, or images made elsewhere, without a run; ``params.yaml`` is left alone.

Everything lies in one folder, ``outputs/evaluations/<name>`` unless told otherwise: ``samples/<benchmark>``,
``scores/<benchmark>.json`` with ``.items.jsonl``, and ``replies/<benchmark>.jsonl`` of judges that were asked.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reca.config import Config, compose
from reca.config.evaluate import PUBLISHED, sampling_settings
from reca.evaluation.benchmark import load_benchmark
from reca.runtime.distributed import DistributedContext, init_distributed
from reca.runtime.errors import UserError
from reca.runtime.hashing import file_digest, json_digest
from reca.runtime.launch import launch_all, launched
from reca.stages.score import measure

EVALUATIONS = Path("outputs/evaluations")


def evaluate(options: argparse.Namespace, root: Path) -> None:
    """Measure what the options say.

    Raises:
        UserError: Weights, prompts, judges or images are missing; the message says how to get them.
    """
    if (options.images is None) != (options.benchmark is None):
        raise UserError("--images FOLDER and --benchmark geneval|dpgbench belong together")
    words = [_override(word) for word in options.overrides]
    if options.benchmark is not None:
        words.append(f"evaluate.benchmarks=[{options.benchmark}]")
    config = compose(words)
    _fetch(config, root, with_model=options.images is None)
    if config.hardware.devices > 1 and not launched():
        if status := launch_all([sys.executable, "-m", "reca", *sys.argv[1:]], config.hardware, independent_ranks=True):
            raise SystemExit(status)
        return
    output = Path(options.output) if options.output else root / EVALUATIONS / _name(config, options)
    with init_distributed(config.hardware.device) as distributed:
        for benchmark in config.evaluate.benchmarks:
            if options.images is None:
                _checkpoint(config, root, benchmark, output, options, distributed)
            else:
                _images(config, root, benchmark, Path(options.images), output, options, distributed)
        print(f"evaluate: {output}")


def _override(word: str) -> str:
    """``benchmarks=[…]`` means ``evaluate.benchmarks=[…]``; sections that the default lacks are added."""
    key, equals, value = word.partition("=")
    key = f"evaluate.{key}" if key == "benchmarks" or key.partition(".")[0] in PUBLISHED else key
    optional = tuple(f"evaluate.{name}." for name in PUBLISHED)
    return f"++{key}{equals}{value}" if key.startswith(optional) else f"{key}{equals}{value}"


def _name(config: Config, options: argparse.Namespace) -> str:
    if options.images is not None:
        return f"images-{Path(options.images).resolve().name}"
    values = config.to_dict()
    drawn = {name: sampling_settings(values["evaluate"][name]) for name in config.evaluate.benchmarks}
    return f"{config.model.name}-{json_digest([values['model'], values['generate'], drawn], 8)}"


def _fetch(config: Config, root: Path, with_model: bool) -> None:
    from reca.data.download import fetch_model
    from reca.evaluation.download import fetch as fetch_benchmarks

    if with_model:
        fetch_model(config, root)
    fetch_benchmarks(config, root)


def _checkpoint(
    config: Config, root: Path, name: str, output: Path, options: argparse.Namespace, distributed: DistributedContext
) -> None:
    from reca.evaluation.samples import read_manifest
    from reca.runtime.hashing import weights_digest
    from reca.stages.generate import checkpoint_folder, generate
    from reca.stages.result import read_result

    folder = output / "samples" / name
    made = _is_made(config, folder, name, weights_digest(checkpoint_folder(config, root, "base")))
    distributed.barrier()  # all have looked before the first one writes
    if not made:
        generate(config, root, "base", name, output=output / "samples")
        distributed.barrier()
    if options.grids and name == "dpgbench" and distributed.is_main_process:
        _write_grids(folder, Path(options.grids))
    _score(config, root, name, folder, read_manifest(folder), read_result(folder), output, options, distributed)


def _write_grids(folder: Path, target: Path) -> None:
    """DPG-Bench's official layout: a file a prompt, with its four images."""
    from PIL import Image

    from reca.evaluation.benchmarks.dpgbench.benchmark import write_grid
    from reca.evaluation.samples import read_manifest

    files: dict[str, list[Path]] = {}
    for row in read_manifest(folder):
        files.setdefault(row["prompt_id"], []).append(folder / row["file"])
    target.mkdir(parents=True, exist_ok=True)
    for item, images in files.items():
        try:
            write_grid([Image.open(image) for image in images], target / f"{item}.png")
        except (ValueError, OSError) as error:
            raise UserError(f"the images of {item} make no grid: {error}") from None
    print(f"evaluate: {len(files)} grids are in {target}")


def _is_made(config: Config, folder: Path, name: str, checkpoint: str) -> bool:
    """Whether the samples are there already, of these weights and settings."""
    from reca.stages.result import read_result

    try:
        made = read_result(folder)
    except (FileNotFoundError, ValueError):
        return False
    values = config.to_dict()
    same = sampling_settings(made["params"]["evaluate"].get(name)) == sampling_settings(values["evaluate"][name])
    return same and made["checkpoint"] == checkpoint and made["params"]["generate"] == values["generate"]


def _images(
    config: Config,
    root: Path,
    name: str,
    folder: Path,
    output: Path,
    options: argparse.Namespace,
    distributed: DistributedContext,
) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    bench = load_benchmark(name, config, root)
    rows = bench.existing_samples(folder)
    missing = sum(bool(row.get("missing")) for row in rows)
    print(f"evaluate: {len(rows) - missing} of {len(rows)} images of {name} are in {folder}")
    categories = dict.fromkeys(row["category"] for row in rows)
    if lacking := [c for c in categories if all(row.get("missing") for row in rows if row["category"] == c)]:
        raise UserError(
            f"{folder} holds no image of {', '.join(lacking)}, without which there is no overall score: draw these too "
            f"({name} has {', '.join(categories)})"
        )
    made = {"params": {"generate": {"images": str(folder)}}, "checkpoint": f"images:{_digest(folder, rows)}"}
    _score(config, root, name, folder, rows, made, output, options, distributed)


def _digest(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    """What tells one folder of images from another."""
    files = sorted({row["file"] for row in rows if not row.get("missing")})
    text = "".join(f"{name}\0{file_digest(folder / name)}\n" for name in files)
    return hashlib.sha256(text.encode()).hexdigest()


def _score(
    config: Config,
    root: Path,
    name: str,
    folder: Path,
    rows: Sequence[dict[str, Any]],
    made: dict[str, Any],
    output: Path,
    options: argparse.Namespace,
    distributed: DistributedContext,
) -> None:
    bench = load_benchmark(name, config, root)
    bench.configure_judge(output / "replies", only_stored=options.from_replies and bench.asks_model)
    if options.dry_run and bench.asks_model:
        print(f"evaluate {name}: {bench.estimate(rows, folder)}")
    elif options.dry_run:
        print(f"evaluate {name}: {len(rows)} samples; no judge is asked, so this costs nothing but time")
    else:
        measure(bench, config, "evaluated", folder, rows, made, output / "scores", distributed)
