"""bench.gpu and bench.gpu_check on a CPU with small models, to the table and the exit status."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

gpu, gpu_check, sizes = (import_module(f"bench.{name}") for name in ("gpu", "gpu_check", "sizes"))

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_every_family_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_options_give_a_second_row(
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


def test_row_over_its_time_limit_has_a_reason(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--tiny", "--families", "janus", "--limit-seconds", "0.05"]
    assert gpu.main([*words, "--faster", "compile", "--output", str(tmp_path / "answer.json")]) == 1
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert [row["failed"] for row in answer["families"]] == ["unfinished after 0 s"]
    assert answer["faster"] == [], "no baseline"


def test_failed_family_has_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(family: str, *_: object) -> None:
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


def test_depths_are_extrapolated_linearly() -> None:
    shallow = {"micro_batch": 2, "step_seconds": 1.0, "step_flops": 10, "memory_gib": None}
    shallow |= {"parameters": 5, "trained": 3}
    deep = {**shallow, "step_seconds": 1.5, "step_flops": 18, "parameters": 9, "trained": 7}
    row = gpu.extrapolate(shallow, deep, (4, 8), 28)
    assert (row["step_seconds"], row["step_flops"], row["trained"], row["memory_gib"]) == (4.0, 58, 27, None)
    with pytest.raises(ValueError, match="micro-batches of 2 and 1"):
        gpu.extrapolate(shallow, {**deep, "micro_batch": 1}, (4, 8), 28)


@no_gpu
def test_missing_gpu_gives_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert gpu_check.main([]) == 2
    assert capsys.readouterr().out.count("finds no GPU") == 2


def test_published_sizes_are_refused_on_a_cpu() -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])


def test_peak_is_looked_up_by_device_name() -> None:
    assert gpu.peak_flops("NVIDIA H100 80GB HBM3") == gpu.peak_flops("NVIDIA H200") == 989e12
    assert gpu.peak_flops("NVIDIA A100") is None


def test_check_reports_missing_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--device", "cpu", "--families", "janus"]) == 0
    assert "differs" not in capsys.readouterr().out.replace("0 differs", "")

    def missing_package(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'diffusers'", name="diffusers")

    monkeypatch.setattr(gpu_check, "build", missing_package)
    monkeypatch.setattr(gpu_check, "import_module", missing_package)
    assert gpu_check.main(["--device", "cpu", "--families", "bagel"]) == 2
    assert capsys.readouterr().out.count("not compared: needs diffusers") == 2


def test_gradient_error_is_the_largest_relative_difference() -> None:
    ours = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1e-9])}
    assert gpu_check.gradient_error(ours, ours)[0] == 0
    assert gpu_check.gradient_error(ours, {**ours, "a": torch.tensor([1.0, 2.1])}) == (pytest.approx(0.05), "a")
    assert gpu_check.gradient_error(ours, {**ours, "b": torch.tensor([float("nan")])})[1] == "b"
    assert gpu_check.gradient_error(ours, {"a": ours["a"]})[0] == float("inf")
