"""Runs that are interrupted, cancelled or killed: no process goes on, and the next run continues the work."""

import json
import signal
import sqlite3

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_and_its_children(server, train_only, project, command, hanging, gone, number):
    (project / "hang-train").touch()
    run = command("run")
    pids = hanging("train")
    run.send_signal(number)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 130, output
    assert "interrupted" in output
    assert "Traceback" not in output
    gone(pids)


def test_run_without_a_worker_ends_when_it_is_cancelled_on_prefects_pages(
    server, train_only, project, command, hanging, gone, until
):
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    (project / "hang-train").touch()
    run = command("run")
    pids = hanging("train")
    (log,) = (project / ".reca/logs").iterdir()
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(log.name, Cancelling())
        output, _ = run.communicate(timeout=300)
        assert run.returncode == 130, output
        gone(pids)
        assert client.read_flow_run(log.name).state.name == "Cancelled"


def test_flow_killed_with_sigkill_leaves_no_orphans_and_the_next_run_continues(
    server, project, command, hanging, gone, run_flow, events
):
    (project / "hang-train").touch()
    run = command("run")
    pids = hanging("train")
    run.kill()
    run.wait()
    gone(pids)
    (project / "hang-train").unlink()
    again = run_flow()
    assert again.state.is_completed(), again.error
    assert [event.what for event in events() if event.stage == "first"] == ["begin", "end"], (
        "finished work was done twice"
    )

    from prefect.client.orchestration import get_client

    (log,) = [path for path in (project / ".reca/logs").iterdir() if path.name != str(again.id)]
    with get_client(sync_client=True) as client:
        killed = client.read_flow_run(log.name)
    assert killed.state.name == "Crashed"


def test_run_without_a_server_starts_its_own_with_a_complete_history(server, project, command, gone):
    run = command("run", PREFECT_API_URL=None, PREFECT_HOME=None)
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 0, output
    home = project / ".reca/prefect"
    with sqlite3.connect(home / "prefect.db") as database:
        tasks = dict(database.execute("select name, state_name from task_run"))
        flows = database.execute("select state_type, parameters from flow_run").fetchall()
        logs = database.execute("select count(*) from log where message like '%Running stage%'").fetchone()[0]
        artifacts = database.execute("select count(*) from artifact where type = 'progress'").fetchone()[0]
    assert tasks == {**dict.fromkeys(("first", "train", "side", "report"), "Done"), "register": "Completed"}
    assert [state for state, _ in flows] == ["COMPLETED"]
    assert logs == 4
    assert artifacts == 4
    gone([json.loads((home / "server.json").read_text())["guard"]])
