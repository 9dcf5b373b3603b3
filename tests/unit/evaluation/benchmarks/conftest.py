"""Fake models that draw noise and edit by darkening, tiny judges, and a judge's endpoint on loopback."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedTokenizerFast,
    SwinConfig,
)

from reca.evaluation.benchmarks.geneval.prompts import COLORS, OBJECTS
from reca.models.base import ImageSpec
from reca.models.sampling import Sampling
from reca.runtime.seeding import SampleRng

SMALL = 64


class Artist(nn.Module):
    """Draws noise that depends only on the seed."""

    spec = ImageSpec.square(understanding_size=24, generation_size=SMALL, semantic_tokens=1, target_tokens=1)
    family: ClassVar[str] = "artist"
    drawn_prompts: ClassVar[list[str]] = []

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    @classmethod
    def load(cls, checkpoint: Path, options: Mapping[str, Any], device: torch.device) -> Self:
        return cls()

    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        self.drawn_prompts.extend(prompts)
        coarse = rng.uniform("noise", (3, 4, 4))
        return nn.functional.interpolate(coarse, SMALL, mode="nearest") * 2 - 1


class DarkeningEditor(Artist):
    def edit(
        self, images: Sequence[Tensor], instructions: Sequence[str], sampling: Sampling, rng: SampleRng
    ) -> list[Tensor]:
        return [nn.functional.interpolate((image / 2 - 0.5)[None], SMALL)[0] for image in images]


@pytest.fixture
def artist() -> type[Artist]:
    Artist.drawn_prompts.clear()
    return Artist


@pytest.fixture
def editor() -> type[DarkeningEditor]:
    return DarkeningEditor


def tiny_mask2former() -> Mask2FormerForUniversalSegmentation:
    backbone = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    sizes = dict.fromkeys(("hidden_dim", "feature_size", "mask_feature_size"), 32)
    few = dict.fromkeys(("dim_feedforward", "encoder_feedforward_dim"), 16)
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=backbone, num_labels=80, num_queries=20, encoder_layers=1, decoder_layers=2,
            num_attention_heads=4, **sizes, **few,
        )
    )  # fmt: skip


def tiny_clip(folder: Path) -> None:
    words = ["<pad>", "<unk>", "<start>", *sorted({w for text in (*OBJECTS, *COLORS) for w in text.split()})]
    words += ["a", "photo", "of", "-", "colored", "object", "<end>"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(dict.fromkeys(words))}, "<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    start, end = tokenizer.token_to_id("<start>"), tokenizer.token_to_id("<end>")
    tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    )
    both = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**both, "vocab_size": len(words), "max_position_embeddings": 24, "eos_token_id": end, "bos_token_id": start}
    vision = {**both, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data/judges`` with tiny random networks under the default names."""
    folder = tmp_path_factory.mktemp("judges")
    torch.manual_seed(3)
    detector = tiny_mask2former()
    with torch.no_grad():
        detector.class_predictor.weight.mul_(40)  # confident, so that some detections pass the threshold
    detector.save_pretrained(folder / "mask2former-swin-small-coco-instance")
    tiny_clip(folder / "clip-vit-large-patch14")
    return folder


@pytest.fixture
def wise_prompts(project: Path) -> Path:
    """WISE's three files with invented prompts."""
    folder = project / "data/benchmarks/wise"
    folder.mkdir(parents=True)
    names = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
    for name, ids in zip(names, (range(1, 401), range(401, 701), range(701, 1001)), strict=True):
        entries = [
            {"prompt_id": i, "Prompt": f"Thing {i}", "Explanation": f"It is {i}", "Category": "c", "Subcategory": "s"}
            for i in ids
        ]
        (folder / f"{name}.json").write_text(json.dumps(entries))
    return project


class JudgeServer(ThreadingHTTPServer):
    """A judge whose reply is ``answer`` of the question's text; images are only counted."""

    daemon_threads = True

    def __init__(self, answer: Callable[[str], str | int]) -> None:
        super().__init__(("127.0.0.1", 0), JudgeHandler)
        self.answer = answer
        self.questions: list[str] = []
        self.images: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class JudgeHandler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Suppress the log."""

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        text = content[0]["text"]
        self.server.questions.append(text)
        self.server.images.append(sum(part["type"] == "image_url" for part in content))
        answer = self.server.answer(text)
        status = answer if isinstance(answer, int) else 200
        choice = {"message": {"content": answer}, "finish_reason": "stop"}
        if answer == "REFUSE":
            choice = {"message": {"content": None, "refusal": "I cannot look at this"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 800, "completion_tokens": 20}
        body = json.dumps({"model": "judge-2026-01", "choices": [choice], "usage": usage}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def judge_server() -> Iterator[Callable[[Callable[[str], str | int]], JudgeServer]]:
    """``judge_server(answer)`` starts a judge."""
    servers: list[JudgeServer] = []

    def start(answer: Callable[[str], str | int]) -> JudgeServer:
        servers.append(JudgeServer(answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def image() -> Callable[[int], np.ndarray]:
    """``image(seed)``: a small image."""
    return lambda seed: np.random.default_rng(seed).integers(0, 255, (SMALL, SMALL, 3), dtype=np.uint8)
