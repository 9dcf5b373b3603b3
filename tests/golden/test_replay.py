"""Replays of the official code's recorded answers in every golden folder, and of damaged and partial folders."""

import json
import shutil
from pathlib import Path

import pytest

from tests.golden.replay import BENCHMARKS, main, replay

GOLDEN = Path(__file__).parent
MANY = {"dpg": 350, "dsg": 9000, "gedit": 240, "geneval": 600, "imgedit": 750, "understanding": 90, "viescore": 80,
        "wise": 50}  # fmt: skip


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_replay_agrees_with_every_recorded_answer(benchmark: str) -> None:
    folder = replay(benchmark, GOLDEN / benchmark)
    assert [str(tally) for tally in folder.tallies if tally.agreed < tally.cases or tally.unusable] == []
    assert sum(tally.cases for tally in folder.tallies) >= MANY[benchmark]
    assert folder.unknown() == []


def copy_of(benchmark: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / benchmark, tmp_path / benchmark))


def test_a_wrong_number_is_reported_as_a_disagreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_of("imgedit", tmp_path)
    cases = json.loads((folder / "edge_replies.json").read_text())
    cases[3]["item_score"] += 0.01
    (folder / "edge_replies.json").write_text(json.dumps(cases))
    assert main(["imgedit", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert f"edge_replies.json: {len(cases)} cases, {len(cases) - 1} agreed" in printed
    assert f"first disagreement: case 3, {cases[3]['reply']!r}: expected {cases[3]['item_score']}" in printed


@pytest.mark.parametrize(
    ("benchmark", "file"), [("dpg", "cases.json"), ("gedit", "scores.csv"), ("wise", "expected.json")]
)
def test_replay_accepts_missing_files(benchmark: str, file: str, tmp_path: Path) -> None:
    folder = copy_of(benchmark, tmp_path)
    (folder / file).unlink()
    assert main([benchmark, str(folder)]) == 0


def test_cases_without_their_supporting_file_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_of("dpg", tmp_path)
    (folder / "questions.csv").unlink()
    main(["dpg", str(folder)])
    assert "cases.json: 0 cases, 0 agreed\n  not compared: it needs questions.csv" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"{}", b'{"replies": ', b"\x1f\x8b damaged", b'"text"'])
def test_damaged_files_are_reported_and_not_scored(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of("imgedit", tmp_path)
    (folder / "basic.json").write_bytes(content)
    assert main(["imgedit", str(folder)]) == 2
    printed = capsys.readouterr()
    assert "basic.json: 0 cases, 0 agreed\n  unusable: " in printed.out
    assert "Traceback" not in printed.out + printed.err


def test_malformed_cases_do_not_stop_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_of("gedit", tmp_path)
    recorded = json.loads((folder / "reply_parser.json").read_text())
    odd = [{"reply": "7"}, None, {"parsed": False}]  # the first has no expectation
    recorded["cases"][1:1] = odd
    (folder / "reply_parser.json").write_text(json.dumps(recorded))
    assert main(["gedit", str(folder)]) == 2
    good = len(recorded["cases"]) - len(odd)
    printed = capsys.readouterr().out
    assert f"reply_parser.json: {good} cases, {good} agreed\n  unusable: 3 cases" in printed
    assert "the first: case 1: KeyError: 'parsed'" in printed


@pytest.mark.parametrize(
    ("benchmark", "file"),
    [
        ("imgedit", "basic.json"),
        ("understanding", "mme.json"),
        ("geneval", "pipeline/cases.json"),
        ("dsg", "published.json"),
    ],
)
def test_absent_files_are_reported(
    benchmark: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(benchmark, tmp_path)
    (folder / file).unlink()
    assert main([benchmark, str(folder)]) == 0
    name, _, ending = file.partition(".")
    assert f"{name}*.{ending}: not in this folder" in capsys.readouterr().out


def test_scenes_without_their_images_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_of("geneval", tmp_path)
    cases = json.loads((folder / "pipeline/cases.json").read_text())["cases"]
    colored = next(case for case in cases if "color" in case["metadata"]["include"][0] and case["detections"])
    (folder / "pipeline" / colored["detections"][0]["mask"]).unlink()
    assert main(["geneval", str(folder)]) == 0
    assert "scenes of images or masks that this folder lacks" in capsys.readouterr().out


def test_nan_scores_make_the_means_nan(tmp_path: Path) -> None:
    folder = copy_of("gedit", tmp_path)
    lines = (folder / "scores.csv").read_text().splitlines()
    row = next(number for number, line in enumerate(lines) if line.startswith("color_alter") and line.endswith(",en"))
    cells = lines[row].split(",")
    cells[-4] = "nan"  # of semantics
    lines[row] = ",".join(cells)
    (folder / "scores.csv").write_text("\n".join(lines))
    tables = json.loads((folder / "statistics.json").read_text())
    for measure in ("semantics", "overall"):
        for name in ("color_alter", f"avg_{measure}"):
            tables["expected"]["en"][measure][name] = float("nan")
            if cells[-2] == "True":
                tables["expected"]["en"][f"{measure}_intersection"][name] = float("nan")
    (folder / "statistics.json").write_text(json.dumps(tables))
    (folder / "scores_en.expected.txt").unlink()
    assert main(["gedit", str(folder)]) == 0


def test_recorded_exceptions_are_expected(tmp_path: Path) -> None:
    read = {"SC": [4], "PQ": [9, 12], "semantics": 4, "quality": 9, "overall": 6}
    cases = [{"SC": [], "PQ": [1, 2], "exception": "ValueError"}, read]
    (tmp_path / "viescore_min_sqrt.json").write_text(json.dumps(cases))
    assert main(["gedit", str(tmp_path)]) == 0
    cases[1]["exception"] = "ValueError"
    (tmp_path / "viescore_min_sqrt.json").write_text(json.dumps(cases))
    assert main(["gedit", str(tmp_path)]) == 1


def test_unusable_folders_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wise", str(tmp_path / "nowhere")]) == 2
    assert main(["wise", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert "nowhere is not a folder" in errors
    assert "nothing to replay" in errors


def test_replay_accepts_other_cases_in_another_order(tmp_path: Path) -> None:
    folder = copy_of("dpg", tmp_path)
    lines = (folder / "questions.csv").read_text().splitlines(keepends=True)
    recorded = json.loads((folder / "cases.json").read_text())
    run = recorded["first_row_bug_removed"]
    images = dict(reversed(list(run["per_image"].items())[:7]))
    score = 100 * sum(image["average"] for image in images.values()) / len(images)
    only = {"answers": recorded["answers"], "first_row_bug_removed": {"per_image": images, "score": score}}
    (folder / "cases.json").write_text(json.dumps(only))
    (folder / "questions.csv").write_text("".join([lines[0], *lines[5:], *lines[1:5]]))
    assert main(["dpg", str(folder)]) == 0
