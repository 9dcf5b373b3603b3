"""Guarantees of the scoring rules for every input, beyond the recorded ones."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reca.evaluation.benchmarks.dpgbench.rules import (
    OFFICIAL,
    DpgQuestion,
    ItemAnswers,
    apply_dependencies,
    quadrants,
    read_reply,
    summarise,
)
from reca.evaluation.benchmarks.gedit import rules as gedit
from reca.evaluation.benchmarks.geneval.prompts import OBJECTS, generate
from reca.evaluation.benchmarks.imgedit import rules as imgedit
from reca.evaluation.benchmarks.mme import rules as mme
from reca.evaluation.benchmarks.mmmu import rules as mmmu
from reca.evaluation.benchmarks.pope import rules as pope
from reca.evaluation.benchmarks.wise import rules as wise
from tests.golden.replays.dsg import score_image
from tests.golden.replays.wise import MISSING_IN_RECA, reca_scores

TEXT = st.text(max_size=200)
NOISE = st.one_of(TEXT, st.text(alphabet='{}[]":, \n*0123456789scorecnity.|V^=-', max_size=120))


@st.composite
def questionnaires(draw: st.DrawFn) -> tuple[dict[int, float], dict[int, list[int]]]:
    """Answers, and parents among the earlier questions."""
    size = draw(st.integers(1, 12))
    scores = {number: float(draw(st.booleans())) for number in range(1, size + 1)}
    parents = {n: draw(st.lists(st.integers(0, n - 1), max_size=3)) for n in scores}
    return scores, parents


@given(questionnaires())
def test_dependencies_only_lower_the_score(case: tuple[dict[int, float], dict[int, list[int]]]) -> None:
    scores, parents = case
    none, raw, cascade = (score_image(scores, parents, rule) for rule in ("none", "raw", "cascade"))
    assert 0 <= cascade <= raw <= none <= 1
    results = apply_dependencies(scores, parents)
    assert apply_dependencies(results, parents) == results, "a cascade is complete after one pass in order"


def items(count: int) -> dict[str, list[DpgQuestion]]:
    names = ["entity - whole", "attribute - color", "global - -"]
    return {
        f"item{n}": [DpgQuestion(q, "?", names[q % 3], (q - 1,) if q > 1 else ()) for q in range(1, 4)]
        for n in range(count)
    }


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=12, max_size=12), min_size=1, max_size=5), st.randoms())
def test_dpg_is_independent_of_the_order_of_items(rows: list[list[float]], rng: random.Random) -> None:
    questions = items(len(rows))
    answers = [
        ItemAnswers(f"item{n}", tuple({q: row[3 * image + q - 1] for q in (1, 2, 3)} for image in range(4)))
        for n, row in enumerate(rows)
    ]
    first = summarise(questions, answers)
    rng.shuffle(answers)
    second = summarise(questions, answers)
    assert first.overall == pytest.approx(second.overall)
    assert first.categories == pytest.approx(second.categories)
    assert 0 <= first.overall <= 1
    official = summarise(questions, answers, OFFICIAL)
    assert official.overall == pytest.approx(first.overall), "its category quirk is in the categories alone"


def test_dpg_items_without_a_usable_answer_fail_and_are_in_no_mean() -> None:
    good = {1: 1.0, 2: 1.0, 3: 1.0}
    summary = summarise(
        items(2), [ItemAnswers("item0", (good,)), ItemAnswers("item1", (good, {1: 1.0, 2: None, 3: 0.0}))]
    )
    assert (summary.overall, list(summary.items), list(summary.failed)) == (1.0, ["item0"], ["item1"])
    assert "image 1 has no usable answer to [2]" in summary.failed["item1"]
    with pytest.raises(ValueError, match="none of 1 items"):
        summarise(items(1), [ItemAnswers("item0", ({},))])


@pytest.mark.parametrize(("reply", "score"), [("Yes.", 1), (" no!", 0), ("**yes**", 1), ("maybe", None), ("", None),
                                              ("yes and no", None), (None, None), ("yesterday", None)])  # fmt: skip
def test_dpg_replies_other_than_yes_or_no_are_unreadable(reply: str | None, score: float | None) -> None:
    assert read_reply(reply) == score


@given(TEXT)
def test_a_reply_is_1_0_or_unreadable(reply: str) -> None:
    assert read_reply(reply) in (0.0, 1.0, None)
    assert read_reply(f"Yes, {reply}") != 0


@given(st.integers(1, 500), st.integers(1, 500))
def test_quadrants_cover_the_grid(width: int, height: int) -> None:
    boxes = quadrants((2 * width, 2 * height))
    assert boxes[0] == (0, 0, width, height)
    assert boxes[3] == (width, height, 2 * width, 2 * height)
    assert sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) == 4 * width * height
    with pytest.raises(ValueError, match="cannot hold"):
        quadrants((2 * width + 1, 2 * height))


@given(NOISE)
def test_parsers_never_invent_a_score(reply: str) -> None:
    """Any text of a judge gives a score within its range, or none; never an exception."""
    for edit_type in imgedit.DIMENSIONS:
        scores = imgedit.read_strict(reply, edit_type)
        assert scores is None or all(1 <= score <= 5 for score in scores)
    official = imgedit.read_official(reply)
    assert official is None or official >= 0
    pair = gedit.parse_strict(reply)
    assert pair is None or (len(pair) == 2 and all(0 <= score <= 10 for score in pair))
    legacy = wise.parse_legacy(reply)
    assert legacy == {} or (legacy.keys() == wise.LEGACY.components.keys() and set(legacy.values()) <= {0.0, 1.0, 2.0})
    assert set(wise.parse_verified(reply).values()) <= {0.0, 1.0}
    assert mme.parse(reply) in ("yes", "no", "other")
    assert mmmu.parse_choice(reply, "ABCD", dict(zip("ABCD", ("red", "12", "two words", "none"), strict=True))) in (
        "A", "B", "C", "D", None)  # fmt: skip
    mmmu.parse_open(reply)
    pope.parse(reply)


@given(NOISE)
def test_gedit_official_parser_fails_only_on_leading_zeros(reply: str) -> None:
    try:
        parsed = gedit.parse_official(reply)
    except json.JSONDecodeError:
        assert "[0" in reply
    else:
        assert parsed == gedit.parse_official(reply), "nothing is drawn at random"


@pytest.mark.parametrize("reply", ["I'm sorry, I can't assist with that.", "", "score: 5", "rate_limit_exceeded", "11",
                                   '{"score": [5]}', '{"score": [5, 11]}', '{"score": [true, 2]}', '{"score": null}',
                                   '{"score": []}', '{"score": [1, 2, 3]}', "[07, 8]"])  # fmt: skip
def test_gedit_strict_parser_rejects_refusals_and_partial_answers(reply: str) -> None:
    assert gedit.parse_strict(reply) is None


SCORES = st.lists(st.integers(0, 10), min_size=1, max_size=3)


@given(SCORES, SCORES)
def test_gedit_overall_is_the_root_of_the_smallest_scores(semantics: list[int], quality: list[int]) -> None:
    sc, pq, overall = gedit.item_score(semantics, quality)
    assert min(sc, pq) - 1e-9 <= overall <= max(sc, pq) + 1e-9
    assert gedit.item_score(semantics[::-1], quality[::-1]) == (sc, pq, overall)
    assert gedit.item_score(quality, semantics)[2] == overall
    assert math.isclose(overall**2, sc * pq, abs_tol=1e-9)


EDITS = st.builds(
    gedit.JudgedEdit,
    st.sampled_from(["style_change", "text_change"]),
    st.sampled_from(gedit.LANGUAGES),
    st.none() | st.integers(0, 10).map(float),
    st.none() | st.integers(0, 10).map(float),
    st.booleans(),
)


@given(st.lists(EDITS, max_size=30), st.booleans(), st.randoms(use_true_random=False))
def test_gedit_means_use_exactly_the_readable_edits(
    edits: list[gedit.JudgedEdit], intersection: bool, rng: random.Random
) -> None:
    try:
        means = gedit.summarise(edits, "en", intersection)
    except ValueError:
        return
    selected = [edit for edit in edits if edit.language == "en" and (edit.intersection or not intersection)]
    scored = [e for e in selected if e.semantics is not None and e.quality is not None]
    for group, semantics in means.semantics.items():
        values = [edit.semantics for edit in scored if edit.group == group]
        assert semantics == pytest.approx(sum(values) / len(values)), "an unreadable edit is in no mean"
    assert all(0 <= value <= 10 for value in means.macro)
    rng.shuffle(edits)
    again = gedit.summarise(edits, "en", intersection)
    assert again.macro == pytest.approx(means.macro)


@given(
    st.lists(st.tuples(st.sampled_from(list(imgedit.ITEMS)), st.none() | st.floats(1, 5)), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_imgedit_ignores_failures_and_order(scored: list[tuple[str, float | None]], rng: random.Random) -> None:
    values = [score for _, score in scored if score is not None]
    if not values:
        with pytest.raises(ValueError, match="replies could be read"):
            imgedit.summarise(scored)
        return
    summary = imgedit.summarise(scored)
    assert summary.micro == pytest.approx(sum(values) / len(values)), "an unreadable reply is in no mean"
    assert min(values) - 1e-9 <= summary.macro <= max(values) + 1e-9
    assert min(values) - 1e-9 <= summary.micro <= max(values) + 1e-9
    rng.shuffle(scored)
    again = imgedit.summarise(scored)
    assert (again.macro, again.micro) == pytest.approx((summary.macro, summary.micro))


@pytest.mark.parametrize("number", ["4", "4/5", "**4**", " 4 (good)"])
def test_imgedit_accepts_any_markup(number: str) -> None:
    first, *rest = imgedit.DIMENSIONS["style"]
    reply = "\n".join(["Brief reasoning: 3", f"**{first}:** {number}", *(f"- {name}: 5" for name in rest)])
    assert imgedit.read_strict(reply, "style") == (4, 5, 5)
    assert imgedit.read_strict(f"{reply}\n{first}: 2", "style") is None, "a contradiction"


@pytest.mark.parametrize("number", ["0", "6", "10", "4.5", "-3", "4/10", "four", ""])
def test_imgedit_rejects_scores_off_its_scale(number: str) -> None:
    first, *rest = imgedit.DIMENSIONS["style"]
    reply = "\n".join([f"{first}: {number}", *(f"{name}: 5" for name in rest)])
    assert imgedit.read_strict(reply, "style") is None


def wise_rows(version: wise.WiseVersion, seed: int) -> list[dict[str, float]]:
    rng = random.Random(seed)
    return [
        {"prompt_id": number, **{name: rng.randint(0, version.highest) for name in version.components}}
        for number in range(1, wise.PROMPTS + 1)
    ]


@pytest.mark.parametrize("version", wise.VERSIONS.values(), ids=list(wise.VERSIONS))
def test_wise_needs_every_prompt_exactly_once(version: wise.WiseVersion) -> None:
    rows = wise_rows(version, 0)
    summary = wise.summarise(reversed(rows), version)
    assert summary.overall == pytest.approx(wise.summarise(rows, version).overall)
    assert 0 <= min(summary.categories.values()) <= summary.overall <= max(summary.categories.values()) <= 1
    for broken, message in [
        (rows[:-2], "2 are missing: 999, 1000"),
        ([*rows, rows[0]], "judged twice"),
        ([*rows[:-1], {**rows[-1], "prompt_id": 1001}], "no prompt 1001"),
        ([*rows[:-1], {"prompt_id": 1000}], "no valid scores"),
        ([*rows[:-1], {**rows[-1], next(iter(version.components)): MISSING_IN_RECA}], "no valid scores"),
    ]:
        with pytest.raises(ValueError, match=message):
            wise.summarise(broken, version)


def test_reca_wise_voids_files_with_an_unreadable_score_except_science() -> None:
    rows = [
        {**row, "Subcategory": "Horizontal time" if row["prompt_id"] < 568 else "x"}
        for row in wise_rows(wise.LEGACY, 1)
    ]
    assert reca_scores(rows) is not None
    assert reca_scores([{**rows[0], "realism": 9.9}, *rows[1:]]) is None
    assert reca_scores([*rows[:-1], {**rows[-1], "realism": 9.9}]) is not None
    assert reca_scores(rows[:-1]) is None


@pytest.mark.parametrize("version", wise.VERSIONS.values(), ids=list(wise.VERSIONS))
def test_wise_weights_add_up_to_1(version: wise.WiseVersion) -> None:
    assert sum(version.weights) == pytest.approx(1)
    assert sum(version.components.values()) == pytest.approx(1)
    assert version.score(dict.fromkeys(version.components, version.highest)) == pytest.approx(1)


@pytest.mark.parametrize("reply", ["Consistency: 12\nRealism: 1\nAesthetic Quality: 1", "Consistency: 2",
                                   "Consistency: 2\nConsistency: 1\nRealism: 1\nAesthetic Quality: 1", "2\n1\n0\n1",
                                   "I cannot"])  # fmt: skip
def test_wise_strict_parser_needs_all_three_scores(reply: str) -> None:
    assert wise.parse_legacy(reply) == {}


ROWS = st.lists(
    st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "no", "Yes.", "hm", "No, not"])), min_size=1
)


@given(ROWS, st.sampled_from(["official", "lmms-eval"]))
def test_pope_counts_add_up(rows: list[tuple[str, str]], rule: pope.Rule) -> None:
    counts = pope.count(rows, rule)
    assert counts.total == len(rows)
    assert all(0 <= value <= 1 for value in (counts.accuracy, counts.precision, counts.recall, counts.f1))
    assert pope.count(rows[::-1], rule) == counts


@given(
    st.lists(st.tuples(st.sampled_from(["Yes", "no", "other", "y"]), st.sampled_from(["Yes", "no", "?"])), min_size=1)
)
def test_mme_points_are_bounded(replies: list[tuple[str, str]]) -> None:
    rows = [
        mme.MmeAnswer("count", str(image), truth, reply)
        for image, pair in enumerate(replies)
        for truth, reply in zip(("Yes", "No"), pair, strict=True)
    ]
    for rule in ("official", "lmms-eval"):
        summary = mme.summarise(rows, rule)
        assert 0 <= summary.subtasks["count"] <= 200
        assert summary.perception == summary.subtasks["count"]
        assert mme.summarise(rows[::-1], rule) == summary
    with pytest.raises(ValueError, match="two questions about an image"):
        mme.summarise(rows[:-1])


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_generated_prompts_are_well_formed(seed: int, per_task: int) -> None:
    entries = generate(seed, per_task)
    prompts = [(entry["tag"], entry["prompt"]) for entry in entries]
    assert len(set(prompts)) == len(prompts)
    assert sum(tag == "single_object" for tag, _ in prompts) == len(OBJECTS) == 80
    for entry in entries:
        assert all(clause["class"] in OBJECTS for clause in entry["include"])
        assert not any("color" in clause and clause["class"] == "person" for clause in entry["include"])
