"""dvc.yaml tells the truth: its parameters exist and are all that a stage reads, its code is all that a stage runs."""

import ast
import subprocess
from functools import cache

import grimp
import pytest

from reca.config import ROOT, Config, compose, flatten
from reca.runtime import code_digest
from tests.architecture.graph import BENCHMARKS, Stage, config_reads, fill, read_stages

STAGES = [stage for stage in read_stages() if stage.name not in ("code", "base")]
TRACKED = {"model", "data", "extract", "train", "generate", "evaluate", "register", "seed"}
UNTRACKED = {"hardware", "tracking", "paths"}
TRAINING_ONLY = {"model.hub", "model.name", "model.prompt_dropout", "model.train_vision"}
"""Keys of ``model`` that say nothing about how a checkpoint is loaded and drawn from."""
IN_THE_GRAPH = {"data.path", "evaluate", "evaluate.benchmarks"}
"""The path is a dependency by its content; the benchmarks are the matrix; the section is a way to its parts."""
each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


@cache
def keys() -> frozenset[str]:
    """Every key of the configuration, sections included."""
    found: set[str] = set()
    for key in flatten(compose([f"evaluate.benchmarks=[{','.join(BENCHMARKS)}]"]).to_dict()):
        parts = key.split(".")
        found |= {".".join(parts[: length + 1]) for length in range(len(parts))}
    return frozenset(found)


def test_the_stages_are_those_of_the_design() -> None:
    assert [stage.name for stage in STAGES] == [
        "ingest", "extract", "train", "generate", "score", "report"
    ]  # fmt: skip
    assert {field.alias or name for name, field in Config.model_fields.items()} == TRACKED | UNTRACKED


@each_stage
def test_parameters_exist_and_change_results(stage: Stage) -> None:
    for param in stage.params:
        for benchmark in BENCHMARKS:
            assert fill(param, {"${item.benchmark}": benchmark}) in keys(), f"{stage.name}: no such parameter {param}"
        assert param.split(".")[0] in TRACKED, f"{stage.name}: {param} changes speed or place, not results"


@each_stage
def test_every_parameter_that_the_code_reads_is_tracked(stage: Stage) -> None:
    """What ``config.a.b`` reads anywhere in the stage's code stands in its params, whole or in parts."""
    for chosen in stage.choices():
        declared = [fill(param, chosen) for param in stage.params]
        reads = {read for module in stage.modules(chosen) for read in config_reads(module)}
        for read in sorted(reads):
            parts = read.split(".")
            key = next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in keys()), "")
            if (
                key.split(".")[0] not in TRACKED
                or key in IN_THE_GRAPH
                or of_other_benchmark(key, chosen["${item.benchmark}"])
            ):
                continue
            leaves = {leaf for leaf in keys() if within(leaf, key)} - {one for one in keys() if has_parts(one)}
            missing = {leaf for leaf in leaves - TRAINING_ONLY if not any(within(leaf, param) for param in declared)}
            assert not missing, f"{stage.name} reads config.{read}: name {', '.join(sorted(missing))} in its params"


def within(key: str, section: str) -> bool:
    return f"{key}.".startswith(f"{section}.")


def has_parts(key: str) -> bool:
    return any(other != key and within(other, key) for other in keys())


def of_other_benchmark(key: str, benchmark: str) -> bool:
    """Read in shared code, by another benchmark than the one that this stage runs."""
    return bool(benchmark) and any(within(key, f"evaluate.{name}") for name in BENCHMARKS if name != benchmark)


@each_stage
def test_each_stage_depends_on_the_digest_of_its_code(stage: Stage) -> None:
    digests = code_digest.all_digests()
    (key,) = stage.code
    for chosen in stage.choices():
        value = digests
        for part in fill(key, chosen).split("."):
            value = value[part]
        assert len(value) == 16
    assert key.split(".")[0] == stage.name


def test_imports_are_those_that_grimp_finds() -> None:
    """An independent reader of imports agrees with ours, for every module."""
    graph = grimp.build_graph("reca", cache_dir=None, exclude_type_checking_imports=True)
    for module in graph.modules:
        ours = code_digest.imported_modules(module)
        assert ours == graph.find_modules_directly_imported_by(module), module


def test_infrastructure_imports_only_infrastructure() -> None:
    """What is left out of the digests cannot bring in what makes a result."""
    modules = {module for module in all_modules() if is_infrastructure(module)}
    for module in modules:
        outside = {name for name in code_digest.imported_modules(module) if not is_infrastructure(name)}
        assert not outside, f"{module} imports {outside}"


def all_modules() -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "reca").rglob("*.py"))
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


def is_infrastructure(module: str) -> bool:
    return any(f"{module}.".startswith(f"{prefix}.") for prefix in code_digest.INFRASTRUCTURE)


@each_stage
def test_each_stage_is_one_function_of_one_module(stage: Stage) -> None:
    tree = ast.parse((ROOT / f"reca/stages/{stage.name}.py").read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == stage.name)
    wanted = ["config", "root"] + (["variant", "benchmark"] if stage.over_benchmarks else [])
    assert [argument.arg for argument in function.args.args] == wanted
    variant = ["${item.variant}", "${item.benchmark}"] if stage.over_benchmarks else []
    assert stage.definition["cmd"] == " ".join(["python -m reca", stage.name, *variant])


@each_stage
def test_outputs_belong_to_dvc_alone(stage: Stage) -> None:
    """Everything lies in outputs/, which git ignores, and is cached, so that a second clone reruns nothing."""
    for kind in ("outs", "metrics", "plots"):
        for out in stage.definition.get(kind, []):
            assert isinstance(out, str), f"{stage.name}: {out} has options; cached and not kept between runs is meant"
            assert out.startswith("outputs/")
    if (ROOT / ".git").exists():
        assert subprocess.run(["git", "check-ignore", "-q", "outputs/any"], cwd=ROOT).returncode == 0


def test_dvc_settings() -> None:
    """DVC composes nothing (one truth), adds nothing to git by itself, tells nobody."""
    config = (ROOT / ".dvc/config").read_text()
    for line in (
        "analytics = false",
        "autostage = false",
        "[hydra]\n    enabled = false",
        "url = ../../reca-dvc-remote",
    ):
        assert line in config
