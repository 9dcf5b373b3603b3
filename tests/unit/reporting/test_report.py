"""The report stage on outputs as the contract has them (conftest.py): its files, texts, escaping and errors."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from reca.config import compose
from reca.data.synthetic.scenes import QUESTION_KINDS
from reca.evaluation.benchmark import Judge, read_items, values_of
from reca.evaluation.statistics import paired_delta
from reca.reporting.inputs import MissingInput
from reca.reporting.text import category_label
from reca.stages.report import benchmark_set, report
from reca.stages.result import read_result

VOID = {"meta", "link", "img", "br", "hr", "input"}
CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
NO_LOSS = "register.promotion_rules=[{benchmark: fidelity, versus: base, bound: estimate, minimum: -1}]"
HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">"\' & </td></table></html>'


class Page(HTMLParser):
    """A strict parser: every element is closed, in order; collects tags, links, ids and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.alts: list[str | None] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[name] for name in ("src", "href", "xlink:href", "action", "data") if name in values]
        self.handlers += [name for name in values if name.startswith("on")]
        if tag == "img":
            self.alts.append(values.get("alt"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open[-1:] != ["style"]:
            self.texts.append(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def project(tmp_path_factory, outputs_of):
    """A finished report on the default benchmarks."""
    root = tmp_path_factory.mktemp("project")
    config = outputs_of(root)
    report(config, root)
    return root, config


def page_of(root: Path) -> Page:
    return Page((root / "outputs/report/index.html").read_text(encoding="utf-8"))


def test_page_is_valid_html_without_external_resources(project) -> None:
    root, _ = project
    page = page_of(root)
    assert page.open == []
    assert page.tags.count("html") == page.tags.count("body") == page.tags.count("h1") == page.tags.count("main") == 1
    assert "script" not in page.tags
    assert not page.handlers
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert all(page.alts), "every image says what it is"
    style = re.search(r"<style>(.*?)</style>", (root / "outputs/report/index.html").read_text(), re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert (root / "outputs/report/index.html").stat().st_size < 3_000_000


def test_page_contains_every_category_and_chart(project) -> None:
    root, _ = project
    page = page_of(root)
    for name in (*CATEGORIES, *QUESTION_KINDS, "similarity", "exact_scene"):
        assert category_label(name) in page.text
    assert "Passed" in page.text
    assert page.text.index("Passed") < page.text.index("How to read this page")
    assert "not the published GenEval" in page.text
    text = (root / "outputs/report/index.html").read_text()
    rows = len(CATEGORIES) + len(QUESTION_KINDS) + 3 + 3  # three categories of fidelity, three overalls
    assert text.count('<th scope="row">') == rows
    assert text.count('<img class="chart"') == 3 + 3 + 4  # a forest per benchmark, the losses, the other curves
    assert text.count('class="pixelated"') >= 6 * 3 * 4 * 2


def test_page_shows_the_first_samples_of_each_category(project) -> None:
    """The first three prompts of a category, in the benchmark's order; four images per prompt and model."""
    root, _ = project
    rows = [json.loads(line) for line in (root / "outputs/samples/base/scenes/manifest.jsonl").read_text().splitlines()]
    text = (root / "outputs/report/index.html").read_text()
    prompts = re.findall(r'<p class="prompt">(.*?)</p>', text)
    expected = []
    for category in CATEGORIES:
        expected += list({row["prompt_id"]: row["prompt"] for row in rows if row["category"] == category}.values())[:3]
    assert prompts == expected


def test_deltas_are_the_statistics_of_the_items(project) -> None:
    root, config = project
    deltas = json.loads((root / "outputs/report/deltas.json").read_text())
    assert list(deltas) == ["scenes", "understanding", "fidelity"]
    for name, delta in deltas.items():
        values = [
            values_of(read_items(root / f"outputs/scores/{variant}/{name}.items.jsonl"))
            for variant in ("base", "aligned")
        ]
        expected = paired_delta(*values, 0.95, config.evaluate.bootstrap_resamples, config.seed)
        assert delta["overall"] == vars(expected.overall)
        assert delta["categories"] == {key: vars(value) for key, value in expected.categories.items()}
        for variant in ("base", "aligned"):
            score = json.loads((root / f"outputs/scores/{variant}/{name}.json").read_text())
            assert delta["overall"][variant] == pytest.approx(score["overall"]["value"])
    position = deltas["scenes"]["categories"]["position"]
    assert f"{100 * position['base']:.1f} → {100 * position['aligned']:.1f}" in page_of(root).text


def test_verdict_record_holds_rules_scores_and_digests(project) -> None:
    root, config = project
    verdict = json.loads((root / "outputs/report/verdict.json").read_text())
    assert verdict["passed"] is True
    assert [rule["skipped"] for rule in verdict["rules"]] == [
        rule.versus == "champion" for rule in config.register_.promotion_rules
    ]
    assert verdict["checkpoint"] == {"base": "b" * 64, "aligned": "a" * 64}
    assert set(verdict["scores"]["aligned"]) == {"scenes", "understanding", "fidelity"}
    assert set(verdict["scores"]["base"]["scenes"]) == {"overall", *CATEGORIES}
    assert len(verdict["benchmark_set"]) == 64
    assert read_result(root / "outputs/report")["passed"] is True


def test_report_is_the_same_bytes_for_the_same_inputs(project, tmp_path) -> None:
    root, config = project
    shutil.copytree(root, tmp_path / "copy")
    report(config, tmp_path / "copy")
    for file in sorted(path for path in (root / "outputs/report").rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / "copy" / file.relative_to(root)).read_bytes(), file.name


def test_benchmark_set_depends_on_the_prompts_but_not_on_the_model(outputs_of, tmp_path) -> None:
    def digest(name: str, *overrides: str, **changes: object) -> str:
        root = tmp_path / name
        root.mkdir()
        report(outputs_of(root, "evaluate.benchmarks=[scenes]", *overrides, **changes), root)
        return json.loads((root / "outputs/report/verdict.json").read_text())["benchmark_set"]

    first = digest("first")
    assert digest("trained otherwise", "train.max_steps=40", "train.warmup_steps=5") == first
    assert digest("settings of what does not run", "evaluate.understanding.num_images=5") == first
    assert digest("other prompts", prompt_of=lambda prompt: prompt + " again") != first
    assert digest("more images", "evaluate.scenes.images_per_prompt=2") != first


def test_benchmark_set_ignores_empty_settings() -> None:
    judge = Judge(name="j", version="1")
    pair = SimpleNamespace(base=SimpleNamespace(samples=[], scores=SimpleNamespace(protocol="p", judge=judge)))

    def digest(**settings: object) -> str:
        return benchmark_set(SimpleNamespace(to_dict=lambda: {"evaluate": {"fidelity": settings}}), {"fidelity": pair})

    assert digest(seed=1, encoders=[]) == digest(seed=1)
    assert digest(seed=1, encoders=["a/b@main"]) != digest(seed=1)


def test_worse_model_is_refused_with_reasons(outputs_of, tmp_path) -> None:
    config = outputs_of(tmp_path, swap=True)
    report(config, tmp_path)
    verdict = json.loads((tmp_path / "outputs/report/verdict.json").read_text())
    assert verdict["passed"] is False
    page = page_of(tmp_path)
    assert "Refused" in page.text
    assert "scenes overall versus base: the lower bound of the change must be above +0.00 points" in page.text
    assert '<td class="down">' in (tmp_path / "outputs/report/index.html").read_text()
    assert "**Refused**" in (tmp_path / "outputs/report/model_card.md").read_text()


def test_html_in_prompts_and_answers_is_escaped(outputs_of, tmp_path) -> None:
    config = outputs_of(
        tmp_path, "evaluate.benchmarks=[scenes,understanding]", prompt_of=lambda prompt: prompt + HOSTILE
    )
    report(config, tmp_path)
    page = page_of(tmp_path)
    assert page.open == []
    assert "script" not in page.tags
    assert not page.handlers
    assert HOSTILE in page.text
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert "<script" not in (tmp_path / "outputs/report/model_card.md").read_text()


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("scores/base/scenes.json", "score@base-scenes"),
        ("scores/aligned/understanding.json", "score@aligned-understanding"),
        ("scores/aligned/scenes.items.jsonl", "score@aligned-scenes"),
        ("samples/base/fidelity/manifest.jsonl", "generate@base-fidelity"),
    ],
)
def test_missing_or_broken_input_names_the_file_and_the_stage(project, tmp_path, file, stage) -> None:
    root, config = project
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "outputs/report")
    path = tmp_path / "outputs" / file
    path.write_text(path.read_text()[:-20])  # cut off in the middle of a line
    with pytest.raises(MissingInput, match=re.escape(f"`dvc repro {stage}`")) as broken:
        report(config, tmp_path)
    assert path.name in str(broken.value) or path.parent.name in str(broken.value)
    path.unlink()
    with pytest.raises(MissingInput, match=re.escape(f"{path} is missing")) as absent:
        report(config, tmp_path)
    assert f"`dvc repro {stage}`" in str(absent.value)
    assert not (tmp_path / "outputs/report").exists(), "no half-written report"


def test_differently_measured_scores_are_not_compared(project, tmp_path) -> None:
    root, config = project
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    scores = tmp_path / "outputs/scores/aligned/scenes.json"
    original = scores.read_text()
    scores.write_text(original.replace('"guidance_scale": 2.0', '"guidance_scale": 3.0'))
    with pytest.raises(MissingInput, match=r"settings is .* in the first and .* in the second"):
        report(config, tmp_path)
    scores.write_text(original.replace("a" * 64, "c" * 64))
    with pytest.raises(MissingInput, match="different weights"):
        report(config, tmp_path)
    scores.write_text(original)
    items = tmp_path / "outputs/scores/aligned/scenes.items.jsonl"
    items.write_text(items.read_text().split("\n", 1)[1])
    with pytest.raises(MissingInput, match="1 prompts are in only one of them"):
        report(config, tmp_path)


def test_page_says_which_inputs_are_missing(outputs_of, tmp_path) -> None:
    """No fidelity, no understanding, no curves, an image lost: sentences, not tracebacks."""
    config = outputs_of(tmp_path, "evaluate.benchmarks=[scenes]", "register.promotion_rules=[{benchmark: scenes, "
                        "versus: base, bound: lower, minimum: 0}]")  # fmt: skip
    shutil.rmtree(tmp_path / "outputs/curves")
    first = json.loads((tmp_path / "outputs/samples/base/scenes/manifest.jsonl").read_text().splitlines()[0])
    (tmp_path / "outputs/samples/base/scenes" / first["file"]).write_bytes(b"not a picture")
    report(config, tmp_path)
    text = page_of(tmp_path).text
    assert "Not measured: evaluate.benchmarks does not name 'fidelity'." in text
    assert "Not measured: evaluate.benchmarks does not name 'understanding'." in text
    assert "No curves" in text
    assert f"no image {first['file']}" in text
    assert "no git repository" in text
    assert "not recorded: DVC did not run the earlier stages" in text
    with Image.open(tmp_path / "outputs/report/figures/overview.png") as figure:
        assert figure.size == (1920, 735)


def test_prompt_that_failed_for_one_model_is_left_out(outputs_of, tmp_path) -> None:
    config = outputs_of(tmp_path, "evaluate.benchmarks=[scenes]")
    path = tmp_path / "outputs/scores/aligned/scenes.items.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["values"] = [None] * len(lines[0]["values"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report(config, tmp_path)
    delta = json.loads((tmp_path / "outputs/report/deltas.json").read_text())["scenes"]["categories"]["single_object"]
    values = [values_of(read_items(tmp_path / f"outputs/scores/{w}/scenes.items.jsonl")) for w in ("base", "aligned")]
    scored = [
        {"single_object": {k: v for k, v in side["single_object"].items() if k != lines[0]["prompt_id"]}}
        for side in values
    ]
    expected = paired_delta(*scored, 0.95, config.evaluate.bootstrap_resamples, config.seed)
    assert delta == vars(expected.categories["single_object"])
    assert "n=4" in page_of(tmp_path).text
    assert "not scored" in page_of(tmp_path).text


def test_photographs_are_reduced_and_scored_by_similarity(outputs_of, tmp_path) -> None:
    """Folder data: fidelity has no truth to compare with, only similarity; large images are reduced."""
    config = outputs_of(tmp_path, "evaluate.benchmarks=[fidelity]", NO_LOSS, photographs=True)
    report(config, tmp_path)
    page = page_of(tmp_path)
    assert "structural similarity with the input" in page.text
    assert "data:image/webp" in (tmp_path / "outputs/report/index.html").read_text()
    assert 'class="pixelated"' not in (tmp_path / "outputs/report/index.html").read_text()
    assert "not the published GenEval" not in page.text


def test_model_card_has_all_sections_and_scores(project) -> None:
    root, _ = project
    card = (root / "outputs/report/model_card.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    for heading in (
        "# reca-janus_tiny",
        "## Scores",
        "## Verdict",
        "## Recipe",
        "## Lineage",
        "## Intended use",
        "## Limits",
        "## Licence",
    ):
        assert f"\n{heading}\n" in card
    for name in CATEGORIES:
        assert f"| {category_label(name)} |" in card
    deltas = json.loads((root / "outputs/report/deltas.json").read_text())
    assert f"| {100 * deltas['scenes']['overall']['aligned']:.1f} | " in card


def test_model_card_has_the_licence_of_the_base(outputs_of, tmp_path) -> None:
    config = outputs_of(tmp_path, "evaluate.benchmarks=[scenes]")
    base = tmp_path / config.model.checkpoint
    base.mkdir(parents=True)
    (base / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A base\n")
    report(config, tmp_path)
    card = (tmp_path / "outputs/report/model_card.md").read_text()
    assert card.startswith("---\nlicense: cc-by-nc-4.0\n")
    assert "as the base model that these weights are derived from" in card


def test_default_benchmarks_have_a_text() -> None:
    from reca.reporting.text import BENCHMARKS

    assert set(compose().evaluate.benchmarks) <= set(BENCHMARKS)
