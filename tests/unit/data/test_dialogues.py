"""Dialogues in LLaVA's format: reading, skipping of broken entries, and sampling for training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reca.config import ConfigError, compose
from reca.data.dialogues import GREY, Dialogues, load_verified, with_digest
from reca.runtime.errors import UserError
from tests.unit.data.pictures import photographs

Write = Callable[[list[Any]], Path]


def entry(image: str, *texts: str, **more: Any) -> dict[str, Any]:
    """Return an entry in LLaVA's format; ``texts`` alternate between question and answer."""
    messages = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]
    return {"id": image, "image": image, "conversations": messages, **more}


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Copy real photographs to a folder; return their names."""
    for photo in photographs():
        (tmp_path / "images" / photo.suffix[1:]).mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, tmp_path / "images" / photo.suffix[1:] / photo.name)
    return sorted(path.relative_to(tmp_path / "images").as_posix() for path in (tmp_path / "images").rglob("*.*"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes entries to a file next to the folder of photographs."""

    def write_entries(entries: list[Any]) -> Path:
        (tmp_path / "mix.json").write_text(json.dumps(entries))
        return tmp_path / "mix.json"

    return write_entries


def test_questions_lose_their_marker_and_keep_their_order(photos: list[str], write: Write, tmp_path: Path) -> None:
    texts = ["<image>\nWhat is shown?", "A cat.", "What colour is it?", "Ginger."]
    read = Dialogues.read(
        write([entry(photos[0], *texts), entry(photos[1], "Who?\n<image>", "Nobody")]), tmp_path / "images"
    )
    assert [conversation.pairs for conversation in read.conversations.values()] == [
        (("What is shown?", "A cat."), ("What colour is it?", "Ginger.")),
        (("Who?", "Nobody"),),
    ]
    assert read.rejected == {}
    (name, _) = read.conversations
    assert {read.take(name, seed)[1] for seed in range(20)} == set(read.conversations[name].pairs)
    assert read.take(name, 5)[1] == read.take(name, 5)[1]


def test_images_are_padded_with_grey(photos: list[str], write: Write, tmp_path: Path) -> None:
    read = Dialogues.read(write([entry(photo, "<image>\nWhat?", "That.") for photo in photos]), tmp_path / "images")
    assert len(read.conversations) == len(photos)
    for name, photo in zip(read.conversations, photos, strict=True):
        image, _ = read.take(name, 0)
        with Image.open(tmp_path / "images" / photo) as original:
            width, height = original.size
        assert image.mode == "RGB"
        assert image.size == (max(width, height),) * 2
        if width > height:
            assert image.getpixel((0, 0)) == GREY
            assert np.asarray(image)[(width - height) // 2 + 1 : -((width - height) // 2) - 1].std() > 1


def test_broken_entries_are_skipped_and_counted(photos: list[str], write: Write, tmp_path: Path) -> None:
    (tmp_path / "images/notes.jpg").write_text("not an image, despite the name")
    (tmp_path / "secret.png").write_bytes(b"\x89PNG")
    good = [entry(photo, "What?", "That.") for photo in photos]
    bad: dict[str, Any] = {
        "not an object": "text",
        "no image": {"id": "7", "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        "image missing": entry("coco/000000123.jpg", "What?", "That."),
        "not an image file": entry("notes.jpg", "What?", "That."),
        "image outside the folder": entry("../secret.png", "What?", "That."),
        "several images": entry(photos[0], "<image><image>\nWhich?", "The first."),
        "no pairs of question and answer": entry(photos[0], "What?"),
        "empty question or answer": entry(photos[0], "<image>\n", "That."),
    }
    read = Dialogues.read(write([*bad.values(), *good]), tmp_path / "images")
    assert len(read.conversations) == len(good)
    assert read.rejected == dict.fromkeys(bad, 1)
    assert all(f"{reason} 1" in read.summary() for reason in bad)


@pytest.mark.parametrize(
    "conversations", [None, [], "What?", [1, 2], [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]]
)
def test_malformed_conversations_are_rejected(
    conversations: Any, photos: list[str], write: Write, tmp_path: Path
) -> None:
    entries = [entry(photos[0], "What?", "That."), {**entry(photos[0]), "conversations": conversations}]
    read = Dialogues.read(write(entries), tmp_path / "images")
    assert read.rejected == {"no pairs of question and answer": 1}


def test_wrong_image_folder_error_names_the_setting(photos: list[str], write: Write, tmp_path: Path) -> None:
    file = write([entry(photo, "What?", "That.") for photo in photos])
    with pytest.raises(UserError, match=rf"{len(photos)} are broken \(image missing.*train\.dialogue_images"):
        Dialogues.read(file)


def test_invalid_files_raise_errors_that_name_the_problem(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.json is missing"):
        Dialogues.read(tmp_path / "gone.json")
    for text, message in (("{", "is not JSON"), ('{"id": 1}', "contains a dict"), ("[]", "it is empty")):
        (tmp_path / "mix.json").write_text(text)
        with pytest.raises(UserError, match=message):
            Dialogues.read(tmp_path / "mix.json")


def test_truncated_image_is_replaced_and_reported_once(
    photos: list[str], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "images" / photos[0]
    damaged.write_bytes(damaged.read_bytes()[:2000])
    read = Dialogues.read(write([entry(photo, "Which?", photo) for photo in photos]), tmp_path / "images")
    name = next(iter(read.conversations))
    assert read.take(name, 0)[1] == ("Which?", photos[1])
    read.take(name, 1)
    assert capsys.readouterr().out.count(damaged.name) == 1


def test_changed_dialogues_are_refused(photos: list[str], write: Write, tmp_path: Path) -> None:
    file = write([entry(photo, "What?", "That.") for photo in photos])
    words = [f"train.dialogues={file}", f"train.dialogue_images={tmp_path / 'images'}"]
    config = with_digest(compose(words), tmp_path)
    assert config.to_dict()["train"]["dialogues_digest"]
    dialogues = load_verified(config, tmp_path)
    assert dialogues is not None
    assert len(dialogues.conversations) == len(photos)
    with (tmp_path / "images" / photos[0]).open("ab") as image:
        image.write(b"more")
    with pytest.raises(UserError, match="reca compose"):
        load_verified(config, tmp_path)


def test_configuration_without_dialogues_is_unchanged(tmp_path: Path) -> None:
    config = compose()
    assert {config.train.dialogues, config.train.dialogue_images, config.train.dialogues_digest} == {None}
    assert with_digest(config, tmp_path) is config
    assert load_verified(config, tmp_path) is None


def test_unused_dialogues_are_refused() -> None:
    with pytest.raises(ConfigError, match="mixture.understanding is 0"):
        compose(["train.dialogues=mix.json", "train.mixture.understanding=0"])
    with pytest.raises(ConfigError, match="without dialogues"):
        compose(["train.dialogue_images=images"])
