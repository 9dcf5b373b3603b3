"""A real Prefect server and a real worker: deployments, runs on demand and by schedule, cancelling."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def worker(server, project):
    """A process worker of the pool ``cpu``, on the project's deployments."""
    from flows.deploy import deploy

    assert deploy(gpus=3) == 0
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "cpu", "--type", "process"]
    with (project.parent / "worker.log").open("w") as log:
        process = subprocess.Popen(command, cwd=project.parent, stdout=log, stderr=log, start_new_session=True)
    yield process
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def client(server):
    """Prefect's API."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as api:
        yield api


def test_deployments_run_on_demand_and_by_schedule_and_are_cancelled(
    train_only, worker, client, project, capsys, until, hanging, gone
):
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
    from prefect.client.schemas.schedules import IntervalSchedule
    from prefect.states import Cancelling

    from flows.deploy import ZOMBIES, deploy, submit
    from reca.config import ConfigError

    assert deploy(gpus=3) == 0, "a second deployment changes nothing"
    assert client.read_global_concurrency_limit_by_name("gpu").limit == 3
    assert len(client.read_automations_by_name(ZOMBIES)) == 1
    nightly = client.read_deployment_by_name("reca/nightly")
    assert [schedule.schedule.cron for schedule in nightly.schedules] == ["0 3 * * *"]
    assert client.read_deployment_by_name("reca/on-demand-gpu").work_pool_name == "gpu"

    with pytest.raises(ConfigError, match="stpes"):
        submit(["train.stpes=1"], "on-demand")
    assert submit(["train.learning_rate=0.004"], "on-demand") == 0
    run_id = capsys.readouterr().out.split("/flow-run/")[1].split()[0]

    def ended():
        run = client.read_flow_run(run_id)
        return run.state.is_final() and run

    run = until(ended, 400)
    assert run.state.is_completed(), (run.state, (project.parent / "worker.log").read_text()[-3000:])
    assert (project / ".reca/registered.jsonl").read_text().split() == ["0.004"]
    assert not (project / "outputs").exists(), "a scheduled run works in its own folder"

    # a schedule really fires (with SQLAlchemy 2.1 none does, without an error); its run hangs
    (project / "hang-train").touch()
    soon = datetime.now(UTC) + timedelta(seconds=8)
    every = IntervalSchedule(interval=timedelta(seconds=30), anchor_date=soon)
    (added,) = client.create_deployment_schedules(nightly.id, [(every, True)])

    def fired():
        nightly_only = DeploymentFilter(id=DeploymentFilterId(any_=[nightly.id]))
        runs = client.read_flow_runs(deployment_filter=nightly_only)
        return [run for run in runs if run.auto_scheduled and (run.state.is_running() or run.state.is_final())]

    run_id = until(fired, 400)[0].id
    client.delete_deployment_schedule(nightly.id, added.id)

    # cancelling through the API ends the stage and its children
    pids = hanging("train")
    client.set_flow_run_state(run_id, Cancelling())
    gone(pids, 400)
    run = until(ended, 120)
    assert run.state.name == "Cancelled"


def test_only_runs_of_reca_are_watched(client, until, monkeypatch):
    """On a shared server another team's run without a heartbeat stays as it is."""
    from prefect import flow
    from prefect.events import emit_event
    from prefect.states import Running

    from flows import deploy

    monkeypatch.setattr(deploy, "HEARTBEAT_TIMEOUT", timedelta(seconds=10))  # Prefect's minimum
    watch = client.create_automation(deploy._heartbeat_automation().model_copy(update={"name": "a faster watch"}))
    runs = {}
    for name in ("another team's", "reca"):
        runs[name] = client.create_flow_run(flow(name=name)(lambda: None), state=Running()).id
        emit_event(
            "prefect.flow-run.heartbeat",
            resource={"prefect.resource.id": f"prefect.flow-run.{runs[name]}"},
            related=[
                {
                    "prefect.resource.id": "prefect.flow.1",
                    "prefect.resource.role": "flow",
                    "prefect.resource.name": name,
                }
            ],
        )
    until(lambda: client.read_flow_run(runs["reca"]).state.name == "Crashed", 120)
    assert client.read_flow_run(runs["another team's"]).state.name == "Running"
    client.delete_automation(watch)
