"""The real dvc.yaml under the real DVC: stale stages, comparisons, second clones.

``ingest`` runs for real; the outputs of later stages are small fakes in the right format, recorded with ``dvc commit``,
because these tests check when a stage runs, not its results.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import networkx
import pytest
from dvc.repo import Repo
from PIL import Image

from flows.graph import read_graph
from reca.config import ROOT, compose
from reca.tracking.lineage import dvc_md5, read_lock, recorded_hashes

pytestmark = pytest.mark.slow

SMALL = ("data.num_images=24",)
BENCHMARKS = ("scenes", "understanding", "fidelity")
TRAIN_COLUMNS = ("loss", "loss_reconstruction", "loss_text_to_image", "loss_understanding")
HELD_OUT_COLUMNS = ("reconstruction_loss", "text_to_image_loss")


def each(*groups: str) -> set[str]:
    """Return the names of stages for every benchmark, such as ``score@base-scenes``."""
    return {f"{group}-{benchmark}" for group in groups for benchmark in BENCHMARKS}


ALIGNED = each("generate@aligned", "score@aligned") | {"report"}
DEPENDS_ON = {  # an override -> the stages that must run again, no more and no less
    "seed=5": {"ingest", "extract", "train"} | ALIGNED,
    "data.num_images=25": {"ingest", "extract", "train"} | ALIGNED,
    "extract.dtype=float32": {"extract", "train"} | ALIGNED,
    "train.learning_rate=0.002": {"train"} | ALIGNED,
    "model.prompt_dropout=0.2": {"train"} | ALIGNED,
    "generate.guidance_scale=5": each("generate@base", "score@base") | ALIGNED,
    "evaluate.scenes.images_per_prompt=3": {
        f"{stage}@{variant}-scenes" for stage in ("generate", "score") for variant in ("base", "aligned")
    } | {"report"},
    "evaluate.confidence=0.9": each("score@base", "score@aligned") | {"report"},
    "register.promotion_rules.0.minimum=0.1": {"report"},
    "evaluate.benchmarks=[scenes]": {"report"},
    "hardware.threads=1": set(),
    "hardware.micro_batch_size=8": set(),
    "tracking.experiment=other": set(),
    "paths.state=elsewhere": set(),
}  # fmt: skip

UNUSED = (
    "reca/models/showo/model.py",
    "reca/models/bagel/transformer.py",
    "reca/evaluation/benchmarks/geneval/benchmark.py",
    "reca/data/sources/folder.py",
    "reca/config/sections.py",
)
"""Code that no stage of the default configuration depends on."""
EDITED = {  # a file of code -> the stages that must run again on the default configuration, no more and no less
    "reca/stages/ingest.py": {"ingest", "extract", "train"} | ALIGNED,
    "reca/models/janus/model.py": {"extract", "train"} | each("generate@base", "score@base") | ALIGNED,
    "reca/training/losses.py": {"train"} | ALIGNED,
    "reca/stages/score.py": each("score@base", "score@aligned") | {"report"},
    "reca/evaluation/judges/scene_detector.py": {
        f"score@{variant}-{name}" for variant in ("base", "aligned") for name in ("scenes", "fidelity")
    } | {"report"},
    "reca/reporting/page.py": {"report"},
}  # fmt: skip


class DvcProject:
    """A copy of this working tree in a git repository of its own."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root = root
        binaries = Path(sys.executable).parent
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_", "AWS_"))},
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": "",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(scratch / "site"),
            "DVC_GLOBAL_CONFIG_DIR": str(scratch / "global"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_EC2_METADATA_DISABLED": "true",
        } | {f"GIT_{role}_{what}": "test" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

    def run(self, *command: str) -> str:
        """Run a command in the project and return its output."""
        process = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)
        assert process.returncode == 0, f"{' '.join(command)}:\n{process.stdout}\n{process.stderr}"
        return process.stdout

    def dvc(self, *arguments: str) -> str:
        """Run DVC as a user would."""
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def json(self, *arguments: str) -> Any:
        """Run DVC and read its JSON."""
        return json.loads(self.dvc(*arguments, "--json"))

    def compose(self, *overrides: str) -> None:
        """Write params.yaml as ``reca compose`` does."""
        (self.root / "params.yaml").write_text(compose([*SMALL, *overrides]).to_yaml())

    @contextmanager
    def repo(self) -> Iterator[Repo]:
        """Yield DVC's library on the project, which starts faster than its command line."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.root)  # DVC looks for dvc.yaml in the working directory
            for name, value in self.environment.items():
                patch.setenv(name, value)
            with Repo(str(self.root)) as repo:
                yield repo

    def would_run(self) -> set[str]:
        """Return the stages that `dvc repro` would run, with all stages after them."""
        with self.repo() as repo:
            stale = repo.reproduce(dry=True)
            after = {stage for first in stale for stage in networkx.ancestors(repo.index.graph, first)}
            return {stage.name for stage in {*stale, *after}}

    def digest_code(self) -> None:
        """Write the digests of the code, as `dvc repro code` does."""
        with self.repo() as repo:
            repo.reproduce("code")

    def commit(self, message: str) -> None:
        """Commit everything that git sees."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> DvcProject:
    """Return a project in which all stages have run, committed; read-only."""
    scratch = tmp_path_factory.mktemp("dvc")
    project = DvcProject(scratch / "project", scratch)
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listing.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (project.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, project.root / name)
    (project.root / "dvc.lock").unlink(missing_ok=True)
    project.compose()
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.commit("the project")
    output = project.dvc("repro", "base", "ingest")
    assert "Running stage 'ingest'" in output
    write_fake_outputs(project.root)
    project.dvc("commit", "--force", "--quiet")
    project.commit("everything has run")
    return project


@pytest.fixture
def project(finished: DvcProject, tmp_path: Path) -> Iterator[DvcProject]:
    """Yield the finished project to change; git and DVC restore it afterwards."""
    yield finished
    finished.run("git", "checkout", "--quiet", "--force", "main")
    finished.run("git", "clean", "--quiet", "--force", "-d")
    with finished.repo() as repo:
        repo.checkout(force=True)


def write_fake_outputs(root: Path) -> None:
    """Write small outputs of the stages after ``ingest``, in the formats that DVC reads."""
    for folder in ("embeddings", "model", "curves", "report/figures"):
        (root / "outputs" / folder).mkdir(parents=True)
    (root / "outputs/embeddings/index.json").write_text("{}")
    (root / "outputs/model/model.safetensors").write_bytes(bytes(range(256)))
    (root / "outputs/fingerprint/aligned.json").write_text('{"model.safetensors": "0"}')
    write_table(root / "outputs/curves/train.csv", TRAIN_COLUMNS)
    write_table(root / "outputs/curves/held_out.csv", HELD_OUT_COLUMNS)
    Image.new("RGB", (8, 8), "green").save(root / "outputs/report/figures/overview.png")
    for variant in ("base", "aligned"):
        for benchmark in BENCHMARKS:
            samples = root / "outputs/samples" / variant / benchmark
            samples.mkdir(parents=True)
            (samples / "manifest.jsonl").write_text(json.dumps({"variant": variant, "benchmark": benchmark}))
            write_score(root, variant, benchmark, 0.5)


def write_table(path: Path, columns: tuple[str, ...]) -> None:
    rows = [[step, *(1 / step for _ in columns)] for step in (1, 2, 3)]
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in [["step", *columns], *rows]))


def write_score(root: Path, variant: str, benchmark: str, value: float) -> None:
    folder = root / "outputs/scores" / variant
    folder.mkdir(parents=True, exist_ok=True)
    # DVC may have linked the old file to its cache: take its place, never write into it.
    for path, text in (
        (folder / f"{benchmark}.json", json.dumps({"overall": {"value": value}, "judge": {"name": "none"}})),
        (
            folder / f"{benchmark}.items.jsonl",
            json.dumps({"variant": variant, "benchmark": benchmark, "values": [value]}),
        ),
    ):
        path.unlink(missing_ok=True)
        path.write_text(text)


def test_ingest_writes_its_outputs(finished: DvcProject) -> None:
    result = json.loads((finished.root / "outputs/dataset/result.json").read_text())
    assert result["images"] == 24
    assert (finished.root / "outputs/dataset/manifest.parquet").is_file()


def test_unchanged_project_runs_no_stage(finished: DvcProject) -> None:
    assert finished.would_run() == set()
    assert finished.json("status") == {}


@pytest.mark.parametrize("override", DEPENDS_ON)
def test_override_reruns_exactly_the_dependent_stages(finished: DvcProject, override: str) -> None:
    before = (finished.root / "params.yaml").read_text()
    finished.compose(override)
    try:
        assert finished.would_run() == DEPENDS_ON[override]
    finally:
        (finished.root / "params.yaml").write_text(before)


def test_another_photograph_set_reruns_held_out_benchmarks(project: DvcProject) -> None:
    """The held-out photographs are the benchmark, so another data set makes the base's samples stale too."""
    photographs = project.root / "data/photographs"
    photographs.mkdir()
    (photographs / "one.png").write_bytes(b"one")
    project.compose("data=folder", "data.path=data/photographs")
    assert each("generate@base", "generate@aligned") | {"ingest"} <= project.would_run()


def test_removed_benchmark_leaves_no_outputs(project: DvcProject) -> None:
    """``report`` depends on whole folders, so its hash must equal that of a project without the other benchmarks."""
    (project.root / "outputs/scores/base/notes.txt").write_text("a user's own")
    output = project.run(sys.executable, "-m", "reca", "compose", *SMALL, "evaluate.benchmarks=[scenes]")
    assert output.count("is no longer measured") == 2
    assert sorted(path.name for path in (project.root / "outputs/samples/base").iterdir()) == ["scenes"]
    remaining = ["notes.txt", "scenes.items.jsonl", "scenes.json"]
    assert sorted(path.name for path in (project.root / "outputs/scores/base").iterdir()) == remaining
    assert project.would_run() == {"report"}
    (project.root / "outputs/scores/base/notes.txt").unlink()
    project.dvc("commit", "--force", "--quiet", "report")
    assert project.would_run() == set()
    recorded = {path: md5 for path, md5 in recorded_hashes(read_lock(project.root)).items() if path.count("/") == 1}
    only_scenes = project.root / "only"
    for kind in ("samples", "scores"):
        for variant in ("base", "aligned"):
            (only_scenes / variant).mkdir(parents=True)
            for output_path in (project.root / "outputs" / kind / variant).glob("scenes*"):
                copy = shutil.copytree if output_path.is_dir() else shutil.copy
                copy(output_path, only_scenes / variant / output_path.name)
        assert recorded[f"outputs/{kind}"] == dvc_md5(only_scenes)
        shutil.rmtree(only_scenes)
    # Listed again, they come back from DVC's cache without a rerun.
    project.run(sys.executable, "-m", "reca", "compose", *SMALL)
    for stage in ("generate@base-fidelity", "score@base-fidelity"):
        assert "Running stage" not in project.dvc("repro", "--single-item", stage)
    assert (project.root / "outputs/scores/base/fidelity.json").is_file()


def test_absent_data_of_unmeasured_benchmarks_makes_no_stage_stale(project: DvcProject) -> None:
    """The prompts of a published benchmark, in a clone that has not fetched them."""
    prompts = project.root / "data/benchmarks/wise"
    prompts.mkdir(parents=True)
    (prompts / "natural_science.json").write_text("[]")
    project.dvc("add", "--quiet", "data/benchmarks/wise")
    shutil.rmtree(prompts)
    with project.repo():
        assert not any(stage.stale for stage in read_graph(project.root))


def test_reworded_docstrings_make_no_stage_stale(project: DvcProject) -> None:
    for package in sorted({path.parent for path in (project.root / "reca").rglob("*.py")}):
        for path in package.glob("*.py"):
            reword(path)
    project.digest_code()
    assert project.would_run() == set()


def reword(path: Path) -> None:
    """Change a module's docstring and add comments."""
    tree = ast.parse(path.read_text())
    lines = path.read_text().splitlines()
    if ast.get_docstring(tree) is not None:
        end = tree.body[0].end_lineno
        lines[:end] = ['"""Another docstring."""  # and a comment']
    path.write_text("\n\n# a remark\n" + "\n".join(lines) + "\n")


@pytest.mark.parametrize("edited", EDITED)
def test_edited_code_reruns_exactly_the_dependent_stages(project: DvcProject, edited: str) -> None:
    """Code of other families, benchmarks and sources is edited too, each time."""
    for name in (edited, *UNUSED):
        with (project.root / name).open("a") as file:
            file.write("\nADDED = 1\n")
    project.digest_code()
    assert project.would_run() == EDITED[edited]


def test_runs_can_be_compared(project: DvcProject) -> None:
    """``dvc params diff``, ``metrics diff``, ``plots`` and ``exp show`` work after another run."""
    project.compose("train.max_steps=700")
    write_score(project.root, "aligned", "scenes", 0.75)
    project.dvc("commit", "--force", "--quiet")
    assert project.json("params", "diff") == {"params.yaml": {"train.max_steps": {"old": 600, "new": 700, "diff": 100}}}
    differences = {path: values["overall.value"] for path, values in project.json("metrics", "diff").items()}
    assert differences == {"outputs/scores/aligned/scenes.json": {"old": 0.5, "new": 0.75, "diff": 0.25}}
    plots = project.json("plots", "diff")
    assert "errors" not in plots
    assert {"training loss", "held-out loss"} <= plots["data"].keys()
    assert any(name.endswith("overview.png") for name in plots["data"])
    revisions = {row["rev"]: row["data"] for row in project.json("exp", "show")}
    scores = {rev: data["metrics"]["outputs/scores/aligned/scenes.json"]["data"] for rev, data in revisions.items()}
    assert scores["workspace"]["overall"]["value"] == 0.75


def test_dvc_experiment_runs_the_composed_values(project: DvcProject) -> None:
    """``dvc exp run`` after ``reca compose`` runs the composed values; DVC does not compose."""
    project.compose("data.num_images=12")
    project.dvc("exp", "run", "--quiet", "--single-item", "ingest", "--name", "twelve")
    assert json.loads((project.root / "outputs/dataset/result.json").read_text())["images"] == 12
    rows = project.json("exp", "show")
    named = [experiment for row in rows for experiment in row["experiments"] or []]
    assert [experiment["name"] for experiment in named] == ["twelve"]
    params = named[0]["revs"][0]["data"]["params"]["params.yaml"]["data"]
    assert params["data"]["num_images"] == 12


def second_clone(project: DvcProject, folder: Path) -> DvcProject:
    """Return a clone with an empty DVC cache."""
    clone = DvcProject(folder / "second", folder)
    project.run("git", "clone", "--quiet", "--no-hardlinks", str(project.root), str(clone.root))
    return clone


def test_second_clone_pulls_and_reruns_no_stage(finished: DvcProject) -> None:
    """The default remote is a folder next to the project, which a neighbouring clone finds."""
    finished.dvc("push", "--quiet")
    assert (finished.root.parent / "reca-dvc-remote").is_dir()
    clone = second_clone(finished, finished.root.parent)
    clone.dvc("pull", "--quiet")
    assert clone.would_run() == set()
    assert files(clone.root) == files(finished.root)


def test_clone_with_an_empty_cache_reruns_all_stages(finished: DvcProject, tmp_path: Path) -> None:
    """``make demo`` works on a fresh clone, whose dvc.lock names outputs that no cache has."""
    clone = second_clone(finished, tmp_path)
    assert (clone.root / "dvc.lock").is_file()
    assert not any((clone.root / ".dvc").glob("cache/files/md5/*"))
    stages = read_graph(clone.root)
    assert all(stage.stale for stage in stages)
    assert "Running stage 'ingest'" in clone.dvc("repro", "ingest")
    assert clone.run("git", "status", "--porcelain") == ""  # the same bytes, so dvc.lock is unchanged
    written = ("dataset/", "fingerprint/code.json")
    ingested = {path: data for path, data in files(finished.root).items() if path.startswith(written)}
    assert files(clone.root) == ingested


def test_s3_push_and_pull(finished: DvcProject, tmp_path: Path) -> None:
    """Push and pull through an S3 server on loopback (moto, real HTTP); no credentials enter a tracked file."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)
        client.create_bucket(Bucket="reca")
        clone = second_clone(finished, tmp_path)
        settings = f"['remote \"s3\"']\n    url = s3://reca/remote\n    endpointurl = {address}\n"
        for repository in (finished, clone):  # what `dvc remote add --local` and `modify --local` write
            (repository.root / ".dvc/config.local").write_text(settings)
        finished.dvc("push", "--quiet", "--remote", "s3")
        clone.dvc("pull", "--quiet", "--remote", "s3")
        assert client.list_objects_v2(Bucket="reca", Prefix="remote/")["KeyCount"] > len(BENCHMARKS)
        assert clone.would_run() == set()
        assert files(clone.root) == files(finished.root)
        assert finished.run("git", "status", "--porcelain") == ""
    finally:
        server.stop()


def files(root: Path) -> dict[str, bytes]:
    outputs = root / "outputs"
    return {str(path.relative_to(outputs)): path.read_bytes() for path in outputs.rglob("*") if path.is_file()}
