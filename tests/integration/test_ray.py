"""Ray: the bytes of one device, with a worker killed and a host lost; no process outlives a run."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch

from reca.config import ROOT, compose
from reca.runtime.fan_out import LOCAL_RAY
from reca.stages.extract import extract
from reca.stages.generate import generate
from reca.stages.ingest import ingest
from tools.tiny_bases.janus_tiny import build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed"),
]

SMALL = (
    "data.num_images=24",
    "extract.images_per_shard=4",
    "evaluate.benchmarks=[scenes]",
    "evaluate.scenes.prompts_per_category=2",
    "evaluate.scenes.images_per_prompt=1",
    "hardware.generate_batch_size=1",
    "hardware.threads=1",
    "hardware.processes=2",
    "model.checkpoint=base",
)
SECONDS = 300


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    """Wait while the process runs."""
    until = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)


def start(root: Path, *words: str, guarded: bool = False) -> "subprocess.Popen[str]":
    """Start a Python command in a project, if asked under the flow's guard."""
    guard = [sys.executable, "-I", str(ROOT / "flows/guard.py"), "--grace", "5", "--"] if guarded else []
    return subprocess.Popen(
        [*guard, sys.executable, *words],
        cwd=root,
        stdin=subprocess.PIPE if guarded else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def descendants(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The actors of a local Ray that are doing an item, or have done one."""
    return [child for child in descendants(process) if "MapWorker" in " ".join(child.cmdline())]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "result.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a random Janus; embeddings and samples were made by plain loops."""
    root = tmp_path_factory.mktemp("plain")
    config = compose(SMALL)
    (root / "dvc.yaml").write_text("stages: {}\n")
    torch.manual_seed(7)
    build().save_official(root / "base")
    ingest(config, root)
    extract(config, root)
    generate(config, root, "base", "scenes")
    return root


@pytest.fixture
def project(plain: Path, tmp_path: Path) -> Path:
    """The same project without embeddings and samples."""
    root = tmp_path / "project"
    shutil.copytree(plain, root, ignore=shutil.ignore_patterns("samples", "embeddings", ".reca"))
    return root


def test_killed_worker_costs_its_item(plain: Path, project: Path) -> None:
    """The real command starts a Ray of this host, which ends with it."""
    (project / "params.yaml").write_text(compose([*SMALL, "hardware.ray=local"]).to_yaml())
    process = start(project, "-m", "reca", "extract")
    wait_for(lambda: list((project / ".reca/extract").glob("*/shard-*.json")), process)
    ports = {c.laddr.ip for child in descendants(process) for c in child.net_connections() if c.status == "LISTEN"}
    assert {address.removeprefix("::ffff:") for address in ports} == {"127.0.0.1"}
    everything, (victim, *_) = descendants(process), workers(process)
    victim.kill()
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert contents(project / "outputs/embeddings") == contents(plain / "outputs/embeddings")
    assert not any(child.is_running() for child in everything)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Two hosts with one worker each, on loopback."""
    for name, value in LOCAL_RAY.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster  # reads these variables once

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


FAILING = """
from functools import partial
from reca.config import compose
from reca.runtime.errors import UserError
from reca.runtime.fan_out import fan_out

def work(kind, items):
    for item in items:
        if item == 2 and kind == "mistake":
            raise UserError("the third item is missing")
        if item == 2:
            import os; os.kill(os.getpid(), 9)
        yield item

hardware = compose(["hardware.processes=2", "hardware.ray='{address}'"]).hardware
for kind in ("mistake", "crash"):
    try:
        print(list(fan_out(range(4), partial(partial, work, kind), hardware)))
    except Exception as error:
        print("RAISED", type(error).__name__, "third item" in str(error), flush=True)
"""


def test_lost_host_costs_its_items(plain: Path, project: Path, cluster) -> None:
    """Then, on what is left: a user error keeps its type and text, and an item that kills its workers is given up."""
    address = cluster.address
    (project / "params.yaml").write_text(compose([*SMALL, f"hardware.ray='{address}'"]).to_yaml())
    process = start(project, "-m", "reca", "generate", "base", "scenes")
    wait_for(lambda: list((project / ".reca/samples").rglob("part-*.json")), process)
    cluster.remove_node(cluster.worker_nodes.copy().pop())
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert contents(project / "outputs/samples") == contents(plain / "outputs/samples")
    process = start(project, "-c", FAILING.replace("{address}", address))
    output, _ = process.communicate(timeout=SECONDS)
    assert "RAISED UserError True" in output, output
    assert "RAISED ActorDiedError" in output, output


ENDLESS = """
import time
from functools import partial
from reca.config import compose
from reca.runtime.fan_out import fan_out

def work(items):
    for item in items:
        open(str(item), "w").close()
        time.sleep(600)
        yield item

list(fan_out([1, 2], partial(partial, work), compose(["hardware.processes=2", "hardware.ray=local"]).hardware))
"""


@pytest.mark.parametrize("guarded", [False, True])
def test_no_process_outlives_its_driver(tmp_path: Path, guarded: bool) -> None:
    """SIGTERM ends all of Ray and keeps its status; after ``kill -9`` the flow's guard ends what Ray leaves behind."""
    process = start(tmp_path, "-c", ENDLESS, guarded=guarded)
    wait_for(lambda: (tmp_path / "1").exists(), process)
    everything = descendants(process)
    assert any("raylet" in child.name() for child in everything)
    if guarded:
        psutil.Process(process.pid).children()[0].kill()
    else:
        process.terminate()
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + (signal.SIGKILL if guarded else signal.SIGTERM), output
    _, alive = psutil.wait_procs(everything, timeout=30)
    assert not alive
    assert "Traceback" not in output
