"""One judge for a benchmark: a model at an endpoint, one in a local folder, or nothing but its stored replies."""

import ipaddress
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from reca.config.evaluate import JudgeLimits, JudgeSettings
from reca.evaluation.benchmark import Judge
from reca.evaluation.judges.client import Endpoint, ask, estimate
from reca.evaluation.judges.rate_limit import Backoff
from reca.evaluation.judges.reply_cache import Reply, ReplyFile
from reca.evaluation.judges.requests import FREE, Estimate, Prices, Request, Sampling, check_keys, fingerprint
from reca.runtime.distributed import choose_device
from reca.runtime.errors import UserError
from reca.runtime.progress import Progress

if TYPE_CHECKING:
    from reca.evaluation.judges.vision_language import VisionLanguageModel


class Judging:
    """The judge of one benchmark.

    Args:
        settings: Who is asked, and how.
        limits: How fast and for how much.
        root: The project folder, from which a local model's folder is found.
        replies: The file of stored replies; the score stage names it before it asks.
        device: Of a local model, as in ``hardware.device``.
    """

    def __init__(self, settings: JudgeSettings, limits: JudgeLimits, root: Path, replies: Path, device: str) -> None:
        self.settings, self.limits = settings, limits
        self.file = replies
        self.only_stored = False
        """Ask nobody: what has no stored reply is failed."""
        self._root, self._device = root, device
        self._answered_by: set[str] = set()
        self._model: VisionLanguageModel | None = None

    @property
    def sampling(self) -> Sampling:
        """How the judge answers."""
        return Sampling(self.settings.model, self.settings.max_tokens, self.settings.temperature)

    @property
    def identity(self) -> Judge:
        """The judge by its configured name; its version is what the endpoint called itself, once it was asked."""
        return Judge(name=self.settings.model, version=", ".join(sorted(self._answered_by)) or "no reply")

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """What asking would cost; nothing is sent.

        Raises:
            UserError: An image cannot be shown, or it is not known what the endpoint charges.
        """
        return estimate(self._endpoint(), requests, ReplyFile(self.file))

    def replies(self, requests: Sequence[Request]) -> dict[str, Reply]:
        """A reply to every request, by key: from the file, else by asking.

        Raises:
            UserError: See :func:`reca.evaluation.judges.client.ask`.
        """
        check_keys(requests)
        stored = ReplyFile(self.file)
        if self.only_stored:
            found = [self._stored(request, stored) for request in requests]
        elif self.settings.folder is not None:
            found = self._ask_here(requests, stored)
        else:
            endpoint = self._endpoint()
            print(f"judge {self.settings.model}: {estimate(endpoint, requests, stored)}", flush=True)
            progress = Progress(len(requests), "replies")
            found = ask(endpoint, requests, stored, self.limits.cost_ceiling, progress.update)
        self._answered_by = {reply.model for reply in found if reply.model}
        return {reply.key: reply for reply in found}

    def _stored(self, request: Request, stored: ReplyFile) -> Reply:
        mark = fingerprint(request, self.sampling)
        reply = stored.find(request.key, mark)
        return reply or Reply(request.key, mark, "failed", reason="there is no stored reply to this question")

    def _endpoint(self) -> Endpoint:
        limits = self.limits
        if limits.input_price is not None and limits.output_price is not None:
            prices = Prices(limits.input_price, limits.output_price)
        elif self.settings.folder is not None or _is_here(self.settings.url):
            prices = FREE
        else:
            raise UserError(
                f"what {self.settings.url} charges for {self.settings.model} is not known, so no ceiling can hold: set "
                "hardware.judge.input_price and hardware.judge.output_price (US dollars per million tokens; 0 if free)"
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

    def _ask_here(self, requests: Sequence[Request], stored: ReplyFile) -> list[Reply]:
        found = []
        progress = Progress(len(requests), "replies")
        for number, request in enumerate(requests, start=1):
            mark = fingerprint(request, self.sampling)
            reply = stored.find(request.key, mark)
            if reply is None:
                if self.settings.temperature:
                    raise UserError("a judge in a local folder answers greedily: set its temperature to 0")
                text = self._local().reply(request.text, request.images, self.settings.max_tokens, request.system)
                status: Any = "answered" if text.strip() else "refused"
                reason = "" if text.strip() else "an empty reply"
                reply = Reply(request.key, mark, status, text, reason, model=self.settings.model)
                stored.add(reply)
            found.append(reply)
            progress.update(number)
        return found

    def _local(self) -> "VisionLanguageModel":
        from reca.evaluation.judges.vision_language import VisionLanguageModel

        if self._model is None:
            try:
                folder = self._root / str(self.settings.folder)
                self._model = VisionLanguageModel.load(folder, choose_device(self._device))
            except (FileNotFoundError, ValueError) as error:
                raise UserError(f"the judge cannot be loaded: {error}") from None
        return self._model


def _is_here(url: str) -> bool:
    """Whether an address is this machine's or a private network's."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def told(reply: Reply | None, readable: bool) -> dict[str, Any]:
    """What a score file keeps of a reply: the text as it came, and what became of it."""
    if reply is None:
        return {"status": "not asked", "reply": ""}
    status = reply.status if reply.status != "answered" else "read" if readable else "unparsable"
    return {"status": status, "reply": reply.text, **({"reason": reply.reason} if reply.reason else {})}


def tally(details: Iterable[dict[str, Any]]) -> dict[str, int]:
    """How many replies were read, unparsable, refused or failed, in any depth of the items' details."""
    counts: Counter[str] = Counter()

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if "status" in value and "reply" in value:
                counts[value["status"]] += 1
            for part in value.values():
                look(part)
        elif isinstance(value, list | tuple):
            for part in value:
                look(part)

    look(list(details))
    return {status: counts[status] for status in ("read", "unparsable", "refused", "failed", "not asked")}
