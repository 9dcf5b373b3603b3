"""dvc.yaml lists exactly the parameters that a stage reads and the code that it runs."""

import ast
import subprocess
from functools import cache

import grimp
import pytest

from reca.config import ROOT, Config, compose, flatten
from reca.config.evaluate import BENCHMARKS
from reca.runtime import code_digest
from tests.architecture.graph import StageDefinition, config_reads, fill, read_stages

STAGES = [stage for stage in read_stages() if stage.name not in ("code", "base")]
UNTRACKED = {"hardware", "tracking", "paths"}
TRACKED = {field.alias or name for name, field in Config.model_fields.items()} - UNTRACKED
TRAINING_ONLY = {"model.hub", "model.name", "model.prompt_dropout", "model.train_vision"}
"""Keys of ``model`` without effect on loading and sampling a checkpoint."""
IN_THE_GRAPH = {"data.path", "evaluate", "evaluate.benchmarks"}
"""The path is a dependency by content; the benchmarks are the matrix; the section is a path to its parts."""
each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


@cache
def keys() -> frozenset[str]:
    """Return every key of the configuration, sections included."""
    names: set[str] = set()
    for key in flatten(compose([f"evaluate.benchmarks=[{','.join(BENCHMARKS)}]"]).to_dict()):
        parts = key.split(".")
        names |= {".".join(parts[: length + 1]) for length in range(len(parts))}
    return frozenset(names)


@each_stage
def test_parameters_exist_and_change_results(stage: StageDefinition) -> None:
    for param in stage.params:
        for benchmark in BENCHMARKS:
            assert fill(param, {"${item.benchmark}": benchmark}) in keys(), f"{stage.name}: no such parameter {param}"
        assert param.split(".")[0] in TRACKED, f"{stage.name}: {param} changes speed or place, not results"


@each_stage
def test_every_parameter_that_the_code_reads_is_tracked(stage: StageDefinition) -> None:
    """Every ``config.a.b`` in the stage's code is in its params, as a whole or in parts."""
    for choice in stage.choices():
        declared = [fill(param, choice) for param in stage.params]
        reads = {read for module in stage.modules(choice) for read in config_reads(module)}
        for read in sorted(reads):
            parts = read.split(".")
            key = next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in keys()), "")
            if (
                key.split(".")[0] not in TRACKED
                or key in IN_THE_GRAPH
                or of_other_benchmark(key, choice["${item.benchmark}"])
            ):
                continue
            leaves = {leaf for leaf in leaf_keys() if within(leaf, key)} - TRAINING_ONLY
            untracked = {leaf for leaf in leaves if not any(within(leaf, param) for param in declared)}
            assert not untracked, f"{stage.name} reads config.{read}: name {', '.join(sorted(untracked))} in its params"


def within(key: str, section: str) -> bool:
    return f"{key}.".startswith(f"{section}.")


@cache
def leaf_keys() -> frozenset[str]:
    """Return the keys without the sections."""
    return keys() - {".".join(key.split(".")[:-1]) for key in keys()}


def of_other_benchmark(key: str, benchmark: str) -> bool:
    """Return whether shared code reads a key for another benchmark than the stage's."""
    return bool(benchmark) and any(within(key, f"evaluate.{name}") for name in BENCHMARKS if name != benchmark)


@each_stage
def test_each_stage_depends_on_the_digest_of_its_code(stage: StageDefinition) -> None:
    digests = code_digest.all_digests()
    (key,) = stage.code
    for choice in stage.choices():
        value = digests
        for part in fill(key, choice).split("."):
            value = value[part]
        assert len(value) == 16
    assert key.split(".")[0] == stage.name


def test_imports_are_those_that_grimp_finds() -> None:
    """Compare our reader of imports with an independent one."""
    graph = grimp.build_graph("reca", cache_dir=None, exclude_type_checking_imports=True)
    for module in graph.modules:
        ours = code_digest.imported_modules(module)
        assert ours == graph.find_modules_directly_imported_by(module), module


def test_infrastructure_imports_only_infrastructure() -> None:
    """Infrastructure is not part of the digests, so it must not import code that makes results."""
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
def test_each_stage_is_one_function_of_one_module(stage: StageDefinition) -> None:
    tree = ast.parse((ROOT / f"reca/stages/{stage.name}.py").read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == stage.name)
    arguments = ["config", "root"] + (["variant", "benchmark"] if stage.over_benchmarks else [])
    assert [argument.arg for argument in function.args.args] == arguments
    variant = ["${item.variant}", "${item.benchmark}"] if stage.over_benchmarks else []
    assert stage.definition["cmd"] == " ".join(["python -m reca", stage.name, *variant])


@each_stage
def test_outputs_belong_to_dvc_alone(stage: StageDefinition) -> None:
    """Outputs are in outputs/, which git ignores, and cached, so that a second clone reruns no stage."""
    for kind in ("outs", "metrics", "plots"):
        for out in stage.definition.get(kind, []):
            assert isinstance(out, str), f"{stage.name}: {out} has options; cached and not kept between runs is meant"
            assert out.startswith("outputs/")
    if (ROOT / ".git").exists():
        assert subprocess.run(["git", "check-ignore", "-q", "outputs/any"], cwd=ROOT).returncode == 0


def test_dvc_settings() -> None:
    """DVC does not compose, does not stage files in git and sends no analytics."""
    config = (ROOT / ".dvc/config").read_text()
    for line in (
        "analytics = false",
        "autostage = false",
        "[hydra]\n    enabled = false",
        "url = ../../reca-dvc-remote",
    ):
        assert line in config
