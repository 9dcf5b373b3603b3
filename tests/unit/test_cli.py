"""The command line: one message per user error, light imports."""

import os
import subprocess
import sys

import pytest

from reca.cli import FLOW_VERBS, PER_BENCHMARK_STAGES, main, plain_stages


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    output = capsys.readouterr().out
    for verb in (*plain_stages(), *PER_BENCHMARK_STAGES, *FLOW_VERBS, "compose", "lineage", "rollback", "reproduce"):
        assert f"    {verb}" in output


def test_help_imports_no_heavy_package():
    heavy = "import sys; from reca.cli import parser; parser()\n" + (
        "print([name for name in ('torch', 'prefect', 'mlflow', 'hydra', 'dvc', 'pandas') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", heavy], text=True) == "[]\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compose", "train.stpes=3"], "train.stpes"),
        (["compose", "train.learning_rate=7"], "train.learning_rate: Input should be less than or equal to 1"),
        (["compose", "model=nope"], "model/nope"),
        (["run", "train.stpes=3"], "train.stpes"),
        (["run", "data=nothing"], "data/nothing"),
        (["train"], "params.yaml is missing"),
    ],
)
def test_user_error_is_one_message(project, words, said):
    done = subprocess.run([sys.executable, "-m", "reca", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr.replace("'", "")
    assert done.stderr.startswith(f"reca {words[0]}: ")
    assert "Traceback" not in done.stderr
    assert not (project / "params.yaml").exists()
    assert not (project / ".reca").exists()


def test_compose_writes_the_parameters_of_this_project(project, capsys):
    assert main(["compose", "train.max_steps=40"]) == 0
    assert "max_steps: 40" in (project / "params.yaml").read_text()
    assert main(["compose", "train.max_steps=40"]) == 0
    assert capsys.readouterr().out == "params.yaml written\nparams.yaml unchanged\n"


def test_stage_of_a_dead_flow_does_not_start(project, capsys, monkeypatch):
    main(["compose"])
    process = subprocess.Popen(["true"])
    process.wait()
    monkeypatch.setenv("RECA_GUARD_PID", str(process.pid))
    assert main(["ingest"]) == 2
    assert "has ended" in capsys.readouterr().err


def test_stage_ends_with_its_guard(project):
    main(["compose"])
    guard = subprocess.Popen(["sleep", "600"])
    code = "import time; from reca import cli\ncli._end_with_guard(); print('running', flush=True); time.sleep(600)"
    stage = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "RECA_GUARD_PID": str(guard.pid)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert stage.stdout.readline() == "running\n"
    guard.kill()
    guard.wait()
    assert stage.wait(60) == -15
