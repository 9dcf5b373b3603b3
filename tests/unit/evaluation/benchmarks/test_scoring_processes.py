"""Several processes judge what one judges, where a network judges on this machine."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from reca.cli import _is_shared, parser
from reca.config import Config, compose
from reca.evaluation.benchmarks.geneval import benchmark as geneval
from reca.evaluation.judges.reply_cache import Reply, ReplyFile
from reca.evaluation.judges.vision_language import VisionLanguageModel
from reca.stages import score as stage
from reca.stages.generate import generate
from tests.integration.training.ranks import ranks
from tests.unit.evaluation.judges.test_vision_language import save_judge

SMALL = ["evaluate.bootstrap_resamples=50", "hardware.threads=1", "hardware.generate_batch_size=8"]


def made(project: Path, name: str, *words: str) -> Config:
    config = compose([f"evaluate.benchmarks=[{name}]", f"+evaluate.{name}.max_prompts=2", *words, *SMALL])
    (project / "params.yaml").write_text(config.to_yaml())
    generate(config, project, "base", name)
    return config


def _score(root: Path, name: str) -> None:
    """In chunks of eight samples, so that a few are enough for several processes; notes who was asked what."""
    original_init, reply = geneval.Geneval.__init__, VisionLanguageModel.reply
    geneval.Geneval.__init__ = lambda self, s, r, d: original_init(self, s, r, d, short_side=64)
    judge_batch = geneval._judge_batch

    def judging(detector, rows, folder):
        note([row["file"] for row in rows])
        return judge_batch(detector, rows, folder)

    def asking(self, text, images, *more):
        note([f"{path.name} {text}" for path in images])
        return reply(self, text, images, *more)

    def note(lines):
        with (root / f"judged-{os.environ.get('RANK', 'alone')}.txt").open("a") as file:
            file.writelines(f"{' '.join(line.split())}\n" for line in lines)

    stage.CHUNK_SIZE, geneval._judge_batch, VisionLanguageModel.reply = 8, judging, asking
    stage.score(Config.load(root / "params.yaml"), root, "base", name)


def taken(root: Path, name: str) -> tuple[dict[str, bytes], list[Counter[str]]]:
    """The score files, and what each process was asked; both are removed."""
    files = {path.name: path.read_bytes() for path in (root / "outputs/scores/base").iterdir()}
    requests = [Counter(path.read_text().splitlines()) for path in sorted(root.glob("judged-*.txt"))]
    shutil.rmtree(root / "outputs/scores")
    shutil.rmtree(root / ".reca/replies", ignore_errors=True)
    for path in root.glob("judged-*.txt"):
        path.unlink()
    return files, requests


def check_shared(root: Path, name: str, sizes: tuple[int, ...]) -> None:
    assert ranks(1, _score, root, name) == [0]
    single, (everything,) = taken(root, name)
    assert set(everything.values()) == {1}
    for size in sizes:
        assert ranks(size, _score, root, name) == [0] * size
        together, requests = taken(root, name)
        assert together == single
        assert len(requests) == size, "each process judges something"
        assert sum(requests, Counter()) == everything, "nothing is judged twice"


def test_any_number_of_processes_finds_the_same_in_images(project, use_model, artist, judges):
    use_model(artist)
    shutil.copytree(judges, project / "data/judges")
    made(project, "geneval", "+evaluate.geneval.images_per_prompt=3")
    check_shared(project, "geneval", (2, 3))


def test_any_number_of_processes_asks_a_local_model_once(wise_prompts, use_model, artist):
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
    check_shared(wise_prompts, "wise", (2,))


@pytest.mark.parametrize("words", [("--from-replies",), ("--dry-run",)])
def test_what_asks_nobody_is_one_process(words):
    config = compose(["evaluate.benchmarks=[wise]", "+evaluate.wise.judge.folder=judge"])
    assert _is_shared(parser().parse_args(["score", "base", "wise"]), config)
    assert not _is_shared(parser().parse_args(["score", "base", "wise", *words]), config)
    assert not _is_shared(parser().parse_args(["score", "base", "scenes"]), config)


def test_two_writers_lose_no_reply(tmp_path):
    assert ranks(2, _write, tmp_path / "replies.jsonl") == [0, 0]
    assert len(ReplyFile(tmp_path / "replies.jsonl")) == 100


def _write(path: Path) -> None:
    own_lines = ReplyFile(path)
    for number in range(50):
        own_lines.add(Reply(f"{os.environ['RANK']}-{number}", "mark", "answered", "x" * 20_000))
        ReplyFile(path)
