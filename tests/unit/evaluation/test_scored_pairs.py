"""The champion's scores and a candidate's are paired prompt by prompt; what could not be scored makes no pair."""

from reca.evaluation.benchmark import ItemScore, read_items, values_of, write_items
from reca.evaluation.statistics import paired_delta, scored_pairs


def _written(path, images_per_prompt):
    write_items(path, [ItemScore(f"p{number}", "colors", values) for number, values in enumerate(images_per_prompt)])
    return values_of(read_items(path))


def test_prompts_without_a_score_on_one_side_make_no_pair(tmp_path):
    champion = _written(tmp_path / "champion.jsonl", [(0.0, None), (None, None), (1.0, None)])
    candidate = _written(tmp_path / "candidate.jsonl", [(1.0, 1.0), (1.0, 1.0), (1.0, None)])
    before, after = scored_pairs(champion, candidate)
    assert set(before["colors"]) == set(after["colors"]) == {"p0", "p2"}
    assert paired_delta(before, after).categories["colors"].delta == 0.5  # images right: 1 of 2 -> 3 of 3
