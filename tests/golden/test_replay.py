"""Our scoring code gives the recorded answers of the official code, on every golden folder."""

import json
import shutil
from pathlib import Path

import pytest

from tests.golden.replay import BENCHMARKS, main, replay

GOLDEN = Path(__file__).parent
MANY = {"dpg": 350, "dsg": 9000, "gedit": 240, "geneval": 600, "imgedit": 750, "understanding": 90, "viescore": 80,
        "wise": 50}  # fmt: skip


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_recorded_answer_is_ours(benchmark: str) -> None:
    folder = replay(benchmark, GOLDEN / benchmark)
    assert [str(tally) for tally in folder.tallies if tally.agreed < tally.cases or tally.unusable] == []
    assert sum(tally.cases for tally in folder.tallies) >= MANY[benchmark]
    assert folder.unknown() == []


def copy_of(benchmark: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / benchmark, tmp_path / benchmark))


def test_a_wrong_number_is_a_disagreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_of("imgedit", tmp_path)
    cases = json.loads((folder / "edge_replies.json").read_text())
    cases[3]["item_score"] += 0.01
    (folder / "edge_replies.json").write_text(json.dumps(cases))
    assert main(["imgedit", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert f"edge_replies.json: {len(cases)} cases, {len(cases) - 1} agreed" in printed
    assert f"first disagreement: {cases[3]['reply']!r}: expected {cases[3]['item_score']}" in printed


@pytest.mark.parametrize(
    ("benchmark", "file"), [("dpg", "cases.json"), ("gedit", "scores.csv"), ("wise", "expected.json")]
)
def test_files_may_be_missing(benchmark: str, file: str, tmp_path: Path) -> None:
    folder = copy_of(benchmark, tmp_path)
    (folder / file).unlink()
    assert main([benchmark, str(folder)]) == 0


def test_what_a_missing_file_prevents_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_of("dpg", tmp_path)
    (folder / "questions.csv").unlink()
    main(["dpg", str(folder)])
    assert "cases.json: 0 cases, 0 agreed\n  not compared: it needs questions.csv" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"{}", b'{"replies": ', b"\x1f\x8b damaged", b'"text"'])
def test_damaged_files_are_named_and_not_scored(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of("imgedit", tmp_path)
    (folder / "basic.json").write_bytes(content)
    assert main(["imgedit", str(folder)]) == 2
    printed = capsys.readouterr()
    assert "basic.json: 0 cases, 0 agreed\n  unusable: " in printed.out
    assert "Traceback" not in printed.out + printed.err


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wise", str(tmp_path / "nowhere")]) == 2
    assert main(["wise", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert "nowhere is no folder" in errors
    assert "nothing to replay" in errors


def test_other_cases_in_another_order(tmp_path: Path) -> None:
    folder = copy_of("dpg", tmp_path)
    lines = (folder / "questions.csv").read_text().splitlines(keepends=True)
    recorded = json.loads((folder / "cases.json").read_text())
    run = recorded["first_row_bug_removed"]
    kept = dict(reversed(list(run["per_image"].items())[:7]))
    score = 100 * sum(image["average"] for image in kept.values()) / len(kept)
    only = {"answers": recorded["answers"], "first_row_bug_removed": {"per_image": kept, "score": score}}
    (folder / "cases.json").write_text(json.dumps(only))
    (folder / "questions.csv").write_text("".join([lines[0], *lines[5:], *lines[1:5]]))
    assert main(["dpg", str(folder)]) == 0
