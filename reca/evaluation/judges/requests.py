"""What a judge is asked: text and images, in the form of OpenAI's chat completions."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from reca.runtime.errors import UserError

_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp", b"GIF8": "gif"}


@dataclass(frozen=True)
class Request:
    """One question to a judge."""

    key: str
    """Tells the questions of a run apart, for instance "<prompt id>/<image>/<what is asked>"."""
    text: str
    images: tuple[Path, ...] = ()
    """Shown after the text, in order."""
    system: str = ""


@dataclass(frozen=True)
class Sampling:
    """How the judge answers; part of what identifies a reply."""

    model: str
    max_tokens: int = 1024
    temperature: float | None = 0.0
    """``None`` leaves it to the endpoint, as some protocols do."""
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Further members of the request's body, for instance ``chat_template_kwargs`` of vLLM."""


@dataclass(frozen=True)
class Prices:
    """What an endpoint charges, in US dollars per million tokens, and how many tokens an image is taken for."""

    input: float
    output: float
    tokens_per_image: int = 1100
    """An upper guess: OpenAI's models take 765-1105 for an image of 1024 x 1024."""

    def of(self, input_tokens: float, output_tokens: float) -> float:
        """The price of some tokens in US dollars."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6

    def at_most(self, request: Request, sampling: Sampling) -> float:
        """The most that one request should cost: three characters a token, and an answer of full length."""
        text = len(request.text) + len(request.system)
        return self.of(text / 3 + 20 + self.tokens_per_image * len(request.images), sampling.max_tokens)


FREE = Prices(0.0, 0.0)
"""An endpoint of one's own."""


@dataclass(frozen=True)
class Estimate:
    """What a run would ask and cost."""

    requests: int
    stored: int
    """Of these have a reply already."""
    at_most: float
    """US dollars for the others, retries aside."""

    def __str__(self) -> str:
        asked = f"{self.requests} requests, {self.stored} of them answered before"
        return f"{asked}; the rest costs at most ${self.at_most:.2f}"


def body_of(request: Request, sampling: Sampling) -> dict[str, Any]:
    """The JSON body of a request.

    Raises:
        UserError: An image is missing or of a kind that endpoints do not take.
    """
    content: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
    content += [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in request.images]
    system = [{"role": "system", "content": request.system}] if request.system else []
    body = {
        "model": sampling.model,
        "messages": [*system, {"role": "user", "content": content if request.images else request.text}],
        "max_tokens": sampling.max_tokens,
        **sampling.extra,
    }
    return body if sampling.temperature is None else {**body, "temperature": sampling.temperature}


def data_url(path: Path) -> str:
    """An image file as a URL that holds it, named by what it is and not by its suffix.

    Raises:
        UserError: The file is missing or no PNG, JPEG, WebP or GIF.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"a judge cannot be shown {path}: {error.strerror}; make the samples first") from None
    for magic, kind in _KINDS.items():
        if content.startswith(magic):
            return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    raise UserError(f"{path} is no PNG, JPEG, WebP or GIF; a judge can be shown nothing else")


def fingerprint(request: Request, sampling: Sampling) -> str:
    """Digest of all that a reply depends on: a stored reply counts only for the very same question.

    Raises:
        UserError: See :func:`body_of`.
    """
    return hashlib.sha256(json.dumps(body_of(request, sampling), sort_keys=True).encode()).hexdigest()


def check_keys(requests: Iterable[Request]) -> None:
    """Refuse two questions of one key.

    Raises:
        ValueError: There are two.
    """
    seen: set[str] = set()
    for request in requests:
        if request.key in seen:
            raise ValueError(f"two requests have the key {request.key!r}")
        seen.add(request.key)
