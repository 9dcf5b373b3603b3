"""Templates of L_RecA."""

import re

import pytest

from reca.training.losses import SIMPLE, TEMPLATES, choose_templates


def test_templates_are_many_and_distinct() -> None:
    plain = {re.sub(r"[^a-z ]", "", text.lower()) for text in TEMPLATES}
    assert len(TEMPLATES) >= 300
    assert len(plain) == len(TEMPLATES)
    assert max(len(text.split()) for text in TEMPLATES) <= 40
    assert all(text == text.strip() and text for text in TEMPLATES)


def test_simple_templates_suit_a_small_vocabulary() -> None:
    for text in TEMPLATES[:SIMPLE]:
        assert re.fullmatch(r"[a-z]+( [a-z]+){1,5}", text)


def test_a_template_depends_on_its_seed_only() -> None:
    seeds = list(range(500))
    templates = choose_templates(seeds)
    assert templates == choose_templates(seeds)
    assert templates[7:] == choose_templates(seeds[7:])
    assert len(set(templates)) > 150  # 500 draws from 300 and more: nearly 250 distinct ones are expected


def test_choice_is_limited_to_the_first_templates() -> None:
    assert set(choose_templates(range(200), 8)) == set(TEMPLATES[:8])
    assert set(choose_templates(range(20), 1)) == {TEMPLATES[0]}


@pytest.mark.parametrize("count", [0, 10**6])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=r"train\.prompt_templates"):
        choose_templates([1], count)
