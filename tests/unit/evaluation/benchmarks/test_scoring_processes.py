"""Any number of workers judges what one judges, where a network judges on this machine."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from reca.config import Config, compose
from reca.evaluation.benchmarks.geneval import benchmark as geneval
from reca.evaluation.judges.reply_cache import Reply, ReplyFile
from reca.evaluation.judges.vision_language import VisionLanguageModel
from reca.stages import score as stage
from reca.stages.generate import generate
from tests.fan_outs import no_worker, one_worker_per_item
from tests.integration.training.ranks import ranks
from tests.unit.evaluation.judges.test_vision_language import save_judge

SMALL = ["evaluate.bootstrap_resamples=50", "hardware.threads=1", "hardware.generate_batch_size=8"]


def made(project: Path, name: str, *words: str) -> Config:
    config = compose([f"evaluate.benchmarks=[{name}]", f"+evaluate.{name}.max_prompts=2", *words, *SMALL])
    (project / "params.yaml").write_text(config.to_yaml())
    generate(config, project, "base", name)
    return config


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the workers were asked: a list per worker; chunks have eight samples."""
    requests: list[list[str]] = []
    init, reply, judge_batch = geneval.Geneval.__init__, VisionLanguageModel.reply, geneval._judge_batch

    def start(worker, *arguments):
        requests.append([])
        return start_worker(worker, *arguments)

    def judging(detector, rows, folder):
        requests[-1] += [row["file"] for row in rows]
        return judge_batch(detector, rows, folder)

    def asking(self, text, images, *more):
        requests[-1] += [f"{path.name} {text}" for path in images]
        return reply(self, text, images, *more)

    start_worker = stage._ChunkJudge.__call__
    monkeypatch.setattr(stage._ChunkJudge, "__call__", start)
    monkeypatch.setattr(geneval.Geneval, "__init__", lambda self, s, r, d: init(self, s, r, d, short_side=64))
    monkeypatch.setattr(geneval, "_judge_batch", judging)
    monkeypatch.setattr(VisionLanguageModel, "reply", asking)
    monkeypatch.setattr(stage, "CHUNK_SIZE", 8)
    return requests


def scored(root: Path, name: str) -> dict[str, bytes]:
    """The score files of a new scoring; no file of an earlier one is left."""
    shutil.rmtree(root / "outputs/scores", ignore_errors=True)
    shutil.rmtree(root / ".reca/replies", ignore_errors=True)
    stage.score(Config.load(root / "params.yaml"), root, "base", name)
    return {path.name: path.read_bytes() for path in (root / "outputs/scores/base").iterdir()}


def check_shared(root: Path, name: str, requests: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    single = scored(root, name)
    (everything,) = map(Counter, requests)
    assert set(everything.values()) == {1}
    requests.clear()
    monkeypatch.setattr(stage, "fan_out", one_worker_per_item)
    assert scored(root, name) == single
    assert len(requests) > 1
    assert all(requests), "each worker judges something"
    assert sum(map(Counter, requests), Counter()) == everything, "nothing is judged twice"


def test_any_number_of_workers_finds_the_same_in_images(project, use_model, artist, judges, requests, monkeypatch):
    use_model(artist)
    shutil.copytree(judges, project / "data/judges")
    made(project, "geneval", "+evaluate.geneval.images_per_prompt=3")
    check_shared(project, "geneval", requests, monkeypatch)


def test_any_number_of_workers_asks_a_local_model_once(wise_prompts, use_model, artist, requests, monkeypatch):
    """It gives the same scores whatever it is asked, for they are its first word, and all words are as likely."""
    use_model(artist)
    folder = wise_prompts / "judge"
    network = save_judge(
        folder, ["Consistency: 2\nRealism: 1\nAesthetic Quality: 2", "<pad>", "<unk>", "<end>", "<image>"]
    )
    torch.nn.init.zeros_(network.lm_head.weight)
    network.save_pretrained(folder)
    judge = "{model: tiny, folder: judge, max_tokens: 1, temperature: 0.0}"
    made(wise_prompts, "wise", f"+evaluate.wise.judge={judge}")
    check_shared(wise_prompts, "wise", requests, monkeypatch)
    monkeypatch.setattr(stage, "fan_out", no_worker)
    config = Config.load(wise_prompts / "params.yaml")
    stage.score(config, wise_prompts, "base", "wise", from_replies=True)
    stage.score(config, wise_prompts, "base", "wise", dry_run=True)


def test_two_writers_lose_no_reply(tmp_path):
    assert ranks(2, _write, tmp_path / "replies.jsonl") == [0, 0]
    assert len(ReplyFile(tmp_path / "replies.jsonl")) == 100


def _write(path: Path) -> None:
    own_lines = ReplyFile(path)
    for number in range(50):
        own_lines.add(Reply(f"{os.environ['RANK']}-{number}", "mark", "answered", "x" * 20_000))
        ReplyFile(path)
