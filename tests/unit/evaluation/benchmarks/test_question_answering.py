"""MME, POPE and MMMU from a folder of questions to scores, with fake models and a real one."""

import io
import json
import shutil

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from reca.cli import main
from reca.config import ROOT, compose
from reca.evaluation import question_answering as questions
from reca.evaluation.benchmark import load_benchmark, read_items, read_scores
from reca.evaluation.benchmarks.mme import rules as mme
from reca.evaluation.benchmarks.mmmu import rules as mmmu
from reca.evaluation.benchmarks.pope import rules as pope
from reca.evaluation.question_answering import pad_to_square
from reca.evaluation.samples import read_manifest
from reca.runtime.errors import UserError
from reca.stages.generate import generate
from reca.stages.score import score

NAMES = ("mme", "pope", "mmmu")


def configured(name, *more):
    words = [f"evaluate.benchmarks=[{name}]", f"+evaluate.{name}.max_prompts=2", "evaluate.bootstrap_resamples=50"]
    return compose([*words, "hardware.threads=1", "hardware.generate_batch_size=8", *more])


def published(name):
    """Return the published number of questions, about few images; each question contains its answer."""
    if name == "mmmu":
        return [mmmu_question(subject, n) for subject, count in mmmu.QUESTIONS.items() for n in range(1, count + 1)]
    per_image = {"mme": 2, "pope": 6}[name]
    return [
        {
            "category": category,
            "question_id": f"{category}/{n // per_image}.png",
            "question": f"Say {'yes' if n % 2 else 'no'}, {n}?",
            "answer": "Yes" if n % 2 else "no",
            "image": f"images/{n // per_image % 3}.png" if name == "mme" else f"images/{n // per_image}.png",
        }
        for category, count in {"mme": mme, "pope": pope}[name].QUESTIONS.items()
        for n in range(count)
    ]


def mmmu_question(subject, n):
    """The first of a subject has two short answers; \x85 ends a line for Python, but not in a file."""
    options, answer, reply = ("[]", "['7', '8.50']", "8.5") if n == 1 else ("['a cat', 'a dog']", "B", "B")
    text = f"Say {reply}, <image\x851>?"
    return {"id": f"validation_{subject}_{n}", "question": text, "options": options, "answer": answer, "image": "0.png"}


@pytest.fixture
def provided(project, image):
    """``provided(name)`` writes a benchmark's questions and images as a user would."""

    def bring(name, rows=None):
        folder = project / "data/benchmarks" / name
        shutil.rmtree(folder, ignore_errors=True)
        rows = published(name) if rows is None else rows
        for file in {row["image"] for row in rows}:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image(len(file))[:, :40]).save(folder / file)
        (folder / questions.TABLE).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return bring


@pytest.fixture
def parrot(perfect):
    class Parrot(perfect):
        """Answers with the text that the question contains."""

        def answer(self, images, questions):
            assert images.shape == (len(questions), 3, 24, 24)
            return [text.removeprefix("Say ").partition(",")[0] for text in questions]

    return Parrot


def run(config, project, name):
    generate(config, project, "base", name)
    score(config, project, "base", name)
    return read_scores(project / f"outputs/scores/base/{name}.json")


@pytest.mark.parametrize(("name", "categories", "answers"), [("mme", 14, 56), ("pope", 3, 36), ("mmmu", 30, 60)])
def test_right_answers_score_1(project, provided, use_model, parrot, name, categories, answers):
    provided(name)
    use_model(parrot)
    scores = run(configured(name), project, name)
    assert (scores.overall.value, scores.overall.low, len(scores.categories)) == (1, 1, categories)
    assert (scores.expected, scores.failed, scores.details["unparsable"]) == (answers, 0, 0)
    assert {category.n for category in scores.categories.values()} == {2}
    assert scores.judge.name == f"{name}_official"
    assert scores.protocol.startswith("variant: ")


def test_details_contain_the_originals_numbers(project, provided, use_model, parrot):
    use_model(parrot)
    for name in NAMES:
        provided(name)
    details = {name: run(configured(name), project, name).details for name in NAMES}
    assert (details["mme"]["perception"], details["mme"]["cognition"], details["mme"]["subtasks"]["OCR"]) == (
        2000, 800, 200
    )  # fmt: skip
    assert details["pope"]["f1"] == 1
    assert details["pope"]["splits"]["random"]["yes_ratio"] == 0.5
    assert details["mmmu"] == {"unparsable": 0, "multiple_choice": 1, "short_answer": 1}


@pytest.mark.parametrize(("name", "value", "unparsable"), [("mme", 0, 56), ("pope", 0.5, 0), ("mmmu", 0, 30)])
def test_unreadable_replies_follow_the_official_rule(project, provided, use_model, noise, name, value, unparsable):
    """POPE's rule takes "mumble" for a yes; a short answer of MMMU is never unreadable, just wrong."""
    provided(name)
    use_model(noise)
    scores = run(configured(name), project, name)
    assert scores.overall.value == value
    assert scores.details["unparsable"] == unparsable
    assert scores.failed == 0
    assert read_manifest(project / f"outputs/samples/base/{name}")[0]["answer"] == "mumble"


def test_mme_values_average_to_its_points(project, provided):
    """Right and wrong about one image, both right about another: accuracy 3/4, accuracy of pairs 1/2."""
    provided("mme")
    bench = load_benchmark("mme", configured("mme"), project)
    rows = [row for row in bench.plan() if row["category"] == "OCR"]
    answers = ["No.", "No.", "no", "yes indeed"]
    items = bench.score([{**row, "answer": text} for row, text in zip(rows, answers, strict=True)], project)
    assert [item.values for item in items] == [(0.5, 0.0), (1.0, 1.0)]
    assert bench.details(items)["subtasks"] == {"OCR": 75 + 50}


def test_another_rule_reuses_the_answers(project, provided, use_model, noise):
    provided("pope")
    use_model(noise)
    run(configured("pope"), project, "pope")
    other = configured("pope", "+evaluate.pope.scoring=lmms-eval")
    score(other, project, "base", "pope")
    scores = read_scores(project / "outputs/scores/base/pope.json")
    assert (scores.overall.value, scores.details["unparsable"]) == (0, 36)
    assert scores.protocol.endswith("replies read as lmms-eval does")
    assert scores.judge.name == "pope_lmms-eval"


def test_plans_hold_all_questions_and_protocols_the_differences(project, provided):
    protocols, plans = {}, {}
    for name in NAMES:
        provided(name)
        bench = load_benchmark(name, compose([f"evaluate.benchmarks=[{name}]"]), project)
        protocols[name], plans[name] = bench.protocol, bench.plan()
    padded = "variant: images padded to grey squares of the model's size"
    assert protocols == {
        "mme": padded,
        "pope": padded,
        "mmmu": f"{padded}; of several images the first; unreadable letters wrong, not drawn",
    }
    assert {name: len(plan) for name, plan in plans.items()} == {"mme": 2374, "pope": 9000, "mmmu": 900}
    assert len({row["prompt_id"] for row in plans["mme"]}) == 1187
    assert all(len({(r["prompt_id"], r["index"]) for r in plan}) == len(plan) for plan in plans.values())
    assert plans["mme"][0]["question"] == f"Say no, 0? {questions.SHORT_ANSWER}"
    assert plans["pope"][1]["question"] == f"Say yes, 1?\n{questions.SHORT_ANSWER}"
    assert plans["mmmu"][0]["expected"] == ["7", "8.50"]
    assert plans["mmmu"][1]["question"] == f"Say B, <image\x851>?\nA. a cat\nB. a dog\n{questions.LETTER}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], r"holds 2373 questions, .*mme has 2374, "),
        (
            lambda rows: [{**rows[0], "question_id": "another"}, *rows[1:]],
            "two questions about an image, but not about 2",
        ),
        (lambda rows: [{**rows[0], "answer": "maybe"}, *rows[1:]], "mme asks for yes or no, but .* is 'maybe'"),
        (lambda rows: [{"image": "images/0.png"}, *rows[1:]], r"questions\.jsonl, line 1 is not a question"),
    ],
)
def test_other_question_sets_are_refused(project, provided, change, message):
    provided("mme", change(published("mme")))
    with pytest.raises(UserError, match=message):
        load_benchmark("mme", configured("mme"), project).plan()


def test_missing_files_are_reported(project, provided, use_model):
    with pytest.raises(UserError, match=r"questions of mmmu are missing.*put questions\.jsonl"):
        generate(configured("mmmu"), project, "base", "mmmu")
    folder = provided("mme")
    (folder / "images/1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"an image of mme, .*1\.png, cannot be read"):
        generate(configured("mme"), project, "base", "mme")
    (folder / "images/1.png").unlink()
    with pytest.raises(UserError, match=r"there is no image .*1\.png"):
        load_benchmark("mme", configured("mme"), project).plan()


def test_parquet_files_of_the_hub_are_unpacked_once(project, image):
    folder = project / "data/benchmarks/mmmu"
    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    Image.fromarray(image(0)).save(buffer, "PNG")
    stored = {"bytes": buffer.getvalue(), "path": "x.png"}
    rows = [{**row, "image_1": stored, "image_2": None} for row in published("mmmu")]
    for row in rows:
        del row["image"]
    parquet.write_table(pa.Table.from_pylist(rows[:450]), folder / "validation-0.parquet")
    parquet.write_table(pa.Table.from_pylist(rows[450:]), folder / "validation-1.parquet")
    plan = load_benchmark("mmmu", configured("mmmu"), project).plan()
    assert len(plan) == 60
    (file,) = (folder / "unpacked/images").iterdir()
    assert {row["image"] for row in plan} == {f"images/{file.name}"}
    assert file.read_bytes() == stored["bytes"]
    for path in folder.glob("*.parquet"):
        path.unlink()
    assert load_benchmark("mmmu", configured("mmmu"), project).plan() == plan


def test_a_parquet_file_of_something_else_is_refused(project):
    folder = project / "data/benchmarks/pope"
    folder.mkdir(parents=True)
    parquet.write_table(pa.table({"text": ["x"]}), folder / "a.parquet")
    with pytest.raises(
        UserError, match=r"a\.parquet holds no questions about images: it has no answer, image, question"
    ):
        load_benchmark("pope", configured("pope"), project).plan()
    assert not (folder / "unpacked").exists()


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("['a', \"b\"]", ["a", "b"]),
        ("[]", []),
        (None, []),
        (["x", 2], ["x", "2"]),
        ("7", ["7"]),
        ("[0, 1)", ["[0, 1)"]),
    ],
)
def test_parse_list_accepts_lists_and_their_texts(value, meant):
    assert questions.parse_list(value) == meant


def test_pad_to_square_keeps_the_whole_image():
    wide = Image.new("RGB", (40, 20), "red")
    square = pad_to_square(wide)
    assert square.size == (40, 40)
    assert [square.getpixel((0, y)) for y in (0, 9, 10, 29, 30)] == [
        (127, 127, 127), (127, 127, 127), (255, 0, 0), (255, 0, 0), (127, 127, 127)
    ]  # fmt: skip
    assert pad_to_square(square).tobytes() == square.tobytes()


def test_a_real_model_answers_from_the_command_line(project, provided, monkeypatch):
    shutil.rmtree(project / "data/bases/janus_tiny")
    shutil.copytree(ROOT / "data/bases/janus_tiny", project / "data/bases/janus_tiny")
    (project / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(project)
    provided("pope")
    words = ["benchmarks=[pope]", "pope.max_prompts=2", "evaluate.bootstrap_resamples=50", "hardware.threads=1"]
    assert main(["evaluate", *words, "--output", "out"]) == 0
    scores = read_scores(project / "out/scores/pope.json")
    assert (scores.variant, scores.expected, scores.failed) == ("evaluated", 36, 0)
    items = read_items(project / "out/scores/pope.items.jsonl")
    assert all(isinstance(detail["answer"], str) for item in items for detail in item.details)


def test_understanding_preset_measures_all_three():
    config = compose(["evaluate=understanding"])
    assert config.evaluate.benchmarks == NAMES
    assert {rule.benchmark for rule in config.register_.promotion_rules} == set(NAMES)
    assert all(getattr(config.evaluate, name).max_prompts is None for name in NAMES)
