"""Reading and writing weights, and loading them strictly."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from reca.models import weights
from reca.models.weights import choose_weights, load_strictly, read_weights, write_weights

STATE = {"b": torch.arange(6.0), "a.weight": torch.ones(3, 2), "c": torch.zeros(4, dtype=torch.bfloat16)}


def is_state(tensors: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == STATE.keys() and all(torch.equal(tensors[key], STATE[key]) for key in STATE)


def test_shards_and_a_single_file_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(STATE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert is_state(read_weights(tmp_path))
    monkeypatch.setattr(weights, "SHARD_BYTES", 32)
    (tmp_path / "sharded").mkdir()
    write_weights(STATE, tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) == 2
    assert is_state(read_weights(tmp_path / "sharded"))


def test_a_view_is_written_without_its_base_tensor(tmp_path: Path) -> None:
    base = torch.arange(1000.0)
    write_weights({"first": base[:3], "second": base[3:5]}, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 400
    assert torch.equal(read_weights(tmp_path)["second"], torch.tensor([3.0, 4.0]))


def test_an_index_with_missing_shards_or_keys_is_refused(tmp_path: Path) -> None:
    write_weights(STATE, tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {**dict.fromkeys(STATE, "model.safetensors"), "d": "model.safetensors"}})
    )
    with pytest.raises(ValueError, match="shards lack: d"):
        read_weights(index)
    index.write_text(json.dumps({"weight_map": {"a": "other.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"other\.safetensors is missing"):
        read_weights(index)
    index.write_text("{")
    with pytest.raises(ValueError, match="not an index"):
        read_weights(index)
    with pytest.raises(FileNotFoundError, match="has no weights"):
        read_weights(Path(__file__).parent)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_pickled_weights_are_unwrapped(tmp_path: Path, wrapper: str | None) -> None:
    content = STATE if wrapper is None else {wrapper: STATE, "step": 3}
    torch.save(content, tmp_path / "last.pth")
    assert is_state(read_weights(tmp_path / "last.pth"))


def test_pickles_with_code_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": nn.Linear(2, 2)}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"model\.ckpt cannot be read"):
        read_weights(tmp_path / "model.ckpt")


def test_strict_loading_accounts_for_every_key() -> None:
    network = nn.Linear(2, 3)
    state = {"weight": torch.zeros(3, 2), "extra.one": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"1 missing: bias; 1 unexpected: extra\.one"):
        load_strictly(network, state, "here")
    load_strictly(network, state, "here", may_lack=["bias"], may_ignore=["extra.*"])
    assert not bool(network.weight.any())
    with pytest.raises(ValueError, match=r"of another size: weight \(2, 2\), expected \(3, 2\)"):
        load_strictly(network, {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)}, "here")


def test_named_weights_are_looked_for_only_in_the_folder_they_were_chosen_in(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth", "kl16.ckpt"):
        torch.save(STATE, tmp_path / name)
    assert choose_weights(tmp_path, "b.pth").name == "b.pth"
    with pytest.raises(ValueError, match=r"a\.pth, b\.pth: choose one"):
        choose_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nor c\.pth"):
        choose_weights(tmp_path, "c.pth")
    (tmp_path / "a.pth").unlink()
    assert choose_weights(tmp_path).name == "b.pth"
    write_weights(STATE, tmp_path)  # as training writes a model
    assert choose_weights(tmp_path, "a.pth").name == "model.safetensors"
