"""The adapter for lmms-eval, against a program that writes what lmms-eval writes; the real one was never run."""

import json
import sys
from pathlib import Path

import pytest

from reca.benchmarks.lmms_eval import read
from reca.cli import main
from reca.errors import UserError

# lmms_eval/__main__.py, as far as the adapter sees it: options, folders, names and keys of lmms-eval 0.7.
STAND_IN = """
import argparse, json, os, sys
from pathlib import Path

parser = argparse.ArgumentParser()
for name in ("model", "model_args", "tasks", "batch_size", "output_path", "limit"):
    parser.add_argument(f"--{name}")
parser.add_argument("--log_samples", action="store_true")
options = parser.parse_args()
if options.model == "broken":
    sys.exit("no such model")
folder = Path(options.output_path) / "a__model"
folder.mkdir(parents=True, exist_ok=True)
time = f"2026{len(list(folder.iterdir())):04d}_120000"
metrics = {
    "mme": {"mme_perception_score,none": 1500.5, "mme_perception_score_stderr,none": "N/A",
            "mme_cognition_score,none": 300.0, "mme_cognition_score_stderr,none": "N/A"},
    "pope": {"pope_accuracy,none": 0.875, "pope_accuracy_stderr,none": 0.01, "submission,none": None},
    "empty": {"submission,none": None},
}
tasks = [task for task in options.tasks.split(",") if task in metrics]
answer = {
    "results": {task: {"alias": task, **metrics[task]} for task in tasks},
    "configs": {task: {"task": task} for task in tasks},
    "versions": {task: "Yaml" for task in tasks},
    "n-shot": {task: 0 for task in tasks},
    "n-samples": {task: {"original": 2374, "effective": int(options.limit or 2374)} for task in tasks},
    "config": {"model": options.model, "model_args": options.model_args, "batch_size": options.batch_size},
    "git_hash": "0a1b2c3",
    "date": time,
}
if options.model != "unsaved":
    (folder / f"{time}_results.json").write_text(json.dumps(answer))
    for task in tasks:
        replies = ["Yes", "[LMMS_EVAL_REQUEST_FAILED after 5 retries] 503", "No"]
        lines = [json.dumps({"doc_id": i, "filtered_resps": [text], "target": "Yes"}) for i, text in enumerate(replies)]
        (folder / f"{time}_samples_{task}.jsonl").write_text("\\n".join(lines) + "\\n")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "lmms_eval").mkdir()
    (tmp_path / "lmms_eval/__init__.py").write_text("")
    (tmp_path / "lmms_eval/__main__.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "measured"


def lmms_eval(output: Path, *tasks: str, model: str = "openai", options: tuple[str, ...] = ()) -> int:
    words = [
        "--python",
        sys.executable,
        "--model",
        model,
        "--model-args",
        "model_version=x,base_url=http://127.0.0.1/v1",
    ]
    return main(["lmms-eval", *tasks, *words, "--output", str(output), *options])


def test_results_are_read_back_and_labelled(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lmms_eval(stand_in, "mme", "pope") == 0
    mme, pope = (json.loads((stand_in / f"{task}.json").read_text()) for task in ("mme", "pope"))
    assert mme["metrics"] == {
        "mme_perception_score,none": {"value": 1500.5, "standard_error": None},
        "mme_cognition_score,none": {"value": 300.0, "standard_error": None},
    }
    assert pope["metrics"] == {"pope_accuracy,none": {"value": 0.875, "standard_error": 0.01}}
    assert mme["protocol"] == "lmms-eval: its prompts, reading and aggregation; commit 0a1b2c3"
    assert (mme["expected"], mme["scored"], mme["failed_requests"]) == (2374, 2374, 1)
    assert (mme["model"], mme["model_args"]) == ("openai", "model_version=x,base_url=http://127.0.0.1/v1")
    assert "1 REQUESTS FAILED AND COUNT AS ANSWERS" in capsys.readouterr().out


def test_a_part_is_labelled_and_a_second_run_is_not_the_first(stand_in: Path) -> None:
    assert lmms_eval(stand_in, "pope") == 0
    first = json.loads((stand_in / "pope.json").read_text())
    assert lmms_eval(stand_in, "pope", options=("--limit", "8")) == 0
    second = json.loads((stand_in / "pope.json").read_text())
    assert second["source"] > first["source"]
    assert second["scored"] == 8
    assert second["protocol"].endswith("only some of the samples")


@pytest.mark.parametrize(
    ("tasks", "model", "told"),
    [
        (["mme"], "broken", "lmms-eval ended with status 1"),
        (["mme"], "unsaved", "left no *_results.json"),
        (["mme", "other"], "openai", "has no results of other; it has mme"),
        (["empty"], "openai", "has no number for empty"),
    ],
)
def test_what_went_wrong_is_told(
    stand_in: Path, tasks: list[str], model: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lmms_eval(stand_in, *tasks, model=model) == 2
    assert told in capsys.readouterr().err


def test_an_interpreter_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["lmms-eval", "mme", "--python", "nowhere/python", "--model", "x", "--model-args", "y=1"]
    assert main([*words, "--output", str(tmp_path)]) == 2
    assert "nowhere/python cannot be started" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"results": 3}', '{"results": {"mme": 4}}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "20260101_000000_results.json"
    path.write_text(content)
    with pytest.raises(UserError, match="no file of lmms-eval's results"):
        read(path, ["mme"])
