"""Tar shards, local and from an HTTP server on loopback that fails as real servers do."""

import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from reca.config import Config, WebDatasetData
from reca.data.manifest import read_manifest
from reca.data.sources.base import Description, Item, Rejected
from reca.data.sources.http import HttpStream, public_url
from reca.data.sources.webdataset import WebDatasetSource, expand
from reca.runtime.errors import UserError
from reca.stages.ingest import ingest
from tests.unit.data.pictures import png


def shard(members: dict[str, bytes], mode: str = "w", **kinds: bytes) -> bytes:
    """Return a tar file; ``kinds`` are names and tar types of links or devices."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
        for name, kind in kinds.items():
            header = tarfile.TarInfo(f"{name}.png")
            header.type, header.linkname = kind, "/etc/passwd"
            tar.addfile(header)
    return file.getvalue()


def section(urls: str, **changes: Any) -> WebDatasetData:
    values = {"max_pixels": 10**6, "min_side": 1, "held_out_fraction": 0.0, "max_bad_fraction": 0.0}
    return WebDatasetData(source="webdataset", path="recipe", urls=urls, **(values | changes))


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reca.data.sources.http.FIRST_WAIT_SECONDS", 0.001)


def read(urls: str, root: Path) -> list[Item | Rejected]:
    source = WebDatasetSource(section(urls), root, 10**6)
    entries = list(source)
    assert source.done == source.total
    return entries


def rejected(entries: list[Item | Rejected]) -> dict[str, str]:
    return {entry.source: entry.reason for entry in entries if isinstance(entry, Rejected)}


def items(entries: list[Item | Rejected]) -> dict[str, tuple[bytes, str | None]]:
    return {entry.source: (entry.data, entry.description.caption) for entry in entries if isinstance(entry, Item)}


def test_images_are_paired_with_their_texts(tmp_path: Path) -> None:
    members = {
        "a.png": png(1),
        "a.txt": b"a cat",
        "b.txt": b"a dog",
        "b.jpg": png(2),
        "b.json": b'{"full_caption": "a brown dog", "questions": []}',
        "c.webp": png(3),
        "c.cls": b"7",
        "deep/er/a.PNG": png(4),
        "alone.txt": b"a text without an image",
    }
    (tmp_path / "one.tar").write_bytes(shard(members))
    entries = read("one.tar", tmp_path)
    assert items(entries) == {
        "one.tar#a.png": (png(1), "a cat"),
        "one.tar#b.jpg": (png(2), "a dog"),
        "one.tar#c.webp": (png(3), None),
        "one.tar#a.PNG": (png(4), None),
        "one.tar#alone.txt": (b"a text without an image", "a text without an image"),
    }
    dog = next(e for e in entries if e.source == "one.tar#b.jpg")
    assert isinstance(dog, Item)
    assert dog.description == Description("a dog", "a brown dog", {"questions": []})


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_compressed_shards_are_read(mode: str, tmp_path: Path) -> None:
    (tmp_path / "one.tar").write_bytes(shard({"a.png": png(1)}, mode))
    assert list(items(read("one.tar", tmp_path))) == ["one.tar#a.png"]


def test_unsafe_members_are_refused(tmp_path: Path) -> None:
    members = {
        "../../escape.png": png(1),
        "/absolute.png": png(2),
        "a/../../climb.png": png(3),
        "large.png": bytes(10**6 + 1),
        "..good..png": png(4),
    }
    links = {"sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE, "device": tarfile.CHRTYPE}
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "one.tar").write_bytes(shard(members, **links))
    before = sorted(tmp_path.rglob("*"))
    entries = read("shards/one.tar", tmp_path)
    assert rejected(entries) == {
        "one.tar#escape.png": "unsafe-path",
        "one.tar#absolute.png": "unsafe-path",
        "one.tar#climb.png": "unsafe-path",
        "one.tar#large.png": "too-large",
        "one.tar#sym.png": "link",
        "one.tar#hard.png": "link",
        "one.tar#pipe.png": "not-a-file",
        "one.tar#device.png": "not-a-file",
    }
    assert list(items(entries)) == ["one.tar#..good..png"]
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_shards_yield_their_complete_members(tmp_path: Path) -> None:
    content = shard({"a.png": png(1), "b.png": png(2), "c.png": png(3)})
    header_of_c = content.index(b"c.png")
    (tmp_path / "data.tar").write_bytes(content[: header_of_c - 600])
    (tmp_path / "header.tar").write_bytes(content[: header_of_c + 100])
    (tmp_path / "damaged.tar").write_bytes(content[:header_of_c] + b"x" + content[header_of_c + 1 :])
    (tmp_path / "text.tar").write_bytes(b"not a tar file at all" * 100)
    (tmp_path / "packed.tar").write_bytes(shard({"a.png": png(1)}, "w:gz")[:200])
    entries = read("{data,header,damaged,text,packed}.tar", tmp_path)
    assert sorted(items(entries)) == [
        "damaged.tar#a.png",
        "damaged.tar#b.png",
        "data.tar#a.png",
        "header.tar#a.png",
        "header.tar#b.png",
    ]
    shards = ("data", "header", "damaged", "text", "packed")
    assert rejected(entries) == {f"{name}.tar": "broken-shard" for name in shards}


def test_patterns_expand_to_shards(tmp_path: Path) -> None:
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b-8.tar"):
        (tmp_path / name).write_bytes(b"")
    assert expand("a-{08..10}.tar", tmp_path) == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand("{b-8,a-{09..10}}.tar", tmp_path) == ["b-8.tar", "a-09.tar", "a-10.tar"]
    assert expand("a-*.tar", tmp_path) == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand(f"{tmp_path}/?-8.tar", tmp_path) == [f"{tmp_path}/b-8.tar"]
    assert expand("https://host/{00..11}/{a,b}.tar", tmp_path)[-1] == "https://host/11/b.tar"
    assert len(expand("https://host/{00..11}/{a,b}.tar", tmp_path)) == 24
    for pattern, message in (("c.tar", "there is no file"), ("a-{08..11}.tar", "a-11.tar"), ("c*.tar", "no file")):
        with pytest.raises(UserError, match=message):
            expand(pattern, tmp_path)
    with pytest.raises(UserError, match="counts down"):
        expand("a-{10..08}.tar", tmp_path)


class Server(ThreadingHTTPServer):
    """Serves ``files``; ``failures`` has one entry per response: a status, or the bytes sent before it breaks."""

    files: dict[str, bytes]
    failures: list[int | str]
    ranges = True
    etag = "one"
    requests: list[str]


class ShardHandler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.server.requests.append(f"{self.path} {start}")
        failure = self.server.failures.pop(0) if self.server.failures else None
        data = self.server.files.get(self.path.partition("?")[0])
        if isinstance(failure, int) or data is None:
            self.send_error(failure if isinstance(failure, int) else 404)
            return
        start = start if self.server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", self.server.etag)
        self.end_headers()
        self.wfile.write(data[start:] if failure is None else data[start : start + int(failure)])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), ShardHandler) as running:
        running.files, running.failures, running.requests = {}, [], []
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def address(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}{path}"


def test_busy_server_is_retried(server: Server, tmp_path: Path, default_config: Config) -> None:
    for number in range(3):
        server.files[f"/set/{number:04d}.tar"] = shard({f"{number}.png": png(number), f"{number}.txt": b"words"})
    server.failures = [503, 429]
    data = section(address(server, "/set/{0000..0002}.tar?signature=hidden"))
    ingest(default_config.model_copy(update={"data": data}), tmp_path)
    rows = read_manifest(tmp_path / "outputs" / "dataset").to_pylist()
    assert sorted(row["source"] for row in rows) == [
        address(server, f"/set/{number:04d}.tar#{number}.png") for number in range(3)
    ]
    assert {row["caption"] for row in rows} == {"words"}
    assert len(server.requests) == 5


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_connection_resumes_at_the_same_byte(server: Server, ranges: bool) -> None:
    server.files["/a.bin"] = bytes(range(256)) * 4000
    server.ranges = ranges
    server.failures = ["300000", 500, "200000"]
    with io.BufferedReader(HttpStream(address(server, "/a.bin")), 1 << 16) as stream:
        assert stream.read() == server.files["/a.bin"]
    starts = [int(request.split()[1]) for request in server.requests]
    assert starts == [0, 300_000, 300_000, 500_000 if ranges else 300_000]


def test_file_that_changes_during_the_download_is_an_error(server: Server) -> None:
    server.files["/a.bin"] = bytes(100_000)
    server.failures = ["50000"]
    stream = HttpStream(address(server, "/a.bin"))
    stream.read(10)
    server.etag = "two"
    with pytest.raises(UserError, match="changed during the download; run again"):
        stream.readall()


def test_refusal_is_final_and_reveals_no_secrets(server: Server) -> None:
    url = address(server, "/missing.tar?X-Amz-Signature=secret").replace("127.0.0.1", "me:password@127.0.0.1")
    assert public_url(url) == address(server, "/missing.tar")
    with pytest.raises(UserError, match=r"/missing\.tar: HTTP 404 \(attempt 1\); check data\.urls") as caught:
        HttpStream(address(server, "/missing.tar?X-Amz-Signature=secret")).read(1)
    assert "secret" not in str(caught.value)


def test_retries_are_limited(server: Server) -> None:
    server.failures = [503] * 99
    with pytest.raises(UserError, match=r"HTTP 503 \(attempt 6\)"):
        HttpStream(address(server, "/a.tar")).read(1)
    assert len(server.requests) == 6


def test_refused_connection_is_an_error() -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/a\.tar: .*refused"):
        HttpStream("http://127.0.0.1:9/a.tar").read(1)


def test_stream_stops_at_num_images(server: Server, tmp_path: Path, default_config: Config) -> None:
    for number in range(9):
        server.files[f"/{number}.tar"] = shard({f"{number}{n}.png": png(10 * number + n) for n in range(5)})
    data = section(address(server, "/{0..8}.tar"), num_images=7)
    ingest(default_config.model_copy(update={"data": data}), tmp_path)
    assert read_manifest(tmp_path / "outputs" / "dataset").num_rows == 7
    assert len(server.requests) < 9
