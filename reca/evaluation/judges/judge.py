"""The judge of a benchmark: a model at an endpoint, a model in a local folder, or only its stored replies."""

import ipaddress
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from reca.config.evaluate import JudgeLimits, JudgeSettings
from reca.evaluation.benchmark import Judge
from reca.evaluation.judges.client import Backoff, Endpoint, ask, estimate
from reca.evaluation.judges.reply_cache import Reply, ReplyFile
from reca.evaluation.judges.requests import FREE, CostEstimate, JudgeSampling, Prices, Request, check_keys, fingerprint
from reca.runtime.device import choose_device
from reca.runtime.errors import UserError
from reca.runtime.progress import Progress

if TYPE_CHECKING:
    from reca.evaluation.judges.vision_language import VisionLanguageModel


class JudgeClient:
    """Access to a benchmark's judge.

    Args:
        settings: The judge's model and sampling settings.
        limits: Rate, concurrency, prices and ceiling.
        root: The project folder; a local model's folder is relative to it.
        replies: The file of stored replies; ``reca score`` sets it before asking.
        device: Device of a local model, as in ``hardware.device``.
    """

    def __init__(self, settings: JudgeSettings, limits: JudgeLimits, root: Path, replies: Path, device: str) -> None:
        self.settings, self.limits = settings, limits
        self.file = replies
        self.only_stored = False
        """Send no request: a question without a stored reply counts as failed."""
        self._root, self._device = root, device
        self._model_versions: set[str] = set()
        self._model: VisionLanguageModel | None = None

    @property
    def sampling(self) -> JudgeSampling:
        """The judge's sampling settings."""
        return JudgeSampling(self.settings.model, self.settings.max_tokens, self.settings.temperature)

    @property
    def identity(self) -> Judge:
        """The judge by its configured name; the version is the name in its last answers."""
        return Judge(name=self.settings.model, version=", ".join(sorted(self._model_versions)) or "no reply")

    def estimate(self, requests: Sequence[Request]) -> CostEstimate:
        """Return the cost of :meth:`replies`; no request is sent.

        Raises:
            UserError: An image cannot be sent, or the endpoint's prices are unknown.
        """
        return estimate(self._endpoint(), requests, ReplyFile(self.file))

    def replies(self, requests: Sequence[Request]) -> dict[str, Reply]:
        """Return a reply to every request, by key: a stored one, else by asking."""
        check_keys(requests)
        stored = ReplyFile(self.file)
        if self.only_stored:
            replies = [self._find(request, stored) for request in requests]
        elif self.settings.folder is not None:
            replies = self._ask_local(requests, stored)
        else:
            endpoint = self._endpoint()
            print(f"judge {self.settings.model}: {estimate(endpoint, requests, stored)}", flush=True)
            progress = Progress(len(requests), "replies")
            replies = ask(endpoint, requests, stored, self.limits.cost_ceiling, progress.update)
        self._model_versions = {reply.model for reply in replies if reply.model}
        return {reply.key: reply for reply in replies}

    def _find(self, request: Request, stored: ReplyFile) -> Reply:
        digest = fingerprint(request, self.sampling)
        reply = stored.find(request.key, digest)
        return reply or Reply(request.key, digest, "failed", reason="there is no stored reply to this question")

    def _endpoint(self) -> Endpoint:
        limits = self.limits
        if limits.input_price is not None and limits.output_price is not None:
            prices = Prices(limits.input_price, limits.output_price)
        elif self.settings.folder is not None or _is_private(self.settings.url):
            prices = FREE
        else:
            raise UserError(
                f"the prices of {self.settings.model} at {self.settings.url} are not known, so no ceiling can hold: "
                "set hardware.judge.input_price and hardware.judge.output_price (US dollars per million tokens; 0 if "
                "free)"
            )
        return Endpoint(
            self.settings.url,
            self.sampling,
            limits.api_key_variable,
            limits.concurrency,
            limits.requests_per_minute,
            limits.timeout_seconds,
            Backoff(attempts=limits.max_attempts),
            prices,
        )

    def _ask_local(self, requests: Sequence[Request], stored: ReplyFile) -> list[Reply]:
        replies = []
        progress = Progress(len(requests), "replies")
        for number, request in enumerate(requests, start=1):
            digest = fingerprint(request, self.sampling)
            reply = stored.find(request.key, digest)
            if reply is None:
                if self.settings.temperature:
                    raise UserError("a judge in a local folder answers greedily: set its temperature to 0")
                text = self._local_model().reply(request.text, request.images, self.settings.max_tokens)
                status: Any = "answered" if text.strip() else "refused"
                reason = "" if text.strip() else "an empty reply"
                reply = Reply(request.key, digest, status, text, reason, model=self.settings.model)
                stored.add(reply)
            replies.append(reply)
            progress.update(number)
        return replies

    def _local_model(self) -> "VisionLanguageModel":
        from reca.evaluation.judges.vision_language import VisionLanguageModel

        if self._model is None:
            try:
                folder = self._root / str(self.settings.folder)
                self._model = VisionLanguageModel.load(folder, choose_device(self._device))
            except (FileNotFoundError, ValueError) as error:
                raise UserError(f"the judge cannot be loaded: {error}") from None
        return self._model


def _is_private(url: str) -> bool:
    """Return whether an address belongs to this machine or a private network."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def answer_text(reply: Reply | None) -> str | None:
    """Return the text of an answer; ``None`` for a refusal, a failure, or a question that was not asked."""
    return reply.text if reply is not None and reply.status == "answered" else None


def reply_record(reply: Reply | None, readable: bool) -> dict[str, Any]:
    """Return a reply's entry in a score file: its unchanged text, and whether it was read."""
    if reply is None:
        return {"status": "not asked", "reply": ""}
    status = reply.status if reply.status != "answered" else "read" if readable else "unparsable"
    return {"status": status, "reply": reply.text, **({"reason": reply.reason} if reply.reason else {})}


def count_replies(details: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Count the entries of :func:`reply_record` by status, at any depth of the items' details."""
    counts: Counter[str] = Counter()

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            if "status" in value and "reply" in value:
                counts[value["status"]] += 1
            for child in value.values():
                visit(child)
        elif isinstance(value, list | tuple):
            for child in value:
                visit(child)

    visit(list(details))
    return {status: counts[status] for status in ("read", "unparsable", "refused", "failed", "not asked")}
