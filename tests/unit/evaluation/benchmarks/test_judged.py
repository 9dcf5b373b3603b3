"""DPG-Bench, WISE, ImgEdit-Bench and GEdit-Bench from planned samples to scores, with a judge on loopback."""

import csv
import io
import json
import re
import tarfile

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from reca.config import compose
from reca.evaluation.benchmark import load_benchmark, read_items, read_scores, values_of
from reca.evaluation.benchmarks.dpgbench.benchmark import write_grid
from reca.evaluation.benchmarks.gedit import rules as gedit
from reca.evaluation.benchmarks.imgedit import rules as imgedit
from reca.evaluation.benchmarks.imgedit.benchmark import JUDGE_PROMPTS
from reca.evaluation.benchmarks.wise import rules as wise
from reca.evaluation.judges.reply_cache import Reply
from reca.evaluation.samples import read_manifest
from reca.evaluation.statistics import OVERALL, means
from reca.runtime.errors import UserError
from reca.stages.generate import generate
from reca.stages.score import score

FOLDERS = "data/benchmarks"


def configured(name, server=None, *more):
    words = [f"evaluate.benchmarks=[{name}]", f"+evaluate.{name}.max_prompts=2", "evaluate.bootstrap_resamples=50"]
    if server is not None:
        words.append(f"+evaluate.{name}.judge.url={server.url}")
    return compose(
        [*words, "hardware.threads=1", "hardware.generate_batch_size=3", "hardware.judge.max_attempts=1", *more]
    )


@pytest.fixture
def dpg(project):
    """1,065 prompts with three questions each; the third depends on the first."""
    folder = project / FOLDERS / "dpgbench"
    folder.mkdir(parents=True)
    with (folder / "dpg_bench.csv").open("w", newline="") as file:
        columns = ["item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language"]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for number in range(1065):
            for question, (kind, parent) in enumerate(
                [("entity - whole (a)", 0), ("global - (b)", 0), ("attribute - color (a, red)", 1)], start=1
            ):
                text = f"Item {number} question {question}?"
                row = [f"item{number}", f"A long prompt {number}", question, parent, kind, text]
                writer.writerow(dict(zip(columns, row, strict=True)))
    return project


def png(pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def imgedit_data(project, image):
    folder = project / FOLDERS / "imgedit"
    folder.mkdir(parents=True)
    entries, number = {}, 0
    for kind, count in imgedit.ITEMS.items():
        for _ in range(count):
            number += 1
            entries[str(number)] = {"id": f"animal/{number % 3}.jpg", "prompt": f"Edit {number}", "edit_type": kind}
    (folder / "basic_edit.json").write_text(json.dumps(entries))
    # As in the published archive, which holds the other suites and their photographs too.
    files = {f"Benchmark/{suite}/animal/{i}.jpg": png(image(i)) for suite in ("hard", "singleturn") for i in range(3)}
    with tarfile.open(folder / "Benchmark.tar", "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return project


@pytest.fixture
def gedit_data(project, image):
    folder = project / FOLDERS / "gedit"
    folder.mkdir(parents=True)
    source = {"bytes": png(image(0)[:, :48]), "path": None}
    rows = [
        {"task_type": group, "key": f"{language}{group}{n}", "instruction": f"Do {n}", "instruction_language": language,
         "input_image_raw": source, "Intersection_exist": n == 0}
        for language in gedit.LANGUAGES for group, count in gedit.ITEMS.items() for n in range(count)
    ]  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    return project


def run(config, project, name):
    generate(config, project, "base", name)
    score(config, project, "base", name)
    return scored(project, name)


def scored(project, name):
    folder = project / "outputs/scores/base"
    return read_scores(folder / f"{name}.json"), read_items(folder / f"{name}.items.jsonl")


def test_dpg_counts_dependencies(dpg, use_model, artist, judge_server):
    use_model(artist)
    server = judge_server(lambda text: "No." if "Item 0 question 1" in text else "yes")
    config = configured("dpgbench", server)
    scores, items = run(config, dpg, "dpgbench")
    assert len(server.questions) == 2 * 4 * 3
    assert set(server.images) == {1}
    assert [item.values for item in items] == [(pytest.approx(1 / 3),) * 4, (1.0,) * 4]
    assert scores.overall.value == pytest.approx(2 / 3, abs=1e-6)
    assert scores.details["dpg"] == pytest.approx(100 * 2 / 3)
    assert scores.details["level_1"] == {"attribute": 0.5, "entity": 0.5, "global": 1.0}
    assert scores.details["replies"] == {"read": 24, "unparsable": 0, "refused": 0, "failed": 0, "not asked": 0}
    assert scores.protocol.startswith(
        "variant: judged by gpt-4o-2024-08-06 instead of mPLUG-large; judge asked at another endpoint; only the first 2"
    )
    assert scores.judge.version == "judge-2026-01"
    assert items[0].details[0]["answers"]["1"] == {"answer": 0.0, "status": "read", "reply": "No."}

    score(config, dpg, "base", "dpgbench")
    assert len(server.questions) == 24, "stored replies are not requested again"


def test_dpg_unusable_replies_fail_the_prompt(dpg, use_model, artist, judge_server):
    use_model(artist)
    odd = {"Item 0 question 1": "I think it might be", "Item 0 question 2": "REFUSE", "Item 0 question 3": 500}
    server = judge_server(lambda text: next((reply for key, reply in odd.items() if key in text), "yes"))
    scores, items = run(configured("dpgbench", server), dpg, "dpgbench")
    assert items[0].values == (None,) * 4
    assert (scores.expected, scores.scored, scores.failed) == (8, 4, 4)
    assert scores.overall.value == 1
    assert scores.details["replies"] == {"read": 12, "unparsable": 4, "refused": 4, "failed": 4, "not asked": 0}
    assert list(scores.details["failed_prompts"]) == ["item0"]


def test_scores_are_recomputed_from_stored_replies(dpg, use_model, artist, judge_server, capsys):
    use_model(artist)
    server = judge_server(lambda text: "yes")
    config = configured("dpgbench", server)
    generate(config, dpg, "base", "dpgbench")
    score(config, dpg, "base", "dpgbench", dry_run=True)
    assert "24 requests, 0 of them answered before; the rest costs at most $0.00" in capsys.readouterr().out
    assert not server.questions
    score(config, dpg, "base", "dpgbench")
    first = scored(dpg, "dpgbench")
    server.shutdown()
    (dpg / "outputs/scores/base/dpgbench.json").unlink()
    score(config, dpg, "base", "dpgbench", from_replies=True)
    assert scored(dpg, "dpgbench") == first
    stored = dpg / ".reca/replies/base/dpgbench.jsonl"
    lines = stored.read_text().splitlines(keepends=True)
    assert json.loads(lines[0])["raw"]["choices"]
    stored.write_text("".join(lines[1:]))
    score(config, dpg, "base", "dpgbench", from_replies=True)
    assert scored(dpg, "dpgbench")[0].failed == 4


def test_from_replies_is_refused_without_a_judge(project, use_model):
    config = compose(["evaluate.understanding.num_images=2"])
    generate(config, project, "base", "understanding")
    with pytest.raises(UserError, match="understanding asks no judge"):
        score(config, project, "base", "understanding", from_replies=True)


def test_dpg_reads_both_layouts(dpg, tmp_path, image, judge_server):
    server = judge_server(lambda text: "yes")
    bench = load_benchmark("dpgbench", configured("dpgbench", server), dpg)
    folder = tmp_path / "made"
    folder.mkdir()
    with pytest.raises(UserError, match="holds no image of DPG-Bench's layout"):
        bench.existing_samples(folder)
    write_grid([Image.fromarray(image(i)) for i in range(4)], folder / "item0.png")
    for index in range(3):
        Image.fromarray(image(index)).save(folder / f"item1_{index}.jpg")
    rows = bench.existing_samples(folder)
    assert [row["file"] for row in rows] == ["item0.png"] * 4 + [f"item1_{i}.jpg" for i in range(3)] + ["item1_3.png"]
    assert rows[7]["missing"]
    assert rows[3]["box"] == [64, 64, 128, 128]
    bench.judge_client.file = tmp_path / "replies/dpgbench.jsonl"
    requests = bench.requests(rows, folder)
    assert len(requests) == 7 * 3
    assert (Image.open(requests[9].images[0]).convert("RGB").tobytes()) == image(3).tobytes()
    items = bench.score(rows, folder)
    assert items[0].values == (1.0,) * 4
    assert items[1].values == (None,) * 4  # the missing image fails the whole prompt


def test_score_stops_at_the_cost_ceiling_and_needs_prices(dpg, use_model, artist, judge_server):
    use_model(artist)
    server = judge_server(lambda text: "yes")
    prices = ["hardware.judge.input_price=1000", "hardware.judge.output_price=1000", "hardware.judge.cost_ceiling=10"]
    config = configured("dpgbench", server, *prices, "hardware.judge.concurrency=1")
    generate(config, dpg, "base", "dpgbench")
    with pytest.raises(UserError, match=r"Raise the ceiling and run again"):
        score(config, dpg, "base", "dpgbench")
    assert 1 <= len(server.questions) <= 12
    away = configured("dpgbench", None)
    with pytest.raises(UserError, match=r"prices of gpt-4o\S+ at https://api\.openai\.com/v1 are not known"):
        score(away.model_copy(update={"generate": config.generate}), dpg, "base", "dpgbench", dry_run=True)


def wise_answer(text: str) -> str:
    number = int(re.search(r"Thing (\d+)", text)[1])
    if number == 2:
        return "Consistency: very good"
    return "Consistency: 2\nRealism: 1\nAesthetic Quality: 0"


def test_wise_scores_every_image(wise_prompts, use_model, artist, judge_server):
    use_model(artist)
    server = judge_server(wise_answer)
    scores, items = run(configured("wise", server), wise_prompts, "wise")
    assert len(server.questions) == 12
    assert "It is 401" in "".join(server.questions)
    values = {item.prompt_id: item.values for item in items}
    assert values["1"] == (pytest.approx(0.8),)
    assert values["2"] == (None,)
    assert scores.categories.keys() == {name.lower() for name in wise.CATEGORIES}
    assert scores.weights["culture"] == 0.4
    assert scores.details["official_overall"] is None
    assert "only when all 1000 prompts are" in scores.details["no_official_overall_because"]
    assert scores.details["replies"]["unparsable"] == 1


def test_wise_overall_is_the_official_one_when_complete(wise_prompts, use_model, artist, judge_server):
    """Culture is right, everything else wrong: 0.4 by weight, 1/6 by plain mean."""
    bench = load_benchmark("wise", compose(["evaluate.benchmarks=[wise]"]), wise_prompts)
    rows = bench.plan()
    assert len(rows) == 1000

    def reply(row):
        score = 2 if row["category"] == "culture" else 0
        text = f"**Consistency:** {score}\n**Realism:** {score}\n**Aesthetic Quality:** {score}/2"
        return Reply(row["prompt_id"], "", "answered", text)

    items = bench.read(rows, {row["prompt_id"]: reply(row) for row in rows})
    details = bench.details(items)
    assert details["official_overall"] == pytest.approx(0.4)
    assert details["plain_mean_of_six"] == pytest.approx(1 / 6)
    assert means(values_of(items), bench.weights)[OVERALL] == pytest.approx(0.4)


def test_imgedit_scores_every_edit(imgedit_data, use_model, editor, judge_server):
    use_model(editor)

    def answer(text: str) -> str:
        names = re.findall(r"^(.+): <1-5>$", text, re.MULTILINE)
        assert len(names) == 3
        return "Looks fine.\n" + "\n".join(f"{name}: {score}" for name, score in zip(names, (5, 4, 3), strict=True))

    server = judge_server(answer)
    scores, items = run(configured("imgedit", server), imgedit_data, "imgedit")
    assert set(server.images) == {2}
    assert len(items) == 18
    assert {item.values for item in items} == {(0.8,)}
    assert scores.details["macro"] == scores.details["micro"] == 4
    assert "instructions written anew" in scores.protocol
    folder = imgedit_data / "outputs/samples/base/imgedit"
    row = read_manifest(folder)[0]
    before, after = (Image.open(folder / row[name]) for name in ("original", "file"))
    assert before.size == after.size
    assert max(after.getdata())[0] < max(before.getdata())[0]


def test_imgedit_uses_the_photographs_of_the_single_turn_suite(imgedit_data, judge_server):
    rows = load_benchmark("imgedit", configured("imgedit", judge_server(str)), imgedit_data).plan()
    assert {row["source"] for row in rows} == {f"unpacked/Benchmark/singleturn/animal/{i}.jpg" for i in range(3)}


@pytest.mark.parametrize("name", JUDGE_PROMPTS)
def test_imgedit_uses_the_originals_instructions_if_they_came_with_the_data(imgedit_data, judge_server, name):
    bench = load_benchmark("imgedit", configured("imgedit", judge_server(str)), imgedit_data)
    templates = {name: f"Judge {name}: <edit_prompt>" for name in imgedit.ITEMS}
    (bench._folder / "unpacked/Benchmark/singleturn" / name).write_text(json.dumps(templates))
    fresh = load_benchmark("imgedit", configured("imgedit", judge_server(str)), imgedit_data)
    assert fresh._question(fresh.plan()[0]).startswith("Judge extract: Edit 1")
    assert "instructions" not in fresh.protocol


def test_gedit_scores_every_edit(gedit_data, use_model, editor, judge_server):
    use_model(editor)
    server = judge_server(
        lambda text: '{"score": [9, 4], "reasoning": "x"}' if "original" in text else '{"score": [9, 10]}'
    )
    scores, items = run(configured("gedit", server), gedit_data, "gedit")
    assert sorted(server.images) == [1] * 22 + [2] * 22
    assert all(item.values == (pytest.approx(0.6),) for item in items)
    assert scores.details["full_set"] == {"G_SC": 4, "G_PQ": 9, "G_O": 6}
    assert scores.details["intersection"]["G_O"] == 6
    assert len(scores.categories) == 11
    judged = next((gedit_data / ".reca/replies/base/gedit-shown").iterdir())
    assert Image.open(judged).size == (48, 64), "judged in the size of the source"


def test_a_family_without_editing_is_refused(imgedit_data, use_model, artist):
    use_model(artist)
    with pytest.raises(UserError, match="the family artist does not edit images; leave this benchmark out"):
        generate(configured("imgedit"), imgedit_data, "base", "imgedit")


@pytest.mark.parametrize("name", ["dpgbench", "wise", "imgedit", "gedit"])
def test_missing_prompts_are_reported_with_their_address(project, name):
    with pytest.raises(UserError, match=r"data/benchmarks/\w+.* is missing\. `reca compose` and `reca evaluate` fetch"):
        load_benchmark(name, configured(name), project).plan()


def test_other_numbers_of_prompts_are_refused(dpg, wise_prompts, imgedit_data, gedit_data):
    table = dpg / FOLDERS / "dpgbench/dpg_bench.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-3]) + "\n")
    (wise_prompts / FOLDERS / "wise/natural_science.json").write_text("[]")
    parquet_file = gedit_data / FOLDERS / "gedit/train-00000-of-00001.parquet"
    parquet.write_table(parquet.read_table(parquet_file).slice(1), parquet_file)
    bench = load_benchmark("imgedit", configured("imgedit"), imgedit_data)
    listed = bench._folder / "basic_edit.json"
    edits = json.loads(listed.read_text())
    listed.write_text(json.dumps(dict(list(edits.items())[1:])))
    for name, message in {
        "dpgbench": "holds 1064 prompts; DPG-Bench has 1065",
        "wise": "holds 700 of WISE's 1000 prompts",
        "imgedit": "'extract': 116",
        "gedit": "'background_change': 39",
    }.items():
        with pytest.raises(UserError, match=re.escape(message)):
            load_benchmark(name, configured(name), dpg).plan()


def test_unreadable_samples_are_not_sent(wise_prompts, use_model, artist, judge_server):
    use_model(artist)
    server = judge_server(wise_answer)
    config = configured("wise", server)
    generate(config, wise_prompts, "base", "wise")
    (wise_prompts / "outputs/samples/base/wise/1.png").write_bytes(b"broken")
    bench = load_benchmark("wise", config, wise_prompts)
    folder = wise_prompts / "outputs/samples/base/wise"
    requests = bench.requests(read_manifest(folder), folder)
    assert len(requests) == 11
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    assert len(bench.requests(read_manifest(folder), folder)) == 12
