"""What a judge answered, kept raw in a file that only grows, so that scores can be made of it again for nothing."""

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
    """One answer, or why there is none."""

    key: str
    fingerprint: str
    """Of the question (:func:`reca.evaluation.judges.requests.fingerprint`)."""
    status: Status
    """``refused``: the judge or its filter declined, or wrote nothing. ``failed``: no usable response in all attempts;
    asked again when the run is repeated. Neither is ever scored."""
    text: str = ""
    """What the judge wrote, as it came."""
    reason: str = ""
    """Of a refusal or failure."""
    finish_reason: str = ""
    """``length``: the text was cut off; whether it can be read is for the reader to say."""
    model: str = ""
    """Which model answered, by the endpoint's own word."""
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    attempts: int = 1
    raw: Mapping[str, Any] = field(default_factory=dict)
    """The response's body."""


class ReplyFile:
    """Replies in a file of one JSON object a line, locked while it is read or added to.

    A process that shares the asking does not see what the others add, until it reads the file again.

    Args:
        path: The file; it is made with the first reply.

    Raises:
        UserError: The file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._replies = self._read() if path.exists() else {}

    def _read(self) -> dict[str, Reply]:
        with self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            content = file.read()
            whole = content[: content.rfind(b"\n") + 1]  # a killed process may have left half a line
            if len(whole) < len(content):
                file.truncate(len(whole))
        found = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                reply = Reply(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{self.path}, line {number}, is no stored reply ({error}); mend or move the file"
                ) from None
            found[reply.key] = reply  # the last one counts
        return found

    def __len__(self) -> int:
        return len(self._replies)

    def find(self, key: str, fingerprint: str) -> Reply | None:
        """The stored reply to this very question; a failure is none."""
        reply = self._replies.get(key)
        fits = reply is not None and reply.fingerprint == fingerprint and reply.status != "failed"
        return reply if fits else None

    def all(self) -> list[Reply]:
        """The last reply of every key."""
        return list(self._replies.values())

    def add(self, reply: Reply) -> None:
        """Store a reply; it is on disk when this returns.

        Raises:
            UserError: It cannot be written.
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
