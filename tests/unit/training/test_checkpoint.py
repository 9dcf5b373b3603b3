"""Checkpoints are complete or ignored, kept or removed, and belong to one fingerprint."""

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bench.sharding import measure_checkpoint, run_ranks
from reca.config import Config, compose
from reca.runtime.errors import UserError
from reca.runtime.hashing import file_digest
from reca.training.checkpoint import META, CheckpointStore, fingerprint, restore
from reca.training.optimizer import build_optimizer

SHARD = "shard-00001-model-00001-of-00001.safetensors"


@pytest.fixture
def network() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return dict(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).named_parameters())


def stepped(network: dict[str, nn.Parameter], steps: int) -> torch.optim.AdamW:
    optimizer = build_optimizer(network, (0.9, 0.95), 0.01)
    for _ in range(steps):
        for value in network.values():
            value.grad = value.detach().clone() + 1
        optimizer.step()
    return optimizer


def store(root: Path, name: str = "a" * 16, keep_checkpoints: int = 2) -> CheckpointStore:
    return CheckpointStore(root, name, keep_checkpoints)


def save(target: CheckpointStore, network: dict[str, nn.Parameter], *steps: int) -> None:
    for step in steps:
        target.save(step, network, stepped(network, 1), {"seed": 0}, {"seconds": float(step)})


def test_what_was_saved_comes_back(tmp_path: Path, network: dict[str, nn.Parameter]) -> None:
    optimizer = stepped(network, 3)
    store(tmp_path).save(3, network, optimizer, {"seed": 0}, {"seconds": 1.5})
    checkpoint = store(tmp_path).latest()
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.facts) == (3, {"seconds": 1.5})
    other = {name: nn.Parameter(torch.zeros_like(value)) for name, value in network.items()}
    fresh = build_optimizer(other, (0.9, 0.95), 0.01)
    restore(checkpoint, other, fresh)
    assert all(torch.equal(other[name], value) for name, value in network.items())
    for name, value in network.items():
        for key, state in optimizer.state[value].items():
            assert torch.equal(fresh.state[other[name]][key], state)


def test_meta_says_what_it_is(tmp_path: Path, network: dict[str, nn.Parameter]) -> None:
    save(store(tmp_path), network, 7)
    meta = json.loads((tmp_path / "checkpoints" / ("a" * 16) / "000007" / META).read_text())
    assert (meta["fingerprint"], meta["step"], meta["params"]) == ("a" * 16, 7, {"seed": 0})


def test_retention(tmp_path: Path, network: dict[str, nn.Parameter]) -> None:
    save(checkpoints := store(tmp_path, keep_checkpoints=2), network, 1, 2, 3, 1_000_000)
    assert checkpoints.steps() == [3, 1_000_000]
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["000003", "1000000"]


def test_other_fingerprints_are_not_seen(tmp_path: Path, network: dict[str, nn.Parameter]) -> None:
    save(store(tmp_path, "a" * 16), network, 5)
    assert store(tmp_path, "b" * 16).latest() is None


def test_a_folder_that_was_moved_here_is_not_taken(
    tmp_path: Path, network: dict[str, nn.Parameter], capsys: pytest.CaptureFixture[str]
) -> None:
    save(store(tmp_path, "a" * 16), network, 5)
    shutil.copytree(tmp_path / "checkpoints" / ("a" * 16), tmp_path / "checkpoints" / ("b" * 16))
    assert store(tmp_path, "b" * 16).latest() is None
    assert f"belongs to another run ({'a' * 16})" in capsys.readouterr().out


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _rename(folder: Path, names: dict[str, str]) -> None:
    meta = json.loads((folder / META).read_text())
    meta["files"] = {new: meta["files"][old] for old, new in names.items()}
    (folder / META).write_text(json.dumps(meta))
    for old, new in names.items():
        (folder / old).rename(folder / new)


DAMAGE = {
    "no meta": lambda folder: (folder / META).unlink(),
    "empty meta": lambda folder: (folder / META).write_text(""),
    "half a meta": lambda folder: _truncate(folder / META),
    "other meta": lambda folder: (folder / META).write_text("[]"),
    "no files in meta": lambda folder: _rename(folder, {}),
    "another version's files": lambda folder: _rename(folder, {SHARD: "part-00001-of-00001.safetensors"}),
    "no tensors": lambda folder: (folder / SHARD).unlink(),
    "truncated tensors": lambda folder: _truncate(folder / SHARD),
    "flipped bit in the tensors": lambda folder: _flip(folder / SHARD),
    "empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_torn_checkpoint_is_passed_over_aloud(
    tmp_path: Path, network: dict[str, nn.Parameter], capsys: pytest.CaptureFixture[str], damage
) -> None:
    save(checkpoints := store(tmp_path), network, 10, 20)
    damage(checkpoints.path(20))
    checkpoint = checkpoints.latest()
    assert checkpoint is not None
    assert checkpoint.step == 10
    assert f"skipping the checkpoint {checkpoints.path(20)}" in capsys.readouterr().out


def test_nothing_whole_means_nothing(tmp_path: Path, network: dict[str, nn.Parameter]) -> None:
    save(checkpoints := store(tmp_path), network, 10)
    _truncate(checkpoints.path(10) / SHARD)
    assert checkpoints.latest() is None


def _replace(folder: Path, state: object) -> None:
    """Put a pickle in place of the tensors, with a matching hash."""
    torch.save(state, folder / SHARD)
    meta = json.loads((folder / META).read_text())
    meta["files"][SHARD] = {"size": (folder / SHARD).stat().st_size, "sha256": file_digest(folder / SHARD)}
    (folder / META).write_text(json.dumps(meta))


POISON = {
    ".metadata": (2, lambda folder, state: (folder / ".metadata").write_bytes(pickle.dumps(state))),
    "a shard of the pickle format": (2, lambda folder, state: torch.save(state, folder / "__0_0.distcp")),
    "optimizer.bin": (2, lambda folder, state: torch.save(state, folder / "optimizer.bin")),
    "one more file of tensors": (1, lambda folder, state: torch.save(state, folder / f"more-{SHARD}")),
    "in place of the tensors": (1, _replace),
}
"""Where a pickle is put, and the step that is still found."""


@pytest.mark.parametrize(("step", "poison"), POISON.values(), ids=POISON.keys())
def test_a_pickle_anywhere_in_a_checkpoint_runs_nothing(
    tmp_path: Path, network: dict[str, nn.Parameter], step: int, poison
) -> None:
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    save(checkpoints := store(tmp_path), network, 1, 2)
    poison(checkpoints.path(2), {"state": Evil()})
    checkpoint = checkpoints.latest()
    assert checkpoint is not None
    assert checkpoint.step == step
    restore(checkpoint, network, build_optimizer(network, (0.9, 0.95), 0.01))
    assert not (tmp_path / "owned").exists()


def test_one_process_needs_no_process_group(tmp_path: Path, network: dict[str, nn.Parameter]) -> None:
    save(checkpoints := store(tmp_path), network, 1)
    checkpoint = checkpoints.latest()
    assert checkpoint is not None
    restore(checkpoint, network, build_optimizer(network, (0.9, 0.95), 0.01))
    assert not torch.distributed.is_initialized()


def test_large_state_is_split_over_files(
    tmp_path: Path, network: dict[str, nn.Parameter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch makes a whole file in memory; the largest tensor here has 256 bytes."""
    monkeypatch.setattr("reca.training.checkpoint.FILE_BYTES", 300)
    save(checkpoints := store(tmp_path), network, 1)
    checkpoint = checkpoints.latest()
    assert checkpoint is not None
    files = list(checkpoint.folder.glob("*.safetensors"))
    contents = [sum(value.nbytes for value in load_file(path).values()) for path in files]
    assert len(files) > 2
    assert max(contents) < 300 + 256
    other = {name: nn.Parameter(torch.zeros_like(value)) for name, value in network.items()}
    restore(checkpoint, other, build_optimizer(other, (0.9, 0.95), 0.01))
    assert all(torch.equal(other[name], value) for name, value in network.items())


def test_leftovers_of_a_killed_save_are_cleaned(tmp_path: Path, network: dict[str, nn.Parameter]) -> None:
    save(checkpoints := store(tmp_path), network, 1)
    (checkpoints.folder / ".000002.abcdef").mkdir()
    (checkpoints.folder / ".000002.abcdef" / SHARD).write_bytes(b"half")
    assert checkpoints.steps() == [1]
    checkpoints.clean()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["000001"]


def test_other_parameters_are_refused(tmp_path: Path, network: dict[str, nn.Parameter]) -> None:
    save(checkpoints := store(tmp_path), network, 1)
    checkpoint = checkpoints.latest()
    assert checkpoint is not None
    fewer = dict(list(network.items())[:-1])
    with pytest.raises(UserError, match=r"written by other code: 1\.bias differs; remove the folder"):
        restore(checkpoint, fewer, build_optimizer(fewer, (0.9, 0.95), 0))


def test_saving_and_loading_copy_a_file_not_the_state(tmp_path: Path) -> None:
    """A state of 192 MiB in files of 16 MiB: memory beyond the state, in a process of its own."""
    (memory,) = run_ranks(1, measure_checkpoint, tmp_path, 4, 2**24)
    assert memory["state"] == 192
    assert memory["saving"] < 48
    assert memory["loading"] < 16


# -- fingerprint --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default() -> Config:
    return compose()


def test_fingerprint_changes_with_the_science(default: Config) -> None:
    science = [
        "train.learning_rate=1e-4", "train.max_steps=700", "train.mixture.reconstruction=0", "train.captions=full",
        "train.global_batch_size=32", "seed=1", "model.train_vision=true", "model.name=other", "extract.dtype=float32",
    ]  # fmt: skip
    digests = [fingerprint(compose([override]), "data", "base") for override in science]
    digests += [fingerprint(default, "other data", "base"), fingerprint(default, "data", "other base")]
    digests.append(fingerprint(default, "data", "base"))
    assert len(set(digests)) == len(digests)


def test_fingerprint_ignores_speed_place_and_housekeeping(default: Config) -> None:
    same = [
        "hardware.micro_batch_size=7", "hardware.threads=1", "hardware.shard=all", "paths.state=/elsewhere",
        "train.save_every=5", "train.eval_every=5", "train.keep_checkpoints=9", "generate.guidance_scale=5",
        "tracking.experiment=x",
        "evaluate.scenes.seed=9",
    ]  # fmt: skip
    assert {fingerprint(compose([override]), "data", "base") for override in same} == {
        fingerprint(default, "data", "base")
    }


# -- lock ---------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from reca.runtime.locks import file_lock
with file_lock(Path(sys.argv[1]) / "checkpoints" / f"{'a' * 16}.lock", "x"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(root: Path, seconds: float) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(root), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_second_trainer_is_told_who_trains(tmp_path: Path) -> None:
    child = hold(tmp_path, 60)
    holder = rf"a{{16}} is in the hands of process {child.pid} on .*since"
    with pytest.raises(UserError, match=holder), store(tmp_path).lock(wait_seconds=0.3):
        pass
    with store(tmp_path, "b" * 16).lock(wait_seconds=0):
        pass  # another run's lock is another lock
    child.send_signal(signal.SIGKILL)
    child.wait()
    with store(tmp_path).lock(wait_seconds=60):
        pass  # the kernel has freed it


def test_second_trainer_waits_its_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = hold(tmp_path, 1)
    with store(tmp_path).lock(wait_seconds=60):
        assert child.wait(60) == 0
    assert "waiting up to 60 s" in capsys.readouterr().out


# -- disks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here; test_file_size_limit covers the same path")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def big(elements: int) -> dict[str, nn.Parameter]:
    return {"weight": nn.Parameter(torch.zeros(elements, 1))}


def test_full_disk(small_disk: Path) -> None:
    checkpoints = store(small_disk)
    small = big(2_000)
    save(checkpoints, small, 1)
    parameters = big(80_000)
    with pytest.raises(UserError, match=r"checkpoint of step 2 to .*small.*No space left.*paths\.state"):
        checkpoints.save(2, parameters, stepped(parameters, 1), {}, {})
    assert [path.name for path in checkpoints.folder.iterdir()] == ["000001"]
    assert checkpoints.latest() is not None


def test_file_size_limit(tmp_path: Path) -> None:
    """A quota or ``ulimit -f``, which needs no mount."""
    checkpoints, parameters = store(tmp_path), big(100_000)
    optimizer = stepped(parameters, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write the checkpoint of step 2 to .*File too large.*paths\.state"):
            checkpoints.save(2, parameters, optimizer, {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(checkpoints.folder.iterdir()) == []


def test_read_only_state_folder(tmp_path: Path, network: dict[str, nn.Parameter]) -> None:
    """Root may write anywhere but on a read-only mount, so that is what this uses."""
    folder = tmp_path / "closed"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True).returncode:
        if os.geteuid() == 0:
            pytest.skip("root cannot be refused without a read-only mount, and mounting is not permitted here")
        folder.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"closed.*(Read-only|Permission).*paths\.state"):
            save(store(folder), network, 1)
        with pytest.raises(UserError, match=r"cannot write a lock to .*closed"), store(folder).lock():
            pass
    finally:
        subprocess.run(["umount", "-l", folder], capture_output=True)
