"""Dialogues about images in LLaVA's format: what keeps understanding alive where parameters are shared.

One JSON file, a list of ``{"id": …, "image": …, "conversations": [{"from": "human", "value": …}, {"from": "gpt",
"value": …}, …]}``; ``<image>`` in a question says where the image stands, and ``image`` is a path below a folder. This
is the format of ``llava_v1_5_mix665k.json``, which the paper mixes in (arXiv 2509.07295).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from PIL import Image

from reca.config import Config
from reca.data.images import BadImage, decode, signature
from reca.runtime.errors import UserError
from reca.runtime.hashing import file_digest
from reca.runtime.seeding import derive_seed

IMAGE = "<image>"
GREY = (127, 127, 127)
MAX_PIXELS = 50_000_000
QAPair = tuple[str, str]
"""Question and answer."""
MAX_BAD_FRACTION = 0.5
"""More broken entries than this, of those that speak of an image at all, mean that the folder is the wrong one."""


@dataclass(frozen=True)
class Conversation:
    """One image, and what is asked and answered about it."""

    image: Path
    pairs: tuple[QAPair, ...]


class BadEntry(ValueError):
    """An entry that cannot be used; its text is a reason to count by."""


class Dialogues:
    """The usable conversations of a file.

    Args:
        conversations: By a name that is unique.
        rejected: How many entries were left out, by reason.
        digest: Of the file, and of the sizes of the images that it names.
    """

    def __init__(self, conversations: Mapping[str, Conversation], rejected: Mapping[str, int], digest: str) -> None:
        self.conversations, self.rejected, self.digest = dict(conversations), dict(rejected), digest
        self._names = list(self.conversations)
        self._places = {name: place for place, name in enumerate(self._names)}
        self._told: set[Path] = set()

    @classmethod
    def read(cls, path: Path, folder: Path | None = None) -> Self:
        """Read a file, and look whether its images are there.

        Args:
            path: The JSON file.
            folder: Where its images lie; ``None``: beside it.

        Raises:
            UserError: The file is missing or of another format, or nothing or too little in it can be used.
        """
        folder = folder or path.parent
        digest = hashlib.sha256(f"{file_digest(_there(path))}\n".encode())
        found: dict[str, Conversation] = {}
        rejected: Counter[str] = Counter()
        for number, entry in enumerate(_entries(path)):
            try:
                conversation, size = _conversation(entry, folder)
            except BadEntry as bad:
                rejected[str(bad)] += 1
                continue
            # LLaVA's ids are neither unique nor always there; the place in the file is.
            found[f"{number:08d}"] = conversation
            digest.update(f"{size}\n".encode())
        broken = sum(rejected.values()) - rejected["no image"]
        if not found or broken > MAX_BAD_FRACTION * (broken + len(found)):
            raise UserError(
                f"{path}: {len(found)} entries can be used, {broken} are broken ({_told(rejected) or 'it is empty'}). "
                f"Images are looked for in {folder}: set train.dialogue_images to where `image` starts from"
            )
        return cls(found, rejected, digest.hexdigest()[:16])

    def summary(self) -> str:
        """One line on what was found and what was left out."""
        told = _told(self.rejected)
        return f"{len(self.conversations)} conversations" + (f"; left out: {told}" if told else "")

    def take(self, name: str, seed: int) -> tuple[Image.Image, QAPair]:
        """The image of a conversation, padded to a square with grey (as LLaVA does), and one of its pairs.

        Turns are taken one at a time and without those before them: the losses know single questions. Where the image
        turns out not to decode, the next conversation takes its place; the first time, that is said.

        Raises:
            UserError: No image at all decodes.
        """
        start = self._places[name]
        for number in range(len(self._names)):
            conversation = self.conversations[self._names[(start + number) % len(self._names)]]
            try:
                image = decode(conversation.image.read_bytes(), MAX_PIXELS)
            except (BadImage, OSError) as error:
                if conversation.image not in self._told:
                    self._told.add(conversation.image)
                    print(f"train.dialogues: {conversation.image} is left out ({error})", flush=True)
                continue
            pairs = conversation.pairs
            return _square(image), pairs[derive_seed("turn", seed) % len(pairs)]
        raise UserError("no image that train.dialogues names can be read")


def open_configured(config: Config, root: Path) -> Dialogues | None:
    """The dialogues that ``train`` names, if it does.

    Raises:
        UserError: As :meth:`Dialogues.read`.
    """
    settings = config.train
    if settings.dialogues is None:
        return None
    folder = root / Path(settings.dialogue_images).expanduser() if settings.dialogue_images else None
    return Dialogues.read(root / Path(settings.dialogues).expanduser(), folder)


def with_digest(config: Config, root: Path) -> Config:
    """The configuration with the digest of its dialogues, which makes their version a parameter of ``train``.

    Raises:
        UserError: As :meth:`Dialogues.read`.
    """
    found = open_configured(config, root)
    if found is None:
        return config
    print(f"train.dialogues: {found.summary()}")
    train = config.train.model_copy(update={"dialogues_digest": found.digest})
    return config.model_copy(update={"train": train})


def load_verified(config: Config, root: Path) -> Dialogues | None:
    """The dialogues of a run, as they were when it was composed.

    Raises:
        UserError: They have changed since; or as :meth:`Dialogues.read`.
    """
    found = open_configured(config, root)
    if found is not None:
        if found.digest != config.train.dialogues_digest:
            raise UserError(f"{config.train.dialogues} or its images have changed; run `reca compose` again")
        print(f"train.dialogues: {found.summary()}", flush=True)
    return found


def _there(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path} is missing; set train.dialogues to a JSON file in LLaVA's format")
    return path


def _entries(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); train.dialogues wants a list of conversations") from None
    if not isinstance(entries, list):
        raise UserError(f"{path} holds a {type(entries).__name__}; train.dialogues wants a list of conversations")
    return entries


def _conversation(entry: Any, folder: Path) -> tuple[Conversation, int]:
    """A usable entry, and the bytes of its image."""
    if not isinstance(entry, dict):
        raise BadEntry("not an object")
    if entry.get("image") is None:
        raise BadEntry("no image")
    pairs = _qa_pairs(entry.get("conversations"))
    if not isinstance(entry["image"], str):
        raise BadEntry("several images")
    if Path(entry["image"]).is_absolute() or ".." in Path(entry["image"]).parts:
        raise BadEntry("image outside the folder")
    path = folder / entry["image"]
    try:
        with path.open("rb") as file:
            start, size = file.read(32), path.stat().st_size
    except (OSError, ValueError):
        raise BadEntry("image missing") from None
    if signature(start) is None:
        raise BadEntry("not an image file")
    return Conversation(path, pairs), size


def _qa_pairs(said: Any) -> tuple[QAPair, ...]:
    """Pairs of question and answer; the image's place in the question is the model's own affair."""
    if not isinstance(said, list) or not said or len(said) % 2:
        raise BadEntry("no pairs of question and answer")
    pairs = []
    for question, answer in zip(said[::2], said[1::2], strict=True):
        for line, speaker in ((question, "human"), (answer, "gpt")):
            if not isinstance(line, dict) or line.get("from") != speaker or not isinstance(line.get("value"), str):
                raise BadEntry("no pairs of question and answer")
        text, reply = question["value"].replace(IMAGE, "").strip(), answer["value"].strip()
        if not text or not reply:
            raise BadEntry("empty question or answer")
        pairs.append((text, reply))
    if sum(line["value"].count(IMAGE) for line in said) > 1:
        raise BadEntry("several images")
    return tuple(pairs)


def _square(image: Image.Image) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), GREY)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _told(rejected: Mapping[str, int]) -> str:
    most_first = sorted(rejected.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{reason} {count}" for reason, count in most_first)
