"""The command line: ``reca run``, ``reca compose``, one verb per stage, and verbs for registered models.

Slow imports are inside the verbs that need them, because a run starts this file once per stage.
"""

import argparse
import ast
import importlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from reca.config import ROOT, Config, ConfigError, compose
from reca.config.evaluate import PUBLISHED
from reca.runtime import workspace
from reca.runtime.errors import UserError
from reca.runtime.files import write_text
from reca.runtime.signals import GUARD

PER_BENCHMARK_STAGES = {
    "generate": "generate a benchmark's samples with the base or the aligned model",
    "score": "score the samples of a benchmark",
}
FLOW_VERBS = {
    "run": "align, evaluate and register a model; runs stages that are out of date",
    "submit": "`reca run` on a worker: check the overrides, then pass them to a deployment",
    "deploy": "create work pools, limits and deployments on the Prefect server",
    "ui": "open the Prefect and MLflow pages of this project",
    "demo": "`reca run` on the embedded default",
}
STAGE_OPTIONS = ("from_replies", "dry_run")
"""Options that ``score`` takes as keyword arguments."""
TERMINATE_GRACE_SECONDS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0; 1 if a comparison failed; 2 for an error that the user can fix, printed as one message; 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    flow_arguments = words[1:] if words[:1] and words[0] in FLOW_VERBS else []  # parsed by flows/__main__.py
    options = parser().parse_args(words[:1] if flow_arguments else words)
    options.arguments = flow_arguments
    try:
        return options.verb_function(options) or 0
    except (ConfigError, UserError) as error:
        print(f"reca {options.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nreca {options.verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader went away, as in `reca lineage … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = argparse.ArgumentParser("reca", description="Reconstruction alignment, from images to a registered model.")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, function: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        verb_parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        verb_parser.set_defaults(verb_function=function)
        return verb_parser

    for name, text in FLOW_VERBS.items():
        verb(name, _start_flows, text)
    overrides = verb("compose", _compose, "write params.yaml from conf/ and overrides")
    overrides.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="train.max_steps=40, data=folder, …")
    for name, text in plain_stages().items():
        verb(name, _stage, text)
    subject = verb("fingerprint", _fingerprint, "write digests of the code of all stages, or of the base model's files")
    subject.add_argument("subject", choices=("code", "base"))
    for name, text in PER_BENCHMARK_STAGES.items():
        stage = verb(name, _stage, text)
        stage.add_argument("variant", choices=("base", "aligned"))
        stage.add_argument("benchmark")
        if name == "score":
            stage.add_argument("--from-replies", action="store_true", help="use stored replies only, ask no judge")
            stage.add_argument("--dry-run", action="store_true", help="print the judge's cost")
    add_evaluation(verb)
    doctor = verb("doctor", _doctor, "check machine and project; with overrides, predict memory and time of that run")
    doctor.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="model=…, hardware=…: predict this run")
    doctor.add_argument("--json", action="store_true", help="for programs")
    lineage = verb("lineage", _registered, "show the origin of a registered model")
    lineage.add_argument("--json", action="store_true", help="complete, for programs")
    reproduce = verb("reproduce", _registered, "train a registered model again from its commit and compare")
    reproduce.add_argument(
        "--no-from-scratch", dest="from_scratch", action="store_false", help="let DVC restore what it has cached"
    )
    export = verb("export", _export, "write a registered model in the files that its family's own tools open")
    export.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a new folder")
    export.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: as in the base")
    for registered in (lineage, reproduce, export):
        registered.add_argument("model", metavar="NAME@ALIAS")
    verb("rollback", _registered, "restore the previous champion").add_argument("name", metavar="NAME")
    return top


def plain_stages() -> dict[str, str]:
    """Return the stages whose function takes the configuration and the project only, with their descriptions.

    They are read from the syntax trees of ``reca/stages``, because importing them costs seconds.
    """
    stages = {}
    for path in sorted((Path(__file__).parent / "stages").glob("[a-z]*.py")):
        tree = ast.parse(path.read_text())
        functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == path.stem)
        if any([argument.arg for argument in function.args.args] == ["config", "root"] for function in functions):
            summary = (ast.get_docstring(tree) or path.stem).splitlines()[0]
            stages[path.stem] = (summary.partition(": ")[2] or summary).rstrip(".")
    return stages


def _compose(options: argparse.Namespace) -> None:
    root = workspace.project_root()
    config = compose(options.overrides)
    if config.data.source != "scenes":
        from reca.data.track import prepare

        config = prepare(config, root)
    if config.train.dialogues:
        from reca.data.dialogues import with_digest

        config = with_digest(config, root)
    if config.model.hub:
        from reca.data.download import fetch_model

        fetch_model(config, root)
    if set(config.evaluate.benchmarks) & set(PUBLISHED) or config.evaluate.fidelity.encoders:
        from reca.evaluation.download import fetch as fetch_benchmarks

        fetch_benchmarks(config, root)
        _track_prompts(config, root)
    for name in workspace.remove_unlisted_outputs(root, config.evaluate.benchmarks):
        print(f"outputs of the benchmark {name} are removed, because it is no longer measured (DVC's cache keeps them)")
    is_new = write_text(root / "params.yaml", config.to_yaml())
    print("params.yaml written" if is_new else "params.yaml unchanged")


def _track_prompts(config: Config, root: Path) -> None:
    """Put the prompts of published benchmarks under DVC, so that they have a version."""
    from reca.data.track import track
    from reca.evaluation.prompt_sources import benchmark_folder

    for name in config.evaluate.benchmarks:
        if benchmark_folder(root, name).is_dir():
            track(benchmark_folder(root, name), root)


def _fingerprint(options: argparse.Namespace) -> None:
    from reca.stages.fingerprint import fingerprint

    root = workspace.project_root()
    fingerprint(Config.load(root / "params.yaml"), root, options.subject)


def _stage(options: argparse.Namespace) -> int:
    root = workspace.project_root()
    config = Config.load(root / "params.yaml")
    _end_with_guard()
    if options.verb in PER_BENCHMARK_STAGES:
        os.environ.setdefault("OMP_NUM_THREADS", str(config.hardware.generate_threads))
    if options.verb == "train" and config.hardware.devices > 1 and "RANK" not in os.environ:  # not a rank already
        from reca.runtime.launch import launch_all

        return launch_all([sys.executable, "-m", "reca", *sys.argv[1:]], config.hardware)
    stage = getattr(importlib.import_module(f"reca.stages.{options.verb}"), options.verb)
    arguments = (options.variant, options.benchmark) if options.verb in PER_BENCHMARK_STAGES else ()
    keywords = {name: value for name in STAGE_OPTIONS if (value := getattr(options, name, None))}
    stage(config, root, *arguments, **keywords)
    return 0


def add_evaluation(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verbs that evaluate and compare outside a run."""
    evaluate = verb("evaluate", _evaluate, "evaluate a checkpoint or existing images, without a run")
    evaluate.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="model=…, benchmarks=[geneval,wise], …")
    evaluate.add_argument("--images", metavar="FOLDER", help="score these images instead of a model's")
    evaluate.add_argument("--benchmark", choices=("geneval", "dpgbench"), help="layout of --images")
    evaluate.add_argument("--output", metavar="FOLDER", help="default: outputs/evaluations/<name>")
    evaluate.add_argument("--from-replies", action="store_true", help="use stored replies only, ask no judge")
    evaluate.add_argument("--dry-run", action="store_true", help="generate, then print the judge's cost")
    evaluate.add_argument("--grids", metavar="FOLDER", help="also write DPG-Bench's official 2 x 2 grids here")
    evaluate.add_argument("--stop-early", action="store_true", help="compare with the base until it is settled")
    evaluate.add_argument("--aligned", type=Path, metavar="FOLDER", help="weights to compare; default: outputs/model")
    evaluate.add_argument("--minimum", type=float, default=0.0, help="difference to reach, a fraction (default 0)")
    evaluate.add_argument("--error-rate", type=float, default=0.05, help="of an early decision (default 0.05)")
    compare = verb("compare", _compare, "differences between two folders of scores, paired, with intervals")
    compare.add_argument("first", metavar="A")
    compare.add_argument("second", metavar="B")
    compare.add_argument("--json", action="store_true", help="for programs")


def _evaluate(options: argparse.Namespace) -> None:
    from reca.stages.evaluate import evaluate

    evaluate(options, workspace.project_root())


def _compare(options: argparse.Namespace) -> None:
    import json

    from reca.evaluation.compare import as_json, compare, table

    comparison = compare(Path(options.first), Path(options.second))
    print(json.dumps(as_json(comparison), indent=2) if options.json else table(comparison))


def _end_with_guard() -> None:
    """End this process when the guard of the flow that started it ends (flows/guard.py)."""
    guard = os.environ.get(GUARD)
    if guard is None:
        return
    try:
        descriptor = os.pidfd_open(int(guard))
    except ProcessLookupError:
        raise UserError("the flow that started this stage has ended") from None

    def watch() -> None:
        select.select([descriptor], [], [])  # readable once that process has ended
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(TERMINATE_GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="watch the guard").start()


def _start_flows(options: argparse.Namespace) -> None:
    """Replace this process by ``python -m flows``, because only that package imports Prefect."""
    verb = "run" if options.verb == "demo" else options.verb
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "flows", verb, *options.arguments])


def _doctor(options: argparse.Namespace) -> int:
    root = workspace.project_root()
    if options.overrides:
        words = [*options.overrides, *(["--json"] if options.json else [])]
        return subprocess.run([sys.executable, "-m", "tools.memory", *words], cwd=ROOT, check=False).returncode
    from reca.runtime.doctor import doctor

    return doctor(root, options.json)


def _registered(options: argparse.Namespace) -> int:
    from reca.tracking import reproduce

    commands = {
        "lineage": reproduce.lineage_command,
        "rollback": reproduce.rollback_command,
        "reproduce": reproduce.reproduce_command,
    }
    return commands[options.verb](options, workspace.project_root())


def _export(options: argparse.Namespace) -> int:
    from reca.tracking.export import export_command

    return export_command(options, workspace.project_root())
