"""A tiny random vision-language model in a local folder, used as a judge."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from reca.evaluation.judges.vision_language import VisionLanguageModel

CPU = torch.device("cpu")
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %} {% endfor %}{% endfor %}"
)


def save_judge(path: Path, words: list[str]) -> LlavaForConditionalGeneration:
    """Write a tiny random judge with these words, among them <pad>, <unk>, <end> and <image>."""
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    few = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**few, image_size=16, patch_size=8),
        text_config=LlamaConfig(
            **few,
            vocab_size=len(words),
            pad_token_id=words.index("<pad>"),
            eos_token_id=words.index("<end>"),
            bos_token_id=1,
        ),
        image_token_index=words.index("<image>"),
    )
    network = LlavaForConditionalGeneration(config)
    network.save_pretrained(path)
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        images, fast, patch_size=8, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(path)  # fmt: skip
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("judge")
    save_judge(path, ["<pad>", "<unk>", "<end>", "<image>", "is", "it", "red", "yes", "no"])
    return path


def test_replies_are_greedy_and_depend_on_the_image(folder, tmp_path):
    for color in ("red", "blue"):
        Image.new("RGB", (20, 30), color).save(tmp_path / f"{color}.png")
    model = VisionLanguageModel.load(folder, CPU)
    replies = [model.reply("is it red", [tmp_path / f"{color}.png"], max_tokens=4) for color in ("red", "blue", "red")]
    assert replies[0] == replies[2]
    assert replies[0] != replies[1]
    assert {word for reply in replies for word in reply.split()} <= {"is", "it", "red", "yes", "no"}
    assert len(model.reply("is it red", [], max_tokens=2).split()) <= 2


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing: there is no vision-language model"):
        VisionLanguageModel.load(tmp_path, CPU)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="transformers cannot load .* as vision-language model"):
        VisionLanguageModel.load(tmp_path, CPU)
