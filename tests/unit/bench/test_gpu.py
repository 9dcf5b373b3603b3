"""The bench of GPUs, on a CPU and small models: the same code, to the table and the exit status."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

gpu, gpu_check, sizes = (import_module(f"bench.{name}") for name in ("gpu", "gpu_check", "sizes"))

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_every_family_is_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "answer.json"
    assert gpu.main(["--device", "cpu", "--tiny", "--inline", "--output", str(output)]) == 0
    answer = json.loads(output.read_text())
    assert [row["family"] for row in answer["families"]] == list(sizes.FAMILIES)
    for row in answer["families"]:
        assert "failed" not in row, row
        assert row["step_flops"] > 0
        assert row["images_per_second"] == pytest.approx(2 / row["step_seconds"], rel=1e-2)
        assert row["mfu"] is None, "a CPU has no stated peak"
        assert row["extraction"]["over_bare"] > 0
    assert answer["families"][0]["note"] == "extrapolated to 4 layers from 1 and 2"
    assert "| showo | tiny |" in capsys.readouterr().out


def test_what_is_switched_on_is_a_second_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(gpu, "compile_blocks", lambda model: compiled.append(model.family))  # minutes on a CPU
    words = ["--device", "cpu", "--tiny", "--inline", "--output", str(tmp_path / "answer.json")]
    assert gpu.main([*words, "--families", "janus", "--faster", "compile", "flex_attention"]) == 0
    answer = json.loads((tmp_path / "answer.json").read_text())
    (plain,), (faster,) = answer["families"], answer["faster"]
    assert compiled == ["janus"], "the first row is the plain one"
    assert (plain["faster"], faster["faster"]) == ([], ["compile"]), "FlexAttention is BAGEL's"
    assert faster["over_plain"] == pytest.approx(plain["step_seconds"] / faster["step_seconds"], rel=1e-2)
    assert faster["step_flops"] == plain["step_flops"]
    assert faster["extraction"] is None
    assert "| compile | " in capsys.readouterr().out


def test_a_row_that_takes_too_long_says_so(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--tiny", "--families", "janus", "--limit-seconds", "0.05"]
    assert gpu.main([*words, "--faster", "compile", "--output", str(tmp_path / "answer.json")]) == 1
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert [row["failed"] for row in answer["families"]] == ["not done after 0 s"]
    assert answer["faster"] == [], "nothing to compare with"


def test_a_family_that_fails_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(family: str, *others: object) -> None:
        raise {
            "janus": ModuleNotFoundError("No module named 'diffusers'", name="diffusers"),
            "showo": torch.cuda.OutOfMemoryError("64 GiB"),
            "harmon": RuntimeError("no\nluck"),
        }[family]

    monkeypatch.setattr(gpu, "build", build)
    words = ["--device", "cpu", "--tiny", "--inline", "--output", str(tmp_path / "answer.json")]
    assert gpu.main([*words, "--families", "janus", "showo", "harmon"]) == 1
    rows = json.loads((tmp_path / "answer.json").read_text())["families"]
    assert [row["failed"] for row in rows] == [
        "not measured: needs diffusers",
        "out of memory, even with one image a step",
        "RuntimeError: no luck",
    ]
    assert "needs diffusers" in capsys.readouterr().out


def test_a_depth_that_does_not_fit_is_extrapolated() -> None:
    shallow = {"micro_batch": 2, "step_seconds": 1.0, "step_flops": 10, "memory_gib": None}
    shallow |= {"parameters": 5, "trained": 3}
    deep = {**shallow, "step_seconds": 1.5, "step_flops": 18, "parameters": 9, "trained": 7}
    row = gpu.extrapolated(shallow, deep, (4, 8), 28)
    assert (row["step_seconds"], row["step_flops"], row["trained"], row["memory_gib"]) == (4.0, 58, 27, None)
    with pytest.raises(ValueError, match="micro-batches of 2 and 1"):
        gpu.extrapolated(shallow, {**deep, "micro_batch": 1}, (4, 8), 28)


@no_gpu
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert gpu_check.main([]) == 2
    assert capsys.readouterr().out.count("finds no GPU") == 2


def test_a_published_size_is_not_for_a_cpu() -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])


def test_the_peak_is_found_by_name() -> None:
    assert gpu.peak_of("NVIDIA H100 80GB HBM3") == gpu.peak_of("NVIDIA H200") == 989e12
    assert gpu.peak_of("NVIDIA A100") is None


def test_the_check_compares_and_says_what_it_cannot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_check.main(["--device", "cpu", "--families", "janus"]) == 0
    assert "differs" not in capsys.readouterr().out.replace("0 differs", "")

    def lacking(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'diffusers'", name="diffusers")

    monkeypatch.setattr(gpu_check, "build", lacking)
    monkeypatch.setattr(gpu_check, "import_module", lacking)
    assert gpu_check.main(["--device", "cpu", "--families", "bagel"]) == 2
    assert capsys.readouterr().out.count("not compared: needs diffusers") == 2


def test_a_difference_is_found() -> None:
    ours = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1e-9])}
    assert gpu_check.gradient_error(ours, ours)[0] == 0
    assert gpu_check.gradient_error(ours, {**ours, "a": torch.tensor([1.0, 2.1])}) == (pytest.approx(0.05), "a")
    assert gpu_check.gradient_error(ours, {**ours, "b": torch.tensor([float("nan")])})[1] == "b"
    assert gpu_check.gradient_error(ours, {"a": ours["a"]})[0] == float("inf")
