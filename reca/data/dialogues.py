"""Dialogues about images in LLaVA's format, which preserve understanding in families with shared parameters.

One JSON file, a list of ``{"id": …, "image": …, "conversations": [{"from": "human", "value": …}, {"from": "gpt",
"value": …}, …]}``; ``<image>`` in a question marks the image's position, and ``image`` is a path below a folder. This
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
from reca.data.image_formats import BadImage, signature
from reca.data.images import decode
from reca.runtime.errors import UserError
from reca.runtime.hashing import file_digest
from reca.runtime.seeding import derive_seed

IMAGE = "<image>"
GREY = (127, 127, 127)
MAX_PIXELS = 50_000_000
QAPair = tuple[str, str]
"""Question and answer."""
MAX_BAD_FRACTION = 0.5
"""A larger share of broken entries, among those with an image, means that the image folder is wrong."""


@dataclass(frozen=True)
class Conversation:
    """One image with its questions and answers."""

    image: Path
    pairs: tuple[QAPair, ...]


class BadEntry(ValueError):
    """An entry that cannot be used; its message is the reason that entries are counted by."""


class Dialogues:
    """The usable conversations of a file by unique name, and the number of skipped entries by reason.

    The digest is that of the file and of its images' sizes.
    """

    def __init__(self, conversations: Mapping[str, Conversation], rejected: Mapping[str, int], digest: str) -> None:
        self.conversations, self.rejected, self.digest = dict(conversations), dict(rejected), digest
        self._names = list(self.conversations)
        self._positions = {name: position for position, name in enumerate(self._names)}
        self._reported: set[Path] = set()

    @classmethod
    def read(cls, path: Path, folder: Path | None = None) -> Self:
        """Read a file and check that its images exist.

        Args:
            path: The JSON file.
            folder: The folder of its images; ``None``: the file's own.

        Raises:
            UserError: The file is missing or has another format, or too few of its entries can be used.
        """
        folder = folder or path.parent
        if not path.is_file():
            raise UserError(f"{path} is missing; set train.dialogues to a JSON file in LLaVA's format")
        digest = hashlib.sha256(f"{file_digest(path)}\n".encode())
        conversations: dict[str, Conversation] = {}
        rejected: Counter[str] = Counter()
        for number, entry in enumerate(_entries(path)):
            try:
                conversation, size = _conversation(entry, folder)
            except BadEntry as bad:
                rejected[str(bad)] += 1
                continue
            # LLaVA's ids are neither unique nor always present; the position in the file is.
            conversations[f"{number:08d}"] = conversation
            digest.update(f"{size}\n".encode())
        broken = sum(rejected.values()) - rejected["no image"]
        if not conversations or broken > MAX_BAD_FRACTION * (broken + len(conversations)):
            reasons = _format_reasons(rejected) or "it is empty"
            raise UserError(
                f"{path}: {len(conversations)} entries can be used, {broken} are broken ({reasons}). "
                f"Images are looked for in {folder}: set train.dialogue_images to the base folder of `image`"
            )
        return cls(conversations, rejected, digest.hexdigest()[:16])

    def summary(self) -> str:
        """Return the numbers of usable and skipped entries as one line."""
        reasons = _format_reasons(self.rejected)
        return f"{len(self.conversations)} conversations" + (f"; skipped: {reasons}" if reasons else "")

    def take(self, name: str, seed: int) -> tuple[Image.Image, QAPair]:
        """Return the image of a conversation, padded to a square with grey (as LLaVA does), and one of its questions.

        Questions are used one at a time without those before, because the losses take single questions. Where the
        image does not decode, the next conversation is used instead, and the first time a message is printed.

        Raises:
            UserError: No image decodes.
        """
        start = self._positions[name]
        for number in range(len(self._names)):
            conversation = self.conversations[self._names[(start + number) % len(self._names)]]
            try:
                image = decode(conversation.image.read_bytes(), MAX_PIXELS)
            except (BadImage, OSError) as error:
                if conversation.image not in self._reported:
                    self._reported.add(conversation.image)
                    print(f"train.dialogues: {conversation.image} is skipped ({error})", flush=True)
                continue
            pairs = conversation.pairs
            return _square(image), pairs[derive_seed("turn", seed) % len(pairs)]
        raise UserError("no image that train.dialogues names can be read")


def open_configured(config: Config, root: Path) -> Dialogues | None:
    """Read the dialogues that ``train.dialogues`` names; ``None`` if it names none."""
    settings = config.train
    if settings.dialogues is None:
        return None
    folder = root / Path(settings.dialogue_images).expanduser() if settings.dialogue_images else None
    return Dialogues.read(root / Path(settings.dialogues).expanduser(), folder)


def with_digest(config: Config, root: Path) -> Config:
    """Return the configuration with the digest of its dialogues, a parameter that ``train`` depends on."""
    dialogues = open_configured(config, root)
    if dialogues is None:
        return config
    print(f"train.dialogues: {dialogues.summary()}")
    train = config.train.model_copy(update={"dialogues_digest": dialogues.digest})
    return config.model_copy(update={"train": train})


def load_verified(config: Config, root: Path) -> Dialogues | None:
    """Read the dialogues of a run and verify that they are those it was composed with.

    Raises:
        UserError: They have changed since; or as :meth:`Dialogues.read`.
    """
    dialogues = open_configured(config, root)
    if dialogues is not None:
        if dialogues.digest != config.train.dialogues_digest:
            raise UserError(f"{config.train.dialogues} or its images have changed; run `reca compose` again")
        print(f"train.dialogues: {dialogues.summary()}", flush=True)
    return dialogues


def _entries(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); train.dialogues must be a list of conversations") from None
    if not isinstance(entries, list):
        raise UserError(f"{path} contains a {type(entries).__name__}; train.dialogues must be a list of conversations")
    return entries


def _conversation(entry: Any, folder: Path) -> tuple[Conversation, int]:
    """Return a usable entry and its image's size in bytes."""
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


def _qa_pairs(messages: Any) -> tuple[QAPair, ...]:
    """Return questions and answers without ``<image>``: every family has its own position for the image."""
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise BadEntry("no pairs of question and answer")
    pairs = []
    for question, answer in zip(messages[::2], messages[1::2], strict=True):
        for message, speaker in ((question, "human"), (answer, "gpt")):
            if (
                not isinstance(message, dict)
                or message.get("from") != speaker
                or not isinstance(message.get("value"), str)
            ):
                raise BadEntry("no pairs of question and answer")
        text, reply = question["value"].replace(IMAGE, "").strip(), answer["value"].strip()
        if not text or not reply:
            raise BadEntry("empty question or answer")
        pairs.append((text, reply))
    if sum(message["value"].count(IMAGE) for message in messages) > 1:
        raise BadEntry("several images")
    return tuple(pairs)


def _square(image: Image.Image) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), GREY)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _format_reasons(rejected: Mapping[str, int]) -> str:
    most_first = sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count}" for reason, count in most_first)
