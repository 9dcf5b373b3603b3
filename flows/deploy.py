"""Deployments: set up a Prefect server to run the flow by schedule or on demand, and submit runs to it."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from flows.gpus import LIMIT, create_limit
from flows.server import SETTINGS, running_server
from reca.config import Config, compose
from reca.runtime import workspace
from reca.runtime.errors import UserError

if TYPE_CHECKING:
    from prefect.events.schemas.automations import AutomationCore

POOLS = {"cpu": "runs on the processor", "gpu": "runs on GPUs"}
ZOMBIES = "reca: a run without a heartbeat has crashed"
HEARTBEAT_TIMEOUT = timedelta(seconds=90)
"""Three of the heartbeat intervals in prefect.yaml."""


def deploy(gpus: int | None) -> int:
    """Create work pools, the limit ``gpu``, the heartbeat automation and the deployments; idempotent.

    Args:
        gpus: Slots of the limit; ``None``: the number of GPUs of this machine, at least one.

    Raises:
        UserError: There is no Prefect server, or `prefect deploy` fails.
    """
    root = workspace.project_root()
    address = use_server(root)
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.workers.process import ProcessWorker

    slots = create_limit(gpus)
    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        existing = {pool.name for pool in client.read_work_pools()}
        for name, text in POOLS.items():
            if name not in existing:
                client.create_work_pool(
                    WorkPoolCreate(name=name, type="process", description=text, base_job_template=template)
                )
        if known := client.read_automations_by_name(ZOMBIES):
            client.update_automation(known[0].id, _heartbeat_automation())
        else:
            client.create_automation(_heartbeat_automation())
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    process = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise UserError(f"`prefect deploy --all` failed:\n{process.stdout}{process.stderr}")
    print(f"deployments of prefect.yaml are on {address}, work pools {', '.join(POOLS)}, limit {LIMIT} = {slots}")
    print(f"start a worker:  PREFECT_API_URL={address} prefect worker start --pool cpu --type process")
    print("submit a run:    reca submit train.max_steps=40")
    return 0


def submit(overrides: list[str], deployment: str) -> int:
    """Check the overrides, then create a run of a deployment: Prefect itself does not validate them.

    Raises:
        ConfigError: An override is wrong.
        UserError: No server, or no such deployment.
    """
    root = workspace.project_root()
    compose(overrides)
    address = use_server(root)
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            target = client.read_deployment_by_name(f"reca/{deployment}")
        except ObjectNotFound:
            raise UserError(
                f"there is no deployment {deployment!r} on {address}; create it with `reca deploy`"
            ) from None
        given = list(target.parameters.get("overrides") or [])
        run = client.create_flow_run_from_deployment(target.id, parameters={"overrides": [*given, *overrides]})
    print(f"{run.name} is queued for work pool {target.work_pool_name}")
    print(f"watch it:  {address.removesuffix('/api')}/runs/flow-run/{run.id}")
    return 0


def use_server(root: Path) -> str:
    """Select the server that the environment names, or the project's own while `reca ui` serves it.

    Returns:
        The address of its API.
    """
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    address = os.environ.get("PREFECT_API_URL")
    if address is None:
        home = (root / Config.load(root / "params.yaml").paths.state).resolve() / "prefect"
        server = running_server(home)
        if server is None:
            raise UserError("no Prefect server: set PREFECT_API_URL to yours, or keep `reca ui` open, which serves one")
        address = os.environ["PREFECT_API_URL"] = f"{server}/api"
    return address


def _heartbeat_automation() -> "AutomationCore":
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification
    from prefect.states import StateType

    ends = ("Completed", "Failed", "Cancelled", "Crashed")
    return AutomationCore(
        name=ZOMBIES,
        description="Every run of reca sends a heartbeat every 30 s; after 90 s without one it is marked as crashed.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in ends)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            # A shared server has other teams' flows.
            match_related=ResourceSpecification({"prefect.resource.role": ["flow"], "prefect.resource.name": ["reca"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=HEARTBEAT_TIMEOUT,
        ),
        actions=[
            ChangeFlowRunState(
                name=None, state=StateType.CRASHED, message="no heartbeat: its process is gone", force=False
            )
        ],
    )
