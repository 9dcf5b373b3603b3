"""Cache of raw judge replies in an append-only file, so that scores can be recomputed without asking again."""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from reca.runtime.errors import UserError

Status = Literal["answered", "refused", "failed"]


@dataclass(frozen=True)
class Reply:
    """A judge's answer, or the reason why there is none."""

    key: str
    fingerprint: str
    """Digest of the question (:func:`reca.evaluation.judges.requests.fingerprint`)."""
    status: Status
    """``refused``: the judge or its filter declined, or wrote an empty text. ``failed``: no usable response in all
    attempts; requested again when the run is repeated. Neither is ever scored."""
    text: str = ""
    """The judge's text, unchanged."""
    reason: str = ""
    """Reason of a refusal or failure."""
    finish_reason: str = ""
    """``length``: the text was cut off; the benchmark's parser decides whether it is readable."""
    model: str = ""
    """Model that answered, as named by the endpoint."""
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    attempts: int = 1
    raw: Mapping[str, Any] = field(default_factory=dict)
    """The response's body."""


class ReplyFile:
    """Replies in a JSON Lines file, locked while it is read or appended to.

    A process does not see replies that other processes append, until it reads the file again.

    The file is created with the first reply.

    Raises:
        UserError: The file contains something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._replies = self._read() if path.exists() else {}

    def _read(self) -> dict[str, Reply]:
        with self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            content = file.read()
            complete = content[: content.rfind(b"\n") + 1]  # a killed process may have left half a line
            if len(complete) < len(content):
                file.truncate(len(complete))
        replies = {}
        for number, line in enumerate(complete.splitlines(), start=1):
            try:
                reply = Reply(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{self.path}, line {number}, is not a stored reply ({error}); fix or move the file"
                ) from None
            replies[reply.key] = reply  # the last line of a key counts
        return replies

    def __len__(self) -> int:
        return len(self._replies)

    def find(self, key: str, fingerprint: str) -> Reply | None:
        """Return the stored reply to exactly this question; a failure does not count."""
        reply = self._replies.get(key)
        usable = reply is not None and reply.fingerprint == fingerprint and reply.status != "failed"
        return reply if usable else None

    def all(self) -> list[Reply]:
        """Return the last reply of every key."""
        return list(self._replies.values())

    def add(self, reply: Reply) -> None:
        """Store a reply; it is on disk when this returns.

        Raises:
            UserError: The file cannot be written.
        """
        line = json.dumps(asdict(reply), ensure_ascii=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(line.encode("utf-8", "surrogatepass"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"a judge's reply cannot be stored in {self.path}: {error.strerror}") from None
        self._replies[reply.key] = reply
