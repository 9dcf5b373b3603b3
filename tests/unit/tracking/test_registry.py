"""Versions and aliases in a real SQLite registry; the database is read with SQL, not by MLflow."""

import fcntl
import json
import os
import random
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from reca.runtime.errors import UserError
from reca.stages.register import register
from reca.tracking import registry, runs

NAME = "reca-janus_tiny"
Project = Any  # the class in conftest.py


def aliases(project: Project) -> dict[str, int]:
    return dict(project.sql("SELECT alias, version FROM registered_model_aliases"))


def statuses(project: Project) -> list[str]:
    return sorted(status for (status,) in project.sql("SELECT status FROM runs"))


def versions(project: Project) -> list[int]:
    return sorted(number for (number,) in project.sql("SELECT version FROM model_versions"))


def tags(project: Project, version: int) -> dict[str, str]:
    return dict(project.sql(f"SELECT key, value FROM model_version_tags WHERE version = {version}"))


def history(project: Project) -> list[str]:
    with runs.open_store_read_only(project.store()) as client:
        return registry.champion_history(client, NAME)


def promoted(project: Project, weights: int, skill: float) -> None:
    """Register other weights."""
    project.results(weights=weights, skill=skill)
    register(project.config, project.root)


def rolled_back(project: Project) -> str:
    with runs.open_store(project.store()) as client:
        return registry.rollback(client, NAME)[1].number


def test_run_records_everything_about_the_model(project: Project) -> None:
    register(project.config, project.root)
    with runs.open_store_read_only(project.store()) as client:
        version = registry.get_version(client, f"{NAME}@champion")
        run = client.get_run(version.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params == {key: str(value) for key, value in project.config.flat().items()}
        losses = client.get_metric_history(version.run_id, "train/loss")
        assert [(point.step, point.value) for point in losses] == [(1, 3.5), (2, 3.25)]
        (dataset,) = run.inputs.dataset_inputs
        assert dataset.dataset.digest == version.tags["dvc.outputs/dataset"]
        assert {tag.key: tag.value for tag in dataset.tags}["dvc.md5"] == version.tags["dvc.data.md5"]
        files = {file.path for file in client.list_artifacts(version.run_id)}
        assert files == {"dvc.lock", "params.yaml", "lineage.json", "report", "scores"}
        report = json.loads((project.root / "outputs/report/deltas.json").read_text())
        assert run.data.metrics["scenes/overall/delta"] == pytest.approx(report["scenes"]["overall"]["delta"])
        logged = client.get_logged_model(run.data.tags["model.id"])
        assert {metric.key for metric in logged.metrics} >= {"scenes/overall/aligned"}
    assert version.tags["verdict"] == "passed"
    assert version.tags["benchmark_set"] == "s" * 64
    assert set(version.aliases) == {"challenger", "champion"}
    artifacts = project.root / "mlruns/artifacts"
    assert all(uri.startswith(str(artifacts)) for (uri,) in project.sql("SELECT artifact_uri FROM runs"))
    assert len(list(artifacts.rglob("model.safetensors"))) == 1
    record = project.registered()
    assert (record["name"], record["version"], record["alias"], record["verdict"]) == (NAME, "1", "champion", "passed")


def test_same_lineage_is_the_same_version(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    register(project.config, project.root)
    before = tags(project, 1)
    capsys.readouterr()
    register(project.config, project.root)
    assert (versions(project), statuses(project)) == ([1], ["FINISHED"])
    assert tags(project, 1) == before
    assert "version 1 was registered before" in capsys.readouterr().out
    assert not project.registered()["new"]


@pytest.mark.parametrize("changed", ["weights", "scores", "rules"])
def test_different_lineage_is_another_version(project: Project, changed: str) -> None:
    register(project.config, project.root)
    if changed == "rules":
        values = project.config.to_dict()
        values["register"]["promotion_rules"][0]["minimum"] = 0.01
        project.config = type(project.config).validated(values)
    project.results(weights=int(changed == "weights"), skill=0.9 if changed == "scores" else 0.8)
    register(project.config, project.root)
    assert versions(project) == [1, 2]


def test_failed_rule_registers_a_refused_challenger(project: Project) -> None:
    register(project.config, project.root)
    promoted(project, weights=1, skill=0.2)  # worse than the base
    assert aliases(project) == {"champion": 1, "challenger": 2}
    assert tags(project, 2)["verdict"] == "refused"
    assert "scenes overall versus base" in tags(project, 2)["verdict.reasons"]
    ((description,),) = project.sql("SELECT description FROM model_versions WHERE version = 2")
    assert description.startswith("**Refused**")
    assert "failed: scenes overall versus base" in description
    record = project.registered()
    assert (record["alias"], record["verdict"], record["champion"]) == ("challenger", "refused", "1")


def test_better_than_the_base_is_not_enough_against_a_champion(project: Project) -> None:
    promoted(project, weights=1, skill=1.0)
    promoted(project, weights=2, skill=0.8)
    assert aliases(project) == {"champion": 1, "challenger": 2}
    assert "versus champion" in tags(project, 2)["verdict.reasons"]
    promoted(project, weights=3, skill=1.0)  # not worse
    assert aliases(project) == {"champion": 3, "challenger": 3}


def test_different_benchmark_sets_are_not_compared(project: Project) -> None:
    register(project.config, project.root)
    project.results(weights=1, skill=1.0, benchmark_set="t" * 64)
    register(project.config, project.root)
    assert aliases(project) == {"champion": 1, "challenger": 2}
    assert "not comparable with champion version 1" in tags(project, 2)["verdict.reasons"]


def test_champion_without_its_answers_is_not_compared(project: Project) -> None:
    register(project.config, project.root)
    for file in (project.root / "mlruns/artifacts").rglob("scenes.items.jsonl"):
        file.unlink()
    promoted(project, weights=1, skill=1.0)
    assert aliases(project)["champion"] == 1
    assert "its answers to scenes cannot be used" in tags(project, 2)["verdict.reasons"]


def test_damaged_items_of_this_model_are_an_error(project: Project) -> None:
    register(project.config, project.root)
    project.results(weights=1, skill=1.0)
    (project.root / "outputs/scores/aligned/scenes.items.jsonl").write_text("{damaged\n")
    with pytest.raises(UserError, match=r"outputs/scores/aligned/scenes\.items\.jsonl is damaged"):
        register(project.config, project.root)
    assert versions(project) == [1]


def test_rollback_restores_the_previous_champion_for_good(project: Project) -> None:
    for weights, skill in ((0, 0.6), (1, 0.8), (2, 1.0)):
        promoted(project, weights, skill)
    assert history(project) == ["1", "2", "3"]
    assert rolled_back(project) == "2"
    register(project.config, project.root)  # the nightly run of the lineage that was taken back
    assert aliases(project)["champion"] == 2
    assert rolled_back(project) == "1"
    with pytest.raises(UserError, match="none before it to go back to"):
        rolled_back(project)
    promoted(project, weights=1, skill=0.8)
    assert (aliases(project)["champion"], versions(project)) == (1, [1, 2, 3])


def test_refused_version_is_evaluated_again_when_the_champion_has_changed(project: Project) -> None:
    for weights, skill in ((0, 0.6), (1, 1.0), (2, 0.8)):
        promoted(project, weights, skill)
    assert aliases(project) == {"champion": 2, "challenger": 3}
    assert rolled_back(project) == "1"
    register(project.config, project.root)
    assert aliases(project)["champion"] == 3
    assert (tags(project, 3)["verdict"], tags(project, 3)["verdict.reasons"]) == ("passed", "none")


def test_rerun_of_a_former_champion_does_not_promote_it(project: Project) -> None:
    promoted(project, weights=0, skill=0.8)
    promoted(project, weights=1, skill=0.8)  # not worse, so it is champion
    promoted(project, weights=0, skill=0.8)
    assert aliases(project)["champion"] == 2


def test_manual_changes_of_the_registry_are_respected(project: Project) -> None:
    for weights, skill in ((0, 0.6), (1, 0.8), (2, 1.0)):
        promoted(project, weights, skill)
    with runs.open_store(project.store()) as client:
        client.delete_model_version(NAME, "2")
        assert registry.champion_history(client, NAME) == ["1", "3"]
        client.set_registered_model_alias(NAME, "champion", "1")  # moved by hand
        assert registry.champion_history(client, NAME) == ["1"]
        client.delete_registered_model_alias(NAME, "champion")
        assert registry.get_champion(client, NAME) is None
    promoted(project, weights=4, skill=0.7)
    assert aliases(project)["champion"] == 4


# ------------------------------------------------------------------------------------------------ kill -9


def in_child(work: Callable[[], object], kill_at_write: int | None = None) -> int:
    """Run in a forked process, optionally killed with -9 right before its n-th write; returns the wait status.

    The parent never asks MLflow about a database that children change: its open connection would remember pages.
    """
    child = os.fork()
    if child == 0:
        writes = 0

        def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            nonlocal writes
            writes += statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE"))
            if writes == kill_at_write:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(Engine, "before_cursor_execute", count)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def assert_one_complete_version(project: Project) -> None:
    assert versions(project) == [1]
    assert aliases(project) == {"champion": 1, "challenger": 1}
    ((run_id,),) = project.sql("SELECT run_id FROM model_versions")
    ((status, artifacts),) = project.sql(f"SELECT status, artifact_uri FROM runs WHERE run_uuid = '{run_id}'")
    assert status == "FINISHED"
    assert {"dvc.lock", "lineage.json", "report"} <= set(os.listdir(artifacts))
    assert statuses(project).count("FINISHED") == 1
    assert "RUNNING" not in statuses(project)
    assert {"lineage.digest", "benchmark_set", "verdict", "git.note"} <= tags(project, 1).keys()
    assert project.sql("SELECT value FROM registered_model_tags WHERE key = 'champion.history'") == [('["1"]',)]


def test_rerun_after_a_kill_before_any_write_gives_one_complete_version(project: Project, tmp_path: Path) -> None:
    database, fresh = project.root / "mlruns/mlflow.db", tmp_path / "fresh.db"
    shutil.copy(database, fresh)

    def work() -> None:
        register(project.config, project.root)

    total = writes_of(work, tmp_path)
    assert total > 20
    dice = random.Random(total)
    for number in sorted({*range(total - 5, total + 1), *dice.sample(range(1, total - 5), 2)}):
        shutil.copy(fresh, database)
        assert os.WIFSIGNALED(in_child(work, kill_at_write=number)), f"not killed at write {number} of {total}"
        assert in_child(work) == 0
        assert_one_complete_version(project)


def test_rerun_after_many_kills_gives_one_complete_version(project: Project) -> None:
    def work() -> None:
        register(project.config, project.root)

    dice = random.Random(0)
    killed = [os.WIFSIGNALED(in_child(work, kill_at_write=dice.randrange(1, 18))) for _ in range(5)]
    assert sum(killed) >= 3
    assert in_child(work) == 0
    assert_one_complete_version(project)


def test_rollback_killed_at_any_write_is_not_undone(project: Project, tmp_path: Path) -> None:
    def work() -> None:
        register(project.config, project.root)

    for weights, skill in ((0, 0.6), (1, 0.8), (2, 1.0)):
        project.results(weights=weights, skill=skill)
        assert in_child(work) == 0
    database, before = project.root / "mlruns/mlflow.db", tmp_path / "before.db"
    shutil.copy(database, before)
    total = writes_of(lambda: rolled_back(project), tmp_path)
    assert total >= 3
    for number in range(1, total + 1):
        shutil.copy(before, database)
        assert os.WIFSIGNALED(in_child(lambda: rolled_back(project), kill_at_write=number))
        champion = aliases(project)["champion"]
        assert champion in {2, 3}
        if champion == 3:
            assert in_child(lambda: rolled_back(project)) == 0
        assert in_child(work) == 0  # the nightly run of the lineage that was taken back
        assert aliases(project)["champion"] == 2, f"killed at write {number} of {total}: it came back"


def writes_of(work: Callable[[], object], folder: Path) -> int:
    """Return the number of writes that ``work`` takes."""
    count = folder / "count"

    def counted() -> None:
        writes: list[str] = []
        event.listen(Engine, "before_cursor_execute", lambda _c, _k, statement, *_: writes.append(statement))
        work()
        count.write_text(
            str(sum(statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")) for statement in writes))
        )

    assert in_child(counted) == 0
    return int(count.read_text())


# ------------------------------------------------------------------------------------------------ together


@pytest.fixture
def workspaces(make_project: Callable[..., Project]) -> list[Project]:
    """Isolated workspaces that share the store of the first."""
    main = make_project("main")
    uri = main.store().uri
    return [main, *(make_project(f"worktree{n}", database=False, tracking={"uri": uri}) for n in range(2))]


def together(projects: list[Project]) -> None:
    children = []
    for project in projects:
        child = os.fork()
        if child == 0:
            try:
                register(project.config, project.root)
            except BaseException as error:
                print(error, flush=True)
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)


def test_concurrent_registrations_of_one_lineage_make_one_version(workspaces: list[Project]) -> None:
    for project in workspaces:
        project.results()
    together(workspaces)
    assert (versions(workspaces[0]), statuses(workspaces[0])) == ([1], ["FINISHED"])
    assert {project.registered()["version"] for project in workspaces} == {"1"}


def test_concurrent_registrations_promote_the_best_model(workspaces: list[Project]) -> None:
    for number, project in enumerate(workspaces):
        project.results(weights=number, skill=0.6 + 0.2 * number)
    together(workspaces)
    main = workspaces[0]
    assert versions(main) == [1, 2, 3]
    best = workspaces[2].registered()["version"]
    assert aliases(main)["champion"] == int(best)
    passed = [tags(main, number)["verdict"] == "passed" for number in (1, 2, 3)]
    assert history(main) == [str(number) for number in (1, 2, 3) if passed[number - 1]]


def test_second_registration_waits_for_the_first(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    register(project.config, project.root)
    with project.store().lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        child = os.fork()
        if child == 0:
            signal.alarm(2)
            register(project.config, project.root)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGALRM
    assert "waiting for another process that holds" in capfd.readouterr().out


def test_mlflow_global_settings_are_restored(project: Project) -> None:
    before = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    register(project.config, project.root)
    assert (mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")) == before
