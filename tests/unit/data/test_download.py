"""Downloads of published checkpoints from a local HTTP server that imitates the hub."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from reca.config import Config, ConfigError, compose
from reca.data.download import fetch_model
from reca.runtime.errors import UserError
from reca.runtime.files import HUB_SOURCE

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"hidden_size": 4}',
    "model.safetensors": b"weights",
    "tokenizer/vocab.json": b"{}",
    "photo.png": b"x",
}


@dataclass
class Hub:
    """The server's URL, the requests that it received, and whether it fails."""

    url: str = ""
    requests: list[str] = field(default_factory=list)
    cut_off: bool = False


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()

    class HubHandler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            state.requests.append(f"{self.command} {self.path}")
            path = self.path.split("?")[0]
            if path in (f"/api/models/them/model/revision/{name}" for name in ("v1", COMMIT)):
                body = {"id": "them/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
                self.answer(json.dumps(body).encode(), {"Content-Type": "application/json"})
            elif path.startswith(f"/api/models/them/model/tree/{COMMIT}"):
                tree = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in FILES.items()]
                self.answer(json.dumps(tree).encode(), {"Content-Type": "application/json"})
            elif path.startswith(f"/them/model/resolve/{COMMIT}/"):
                name = path.removeprefix(f"/them/model/resolve/{COMMIT}/")
                if name == "model.safetensors" and state.cut_off and self.command == "GET":
                    self.send_error(503)
                    return
                self.answer(FILES[name], {"ETag": f'"{len(name):040d}"', "X-Repo-Commit": COMMIT})
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.end_headers()

        def answer(self, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", state.url)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", state.url + template)
    yield state
    server.shutdown()
    server.server_close()


def configured(source: str) -> Config:
    return compose(["model.checkpoint=data/checkpoints/theirs", f"+model.hub.checkpoint={source}"])


def test_missing_folder_is_downloaded_once(hub: Hub, tmp_path: Path) -> None:
    fetch_model(configured("them/model@v1"), tmp_path)
    folder = tmp_path / "data/checkpoints/theirs"
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    source = json.loads(files.pop(HUB_SOURCE))
    assert files == {name: content for name, content in FILES.items() if not name.endswith(".png")}
    assert source == {"repository": "them/model", "revision": "v1", "commit": COMMIT}
    count = len(hub.requests)
    fetch_model(configured("them/model@v1"), tmp_path)
    assert len(hub.requests) == count


def test_interrupted_download_leaves_no_checkpoint_and_continues(hub: Hub, tmp_path: Path) -> None:
    hub.cut_off = True
    with pytest.raises(UserError, match=r"them/model@v1 cannot be downloaded"):
        fetch_model(configured("them/model@v1"), tmp_path)
    assert not (tmp_path / "data/checkpoints/theirs").exists()
    hub.cut_off, before = False, len(hub.requests)
    fetch_model(configured("them/model@v1"), tmp_path)
    assert (tmp_path / "data/checkpoints/theirs/model.safetensors").read_bytes() == FILES["model.safetensors"]
    repeated = [line for line in hub.requests[before:] if line.startswith("GET") and line.endswith("/config.json")]
    assert not repeated


@pytest.mark.usefixtures("hub")
def test_unknown_repository_error_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"them/typo cannot be downloaded"):
        fetch_model(configured("them/typo"), tmp_path)


def test_missing_network_error_names_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"them/model cannot be downloaded from the hub: .*run again"):
        fetch_model(configured("them/model"), tmp_path)


def test_hub_entries_must_name_a_part_of_the_model() -> None:
    with pytest.raises(ConfigError, match=r"hub\.vae is neither"):
        compose(["+model.hub.vae=them/vae"])
