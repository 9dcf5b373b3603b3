"""Asks a judge behind any endpoint that speaks OpenAI's chat completions: many questions at once, and patiently.

Every reply is stored before it is used, so a run that was killed, or stopped at its cost ceiling, goes on where it was.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from reca.evaluation.judges.rate_limit import Backoff, Budget, Pace
from reca.evaluation.judges.reply_cache import Reply, ReplyFile
from reca.evaluation.judges.requests import FREE, Estimate, Prices, Request, Sampling, body_of, check_keys, fingerprint
from reca.runtime.errors import UserError

HOPELESS = {401: "the key is not accepted", 403: "access is denied", 404: "there is no such path or model"}
"""Statuses that no patience mends: the whole run stops."""
REJECTIONS = 3
"""So many requests may be found malformed before a single one is answered; then the whole run stops."""
REFUSING = ("content_filter", "content_policy_violation", "jailbreak", "ResponsibleAIPolicyViolation")


@dataclass(frozen=True)
class Endpoint:
    """Where a judge lives and how it is treated."""

    url: str
    """Base address, for instance https://api.openai.com/v1."""
    sampling: Sampling
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key. An endpoint of one's own may need none; the key is never stored."""
    concurrency: int = 8
    requests_per_minute: float = 300.0
    timeout_seconds: float = 180.0
    """For one attempt from its start to the last byte of the answer."""
    backoff: Backoff = field(default_factory=Backoff)
    prices: Prices = FREE

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"a judge's url must start with http:// or https://, not {self.url!r}")
        if (
            self.concurrency < 1
            or self.requests_per_minute <= 0
            or self.timeout_seconds <= 0
            or self.backoff.attempts < 1
        ):
            raise UserError("a judge's concurrency, requests_per_minute, timeout_seconds and attempts must be above 0")


class CeilingReached(UserError):
    """The next request might cost more than is left."""


class _Retry(Exception):
    """This attempt came to nothing; another may succeed."""

    def __init__(self, reason: str, wait: float | None = None, charged: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.charged = wait, charged


def estimate(endpoint: Endpoint, requests: Sequence[Request], replies: ReplyFile) -> Estimate:
    """A dry run: what :func:`ask` would ask and cost, with nothing sent and nothing written.

    Raises:
        UserError: An image cannot be shown.
        ValueError: Two requests have the same key.
    """
    check_keys(requests)
    stored = {r.key for r in requests if replies.find(r.key, fingerprint(r, endpoint.sampling))}
    costs = (endpoint.prices.at_most(r, endpoint.sampling) for r in requests if r.key not in stored)
    return Estimate(len(requests), len(stored), sum(costs))


def ask(
    endpoint: Endpoint,
    requests: Sequence[Request],
    replies: ReplyFile,
    ceiling: float | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Reply]:
    """Replies to all requests, in their order, those that are stored already not asked again.

    A refusal and a failure after all attempts are replies too: to be counted and shown, never scored.

    Args:
        endpoint: The judge.
        requests: The questions, with different keys.
        replies: Where replies are found and stored.
        ceiling: US dollars that this call may spend; attempts whose cost is unknown (they timed out) count in full.
        progress: Called with the number of replies after each.

    Raises:
        CeilingReached: The ceiling does not suffice. What was answered is stored.
        UserError: The key is refused, the model unknown, an image cannot be shown, or a reply not stored.
        ValueError: Two requests have the same key.
    """
    check_keys(requests)
    return asyncio.run(_Run(endpoint, replies, ceiling, progress).all(requests))


class _Run:
    """One call of :func:`ask`."""

    def __init__(
        self, endpoint: Endpoint, replies: ReplyFile, ceiling: float | None, progress: Callable[[int], None]
    ) -> None:
        self._endpoint, self._replies, self._progress = endpoint, replies, progress
        self._budget, self._pace = Budget(ceiling), Pace(endpoint.requests_per_minute)
        self._done: dict[str, Reply] = {}
        self._rejected = 0
        self._stop: UserError | None = None

    async def all(self, requests: Sequence[Request]) -> list[Reply]:
        """Ask in as many workers as the endpoint takes; what is under way when one must stop is still finished."""
        key = os.environ.get(self._endpoint.api_key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"the key in {self._endpoint.api_key_variable} holds characters that no key has")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=self._endpoint.concurrency)
        waiting = iter(requests)
        async with httpx.AsyncClient(headers=headers, timeout=self._endpoint.timeout_seconds, limits=limits) as client:
            workers = [self._work(client, waiting) for _ in range(min(self._endpoint.concurrency, len(requests)))]
            await asyncio.gather(*workers)
        if self._stop:
            raise self._stop
        return [self._done[request.key] for request in requests]

    async def _work(self, client: httpx.AsyncClient, waiting: Iterator[Request]) -> None:
        for request in waiting:
            if self._stop:
                return
            try:
                mark = fingerprint(request, self._endpoint.sampling)
                reply = self._replies.find(request.key, mark)
                if reply is None:
                    reply = await self._patiently(client, request, mark)
                    self._replies.add(reply)
            except UserError as error:
                self._stop = self._stop or error
                return
            self._done[request.key] = reply
            self._progress(len(self._done))

    async def _patiently(self, client: httpx.AsyncClient, request: Request, mark: str) -> Reply:
        reason, spent = "", 0.0
        backoff, at_most = self._endpoint.backoff, self._endpoint.prices.at_most(request, self._endpoint.sampling)
        for attempt in range(1, backoff.attempts + 1):
            if not await self._budget.reserve(at_most):
                raise CeilingReached(
                    f"${self._budget.spent:.4f} of ${self._budget.ceiling:.4f} are spent and the next request may cost "
                    f"${at_most:.4f}; {len(self._done)} replies are there. Raise the ceiling and run again to go on"
                )
            cost = 0.0
            try:
                await self._pace.turn()
                facts = await self._once(client, request)
                cost = self._cost(facts, at_most)
                return Reply(key=request.key, fingerprint=mark, attempts=attempt, dollars=spent + cost, **facts)
            except _Retry as error:
                reason, cost = str(error), at_most if error.charged else 0.0
                wait = backoff.wait(attempt, error.wait)
                if error.wait is not None:
                    self._pace.hold(wait)
            finally:
                spent += cost
                await self._budget.settle(at_most, cost)
            if self._stop:
                break
            if attempt < backoff.attempts:
                await asyncio.sleep(wait)
        return Reply(request.key, mark, "failed", reason=reason, attempts=attempt, dollars=spent)

    def _cost(self, facts: dict[str, Any], at_most: float) -> float:
        tokens = facts["input_tokens"], facts["output_tokens"]
        if any(tokens):
            return self._endpoint.prices.of(*tokens)
        return at_most if facts["status"] == "answered" else 0.0  # an answer without a bill is taken at its highest

    async def _once(self, client: httpx.AsyncClient, request: Request) -> dict[str, Any]:
        """One attempt: what there is to say of the reply.

        Raises:
            _Retry: Another attempt may succeed.
            UserError: None will.
        """
        url, seconds = f"{self._endpoint.url.rstrip('/')}/chat/completions", self._endpoint.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                response = await client.post(url, json=body_of(request, self._endpoint.sampling))
        except (TimeoutError, httpx.TimeoutException):
            raise _Retry(f"no answer within {seconds:g} s", charged=True) from None
        except httpx.ConnectError as error:
            raise _Retry(f"{self._endpoint.url} cannot be reached ({error})") from None
        except httpx.HTTPError as error:  # hung up on, or half an answer
            raise _Retry(f"the connection broke ({type(error).__name__}: {error})", charged=True) from None
        except httpx.InvalidURL as error:
            raise UserError(f"the judge's url {self._endpoint.url!r} is wrong: {error}") from None
        return self._read(response)

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        status, excerpt = response.status_code, response.text[:500]
        if status in HOPELESS:
            name = self._endpoint.api_key_variable
            raise UserError(f"{response.url} answers {status}, {HOPELESS[status]} (key from {name}): {excerpt}")
        try:
            body = json.loads(response.content)
            body = body if isinstance(body, dict) else {"body": body}
        except ValueError:
            body = {}
        if status in (400, 413, 422):
            if any(word in excerpt for word in REFUSING):
                return _without_reply("refused", body, excerpt)
            self._rejected += 1
            if self._rejected >= REJECTIONS and not any(reply.status == "answered" for reply in self._done.values()):
                raise UserError(f"{response.url} takes no request of this form ({status}): {excerpt}")
            return _without_reply("failed", body, f"status {status}: {excerpt}")
        if status != 200 or "choices" not in body:
            wait = _retry_after(response) if status in (429, 503) else None
            raise _Retry(f"status {status}: {excerpt or 'an empty body'}", wait, charged=status == 200)
        return _read_choice(body)


def _read_choice(body: dict[str, Any]) -> dict[str, Any]:
    """A reply from a response of the expected form, whatever its words.

    Raises:
        _Retry: It is not of that form.
    """
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
    facts: dict[str, Any] = {"text": text, "finish_reason": finish, "model": str(body.get("model") or ""), "raw": body}
    facts |= {"input_tokens": tokens[0], "output_tokens": tokens[1]}
    if refusal or finish == "content_filter":
        return facts | {"status": "refused", "reason": str(refusal or "the content filter")}
    if not text.strip():
        return facts | {"status": "refused", "reason": f"an empty reply (finish reason {finish or 'not given'})"}
    return facts | {"status": "answered"}


def _without_reply(status: str, raw: dict[str, Any], reason: str) -> dict[str, Any]:
    return {"status": status, "raw": raw, "reason": reason, "input_tokens": 0, "output_tokens": 0}


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the endpoint asks to wait, given as a number or as a date."""
    value = response.headers.get("retry-after", "")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
