"""The flow over real DVC and a real Prefect server: order, skipping, retries, parameters, locks."""

import contextlib
import json
import subprocess
import sys
import threading

import pytest
import yaml

from reca.config import yaml_io

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def result(folder, stage):
    return json.loads((folder / f"outputs/{stage}/result.json").read_text())["params"]


def recorded(folder, stage):
    return yaml_io.load(folder / "dvc.lock")["stages"][stage]["params"]["params.yaml"]


def test_flow_follows_the_graph_and_skips_stages_that_are_up_to_date(run_flow, tasks, events, project):
    run = run_flow("train.max_steps=40")
    assert run.state.is_completed(), run.error
    assert {event.flow_run for event in events()} == {str(run.id)}
    at = {(event.stage, event.what): event.at for event in events()}
    assert at["first", "end"] < at["train", "begin"] < at["train", "end"] < at["report", "begin"]
    assert at["side", "begin"] < at["train", "end"], "independent stages ran one after the other"
    assert at["side", "end"] < at["report", "begin"]
    assert {name: task.state.name for name, task in tasks(run.id, 5).items()} == {
        **dict.fromkeys(("first", "train", "side", "report"), "Done"),
        "register": "Completed",
    }
    assert yaml.safe_load((project / "params.yaml").read_text())["train"]["max_steps"] == 40

    again = run_flow("train.max_steps=40")
    assert {name: task.state.name for name, task in tasks(again.id, 5).items()} == {
        **dict.fromkeys(("first", "train", "side", "report"), "Unchanged"),
        "register": "Completed",
    }

    # The stub's result contains the parameter, so its dependents change too.
    other = run_flow("train.max_steps=41")
    states = {name: task.state.name for name, task in tasks(other.id, 5).items()}
    assert states["first"] == states["side"] == "Unchanged"
    assert states["train"] == "Done"
    back = run_flow("train.max_steps=40")
    assert {name: task.state.name for name, task in tasks(back.id, 5).items()}["train"] == "Restored"
    assert len([event for event in events() if (event.stage, event.what) == ("train", "end")]) == 2


def test_failed_stage_is_retried(train_only, run_flow, tasks, project, monkeypatch, events):
    monkeypatch.setattr("flows.tasks.RETRY_DELAYS", (0.1, 0.1))
    (project / "fail-train").write_text("1")
    run = run_flow()
    assert run.state.is_completed(), run.error
    assert tasks(run.id, 2)["train"].run_count == 2
    assert [event.what for event in events() if event.stage == "train"] == ["begin", "begin", "end"]


def test_user_error_is_not_retried(run_flow, tasks, project, events):
    (project / "fail-first").write_text("2")
    run = run_flow()
    assert run.state.is_failed()
    assert "first failed (exit status 2)" in str(run.error)
    assert "something is wrong with first" in str(run.error)
    runs = tasks(run.id, 1)
    assert runs["first"].run_count == 1
    assert not {"train", "report", "register"} & runs.keys()
    assert not (project / ".reca/registered.jsonl").exists()


def test_wrong_override_stops_the_flow_before_any_stage(run_flow, project):
    before = (project / "params.yaml").read_text()
    run = run_flow("train.stpes=3")
    assert run.state.is_failed()
    assert "train.stpes" in str(run.error)
    assert (project / "params.yaml").read_text() == before


def test_params_edited_during_a_run_are_restored_and_the_stage_runs_again(train_only, run_flow, project, events, until):
    """DVC alone would record 0.5 for a model that was trained with 0.001."""

    def edit():
        until(lambda: any((event.stage, event.what) == ("train", "begin") for event in events()), 300)
        params = yaml.safe_load((project / "params.yaml").read_text())
        params["train"]["learning_rate"] = 0.5
        (project / "params.yaml").write_text(yaml.safe_dump(params))

    editor = threading.Thread(target=edit)
    editor.start()
    run = run_flow("train.learning_rate=0.001")
    editor.join()
    assert run.state.is_completed(), run.error
    assert [event.rate for event in events() if (event.stage, event.what) == ("train", "end")] == [0.001, 0.001]
    assert recorded(project, "train")["train"]["learning_rate"] == 0.001
    assert result(project, "train")["train"]["learning_rate"] == 0.001
    assert (project / ".reca/registered.jsonl").read_text().split() == ["0.001"]
    # A later run with 0.5 does not restore that model.
    later = run_flow("train.learning_rate=0.5")
    assert later.state.is_completed(), later.error
    assert result(project, "train")["train"]["learning_rate"] == 0.5


def test_isolated_runs_at_the_same_time_do_not_mix(server, train_only, project, command):
    runs = {rate: command("run", "--isolated", f"train.learning_rate={rate}") for rate in (0.002, 0.003)}
    for process in runs.values():
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    worktrees = [path for path in (project.parent / "workspaces").iterdir() if (path / "dvc.lock").exists()]
    rates = {recorded(worktree, "train")["train"]["learning_rate"] for worktree in worktrees}
    assert rates == set(runs)
    for worktree in worktrees:
        assert result(worktree, "train")["train"] == recorded(worktree, "train")["train"]
    assert sorted((project / ".reca/registered.jsonl").read_text().split()) == ["0.002", "0.003"]
    assert not (project / "outputs").exists()
    assert any((project.parent / "remote").rglob("files/md5/*/*")), "the results were not pushed"


def test_second_run_in_the_project_names_the_first(project, command):
    holder = (
        "import sys, time, pathlib; from reca.runtime import workspace\n"
        "with workspace.project_lock(pathlib.Path('.reca'), 'golden otter'):\n"
        "    print('locked', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", holder], cwd=project, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        second = command("run")
        output, _ = second.communicate(timeout=300)
        process.kill()
    assert second.returncode == 2
    assert "golden otter" in output
    assert str(process.pid) in output
    assert "--isolated" in output
    assert "Traceback" not in output
    assert not (project / ".reca/prefect").exists(), "a server was started although the run was refused"


def test_gpu_stages_run_one_at_a_time(run_flow, events, monkeypatch, tmp_path):
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    from flows import gpus

    with get_client(sync_client=True) as client, contextlib.suppress(ObjectNotFound):
        client.delete_global_concurrency_limit_by_name("gpu")  # another test may have created it
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # the locks of another session are elsewhere
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    without = run_flow("hardware.device=cuda")
    assert "create it with `reca deploy`" in str(without.error), without.error
    assert not [event for event in events() if event.stage == "train"]

    assert gpus.create_limit() == 1
    run = run_flow("hardware.device=cuda")
    assert run.state.is_completed(), run.error
    on_gpu = [event for event in events() if event.stage in ("train", "side")]
    assert [event.what for event in on_gpu] == ["begin", "end"] * 2, "two stages were on one device"
    assert {event.gpu for event in on_gpu} == {"7"}

    too_many = run_flow("hardware.device=cuda", "hardware.processes=2", "train.learning_rate=0.02")
    assert "hardware.processes=2" in str(too_many.error)
