"""The judge's client against a real HTTP server on loopback that answers well, slowly, wrongly or not at all."""

import base64
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reca.evaluation.judges.client import Backoff, CeilingReached, Endpoint, ask, estimate
from reca.evaluation.judges.reply_cache import Reply, ReplyFile
from reca.evaluation.judges.requests import JudgeSampling, Prices, Request, body_of
from reca.runtime.errors import UserError

QUICK = Backoff(attempts=4, first_seconds=0.01, longest_seconds=0.05)
SECRET = "sk-not-for-the-file"


class FakeJudge(ThreadingHTTPServer):
    """Behaves as the question's text says, "<behaviour> [<number of times>]"; after that it answers well."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeJudgeHandler)
        self.hits: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.lock = threading.Lock()
        self.busy = self.busiest = 0
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that gave up."""


class FakeJudgeHandler(BaseHTTPRequestHandler):
    server: FakeJudge
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Suppress the log."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[0]["text"]
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.keys.add(self.headers.get("Authorization", ""))
            self.server.hits[text] += 1
            hit = self.server.hits[text]
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        try:
            behaviour, _, times = text.partition(" ")
            well = times.isdigit() and hit > int(times)
            getattr(self, "well" if well or not hasattr(self, behaviour) else behaviour)(text)
        finally:
            with self.server.lock:
                self.server.busy -= 1

    def send(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def reply(self, message: dict[str, Any], finish: str = "stop", **more: Any) -> None:
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
        self.send(200, json.dumps({"model": "judge-2026", "choices": [choice], "usage": usage, **more}).encode())

    def well(self, text: str) -> None:
        self.reply({"content": f"Score: 4 ({text})"})

    def parts(self, text: str) -> None:
        self.reply({"content": [{"type": "text", "text": "Score: "}, {"type": "text", "text": "4"}]})

    def slow(self, text: str) -> None:
        time.sleep(0.05)
        self.well(text)

    def together(self, text: str) -> None:
        """Wait until three requests are open."""
        with self.server.lock:
            if self.server.busy >= 3:
                self.server.release.set()
        self.server.release.wait(20)
        self.well(text)

    def hanging(self, text: str) -> None:
        time.sleep(4)

    def dripping(self, text: str) -> None:
        """Send a byte now and then: no single read takes long."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(40):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.1)

    def busy(self, text: str) -> None:
        self.send(429, b'{"error": {"message": "slow down"}}', Retry_After="0.03")

    def dated(self, text: str) -> None:
        self.send(429, b"", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")

    def broken(self, text: str) -> None:
        self.send(500, b"<html>Internal Server Error</html>", Content_Type="text/html")

    def truncated(self, text: str) -> None:
        self.send(200, b'{"choices": [{"message": {"content": "Score: 4"')

    def cut(self, text: str) -> None:
        self.send(200, b'{"choices": [', length=500)
        self.close_connection = True

    def hangup(self, text: str) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def silent(self, text: str) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def strange(self, text: str) -> None:
        self.send(200, b'{"choices": []}')

    def listed(self, text: str) -> None:
        self.send(200, b'["choices"]')

    def garbage(self, text: str) -> None:
        self.send(200, b"\xff\xfe\x00 not JSON")

    def errorbody(self, text: str) -> None:
        self.send(200, b'{"error": {"message": "upstream failed", "code": 502}}')

    def refusal(self, text: str) -> None:
        self.reply({"content": None, "refusal": "I cannot help with that."})

    def filtered(self, text: str) -> None:
        self.reply({"content": "Sco"}, finish="content_filter")

    def azure(self, text: str) -> None:
        self.send(400, b'{"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}')

    def empty(self, text: str) -> None:
        self.reply({"content": ""}, finish="length")

    def long(self, text: str) -> None:
        self.reply({"content": "Score: 4 and then"}, finish="length")

    def unpaid(self, text: str) -> None:
        self.reply({"content": "Score: 1"}, usage=None)

    def denied(self, text: str) -> None:
        self.send(401, b'{"error": {"message": "Incorrect API key provided"}}')

    def unknown(self, text: str) -> None:
        self.send(404, b'{"error": {"message": "The model does not exist"}}')

    def malformed(self, text: str) -> None:
        self.send(400, b'{"error": {"message": "max_tokens is too large"}}')


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJudge]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    server = FakeJudge()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


def endpoint_of(judge: FakeJudge, **changes: Any) -> Endpoint:
    defaults = {
        "sampling": JudgeSampling("judge"),
        "api_key_variable": "JUDGE_KEY",
        "requests_per_minute": 60000.0,
        "timeout_seconds": 30.0,
        "backoff": QUICK,
    }
    return Endpoint(judge.url, **{**defaults, **changes})


def requests_of(*texts: str) -> list[Request]:
    return [Request(f"key{number}", text) for number, text in enumerate(texts)]


def test_replies_come_in_order_and_are_stored_raw_without_the_key(judge: FakeJudge, tmp_path: Path) -> None:
    texts = [f"question {chr(97 + number)}" for number in range(20)]
    counts: list[int] = []
    replies = ask(
        endpoint_of(judge), requests_of(*texts), ReplyFile(tmp_path / "replies.jsonl"), progress=counts.append
    )
    assert [reply.text for reply in replies] == [f"Score: 4 ({text})" for text in texts]
    assert {(reply.status, reply.model, reply.attempts) for reply in replies} == {("answered", "judge-2026", 1)}
    assert counts == list(range(1, 21))
    stored = (tmp_path / "replies.jsonl").read_text()
    assert len(stored.splitlines()) == 20
    assert json.loads(stored.splitlines()[0])["raw"]["choices"][0]["finish_reason"] == "stop"
    assert judge.keys == {f"Bearer {SECRET}"}
    assert SECRET not in stored


def test_private_endpoints_need_no_key(judge: FakeJudge, tmp_path: Path) -> None:
    ask(
        endpoint_of(judge, api_key_variable="NO_SUCH_VARIABLE"),
        requests_of("question"),
        ReplyFile(tmp_path / "replies.jsonl"),
    )
    assert judge.keys == {""}


def test_request_bodies_contain_text_images_and_sampling(judge: FakeJudge, tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    image.save(tmp_path / "really_png.jpg", "PNG")
    image.save(tmp_path / "photo.jpeg", "JPEG")
    request = Request("a", "compare", (tmp_path / "really_png.jpg", tmp_path / "photo.jpeg"))
    sampling = JudgeSampling("judge", 400, None)
    ask(endpoint_of(judge, sampling=sampling), [request], ReplyFile(tmp_path / "replies.jsonl"))
    body = judge.bodies[0]
    assert body.keys() == {"model", "messages", "max_tokens"}, "temperature is the endpoint's"
    text, first, second = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "compare"}
    kinds = [part["image_url"]["url"].split(";base64,") for part in (first, second)]
    assert [kind for kind, _ in kinds] == ["data:image/png", "data:image/jpeg"]
    assert base64.b64decode(kinds[1][1]) == (tmp_path / "photo.jpeg").read_bytes()


@pytest.mark.parametrize(
    "behaviour",
    ["busy", "dated", "broken", "truncated", "cut", "hangup", "silent", "strange", "listed", "garbage", "errorbody"],
)
def test_temporary_failures_are_retried(behaviour: str, judge: FakeJudge, tmp_path: Path) -> None:
    [reply] = ask(endpoint_of(judge), requests_of(f"{behaviour} 2"), ReplyFile(tmp_path / "replies.jsonl"))
    assert (reply.status, reply.text, reply.attempts) == ("answered", f"Score: 4 ({behaviour} 2)", 3)


@pytest.mark.parametrize("behaviour", ["hanging", "dripping"])
def test_endless_answers_time_out_and_are_retried(behaviour: str, judge: FakeJudge, tmp_path: Path) -> None:
    endpoint = endpoint_of(judge, timeout_seconds=1.5)
    [reply] = ask(endpoint, requests_of(f"{behaviour} 1"), ReplyFile(tmp_path / "replies.jsonl"))
    assert (reply.status, reply.attempts) == ("answered", 2)


def test_lasting_failures_are_stored_with_their_reason_and_requested_again_next_time(
    judge: FakeJudge, tmp_path: Path
) -> None:
    store = tmp_path / "replies.jsonl"
    bad, good = ask(endpoint_of(judge), requests_of("broken 5", "question"), ReplyFile(store))
    assert (bad.status, bad.text, bad.attempts, good.status) == ("failed", "", 4, "answered")
    assert bad.reason.startswith("status 500: <html>")
    bad, good = ask(endpoint_of(judge), requests_of("broken 5", "question"), ReplyFile(store))
    assert (bad.status, bad.attempts) == ("answered", 2)
    assert judge.hits == {"broken 5": 6, "question": 1}
    assert [reply.status for reply in ReplyFile(store).all()].count("answered") == 2, "the last line of a key counts"


@pytest.mark.parametrize("behaviour", ["refusal", "filtered", "azure", "empty"])
def test_refusals_are_stored_and_not_requested_again(behaviour: str, judge: FakeJudge, tmp_path: Path) -> None:
    for _ in range(2):
        [reply] = ask(endpoint_of(judge), requests_of(behaviour), ReplyFile(tmp_path / "replies.jsonl"))
        assert reply.status == "refused"
        assert reply.reason
    assert judge.hits[behaviour] == 1


def test_truncated_and_multipart_answers_are_stored_unchanged(judge: FakeJudge, tmp_path: Path) -> None:
    cut, parts = ask(endpoint_of(judge), requests_of("long", "parts"), ReplyFile(tmp_path / "replies.jsonl"))
    assert (cut.status, cut.text, cut.finish_reason) == ("answered", "Score: 4 and then", "length")
    assert parts.text == "Score: 4"


@pytest.mark.parametrize(("behaviour", "message"), [("denied", "401, the key is not accepted .key from JUDGE_KEY."),
                                                    ("unknown", "404, there is no such path or model")])  # fmt: skip
def test_fatal_statuses_stop_the_run(behaviour: str, message: str, judge: FakeJudge, tmp_path: Path) -> None:
    requests = requests_of("question", behaviour, *(f"question {n}" for n in "abcdefgh"))
    store = tmp_path / "replies.jsonl"
    with pytest.raises(UserError, match=message):
        ask(endpoint_of(judge, concurrency=1), requests, ReplyFile(store))
    assert judge.hits == {"question": 1, behaviour: 1}
    assert [reply.key for reply in ReplyFile(store).all()] == ["key0"]


def test_a_rejected_request_fails_alone_and_many_stop_the_run(judge: FakeJudge, tmp_path: Path) -> None:
    replies = ask(
        endpoint_of(judge, concurrency=1), requests_of("malformed", "question"), ReplyFile(tmp_path / "one.jsonl")
    )
    assert [(reply.status, reply.attempts) for reply in replies] == [("failed", 1), ("answered", 1)]
    with pytest.raises(UserError, match="takes no request of this form .400.: .*max_tokens is too large"):
        ask(endpoint_of(judge), requests_of(*["malformed"] * 20), ReplyFile(tmp_path / "all.jsonl"))


def test_concurrency_is_limited(judge: FakeJudge, tmp_path: Path) -> None:
    ask(
        endpoint_of(judge, concurrency=3),
        requests_of(*(f"together {n}" for n in "abcdefgh")),
        ReplyFile(tmp_path / "r.jsonl"),
    )
    assert judge.busiest == 3


def test_requests_are_spaced_by_the_rate_limit(judge: FakeJudge, tmp_path: Path) -> None:
    requests, start = requests_of(*(f"question {n}" for n in "abcdef")), time.monotonic()
    ask(endpoint_of(judge, requests_per_minute=1200), requests, ReplyFile(tmp_path / "r.jsonl"))
    assert time.monotonic() - start >= 5 * 0.05


PRICES = Prices(input=1.0, output=10.0, tokens_per_image=1000)


def test_estimate_returns_the_cost_and_sends_no_request(judge: FakeJudge, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    endpoint = endpoint_of(judge, prices=PRICES, sampling=JudgeSampling("judge", max_tokens=100))
    requests = [Request("a", "x" * 300, (tmp_path / "a.png",)), Request("b", "x" * 300)]
    cost = estimate(endpoint, requests, ReplyFile(tmp_path / "r.jsonl"))
    assert cost.at_most == pytest.approx((2 * (100 + 20) + 1000) * 1e-6 + 2 * 100 * 10e-6)
    assert str(cost) == "2 requests, 0 of them answered before; the rest costs at most $0.00"
    assert (judge.bodies, (tmp_path / "r.jsonl").exists()) == ([], False)
    ask(endpoint, requests[:1], ReplyFile(tmp_path / "r.jsonl"))
    assert estimate(endpoint, requests, ReplyFile(tmp_path / "r.jsonl")).stored == 1


def test_the_ceiling_stops_the_run_and_a_higher_one_resumes_it(judge: FakeJudge, tmp_path: Path) -> None:
    endpoint = endpoint_of(judge, prices=PRICES, sampling=JudgeSampling("judge", max_tokens=100))
    requests = requests_of(*(f"question {n}" for n in "abcdefghij"))
    per_reply, at_most = 100e-6 + 10 * 10e-6, PRICES.at_most(requests[0], endpoint.sampling)
    store = tmp_path / "r.jsonl"
    with pytest.raises(CeilingReached, match="Raise the ceiling"):
        ask(endpoint, requests, ReplyFile(store), ceiling=3 * per_reply + at_most)
    replies = ReplyFile(store).all()
    assert len(replies) == 4
    assert sum(reply.dollars for reply in replies) == pytest.approx(4 * per_reply)
    done = ask(endpoint, requests, ReplyFile(store), ceiling=6 * per_reply + at_most)
    assert len(done) == 10
    assert sum(judge.hits.values()) == 10, "no request is sent twice"


def test_attempts_of_unknown_cost_count_in_full(judge: FakeJudge, tmp_path: Path) -> None:
    endpoint = endpoint_of(judge, prices=PRICES, sampling=JudgeSampling("judge", max_tokens=100))
    hung, unpaid = ask(endpoint, requests_of("hangup 1", "unpaid"), ReplyFile(tmp_path / "r.jsonl"))
    at_most = [PRICES.at_most(request, endpoint.sampling) for request in requests_of("hangup 1", "unpaid")]
    assert hung.dollars == pytest.approx(at_most[0] + 200e-6)
    assert unpaid.dollars == pytest.approx(at_most[1])


def test_a_partial_line_of_a_killed_run_is_removed(judge: FakeJudge, tmp_path: Path) -> None:
    store, requests = tmp_path / "r.jsonl", requests_of("question a", "question b")
    ask(endpoint_of(judge), requests, ReplyFile(store))
    content = store.read_bytes()
    store.write_bytes(content[:-30])
    assert len(ReplyFile(store)) == 1
    ask(endpoint_of(judge), requests, ReplyFile(store))
    assert sum(judge.hits.values()) == 3
    assert len(store.read_text().splitlines()) == 2


def test_another_question_or_model_needs_another_reply(judge: FakeJudge, tmp_path: Path) -> None:
    store = tmp_path / "r.jsonl"
    ask(endpoint_of(judge), [Request("a", "question a")], ReplyFile(store))
    [reply] = ask(endpoint_of(judge), [Request("a", "question b")], ReplyFile(store))
    assert reply.text == "Score: 4 (question b)"
    ask(endpoint_of(judge, sampling=JudgeSampling("other")), [Request("a", "question b")], ReplyFile(store))
    assert sum(judge.hits.values()) == 3


def test_any_text_can_be_stored(tmp_path: Path) -> None:
    store = ReplyFile(tmp_path / "r.jsonl")
    reply = Reply("a", "f", "answered", text="\u2028 line\nbreak \U0001f600 \x85", raw={"x": "\u2029"})
    store.add(reply)
    assert ReplyFile(store.path).find("a", "f") == reply


def test_invalid_input_is_reported(tmp_path: Path, judge: FakeJudge) -> None:
    with pytest.raises(ValueError, match="two requests have the key 'a'"):
        ask(endpoint_of(judge), [Request("a", "x"), Request("a", "y")], ReplyFile(tmp_path / "r.jsonl"))
    with pytest.raises(UserError, match="nowhere.png cannot be sent to a judge: No such file"):
        ask(endpoint_of(judge), [Request("a", "x", (tmp_path / "nowhere.png",))], ReplyFile(tmp_path / "r.jsonl"))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="text.png is not a PNG"):
        body_of(Request("a", "x", (tmp_path / "text.png",)), JudgeSampling("judge"))
    with pytest.raises(UserError, match="http"):
        Endpoint("api.example.com", JudgeSampling("judge"))
    (tmp_path / "other.jsonl").write_text('{"key": "a"}\n')
    with pytest.raises(UserError, match="line 1, is not a stored reply"):
        ReplyFile(tmp_path / "other.jsonl")
    assert judge.bodies == []


def test_an_unreachable_server_gives_failed_replies(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", JudgeSampling("judge"), backoff=QUICK, requests_per_minute=60000)
    [reply] = ask(endpoint, requests_of("question"), ReplyFile(tmp_path / "r.jsonl"))
    assert (reply.status, reply.attempts, reply.dollars) == ("failed", 4, 0.0)
    assert "cannot be reached" in reply.reason
