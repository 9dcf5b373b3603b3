"""RecA against its controls, and the ablation: what is compared, and under which name it is written."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

from reca.config import ROOT
from reca.evaluation.benchmark import ItemScore, write_items
from reca.runtime.files import write_json
from reca.runtime.hashing import weights_digest

alignment, ablation = import_module("bench.alignment"), import_module("bench.ablation")


def scored(root: Path, variant: str, rights: int) -> None:
    """Write items of all benchmarks: two categories, ten prompts each, of which the first ``rights`` are right."""
    folder = root / "outputs/scores" / variant
    folder.mkdir(parents=True)
    for benchmark in ("scenes", "fidelity", "understanding"):
        items = [
            ItemScore(f"{category}-{number}", category, (float(number < rights),), ("x.png",), ({},))
            for category in ("single_object", "position")
            for number in range(10)
        ]
        write_items(folder / f"{benchmark}.items.jsonl", items)
        write_json(folder / f"{benchmark}.json", {})


def test_alignment_compares_the_arms_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    work = tmp_path / "work"
    scored(work / "base", "base", 4)
    scored(work / "seed-3/reca", "aligned", 7)
    scored(work / "seed-3/sparse", "aligned", 5)
    monkeypatch.setattr(alignment, "ROOT", tmp_path)
    arguments = ["--model", "openuni_tiny", "--compare-only", "--seeds", "3", "--arms", "reca", "sparse"]
    monkeypatch.setattr(sys, "argv", ["alignment", *arguments, "--work", str(work)])
    alignment.main()
    results = json.loads((tmp_path / "bench/results/alignment-openuni_tiny.json").read_text())
    assert results["model"] == "openuni_tiny"
    assert results["base"] == weights_digest(ROOT / "data/bases/openuni_tiny")
    assert results["scenes"]["means"]["reca"]["overall"] == pytest.approx(0.7)
    delta, low, high = results["scenes"]["deltas"]["reca - sparse"]["all"]["overall"]
    assert delta == pytest.approx(0.2)
    assert low <= delta <= high
    assert "dense - sparse" not in results["scenes"]["deltas"]


def test_ablation_compares_the_settings_that_have_finished(tmp_path: Path) -> None:
    scored(tmp_path / "base", "base", 4)
    scored(tmp_path / "seed-0/recipe", "aligned", 6)
    write_json(tmp_path / "seed-0/recipe" / alignment.CPU_SECONDS, {"train": 12.5})
    results = ablation.compare(tmp_path, [0])
    assert list(results["settings"]) == ["recipe"]
    assert results["settings"]["recipe"]["scenes"]["overall"][0] == pytest.approx(0.2)
    assert "| recipe | 1 | 12 | +20.0 [" in ablation.table(results)
