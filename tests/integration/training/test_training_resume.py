"""A run that is interrupted at any point ends with the weights of an uninterrupted one, bit for bit."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reca.runtime.errors import UserError
from reca.runtime.signals import Interrupted
from reca.stages.result import read_result
from reca.stages.train import train
from reca.training import loop
from reca.training.metrics import CurveFile
from tests.integration.training.ranks import CHILD_SECONDS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def straight(template: Path, tmp_path_factory: pytest.TempPathFactory):
    """Run without interruption."""
    from reca.config import Config

    root = tmp_path_factory.mktemp("straight") / "project"
    shutil.copytree(template, root)
    train(Config.load(root / "params.yaml"), root)
    return root


def same_as(straight: Path, project) -> None:
    """Compare weights bit for bit, curves row for row."""
    expected, weights = load_file(straight / "outputs/model/model.safetensors"), project.weights()
    assert expected.keys() == weights.keys()
    assert [name for name in expected if not torch.equal(expected[name], weights[name])] == []
    reference = type(project)(straight, project.config)
    for name in ("train.csv", "held_out.csv"):
        assert project.curve(name) == reference.curve(name)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Deliver a real SIGTERM to this process while a step's row is written."""
    original, waiting = CurveFile.add, list(steps)

    def add(self: CurveFile, row) -> None:
        original(self, row)
        if waiting and row["step"] == waiting[0] and "loss" in row:
            waiting.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(CurveFile, "add", add)


def test_resume_is_bit_equal_after_four_kinds_of_interruption(project, straight: Path) -> None:
    """kill -9 between two checkpoints and while one is written; SIGTERM; kill -9 before the model is written."""
    project.kill_when("train", lambda: project.recorded() >= 5)
    assert project.steps() == ["000003"]

    project.kill_when("train", lambda: any(project.checkpoints.glob(".000006.*/shard-*")))
    assert project.steps() == ["000003"]

    child = project.start("train", slowly=True)
    project.wait_for(lambda: project.recorded() >= 7, lambda: child.poll() is None)
    child.terminate()
    output, _ = child.communicate(timeout=CHILD_SECONDS)
    assert child.returncode == 143, output
    assert "resuming after step 3 from" in output
    last = project.steps()[-1]
    assert last in ("000007", "000008")  # the step is finished and saved, whichever the signal met
    assert f"stopped by signal 15; saved as {project.checkpoints / last}" in output

    project.kill_when("train", lambda: (project.checkpoints / "000008").exists())
    assert not (project.root / "outputs/model").exists()

    train(project.config, project.root)
    assert not list(project.checkpoints.glob(".*"))
    assert read_result(project.root / "outputs/curves")["resumed_after"][0] == 3
    same_as(straight, project)


def test_resume_is_bit_equal_after_signals_in_process(project, straight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, 2, 3, 7)
    for step in (2, 3, 7):
        with pytest.raises(Interrupted) as caught:
            train(project.config, project.root)
        assert caught.value.code == 143
        assert int(project.steps()[-1]) == step
    train(project.config, project.root)
    assert read_result(project.root / "outputs/curves")["resumed_after"] == [2, 3, 7]
    same_as(straight, project)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_resume_is_bit_equal_with_low_bit_moments(project, state_dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    project.configure(f"train.optimizer_state_dtype={state_dtype}", "train.max_steps=4")
    uninterrupted = type(project)(project.root.with_name("other"), project.config)
    shutil.copytree(project.root, uninterrupted.root)
    train(uninterrupted.config, uninterrupted.root)
    interrupt_at(monkeypatch, 2)
    with pytest.raises(Interrupted):
        train(project.config, project.root)
    saved = load_file(project.checkpoints / "000002/shard-00001-model-00001-of-00001.safetensors")
    stored = {value.dtype for key, value in saved.items() if key.startswith("exp_avg")}
    assert stored == {torch.bfloat16} | ({torch.uint8, torch.float32} if state_dtype == "8bit" else set())
    train(project.config, project.root)
    same_as(uninterrupted.root, project)


def test_resume_skips_a_corrupt_checkpoint(
    project, straight: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_at(monkeypatch, 7)
    with pytest.raises(Interrupted):
        train(project.config, project.root)
    torn = project.checkpoints / "000007" / "shard-00001-model-00001-of-00001.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    train(project.config, project.root)
    output = capsys.readouterr().out
    assert f"skipping the checkpoint {torn.parent}: {torn.name} has" in output
    assert "resuming after step 6" in output
    same_as(straight, project)


def test_resume_ignores_checkpoints_of_other_settings(
    project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_at(monkeypatch, 2)
    with pytest.raises(Interrupted):
        train(project.config, project.root)
    for override in ("train.learning_rate=1e-4", "model.name=another_preset"):
        config = project.configure(override, "train.max_steps=2")
        train(config, project.root)
        assert "resuming" not in capsys.readouterr().out
        assert [row["step"] for row in project.curve("train.csv")] == ["1", "2"]
    folders = [path for path in (project.root / ".reca/checkpoints").iterdir() if path.is_dir()]
    assert len(folders) == 3


def test_finished_run_is_not_trained_again(project, straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(project.config, project.root)
    capsys.readouterr()
    shutil.rmtree(project.root / "outputs/model")  # as DVC does before a stage runs
    shutil.rmtree(project.root / "outputs/curves")
    train(project.config, project.root)
    assert "all 8 steps are done already" in capsys.readouterr().out
    same_as(straight, project)


def test_resume_after_an_edit_of_the_code(
    project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unfinished run resumes with a warning; a finished one is trained again."""
    interrupt_at(monkeypatch, 4)
    with pytest.raises(Interrupted):
        train(project.config, project.root)
    monkeypatch.setattr(loop, "code_digest", lambda stage, family: "f" * 16)
    train(project.config, project.root)
    assert "WARNING the code of training has changed" in capsys.readouterr().out
    code = read_result(project.root / "outputs/curves")["code"]
    assert [entry["from_step"] for entry in code] == [1, 5]
    monkeypatch.setattr(loop, "code_digest", lambda stage, family: "e" * 16)
    train(project.config, project.root)
    assert "by other code: training again" in capsys.readouterr().out
    assert read_result(project.root / "outputs/curves")["code"] == [{"from_step": 1, "digest": "e" * 16}]


def test_micro_batch_size_changes_losses_by_rounding_only(project, straight: Path) -> None:
    config = project.configure("hardware.micro_batch_size=3", "train.max_steps=1", "train.warmup_steps=1")
    train(config, project.root)
    small = project.curve("train.csv")[0]
    config = project.configure("hardware.micro_batch_size=64", "train.max_steps=1", "train.warmup_steps=1")
    shutil.rmtree(project.root / ".reca")
    train(config, project.root)
    large = project.curve("train.csv")[0]
    for key in ("loss", "loss_reconstruction", "loss_text_to_image", "loss_understanding", "grad_norm"):
        assert float(small[key]) == pytest.approx(float(large[key]), rel=1e-5)


def test_unwritable_state_folder_is_reported(project) -> None:
    """A file in place of the folder, which is an obstacle for root too."""
    (project.root / "state").write_text("")
    config = project.configure("paths.state=state/inside")
    with pytest.raises(UserError, match=r"cannot write a lock to .*state.*paths\.state"):
        train(config, project.root)
