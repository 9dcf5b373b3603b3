"""Janus against the stock network's recorded numbers, and the sizes of the real checkpoints."""

from pathlib import Path

import pytest
import torch
from transformers import JanusConfig, JanusForConditionalGeneration
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from reca.models.base import Dialogue
from reca.models.janus.model import Janus
from reca.models.sampling import Sampling
from reca.runtime.seeding import SampleRng
from tests.parity.comparison import options_of
from tests.parity.replay import replay
from tools.tiny_bases import janus_tiny

RECORDING = Path(__file__).parent / "fixtures/janus"


def test_everything_recorded_is_reproduced() -> None:
    rows = replay("janus", RECORDING)
    assert len(rows) == 6
    assert not [str(row) for row in rows if row.verdict != "ok"]


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        replay("janus", tmp_path)
    for name in ("config.json", "inputs.safetensors", "outputs.safetensors"):
        (tmp_path / name).write_bytes((RECORDING / name).read_bytes())
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        replay("janus", tmp_path)
    weights = (RECORDING / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        replay("janus", tmp_path)


@pytest.mark.parametrize("system_prompt", [None, ""])
def test_questions_have_the_official_system_prompt_and_drawing_has_none(system_prompt: str | None) -> None:
    torch.manual_seed(0)
    model, texts = janus_tiny.build(system_prompt=system_prompt), []
    tokenizer = model.tokenizer

    class Spy:
        def __call__(self, rows: list[str], **options: bool) -> object:
            texts.extend(rows)
            return tokenizer(rows, **options)

        def __getattr__(self, name: str) -> object:
            return getattr(tokenizer, name)

    model.tokenizer = Spy()
    expected = (
        tokenizer.bos_token + (DEFAULT_SYSTEM_PROMPT if system_prompt is None else "") + "<|User|>: <begin_of_image>"
    )
    image = torch.zeros(1, 3, 24, 24)
    with torch.no_grad():
        model.answer(image, ["what color is the circle"])
        model.understanding_loss(image, [Dialogue("what color is the circle", "red")], SampleRng([1]))
    turns = [text for text in texts if "<|User|>" in text]
    assert len(turns) == 2
    assert all(turn.startswith(expected) for turn in turns)
    texts.clear()
    model.generate(["a red circle"], Sampling(1.0), SampleRng([1]))
    assert texts[0].startswith(tokenizer.bos_token + "<|User|>: a red circle")


@pytest.mark.parametrize(
    ("width", "layers", "heads", "inner", "total", "trained"),
    [
        pytest.param(2048, 24, 16, 5632, 2_076_636_811, 1_694_769_152, id="janus_pro_1b"),
        pytest.param(4096, 30, 32, 11008, 7_407_773_323, 7_011_221_504, id="janus_pro_7b"),
    ],
)
def test_real_sizes_have_the_known_parameter_counts(
    width: int, layers: int, heads: int, inner: int, total: int, trained: int
) -> None:
    config = JanusConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": 102400,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 16384,
            "tie_word_embeddings": False,
        },
        vision_config={
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 16,
            "mlp_ratio": 4.0,
            "num_image_tokens": 576,
            "projection_dim": width,
            "depth": 2,
        },
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 16384,
            "projection_dim": width,
            "image_token_embed_dim": width,
            "num_patches": 24,
        },
        image_token_id=100581,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = Janus(JanusForConditionalGeneration(config), None, options_of("janus"))
    assert (model.spec.semantic_tokens, model.spec.target_tokens, model.spec.generation_size) == (576, 576, 384)
    assert sum(parameter.numel() for parameter in model.parameters()) == total
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == trained
