"""Client of a judge behind any endpoint that speaks OpenAI's chat completions, with concurrent requests and retries.

Every reply is stored before it is used, so a run that was killed, or stopped at its cost ceiling, resumes where it was.
"""

import asyncio
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from reca.evaluation.judges.reply_cache import Reply, ReplyFile
from reca.evaluation.judges.requests import (
    FREE,
    CostEstimate,
    JudgeSampling,
    Prices,
    Request,
    body_of,
    check_keys,
    fingerprint,
)
from reca.runtime.errors import UserError

FATAL_STATUSES = {401: "the key is not accepted", 403: "access is denied", 404: "there is no such path or model"}
"""Statuses that no retry changes: the whole run stops."""
REJECTIONS = 3
"""Number of requests rejected as malformed, before any is answered, at which the whole run stops."""
REFUSAL_CODES = ("content_filter", "content_policy_violation", "jailbreak", "ResponsibleAIPolicyViolation")


@dataclass(frozen=True)
class Backoff:
    """Waits between attempts: doubling, with a random part, so that many clients do not come back at once."""

    attempts: int = 6
    first_seconds: float = 1.0
    longest_seconds: float = 60.0

    def wait_seconds(self, attempt: int, retry_after: float | None = None) -> float:
        """Return the wait after ``attempt`` attempts (from 1); a Retry-After is honoured up to the longest wait."""
        if retry_after is not None:
            return min(max(retry_after, 0.0), self.longest_seconds)
        return min(self.first_seconds * 2 ** (attempt - 1), self.longest_seconds) * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class Endpoint:
    """Address, sampling settings and limits of a judge."""

    url: str
    """Base address, such as https://api.openai.com/v1."""
    sampling: JudgeSampling
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key, which a private endpoint may not need; the key is never stored."""
    concurrency: int = 8
    requests_per_minute: float = 300.0
    timeout_seconds: float = 180.0
    """Time limit of an attempt from its start to the last byte of the answer."""
    backoff: Backoff = field(default_factory=Backoff)
    prices: Prices = FREE

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"a judge's url must start with http:// or https://, not {self.url!r}")


class RateLimiter:
    """Spaces requests evenly, and pauses all when the endpoint asks for it."""

    def __init__(self, requests_per_minute: float) -> None:
        self._interval = 60 / requests_per_minute
        self._next_start = 0.0

    async def acquire(self) -> None:
        """Wait until the next request may start."""
        now = asyncio.get_running_loop().time()
        start = max(self._next_start, now)
        self._next_start = start + self._interval
        await asyncio.sleep(start - now)

    def pause(self, seconds: float) -> None:
        """Start no request for a while."""
        self._next_start = max(self._next_start, asyncio.get_running_loop().time() + seconds)


class Budget:
    """Keeps the US dollars spent, together with those reserved for running requests, below a ceiling, if any."""

    def __init__(self, ceiling: float | None) -> None:
        self.ceiling = ceiling
        self.spent = 0.0
        self._reserved = 0.0
        self._changed = asyncio.Condition()

    async def reserve(self, dollars: float) -> bool:
        """Reserve money for one attempt, waiting for running ones to settle; ``False`` if it does not suffice."""
        async with self._changed:
            while self.ceiling is not None and self.spent + self._reserved + dollars > self.ceiling:
                if self._reserved <= 0:
                    return False
                await self._changed.wait()
            self._reserved += dollars
            return True

    async def settle(self, reserved: float, spent: float) -> None:
        """Release a reservation and record its actual cost."""
        async with self._changed:
            self._reserved = max(self._reserved - reserved, 0.0) if self._reserved - reserved > 1e-12 else 0.0
            self.spent += spent
            self._changed.notify_all()


class CeilingReached(UserError):
    """The next request might cost more than is left."""


class _Retry(Exception):
    """An attempt failed in a way that another attempt may not."""

    def __init__(self, reason: str, retry_after: float | None = None, charged: bool = False) -> None:
        super().__init__(reason)
        self.retry_after, self.charged = retry_after, charged


def estimate(endpoint: Endpoint, requests: Sequence[Request], replies: ReplyFile) -> CostEstimate:
    """Return the number of requests and the cost of :func:`ask`; no request is sent.

    Raises:
        UserError: An image cannot be sent.
        ValueError: Two requests have the same key.
    """
    check_keys(requests)
    stored = {r.key for r in requests if replies.find(r.key, fingerprint(r, endpoint.sampling))}
    costs = (endpoint.prices.at_most(r, endpoint.sampling) for r in requests if r.key not in stored)
    return CostEstimate(len(requests), len(stored), sum(costs))


def ask(
    endpoint: Endpoint,
    requests: Sequence[Request],
    replies: ReplyFile,
    ceiling: float | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Reply]:
    """Return replies to all requests, in their order; stored ones are not requested again.

    A refusal and a failure after all attempts are replies too: counted and reported, never scored.

    Args:
        endpoint: The judge.
        requests: The questions, with different keys.
        replies: The file of stored replies.
        ceiling: US dollars that this call may spend; attempts of unknown cost (timeouts) count in full.
        progress: Called with the number of replies after each.

    Raises:
        CeilingReached: The ceiling does not suffice. Replies received so far are stored.
        UserError: The key is refused, the model unknown, an image cannot be sent, or a reply not stored.
        ValueError: Two requests have the same key.
    """
    check_keys(requests)
    return asyncio.run(_Run(endpoint, replies, ceiling, progress).all(requests))


class _Run:
    """State of a call of :func:`ask`."""

    def __init__(
        self, endpoint: Endpoint, replies: ReplyFile, ceiling: float | None, progress: Callable[[int], None]
    ) -> None:
        self._endpoint, self._replies, self._progress = endpoint, replies, progress
        self._budget, self._rate_limiter = Budget(ceiling), RateLimiter(endpoint.requests_per_minute)
        self._done: dict[str, Reply] = {}
        self._rejected = 0
        self._error: UserError | None = None

    async def all(self, requests: Sequence[Request]) -> list[Reply]:
        """Request in concurrent workers; on a fatal error, running requests still finish."""
        key = os.environ.get(self._endpoint.api_key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"the key in {self._endpoint.api_key_variable} holds characters that no key has")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=self._endpoint.concurrency)
        queue = iter(requests)
        async with httpx.AsyncClient(headers=headers, timeout=self._endpoint.timeout_seconds, limits=limits) as client:
            workers = [self._work(client, queue) for _ in range(min(self._endpoint.concurrency, len(requests)))]
            await asyncio.gather(*workers)
        if self._error:
            raise self._error
        return [self._done[request.key] for request in requests]

    async def _work(self, client: httpx.AsyncClient, queue: Iterator[Request]) -> None:
        for request in queue:
            if self._error:
                return
            try:
                digest = fingerprint(request, self._endpoint.sampling)
                reply = self._replies.find(request.key, digest)
                if reply is None:
                    reply = await self._request_with_retries(client, request, digest)
                    self._replies.add(reply)
            except UserError as error:
                self._error = self._error or error
                return
            self._done[request.key] = reply
            self._progress(len(self._done))

    async def _request_with_retries(self, client: httpx.AsyncClient, request: Request, digest: str) -> Reply:
        reason, spent = "", 0.0
        backoff, at_most = self._endpoint.backoff, self._endpoint.prices.at_most(request, self._endpoint.sampling)
        for attempt in range(1, backoff.attempts + 1):
            if not await self._budget.reserve(at_most):
                raise CeilingReached(
                    f"${self._budget.spent:.4f} of ${self._budget.ceiling:.4f} are spent and the next request may cost "
                    f"${at_most:.4f}; {len(self._done)} replies are stored. Raise the ceiling and run again to go on"
                )
            cost = 0.0
            try:
                await self._rate_limiter.acquire()
                fields = await self._request(client, request)
                cost = self._cost(fields, at_most)
                return Reply(key=request.key, fingerprint=digest, attempts=attempt, dollars=spent + cost, **fields)
            except _Retry as error:
                reason, cost = str(error), at_most if error.charged else 0.0
                wait = backoff.wait_seconds(attempt, error.retry_after)
                if error.retry_after is not None:
                    self._rate_limiter.pause(wait)
            finally:
                spent += cost
                await self._budget.settle(at_most, cost)
            if self._error:
                break
            if attempt < backoff.attempts:
                await asyncio.sleep(wait)
        return Reply(request.key, digest, "failed", reason=reason, attempts=attempt, dollars=spent)

    def _cost(self, fields: dict[str, Any], at_most: float) -> float:
        tokens = fields["input_tokens"], fields["output_tokens"]
        if any(tokens):
            return self._endpoint.prices.of(*tokens)
        return at_most if fields["status"] == "answered" else 0.0  # an answer without token counts costs the most

    async def _request(self, client: httpx.AsyncClient, request: Request) -> dict[str, Any]:
        """Make one attempt and return the fields of its :class:`Reply`."""
        url, seconds = f"{self._endpoint.url.rstrip('/')}/chat/completions", self._endpoint.timeout_seconds
        try:
            async with asyncio.timeout(seconds):  # httpx's own timeout is per read: a dripping answer never ends
                response = await client.post(url, json=body_of(request, self._endpoint.sampling))
        except (TimeoutError, httpx.TimeoutException):
            raise _Retry(f"no answer within {seconds:g} s", charged=True) from None
        except httpx.ConnectError as error:
            raise _Retry(f"{self._endpoint.url} cannot be reached ({error})") from None
        except httpx.HTTPError as error:  # the connection was closed, or the answer incomplete
            raise _Retry(f"the connection broke ({type(error).__name__}: {error})", charged=True) from None
        except httpx.InvalidURL as error:
            raise UserError(f"the judge's url {self._endpoint.url!r} is wrong: {error}") from None
        return self._read(response)

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        status, excerpt = response.status_code, response.text[:500]
        if status in FATAL_STATUSES:
            name = self._endpoint.api_key_variable
            raise UserError(f"{response.url} answers {status}, {FATAL_STATUSES[status]} (key from {name}): {excerpt}")
        try:
            body = json.loads(response.content)
            body = body if isinstance(body, dict) else {"body": body}
        except ValueError:
            body = {}
        if status in (400, 413, 422):
            if any(code in excerpt for code in REFUSAL_CODES):
                return _without_text("refused", body, excerpt)
            self._rejected += 1
            if self._rejected >= REJECTIONS and not any(reply.status == "answered" for reply in self._done.values()):
                raise UserError(f"{response.url} takes no request of this form ({status}): {excerpt}")
            return _without_text("failed", body, f"status {status}: {excerpt}")
        if status != 200 or "choices" not in body:
            retry_after = _retry_after(response) if status in (429, 503) else None
            raise _Retry(f"status {status}: {excerpt or 'an empty body'}", retry_after, charged=status == 200)
        return _read_choice(body)


def _read_choice(body: dict[str, Any]) -> dict[str, Any]:
    """Return the reply's fields from a response of the expected form."""
    try:
        choice = body["choices"][0]
        message, finish = choice["message"], str(choice.get("finish_reason") or "")
        content, refusal = message.get("content"), message.get("refusal")
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        usage = body.get("usage") or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _Retry(f"a response of another form ({error!r})", charged=True) from None
    text = content if isinstance(content, str) else ""
    fields: dict[str, Any] = {"text": text, "finish_reason": finish, "model": str(body.get("model") or ""), "raw": body}
    fields |= {"input_tokens": tokens[0], "output_tokens": tokens[1]}
    if refusal or finish == "content_filter":
        return fields | {"status": "refused", "reason": str(refusal or "the content filter")}
    if not text.strip():
        return fields | {"status": "refused", "reason": f"an empty reply (finish reason {finish or 'not given'})"}
    return fields | {"status": "answered"}


def _without_text(status: str, raw: dict[str, Any], reason: str) -> dict[str, Any]:
    return {"status": status, "raw": raw, "reason": reason, "input_tokens": 0, "output_tokens": 0}


def _retry_after(response: httpx.Response) -> float | None:
    """Return the Retry-After header in seconds, from a number or a date."""
    value = response.headers.get("retry-after", "")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
