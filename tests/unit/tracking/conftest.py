"""Projects as the stages leave them, in temporary folders, and one migrated MLflow database that is copied for each."""

import hashlib
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from reca.config import Config
from reca.evaluation.benchmark import ItemScore, Scores, values_of, write_items
from reca.evaluation.promotion import evaluate_rules
from reca.evaluation.statistics import BenchmarkDelta, Values, paired_delta
from reca.runtime.hashing import weights_digest
from reca.tracking import runs
from reca.tracking.lineage import dvc_md5

NAME = "reca-janus_tiny"
PROMPTS = 48


def write_scores(path: Path, benchmark: str, variant: str, values: Values) -> None:
    """Write a score file that matches its items."""
    shares = {
        name: float(np.mean([v for scores in prompts.values() for v in scores])) for name, prompts in values.items()
    }
    spread = {"low": 0.0, "high": 1.0}
    record = {
        "benchmark": benchmark,
        "variant": variant,
        "protocol": "variant: made up",
        "overall": {"value": float(np.mean(list(shares.values()))), "n": PROMPTS, **spread},
        "categories": {name: {"value": share, "n": PROMPTS // 2, **spread} for name, share in shares.items()},
        "expected": PROMPTS,
        "scored": PROMPTS,
        "failed": 0,
        "images_per_prompt": 1,
        "seed": 0,
        "settings": {},
        "checkpoint": "c" * 64,
        "judge": {"name": "nobody", "version": "0"},
    }
    path.write_text(Scores.model_validate(record).model_dump_json())


@dataclass
class Project:
    """A minimal project folder with finished outputs."""

    root: Path
    config: Config

    def results(
        self, weights: int | None = 0, skill: float = 0.8, benchmark_set: str = "s" * 64, lock: bool = True
    ) -> None:
        """Write base and aligned weights, scores, curves, the report and (with ``lock``) ``dvc.lock``.

        Args:
            weights: Seed of the aligned weights: equal seeds, equal weights; ``None`` keeps those that are there.
            skill: Share of prompts that the aligned model gets right; the base gets half right.
            benchmark_set: As in ``verdict.json``.
            lock: Whether DVC made all this.
        """
        outputs = self.root / "outputs"
        _weights(self.root / self.config.model.checkpoint, 999)
        if weights is not None:
            _weights(outputs / "model", weights)
        _result(outputs / "model", "train", self.config, ("model", "train", "seed"))
        (outputs / "dataset").mkdir(parents=True, exist_ok=True)
        (outputs / "dataset/shard-00000.tar").write_bytes(b"images")
        _result(outputs / "dataset", "ingest", self.config, ("data",))
        (outputs / "curves").mkdir(exist_ok=True)
        (outputs / "curves/train.csv").write_text("step,loss,grad_norm\n1,3.5,1.0\n2,3.25,\n3,nan,0.5\n")
        deltas = self._scores(skill)
        self._report(deltas, benchmark_set)
        if lock:
            self.lock()

    def lock(self, **params: Any) -> None:
        """Write ``dvc.lock`` for the files in ``outputs/`` (JSON is YAML)."""
        values = self.config.to_dict()
        stages = {
            "ingest": _stage(self.root, [self.config.data.path], ["outputs/dataset"], {"data": values["data"]}),
            "train": _stage(
                self.root,
                ["outputs/dataset", self.config.model.checkpoint],
                ["outputs/model", "outputs/curves"],
                {"model.family": values["model"]["family"], "train": {**values["train"], **params}, "seed": 0},
            ),
            "report": _stage(self.root, ["outputs/model"], ["outputs/report"], {}),
        }
        (self.root / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))

    def store(self) -> runs.Store:
        return runs.locate_store(self.config, self.root)

    def registered(self) -> dict[str, Any]:
        """The record of the last registration."""
        return json.loads((self.root / ".reca/register.json").read_text())

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the database itself, not MLflow."""
        connection = sqlite3.connect(self.root / "mlruns/mlflow.db")
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def _scores(self, skill: float) -> dict[str, BenchmarkDelta]:
        deltas = {}
        for benchmark in self.config.evaluate.benchmarks:
            sides = {}
            for variant, share in (("base", 0.5), ("aligned", skill)):
                items = [
                    ItemScore(f"p{n}", f"c{n % 2}", (float(n // 2 < share * PROMPTS / 2),)) for n in range(PROMPTS)
                ]
                folder = self.root / "outputs/scores" / variant
                folder.mkdir(parents=True, exist_ok=True)
                write_items(folder / f"{benchmark}.items.jsonl", items)
                sides[variant] = values_of(items)
                write_scores(folder / f"{benchmark}.json", benchmark, variant, sides[variant])
            deltas[benchmark] = paired_delta(sides["base"], sides["aligned"], resamples=200)
        return deltas

    def _report(self, deltas: dict[str, BenchmarkDelta], benchmark_set: str) -> None:
        report = self.root / "outputs/report"
        report.mkdir(parents=True, exist_ok=True)
        record = {
            **evaluate_rules(self.config.register_.promotion_rules, deltas, "left to registration").to_dict(),
            "benchmark_set": benchmark_set,
            "checkpoint": {"aligned": weights_digest(self.root / "outputs/model")},
        }
        (report / "verdict.json").write_text(json.dumps(record))
        (report / "deltas.json").write_text(json.dumps({name: asdict(delta) for name, delta in deltas.items()}))
        (report / "index.html").write_text("<h1>report</h1>")


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; migration takes seconds, a copy milliseconds."""
    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    runs.create_database(database)
    return database


@pytest.fixture
def make_project(tmp_path: Path, migrated_database: Path) -> Callable[..., Project]:
    """Projects with a database that is ready (or none); sections of the configuration may be changed."""

    def make(name: str = "project", database: bool = True, **sections: dict[str, Any]) -> Project:
        return _make(tmp_path / name, migrated_database if database else None, sections)

    return make


@pytest.fixture(scope="module")
def make_template(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Callable[[], Project]:
    """A project with results, to be copied by the tests of a module."""

    def make() -> Project:
        project = _make(tmp_path_factory.mktemp("template") / "project", migrated_database, {})
        project.results()
        return project

    return make


@pytest.fixture
def git() -> Callable[..., str]:
    """``git(folder, *arguments)``."""

    def run(folder: Path, *arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout

    return run


@pytest.fixture
def project(make_project: Callable[..., Project]) -> Project:
    """One project with results that pass the promotion rules."""
    project = make_project()
    project.results()
    return project


def _make(root: Path, database: Path | None, sections: dict[str, dict[str, Any]]) -> Project:
    (root / "mlruns").mkdir(parents=True)
    if database:
        shutil.copy(database, root / "mlruns/mlflow.db")
    values = Config.load().to_dict()
    for section, changes in sections.items():
        values[section] |= changes
    (root / values["data"]["path"]).parent.mkdir(parents=True)
    (root / values["data"]["path"]).write_text("the recipe\n")
    config = Config.validated(values)
    (root / "params.yaml").write_text(config.to_yaml())
    return Project(root, config)


def _weights(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).standard_normal(64).astype(np.float32)
    save_file({"weight": values}, folder / "model.safetensors")


def _result(folder: Path, stage: str, config: Config, sections: tuple[str, ...]) -> None:
    values = config.to_dict()
    params = {name: values[name] for name in sections}
    (folder / "result.json").write_text(json.dumps({"stage": stage, "params": params}))


def _stage(root: Path, deps: list[str], outs: list[str], params: dict[str, Any]) -> dict[str, Any]:
    entries = {
        kind: [{"path": path, "hash": "md5", "md5": dvc_md5(root / path)} for path in paths]
        for kind, paths in (("deps", deps), ("outs", outs))
    }
    return {"cmd": "a command", **entries, **({"params": {"params.yaml": params}} if params else {})}


def fingerprint(folder: Path) -> str:
    """Names and bytes of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()
