"""Dialogues in LLaVA's format: what is read, what is left out and told, and what training gets of them."""

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


def entry(image: str, *said: str, **more: Any) -> dict[str, Any]:
    """An entry as LLaVA writes it; ``said`` are questions and answers in turn."""
    lines = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(said)]
    return {"id": image, "image": image, "conversations": lines, **more}


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Real photographs in a folder of their own, by name."""
    for photo in photographs():
        (tmp_path / "images" / photo.suffix[1:]).mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, tmp_path / "images" / photo.suffix[1:] / photo.name)
    return sorted(path.relative_to(tmp_path / "images").as_posix() for path in (tmp_path / "images").rglob("*.*"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes entries as a file beside the folder of photographs."""

    def one(entries: list[Any]) -> Path:
        (tmp_path / "mix.json").write_text(json.dumps(entries))
        return tmp_path / "mix.json"

    return one


def test_questions_lose_their_marker_and_turns_stay_in_order(photos: list[str], write: Write, tmp_path: Path) -> None:
    said = ["<image>\nWhat is shown?", "A cat.", "What colour is it?", "Ginger."]
    read = Dialogues.read(
        write([entry(photos[0], *said), entry(photos[1], "Who?\n<image>", "Nobody")]), tmp_path / "images"
    )
    assert [one.pairs for one in read.conversations.values()] == [
        (("What is shown?", "A cat."), ("What colour is it?", "Ginger.")),
        (("Who?", "Nobody"),),
    ]
    assert read.rejected == {}
    (name, _) = read.conversations
    assert {read.take(name, seed)[1] for seed in range(20)} == set(read.conversations[name].pairs)
    assert read.take(name, 5)[1] == read.take(name, 5)[1]


def test_images_come_whole_padded_with_grey(photos: list[str], write: Write, tmp_path: Path) -> None:
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


def test_broken_entries_are_left_out_and_counted(photos: list[str], write: Write, tmp_path: Path) -> None:
    (tmp_path / "images/notes.jpg").write_text("no image at all, though the name says so")
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
def test_whatever_stands_there_is_no_reason_to_crash(
    conversations: Any, photos: list[str], write: Write, tmp_path: Path
) -> None:
    entries = [entry(photos[0], "What?", "That."), {**entry(photos[0]), "conversations": conversations}]
    read = Dialogues.read(write(entries), tmp_path / "images")
    assert read.rejected == {"no pairs of question and answer": 1}


def test_the_wrong_folder_is_named(photos: list[str], write: Write, tmp_path: Path) -> None:
    file = write([entry(photo, "What?", "That.") for photo in photos])
    with pytest.raises(UserError, match=rf"{len(photos)} are broken \(image missing.*train\.dialogue_images"):
        Dialogues.read(file)


def test_files_of_other_formats_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.json is missing"):
        Dialogues.read(tmp_path / "gone.json")
    for text, wanted in (("{", "is no JSON"), ('{"id": 1}', "holds a dict"), ("[]", "it is empty")):
        (tmp_path / "mix.json").write_text(text)
        with pytest.raises(UserError, match=wanted):
            Dialogues.read(tmp_path / "mix.json")


def test_a_truncated_photograph_is_replaced_and_told(
    photos: list[str], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "images" / photos[0]
    damaged.write_bytes(damaged.read_bytes()[:2000])
    read = Dialogues.read(write([entry(photo, "Which?", photo) for photo in photos]), tmp_path / "images")
    name = next(iter(read.conversations))
    assert read.take(name, 0)[1] == ("Which?", photos[1])
    read.take(name, 1)
    assert capsys.readouterr().out.count(damaged.name) == 1


def test_a_run_knows_when_its_dialogues_change(photos: list[str], write: Write, tmp_path: Path) -> None:
    file = write([entry(photo, "What?", "That.") for photo in photos])
    words = [f"train.dialogues={file}", f"train.dialogue_images={tmp_path / 'images'}"]
    config = with_digest(compose(words), tmp_path)
    assert config.to_dict()["train"]["dialogues_digest"]
    found = load_verified(config, tmp_path)
    assert found is not None
    assert len(found.conversations) == len(photos)
    with (tmp_path / "images" / photos[0]).open("ab") as image:
        image.write(b"more")
    with pytest.raises(UserError, match="reca compose"):
        load_verified(config, tmp_path)


def test_without_dialogues_there_is_nothing_to_pin(tmp_path: Path) -> None:
    config = compose()
    assert {config.train.dialogues, config.train.dialogue_images, config.train.dialogues_digest} == {None}
    assert with_digest(config, tmp_path) is config
    assert load_verified(config, tmp_path) is None


def test_dialogues_that_nothing_would_use_are_refused() -> None:
    with pytest.raises(ConfigError, match="mixture.understanding is 0"):
        compose(["train.dialogues=mix.json", "train.mixture.understanding=0"])
    with pytest.raises(ConfigError, match="without dialogues"):
        compose(["train.dialogue_images=images"])
