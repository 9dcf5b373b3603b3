"""The label of every score: ``official`` only where every point equals the original."""

from pathlib import Path
from typing import Any

import pytest

from reca.config import compose
from reca.config.evaluate import BENCHMARKS
from reca.evaluation.benchmark import Benchmark, load_benchmark
from reca.evaluation.benchmarks.imgedit import rules as imgedit
from reca.runtime.errors import UserError

JUDGES = ("dpgbench", "wise", "imgedit", "gedit")
QUESTIONS = ("mme", "pope", "mmmu")
# Every setting that makes another measurement of a published benchmark, with a value that is not the original's.
CHANGES = [
    *((name, "max_prompts=1") for name in ("geneval", *JUDGES, *QUESTIONS)),
    *((name, f"judge.{change}") for name in JUDGES for change in (
        "model=another", "temperature=0.7", "max_tokens=8", "url=http://127.0.0.1:1/v1", "folder=data/judges/x")),
    *((name, "images_per_prompt=1") for name in ("geneval", "dpgbench")),
    *((name, "scoring=lmms-eval") for name in QUESTIONS),
    ("geneval", "detector=other/detector@main"),
    ("geneval", "clip=other/clip@main"),
    ("dpgbench", "official_quirks=true"),
    ("wise", "version=verified"),
    ("wise", "scoring=official"),
    ("imgedit", "scoring=official"),
    ("gedit", "language=cn"),
]  # fmt: skip
INVISIBLE = {"seed", "judge"}
"""The originals fix no seed; of a judge every setting is named above."""


def bench_of(name: str, root: Path, *changes: str) -> Any:
    words = [f"++evaluate.{name}.{change}" for change in changes]
    bench = load_benchmark(name, compose([f"evaluate.benchmarks=[{name}]", *words]), root)
    if name == "imgedit":
        bench.__dict__["_templates"] = {}  # as where the original's instructions did not come with the photographs
    return bench


@pytest.mark.parametrize("name", BENCHMARKS)
def test_by_default_everything_is_a_variant(name: str, tmp_path: Path) -> None:
    assert bench_of(name, tmp_path).protocol.startswith("variant: ")


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_the_label_tells_every_change(name: str, change: str, tmp_path: Path) -> None:
    assert bench_of(name, tmp_path, change).protocol != bench_of(name, tmp_path).protocol


@pytest.mark.parametrize("name", ["geneval", *JUDGES, *QUESTIONS])
def test_no_setting_is_forgotten(name: str) -> None:
    section = getattr(compose([f"evaluate.benchmarks=[{name}]"]).evaluate, name)
    covered = {change.partition("=")[0].partition(".")[0] for benchmark, change in CHANGES if benchmark == name}
    assert set(type(section).model_fields) == covered | (INVISIBLE & set(type(section).model_fields))


@pytest.mark.parametrize("name", ["geneval", *QUESTIONS])
def test_what_always_differs_keeps_the_word_away(name: str, tmp_path: Path) -> None:
    assert "official" not in bench_of(name, tmp_path).protocol


def test_imgedit_is_official_only_with_everything_as_in_the_original(tmp_path: Path) -> None:
    bench = bench_of("imgedit", tmp_path, "scoring=official")
    assert bench.protocol == "variant: judge's instructions written anew"
    bench.__dict__["_templates"] = dict.fromkeys(imgedit.ITEMS, "…")
    assert bench.protocol == "official"
    for _, change in (pair for pair in CHANGES if pair[0] == "imgedit" and pair[1] != "scoring=official"):
        other = bench_of("imgedit", tmp_path, "scoring=official", change)
        other.__dict__["_templates"] = bench.__dict__["_templates"]
        assert other.protocol.startswith("variant: "), change


def test_benchmark_without_a_member_of_the_contract_cannot_be_set_up():
    members = Benchmark.__abstractmethods__
    assert members == {"from_config", "protocol", "judge", "plan", "make", "score", "details"}
    for member in members:
        members_left = {name: None for name in members if name != member}
        with pytest.raises(TypeError, match=f"abstract method '?{member}"):
            type("Incomplete", (Benchmark,), members_left)()


def test_benchmark_without_judge_model_refuses_stored_replies(tmp_path):
    bench = load_benchmark("understanding", compose(), tmp_path)
    bench.configure_judge(tmp_path)
    for refused in (
        lambda: bench.configure_judge(tmp_path, only_stored=True),
        lambda: bench.ask([], tmp_path),
        lambda: bench.estimate([], tmp_path),
    ):
        with pytest.raises(UserError, match="understanding asks no judge"):
            refused()
    with pytest.raises(UserError, match="understanding cannot score images made elsewhere"):
        bench.existing_samples(tmp_path)
