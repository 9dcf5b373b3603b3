"""Questions of every kind; exact match and nothing looser; what is no answer is counted."""

import pytest

from reca.data.synthetic.scenes import QUESTION_KINDS
from reca.evaluation.benchmark import load_benchmark


def row(kind, expected, answer):
    return {"prompt_id": "0000", "category": kind, "question": "?", "expected": expected, "answer": answer}


@pytest.mark.parametrize(
    ("kind", "expected", "answer", "value", "parsable"),
    [
        ("color", "red", "red", 1, True),
        ("color", "red", " Red\n", 1, True),
        ("color", "red", "blue", 0, True),
        ("color", "red", "a red one", 0, False),
        ("color", "red", "", 0, False),
        ("relation", "left of", "left  of", 1, True),
        ("count", "two", "2", 0, False),
        ("existence", "yes", "no", 0, True),
    ],
)
def test_only_the_expected_words_count(config, project, kind, expected, answer, value, parsable):
    bench = load_benchmark("understanding", config, project)
    items = bench.score([row(kind, expected, answer)], project)
    assert items[0].values == (value,)
    assert bench.details(items) == {"unparsable": int(not parsable)}


def test_one_question_of_every_kind_a_scene_allows(config, project):
    plan = load_benchmark("understanding", config, project).plan()
    questions: dict[int, list[str]] = {}
    for planned in plan:
        questions.setdefault(planned["scene"], []).append(planned["category"])
    assert len(questions) == config.evaluate.understanding.num_images
    assert all(len(set(kinds)) == len(kinds) for kinds in questions.values())
    assert all({"existence", "count"} <= set(kinds) for kinds in questions.values())
    assert {kind for kinds in questions.values() for kind in kinds} == set(QUESTION_KINDS)
    assert len({planned["prompt_id"] for planned in plan}) == len(plan)


def test_the_questions_are_a_function_of_the_seed(config, project):
    first, again = (load_benchmark("understanding", config, project).plan() for _ in range(2))
    other = config.evaluate.understanding.model_copy(update={"seed": 77})
    altered = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"understanding": other})})
    assert first == again != load_benchmark("understanding", altered, project).plan()
