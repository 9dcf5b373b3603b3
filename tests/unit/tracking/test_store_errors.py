"""MLflow's store when it is broken, closed, full, moved, or left behind by a process that has ended."""

import csv
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reca.runtime.errors import UserError
from reca.runtime.system_metrics import sample_to_csv
from reca.stages.register import register
from reca.tracking import runs
from reca.tracking.store_errors import StoreError, friendly_store_errors

Project = Any  # the class in conftest.py


def half(database: Path) -> None:
    database.write_bytes(database.read_bytes()[: database.stat().st_size // 2])


def scribbled(database: Path) -> None:
    content = bytearray(database.read_bytes())
    content[4096 : 4096 * 8] = b"\xff" * (4096 * 7)
    database.write_bytes(content)


def text(database: Path) -> None:
    database.write_text("this is no database\n" * 100)


def another_program(database: Path) -> None:
    database.unlink()
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE photos (name TEXT)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("damage", [half, scribbled, text, another_program])
def test_broken_database_is_named_with_the_remedy(
    project: Project, migrated_database: Path, damage: Callable[[Path], None]
) -> None:
    database = project.root / "mlruns/mlflow.db"
    damage(database)
    before = database.read_bytes()
    with pytest.raises(StoreError, match=re.escape(f"{database} is broken (")) as error:
        register(project.config, project.root)
    way_out = re.search(r"`mv (\S+) (\S+)`", str(error.value))
    assert way_out
    assert database.read_bytes() == before  # not touched
    assert not (project.root / ".reca/register.json").exists()

    os.rename(way_out[1], way_out[2])  # as it says
    shutil.copy(migrated_database, database)  # as the next run would do
    register(project.config, project.root)
    assert project.registered()["version"] == "1"


def test_empty_file_does_not_count_as_a_database(make_project: Callable[..., Project]) -> None:
    project = make_project(database=False)
    (project.root / "mlruns/mlflow.db").touch()
    project.results()
    register(project.config, project.root)  # makes one, under a temporary name
    assert project.registered()["version"] == "1"
    assert not list((project.root / "mlruns").glob(".mlflow-*"))


@pytest.fixture
def small_disk(tmp_path: Path, migrated_database: Path) -> Iterator[Path]:
    """A disk of 4 MiB with a database on it."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    shutil.copy(migrated_database, folder / "mlflow.db")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("left", [0, 40_000])
def test_full_disk_is_named(make_project: Callable[..., Project], small_disk: Path, left: int) -> None:
    project = make_project(database=False, tracking={"uri": f"sqlite:///{small_disk}/mlflow.db"})
    project.results()
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(bytes(free - left))
    with pytest.raises(StoreError, match=f"{small_disk}.* full.*make room"):
        register(project.config, project.root)

    (small_disk / "ballast").unlink()
    register(project.config, project.root)
    assert project.registered()["version"] == "1"


def test_read_only_store_is_named(make_project: Callable[..., Project], small_disk: Path) -> None:
    project = make_project(database=False, tracking={"uri": f"sqlite:///{small_disk}/mlflow.db"})
    project.results()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreError, match=rf"{small_disk}\S* is read-only; give write permission"):
        register(project.config, project.root)


def test_moved_project_does_not_write_to_its_old_folder(project: Project, tmp_path: Path) -> None:
    register(project.config, project.root)
    shutil.copytree(project.root, tmp_path / "moved")
    copy = type(project)(tmp_path / "moved", project.config)
    copy.results(weights=1, skill=1.0)
    with pytest.raises(UserError, match=r"the project was moved or copied\. Move it back, or set tracking\.experiment"):
        register(copy.config, copy.root)


def test_password_in_the_configuration_is_refused(make_project: Callable[..., Project]) -> None:
    project = make_project(tracking={"uri": "postgresql://user:secret@host/db"})
    with pytest.raises(UserError, match="holds a password") as error:
        project.store()
    assert "secret" not in str(error.value)


def test_server_that_does_not_answer_is_named_without_its_password() -> None:
    problem = ConnectionError("API request to http://host failed: Max retries exceeded")
    with (
        pytest.raises(StoreError, match=r"MLflow server at host:5000 does not answer") as error,
        friendly_store_errors(None, "http://user:secret@host:5000"),
    ):
        raise problem
    assert "secret" not in str(error.value)


def test_other_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), friendly_store_errors(None, "http://host"):
        raise ZeroDivisionError


def test_store_does_not_depend_on_the_working_directory(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert project.store().uri == f"sqlite:///{project.root}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert project.store().database == tmp_path / "other.db"
    assert project.store().lock == tmp_path / "registry.lock"  # who shares the database shares the lock


def test_runs_of_ended_processes_are_marked_as_killed(project: Project) -> None:
    """One run of a process that was killed with -9, one of a process that lives, one of another host."""
    with runs.open_store(project.store()) as client:
        experiment = runs.get_or_create_experiment(client, project.store())
        tags = {"reca.process": runs._process_identity()}
        alive = client.create_run(experiment, tags=tags).info.run_id
        abroad = client.create_run(experiment, tags={"reca.process": "another-host 1 1"}).info.run_id
        foreign = client.create_run(experiment).info.run_id  # not ours
        child = os.fork()
        if child == 0:
            client.create_run(experiment, tags={"reca.process": runs._process_identity()})
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        (killed,) = runs.mark_killed_runs(client, experiment)
        assert client.get_run(killed).info.status == "KILLED"
        assert {client.get_run(run).info.status for run in (alive, abroad, foreign)} == {"RUNNING"}
        assert runs.mark_killed_runs(client, experiment) == []


def test_reused_process_id_counts_as_ended() -> None:
    host, pid, born = runs._process_identity().rsplit(" ", 2)
    assert runs._has_ended(f"{host} {pid} {float(born) - 100:.0f}")
    assert not runs._has_ended(f"{host} {pid} {born}")
    assert not runs._has_ended("not ours")


def test_long_curves_are_logged_completely(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = "".join(f"{step},{step / 10}\n" for step in range(1, 2501))
    (project.root / "outputs/curves/held_out.csv").write_text("step,loss\n" + rows)
    (tmp_path / "system.csv").write_text("timestamp,memory_gib\n1000.5,1.5\n1002.5,2.5\n")
    monkeypatch.setenv("RECA_SYSTEM_METRICS", str(tmp_path / "system.csv"))
    register(project.config, project.root)
    with runs.open_store_read_only(project.store()) as client:
        history = client.get_metric_history(project.registered()["run_id"], "held_out/loss")
        assert [(point.step, point.value) for point in (history[0], history[-1])] == [(1, 0.1), (2500, 250.0)]
        assert len(history) == 2500
        memory = client.get_metric_history(project.registered()["run_id"], "system/memory_gib")
        assert [(point.step, point.timestamp, point.value) for point in memory] == [
            (0, 1000500, 1.5),
            (1, 1002500, 2.5),
        ]


def test_what_a_run_costs_is_sampled_while_it_runs(tmp_path: Path) -> None:
    file, began = tmp_path / "logs/system.csv", time.time()
    with sample_to_csv(file, every_seconds=0.2):
        ballast = bytearray(200_000_000)
        while not file.exists() or file.read_text().count("\n") < 3:  # the header and two rows
            time.sleep(0.01)
    rows = list(csv.DictReader(file.open()))
    assert len(rows) >= 3  # the last row is of the end
    assert float(rows[-1]["run_memory_usage_megabytes"]) > len(ballast) / 1e6
    stamps = [float(row["timestamp"]) for row in rows]
    assert stamps == sorted(stamps)
    assert began - 0.001 <= stamps[0] <= time.time() + 0.001  # stamps are rounded to milliseconds
    assert 0 <= float(rows[-1]["cpu_utilization_percentage"]) <= 100


def test_sampling_that_fails_does_not_fail_the_run(tmp_path: Path) -> None:
    (tmp_path / "system.csv").mkdir()
    with sample_to_csv(tmp_path / "system.csv", every_seconds=0.1):
        time.sleep(0.3)
