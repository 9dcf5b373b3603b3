"""The contract of :mod:`reca.evaluation.benchmark`, tested on every benchmark that needs no download or endpoint."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from reca.config import ROOT, Config, compose
from reca.config.evaluate import BENCHMARKS
from reca.config.sections import EvaluateSection
from reca.evaluation.benchmark import Benchmark, Scores, load_benchmark, read_items, read_scores
from reca.evaluation.samples import Row, row_key
from reca.models.base import ImageSpec, Semantic
from reca.models.sampling import Sampling
from reca.runtime.hashing import file_digest
from reca.runtime.seeding import SampleRng
from reca.stages.score import measure

SAMPLING = Sampling(guidance_scale=1.0)


def config_for(name: str, *words: str) -> Config:
    """Return the default configuration with one benchmark."""
    return compose([f"evaluate.benchmarks=[{name}]", "evaluate.bootstrap_resamples=50", *words])


def is_published(name: str) -> bool:
    """Return whether a benchmark is published: only these have ``max_prompts``, and prompts or judges to download."""
    settings = EvaluateSection.model_fields[name].annotation
    return any("max_prompts" in getattr(kind, "model_fields", {}) for kind in (settings, *get_args(settings)))


OFFLINE = [name for name in BENCHMARKS if not is_published(name)]


class StubModel(nn.Module):
    """A model whose images are noise that depends only on the seeds."""

    family = "stub"
    spec = ImageSpec.square(understanding_size=24, generation_size=24, semantic_tokens=1, target_tokens=36)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        return rng.uniform("noise", (3, 24, 24)) * 2 - 1

    def edit(
        self, images: Sequence[Tensor], instructions: Sequence[str], sampling: Sampling, rng: SampleRng
    ) -> list[Tensor]:
        return list(self.generate(instructions, sampling, rng))

    def encode_semantic(self, images: Tensor) -> Semantic:
        return Semantic(images.flatten(1)[:, None])

    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        return self.generate([], sampling, rng)

    def answer(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        return ["yes"] * len(questions)


def load(name: str) -> Benchmark:
    """Set up a benchmark in this project."""
    return load_benchmark(name, config_for(name), ROOT)


def few_rows(bench: Benchmark) -> list[Row]:
    """Return the rows of two prompts of every category."""
    plan = bench.plan()
    prompts: dict[str, dict[str, None]] = {}
    for row in plan:
        prompts.setdefault(row["category"], {})[row["prompt_id"]] = None
    few = {prompt for category in prompts.values() for prompt in list(category)[:2]}
    return [row for row in plan if row["prompt_id"] in few]


def make(bench: Benchmark, rows: Sequence[Row], folder: Path) -> list[Row]:
    """Make samples with the stub model."""
    folder.mkdir(exist_ok=True)
    with torch.inference_mode():
        return bench.make(StubModel(), rows, SAMPLING, folder)


def scores_of(bench: Benchmark, rows: Sequence[Row], folder: Path) -> Scores:
    """Score samples as the stage does."""
    generation = {"params": {"generate": {}}, "checkpoint": "stub"}
    measure(bench, config_for(bench.name), "evaluated", folder, rows, generation, folder / "scores")
    return read_scores(folder / f"scores/{bench.name}.json")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_reach_other_processes(name: str, tmp_path: Path) -> None:
    bench = load_benchmark(name, compose([f"evaluate.benchmarks=[{name}]"]), tmp_path)
    if bench.asks_model:
        bench.configure_judge(tmp_path / "replies")
    assert type(pickle.loads(pickle.dumps(bench))) is type(bench)


@pytest.mark.parametrize("name", OFFLINE)
def test_plan_is_deterministic_and_independent_of_the_seed_of_the_run(name: str) -> None:
    plan = load(name).plan()
    assert load_benchmark(name, config_for(name, "seed=9"), ROOT).plan() == plan
    assert len({row_key(row) for row in plan}) == len(plan)
    seeds = [row["seed"] for row in plan if "seed" in row]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("name", OFFLINE)
def test_samples_do_not_depend_on_their_batch(name: str, tmp_path: Path) -> None:
    bench = load(name)
    rows = few_rows(bench)
    batch = make(bench, rows, tmp_path / "batch")
    assert [row_key(row) for row in batch] == [row_key(row) for row in rows]
    assert [sample for row in rows for sample in make(bench, [row], tmp_path / "single")] == batch
    for file in (tmp_path / "batch").iterdir():
        assert file_digest(file) == file_digest(tmp_path / "single" / file.name)


@pytest.mark.parametrize("name", OFFLINE)
def test_finished_samples_are_scored_by_category(name: str, tmp_path: Path) -> None:
    bench = load(name)
    rows = make(bench, few_rows(bench), tmp_path)
    scores = scores_of(bench, rows, tmp_path)
    items = read_items(tmp_path / f"scores/{name}.items.jsonl")
    assert scores.categories.keys() == {item.category for item in items}
    assert {item.prompt_id for item in items} == {row["prompt_id"] for row in rows}
    assert (scores.failed, scores.benchmark, scores.judge) == (0, name, bench.judge)
    assert scores.weights == {key: weight for key, weight in bench.weights.items() if key in scores.categories}


@pytest.mark.parametrize("name", [name for name in OFFLINE if name != "understanding"])  # whose samples are text
def test_damaged_sample_is_counted_as_failed(name: str, tmp_path: Path) -> None:
    bench = load(name)
    rows = make(bench, few_rows(bench), tmp_path)
    (tmp_path / rows[0]["file"]).write_bytes(b"not an image")
    scores = scores_of(bench, rows, tmp_path)
    items = read_items(tmp_path / f"scores/{name}.items.jsonl")
    damaged = [item for item in items if item.prompt_id == rows[0]["prompt_id"]]
    assert all(item.values.count(None) == 1 for item in damaged)
    assert scores.failed == len(damaged) > 0
