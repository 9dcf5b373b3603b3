"""The adapter for lmms-eval, on what the real one wrote (``lmms_eval/README.md``), and on a program that writes it."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from reca.cli import main
from reca.evaluation.lmms_eval import Release, installed, read
from reca.runtime.errors import UserError

RECORDED = Path(__file__).parent / "lmms_eval"
RESULTS = RECORDED / "20261126_194213_results.json"
RELEASE = Release(version="0.7.3", checkout=False)

# lmms_eval/__main__.py: the real one's options, folders and exit status, with its recorded files.
STAND_IN = """
import argparse, json, sys
from pathlib import Path

parser = argparse.ArgumentParser()
for name in ("model", "model_args", "tasks", "batch_size", "output_path", "limit", "include_path"):
    parser.add_argument(f"--{name}")
parser.add_argument("--log_samples", action="store_true")
options = parser.parse_args()
if options.model == "unknown":
    sys.exit(1)
recorded = Path("RECORDED")
results = json.loads(next(recorded.glob("*_results.json")).read_text())
if not set(options.tasks.split(",")) <= results["results"].keys():
    sys.exit(0)  # it prints a traceback, but that is its status
if options.limit:
    for size in results["n-samples"].values():
        size["effective"] = int(options.limit)
if options.include_path:
    results["versions"]["shapes"] = options.include_path
results["config"] |= {"model": options.model, "model_args": options.model_args}
folder = Path(options.output_path) / "stand-in"
folder.mkdir(parents=True, exist_ok=True)
time = f"2026{len(list(folder.iterdir())):04d}_120000"
(folder / f"{time}_results.json").write_text(json.dumps(results))
for path in recorded.glob("*.jsonl"):
    (folder / (time + path.name[15:])).write_text(path.read_text())
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "lmms_eval").mkdir()
    (tmp_path / "lmms_eval/__init__.py").write_text("")
    (tmp_path / "lmms_eval/__main__.py").write_text(STAND_IN.replace("RECORDED", str(RECORDED)))
    about = tmp_path / "lmms_eval-0.7.3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: lmms_eval\nVersion: 0.7.3\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "measured"


def lmms_eval(output: Path, *tasks: str, model: str = "openai", options: tuple[str, ...] = ()) -> int:
    reached = "model_version=x,base_url=http://127.0.0.1/v1,api_key=s3cret"
    words = ["--python", sys.executable, "--model", model, "--model-args", reached]
    return main(["lmms-eval", *tasks, *words, "--output", str(output), *options])


def test_real_results_are_read() -> None:
    shapes, squares = read(RESULTS, ["shapes", "shapes_squares"], RELEASE)
    assert shapes.model_dump() == {
        "task": "shapes",
        "task_version": "0.3",
        "protocol": "lmms-eval 0.7.3: its prompts, reading and aggregation",
        "metrics": {"shapes_accuracy,none": {"value": 0.6, "standard_error": 0.17320508075688776}},
        "expected": 10,
        "scored": 10,
        "failed_requests": 2,
        "model": "openai",
        "model_args": "model_version=stand-in,base_url=http://127.0.0.1:8765/v1,api_key=[REDACTED],max_retries=2",
        "source": "20261126_194213_results.json",
    }
    assert (squares.expected, squares.scored, squares.failed_requests) == (5, 5, 1)
    assert squares.task_version == "0.1", "lmms-eval itself says Yaml"


def test_a_group_without_numbers_stands_for_its_tasks() -> None:
    assert [scores.task for scores in read(RESULTS, ["shapes_unweighed"], RELEASE)] == ["shapes_other"]


def test_a_group_says_nothing_of_failures_where_a_task_has_no_samples(tmp_path: Path) -> None:
    for path in RECORDED.glob("*.json*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "20261126_194213_samples_shapes_again.jsonl").unlink()
    assert read(tmp_path / RESULTS.name, ["shapes"], RELEASE)[0].failed_requests is None


def test_scores_are_written_and_labelled(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lmms_eval(stand_in, "shapes", "shapes_other", options=("--include-path", "mine")) == 0
    shapes, other = (json.loads((stand_in / f"{task}.json").read_text()) for task in ("shapes", "shapes_other"))
    assert shapes["protocol"] == "lmms-eval 0.7.3: its prompts, reading and aggregation"
    assert (shapes["task_version"], other["task_version"]) == ("mine", "0.2")
    told = capsys.readouterr().out
    assert "(10 of 10 samples; 2 REQUESTS FAILED AND COUNT AS ANSWERS)" in told
    assert "api_key=…" in told
    assert "s3cret" not in told


def test_a_part_is_labelled_and_a_second_run_is_not_the_first(stand_in: Path) -> None:
    assert lmms_eval(stand_in, "shapes_other") == 0
    first = json.loads((stand_in / "shapes_other.json").read_text())
    assert lmms_eval(stand_in, "shapes_other", options=("--limit", "2")) == 0
    second = json.loads((stand_in / "shapes_other.json").read_text())
    assert second["source"] > first["source"]
    assert second["scored"] == 2
    assert second["protocol"].endswith("only some of the samples")


def test_the_commit_is_named_only_where_it_is_lmms_evals_own(stand_in: Path, tmp_path: Path) -> None:
    """It asks git about the folder that it lies in, which may be an environment inside any repository."""
    results = json.loads(RESULTS.read_text()) | {"git_hash": "0a1b2c3"}
    (tmp_path / RESULTS.name).write_text(json.dumps(results))
    inside = read(tmp_path / RESULTS.name, ["shapes"], installed(sys.executable))[0]
    assert "commit" not in inside.protocol
    (tmp_path / ".git").mkdir()  # now the package lies in a checkout
    own = read(tmp_path / RESULTS.name, ["shapes"], installed(sys.executable))[0]
    assert own.protocol.endswith("; commit 0a1b2c3")


@pytest.mark.parametrize(
    ("task", "model", "told"),
    [("shapes", "unknown", "lmms-eval ended with status 1"), ("other", "openai", "left no *_results.json")],
)
def test_what_went_wrong_is_told(
    stand_in: Path, task: str, model: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lmms_eval(stand_in, task, model=model) == 2
    assert told in capsys.readouterr().err


def test_an_interpreter_without_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lmms_eval(tmp_path, "shapes") == 2
    assert "has no lmms-eval: install it there" in capsys.readouterr().err


def test_results_without_a_task_or_its_numbers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no results of mme; it has shapes, shapes_again"):
        read(RESULTS, ["mme"], RELEASE)
    path = tmp_path / RESULTS.name
    path.write_text(json.dumps({"results": {"empty": {"alias": "empty", "submission,none": None}}}))
    with pytest.raises(UserError, match="has no number for empty"):
        read(path, ["empty"], RELEASE)


def test_an_interpreter_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["lmms-eval", "mme", "--python", "nowhere/python", "--model", "x", "--model-args", "y=1"]
    assert main([*words, "--output", str(tmp_path)]) == 2
    assert "nowhere/python cannot be started" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"results": 3}', '{"results": {"mme": 4}}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "20260101_000000_results.json"
    path.write_text(content)
    with pytest.raises(UserError, match="no file of lmms-eval's results"):
        read(path, ["mme"], RELEASE)
