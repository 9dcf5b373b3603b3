"""The prompts of L_RecA."""

import re

import pytest

from reca.models.prompts import SIMPLE, TEMPLATES, choose_templates


def test_many_and_distinct() -> None:
    plain = {re.sub(r"[^a-z ]", "", text.lower()) for text in TEMPLATES}
    assert len(TEMPLATES) >= 300
    assert len(plain) == len(TEMPLATES)
    assert max(len(text.split()) for text in TEMPLATES) <= 40
    assert all(text == text.strip() and text for text in TEMPLATES)


def test_first_ones_suit_a_small_vocabulary() -> None:
    for text in TEMPLATES[:SIMPLE]:
        assert re.fullmatch(r"[a-z]+( [a-z]+){1,5}", text)


def test_choice_depends_on_the_seed_alone() -> None:
    seeds = list(range(500))
    chosen = choose_templates(seeds)
    assert chosen == choose_templates(seeds)
    assert chosen[7:] == choose_templates(seeds[7:])
    assert len(set(chosen)) > 150  # 500 draws from 300 and more: nearly 250 distinct ones are expected


def test_few_templates() -> None:
    assert set(choose_templates(range(200), 8)) == set(TEMPLATES[:8])
    assert set(choose_templates(range(20), 1)) == {TEMPLATES[0]}


@pytest.mark.parametrize("count", [0, 10**6])
def test_impossible_count_is_named(count: int) -> None:
    with pytest.raises(ValueError, match=r"train\.prompt_templates"):
        choose_templates([1], count)
