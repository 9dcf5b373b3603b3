"""Requests to a judge: text and images in the form of OpenAI's chat completions."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reca.runtime.errors import UserError
from reca.runtime.hashing import json_digest

_IMAGE_TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp", b"GIF8": "gif"}


@dataclass(frozen=True)
class Request:
    """One question to a judge."""

    key: str
    """Name of the question, unique within a run, such as "<prompt id>/<image>/<question number>"."""
    text: str
    images: tuple[Path, ...] = ()
    """Sent after the text, in order."""


@dataclass(frozen=True)
class JudgeSampling:
    """Sampling settings of a judge; part of a reply's fingerprint."""

    model: str
    max_tokens: int = 1024
    temperature: float | None = 0.0
    """``None``: the endpoint's default, as some protocols have it."""


@dataclass(frozen=True)
class Prices:
    """Prices of an endpoint in US dollars per million tokens, and the assumed number of tokens of an image."""

    input: float
    output: float
    tokens_per_image: int = 1100
    """Upper estimate: OpenAI's models take 765-1105 for an image of 1024 x 1024."""

    def of(self, input_tokens: float, output_tokens: float) -> float:
        """Return the price of some tokens in US dollars."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6

    def at_most(self, request: Request, sampling: JudgeSampling) -> float:
        """Return an upper bound of a request's price: three characters a token, and an answer of full length."""
        return self.of(len(request.text) / 3 + 20 + self.tokens_per_image * len(request.images), sampling.max_tokens)


FREE = Prices(0.0, 0.0)
"""Prices of a private endpoint."""


@dataclass(frozen=True)
class CostEstimate:
    """Number of requests of a run, and the cost of those without a stored reply."""

    requests: int
    stored: int
    """Requests that have a reply already."""
    at_most: float
    """US dollars for the others, without retries."""

    def __str__(self) -> str:
        counts = f"{self.requests} requests, {self.stored} of them answered before"
        return f"{counts}; the rest costs at most ${self.at_most:.2f}"


def body_of(request: Request, sampling: JudgeSampling) -> dict[str, Any]:
    """Return the JSON body of a request.

    Raises:
        UserError: An image is missing or of a type that endpoints do not accept.
    """
    content: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
    content += [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in request.images]
    body = {
        "model": sampling.model,
        "messages": [{"role": "user", "content": content if request.images else request.text}],
        "max_tokens": sampling.max_tokens,
    }
    return body if sampling.temperature is None else {**body, "temperature": sampling.temperature}


def data_url(path: Path) -> str:
    """Encode an image file as a data URL; its content decides the type, not its suffix.

    Raises:
        UserError: The file is missing or not a PNG, JPEG, WebP or GIF.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be sent to a judge: {error.strerror}; make the samples first") from None
    for magic, image_type in _IMAGE_TYPES.items():
        if content.startswith(magic):
            return f"data:image/{image_type};base64,{base64.b64encode(content).decode()}"
    raise UserError(f"{path} is not a PNG, JPEG, WebP or GIF, the only images that can be sent to a judge")


def fingerprint(request: Request, sampling: JudgeSampling) -> str:
    """Return the digest of a request's body: a stored reply counts only for exactly the same question."""
    return json_digest(body_of(request, sampling))


def check_keys(requests: Iterable[Request]) -> None:
    """Check that all requests have different keys.

    Raises:
        ValueError: Two requests have the same key.
    """
    keys: set[str] = set()
    for request in requests:
        if request.key in keys:
            raise ValueError(f"two requests have the key {request.key!r}")
        keys.add(request.key)
