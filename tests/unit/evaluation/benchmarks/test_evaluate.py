"""``reca evaluate`` and ``reca compare``, typed as a user types them."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reca.cli import main
from reca.config import ROOT, compose
from reca.config.evaluate import PUBLISHED
from reca.evaluation import download as fetching
from reca.evaluation import prompt_sources as sources
from reca.evaluation.benchmark import read_scores
from reca.evaluation.compare import compare
from reca.evaluation.samples import read_manifest
from reca.runtime.errors import UserError
from reca.stages.evaluate import _override

SMALL = ["evaluate.bootstrap_resamples=50", "hardware.threads=1", "hardware.generate_batch_size=8"]
GENEVAL = [*SMALL, "benchmarks=[geneval]", "geneval.max_prompts=1", "geneval.images_per_prompt=1"]


@pytest.fixture
def here(project, monkeypatch):
    (project / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(project)
    return project


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("benchmarks=[geneval]", "evaluate.benchmarks=[geneval]"),
        ("geneval.images_per_prompt=4", "++evaluate.geneval.images_per_prompt=4"),
        ("evaluate.wise.judge.model=x", "++evaluate.wise.judge.model=x"),
        ("hardware.judge.cost_ceiling=3", "hardware.judge.cost_ceiling=3"),
        ("model=bagel_7b", "model=bagel_7b"),
        ("evaluate.scenes.seed=4", "evaluate.scenes.seed=4"),
    ],
)
def test_short_words(typed, meant):
    assert _override(typed) == meant


def test_a_checkpoint_is_measured_without_a_run(here, use_model, artist, judges, monkeypatch, capsys):
    from reca.evaluation.benchmarks.geneval import benchmark as geneval

    complete = geneval.Geneval.__init__
    monkeypatch.setattr(geneval.Geneval, "__init__", lambda self, s, r, d: complete(self, s, r, d, short_side=64))
    use_model(artist)
    shutil.copytree(judges, here / "data/judges")
    assert main(["evaluate", *GENEVAL, "--output", "first"]) == 0
    scores = read_scores(here / "first/scores/geneval.json")
    assert scores.variant == "evaluated"
    assert scores.expected == 6
    assert not (here / "params.yaml").exists()
    assert not (here / "outputs/samples").exists()
    generated = len(artist.drawn_prompts)
    assert main(["evaluate", *GENEVAL, "--output", "first"]) == 0
    assert len(artist.drawn_prompts) == generated, "samples that are there are not drawn again"

    (here / "data/bases/janus_tiny/model.safetensors").write_bytes(b"other weights")
    assert main(["evaluate", *GENEVAL, "--output", "second"]) == 0
    capsys.readouterr()
    assert main(["compare", "first", "second"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["benchmark", "category", "A", "B", "B", "-", "A", "interval"]
    assert len(table) == 8
    assert "+0.00" in table[1]

    shutil.copytree(here / "first/samples/geneval", here / "elsewhere")
    images = ["evaluate", *GENEVAL[:3], *GENEVAL[4:], "--images", "elsewhere", "--benchmark", "geneval"]
    assert main(images) == 0
    again = read_scores(here / "outputs/evaluations/images-elsewhere/scores/geneval.json")
    assert again.categories == scores.categories
    assert again.checkpoint.startswith("images:")
    for row in read_manifest(here / "first/samples/geneval"):
        if row["category"] == "colors":
            (here / "elsewhere" / row["file"]).unlink()
    assert main(images) == 2
    assert "elsewhere has no image of colors, without which" in capsys.readouterr().err


def test_images_and_benchmark_belong_together(here, capsys):
    assert main(["evaluate", "--images", "x"]) == 2
    assert "belong together" in capsys.readouterr().err
    assert main(["evaluate", "--images", "x", "--benchmark", "geneval"]) == 2


def test_without_a_network_it_says_where_the_prompts_come_from(here, monkeypatch, capsys):
    there = sources.SourceFile("dpg_bench.csv", "http://127.0.0.1:9/dpg_bench.csv")
    monkeypatch.setitem(sources.SOURCES, "dpgbench", sources.PublishedFiles(files=(there,)))
    assert main(["evaluate", *SMALL, "benchmarks=[dpgbench]"]) == 2
    output = capsys.readouterr().err
    assert "http://127.0.0.1:9/dpg_bench.csv cannot be fetched" in output
    assert "save the file yourself" in output


def score_file(folder, name, value, failed=0, protocol="variant: x", **changes):
    folder.mkdir(parents=True, exist_ok=True)
    estimate = {"value": value, "low": value, "high": value, "n": 2}
    scores = {
        "benchmark": name, "variant": "evaluated", "protocol": protocol, "overall": estimate,
        "categories": {"a": estimate}, "expected": 2, "scored": 2 - failed, "failed": failed,
        "images_per_prompt": 1, "seed": 0, "settings": {"generate": {}}, "checkpoint": "c",
        "judge": {"name": "j", "version": "1"}, **changes,
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(scores))
    rows = [{"prompt_id": p, "category": "a", "values": [value], "files": [], "details": []} for p in "pq"]
    (folder / f"{name}.items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_comparison_pairs_and_refuses(tmp_path):
    score_file(tmp_path / "a", "wise", 0.25)
    score_file(tmp_path / "b/scores", "wise", 0.75)
    delta = compare(tmp_path / "a", tmp_path / "b")["wise"].overall
    assert (delta.base, delta.aligned, delta.delta, delta.low, delta.high) == (0.25, 0.75, 0.5, 0.5, 0.5)
    score_file(tmp_path / "c", "wise", 0.75, judge={"name": "k", "version": "1"})
    with pytest.raises(UserError, match="wise cannot be compared: judge is"):
        compare(tmp_path / "a", tmp_path / "c")
    score_file(tmp_path / "d", "gedit", 0.75)
    with pytest.raises(UserError, match="have no benchmark in common"):
        compare(tmp_path / "a", tmp_path / "d")
    with pytest.raises(UserError, match="holds no scores"):
        compare(tmp_path / "a", tmp_path / "nothing")


def test_official_and_incomplete_are_of_one_protocol(tmp_path):
    score_file(tmp_path / "a", "geneval", 0.25, protocol="official")
    score_file(tmp_path / "b", "geneval", 0.5, failed=1, protocol="variant: official but for the values that failed")
    assert compare(tmp_path / "a", tmp_path / "b")["geneval"].overall.delta == 0.25
    score_file(tmp_path / "c", "geneval", 0.5, failed=1, protocol="official")
    with pytest.raises(UserError, match="cannot be called official"):
        compare(tmp_path / "a", tmp_path / "c")


def test_published_benchmarks_have_settings_where_they_run_only():
    assert {compose().to_dict()["evaluate"][name] for name in PUBLISHED} == {None}
    subset = compose(["evaluate.benchmarks=[scenes,wise]"]).to_dict()["evaluate"]
    assert [name for name in PUBLISHED if subset[name]] == ["wise"]


def test_scoring_the_default_loads_no_judge():
    code = (
        "import sys, reca.stages.score\nfrom reca.evaluation.benchmarks.scenes import benchmark\n"
        "print([n for n in ('httpx', 'transformers', 'reca.evaluation.judges.client') if n in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"


def test_a_file_of_another_digest_than_recorded_is_refused(here):
    folder = here / "data/benchmarks/dpgbench"
    folder.mkdir(parents=True)
    (folder / "dpg_bench.csv").write_text("x")
    record = {"dpg_bench.csv": {"url": "http://there", "sha256": "0" * 64}}
    (folder / "sources.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="is not what was fetched from http://there"):
        sources.verified_folder(here, "dpgbench")


def test_grids_are_written_and_read_back(here, use_model, artist, judge_server):
    use_model(artist)
    folder = here / "data/benchmarks/dpgbench"
    folder.mkdir(parents=True)
    rows = "".join(f"i{n},Text {n},1,0,entity - whole (a),Is it {n}?\n" for n in range(1065))
    head = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
    (folder / "dpg_bench.csv").write_text(head + rows)
    server = judge_server(lambda text: "yes")
    words = [*SMALL, "dpgbench.max_prompts=2", f"dpgbench.judge.url={server.url}"]
    assert main(["evaluate", *words, "benchmarks=[dpgbench]", "--output", "first", "--grids", "grids"]) == 0
    assert sorted(path.name for path in (here / "grids").iterdir()) == ["i0.png", "i1.png"]
    assert main(["evaluate", *words, "--images", "grids", "--benchmark", "dpgbench", "--output", "again"]) == 0
    first, again = (read_scores(here / name / "scores/dpgbench.json") for name in ("first", "again"))
    assert first.overall == again.overall
    assert len(server.questions) == 16
    assert (here / "again/replies/dpgbench.jsonl").is_file()


def test_what_is_fetched_is_recorded_and_held_to(here, monkeypatch, capsys):
    content = b"a table"

    class Files(BaseHTTPRequestHandler):
        def log_message(self, *_):
            """Say nothing."""

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/dpg_bench.csv"
    try:
        there = sources.SourceFile("dpg_bench.csv", url)
        monkeypatch.setitem(sources.SOURCES, "dpgbench", sources.PublishedFiles(files=(there,)))
        fetching.fetch_prompts(here, "dpgbench", here / ".reca")
        digest = hashlib.sha256(content).hexdigest()
        assert f"has SHA-256 {digest}, recorded in" in capsys.readouterr().out
        folder = sources.verified_folder(here, "dpgbench")
        assert sources.read_record(folder) == {"dpg_bench.csv": {"url": url, "sha256": digest}}
        (folder / "dpg_bench.csv").write_bytes(b"touched")
        with pytest.raises(UserError, match="is not what was fetched from http"):
            sources.verified_folder(here, "dpgbench")
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def published(tmp_path):
    """A Git repository of two commits, and the first one's name."""

    def git(*words):
        named = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
        return subprocess.check_output(["git", "-C", folder, *named, *words], text=True).strip()

    folder = tmp_path / "published"
    (folder / "data").mkdir(parents=True)
    git("init", "--quiet")
    for setting in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):  # as public servers have them
        git("config", setting, "true")
    commits = []
    for content in ("first", "second"):
        (folder / "data/table.csv").write_text(content)
        git("add", "--all")
        git("commit", "--quiet", "--message", content)
        commits.append(git("rev-parse", "HEAD"))
    return folder, commits[0]


def test_a_file_of_a_repository_is_that_of_the_pinned_commit(here, published, monkeypatch):
    folder, commit = published
    there = sources.SourceFile("table.csv", folder.as_uri(), commit, "data/table.csv")
    monkeypatch.setitem(sources.SOURCES, "dpgbench", sources.PublishedFiles(files=(there,)))
    fetching.fetch_prompts(here, "dpgbench", here / ".reca")
    assert (sources.verified_folder(here, "dpgbench") / "table.csv").read_text() == "first"


@pytest.mark.parametrize(("commit", "path"), [("1" * 40, "data/table.csv"), (None, "data/no.csv")])
def test_what_the_repository_lacks_is_named_with_gits_words(here, published, monkeypatch, commit, path):
    folder, first = published
    there = sources.SourceFile("table.csv", folder.as_uri(), commit or first, path)
    monkeypatch.setitem(sources.SOURCES, "dpgbench", sources.PublishedFiles(files=(there,)))
    with pytest.raises(UserError, match=rf"blob/{there.commit}/{path} cannot be fetched \(fatal: "):
        fetching.fetch_prompts(here, "dpgbench", here / ".reca")
    assert not (here / "data/benchmarks/dpgbench/table.csv").exists()
