"""What the tiny presets have in common: their options, and a tokenizer of one token a word."""

from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from reca.config import ROOT, compose
from reca.data.synthetic.scenes import COLORS, NUMBERS, RELATIONS, SHAPES, plural
from reca.models.prompts import TEMPLATES

UNKNOWN = "<unk>"
QUESTION_WORDS = "a an and of photo what color is the how many are there where relative to shape yes no"
SPARE_TEMPLATES = 8
"""Templates whose words the tokenizers know: the first, short ones."""


def options_of(preset: str, **changes: Any) -> dict[str, Any]:
    """What a preset's model is built with, some of it changed."""
    return {**compose([f"model={preset}"]).model.load_options(ROOT), **changes}


def scene_words() -> list[str]:
    """Everything that scenes, captions, questions and the first templates can say."""
    words = [*SHAPES, *map(plural, SHAPES), *COLORS, *NUMBERS, *QUESTION_WORDS.split()]
    return words + " ".join(RELATIONS).split() + " ".join(TEMPLATES[:SPARE_TEMPLATES]).split()


def word_tokenizer(
    first: Iterable[str], own: Iterable[str], special: Iterable[str], named: Mapping[str, str]
) -> PreTrainedTokenizerFast:
    """A tokenizer that splits at white space.

    Args:
        first: Tokens before the words of scenes; :data:`UNKNOWN` among them.
        own: Words, or tokens, after them.
        special: Those that are never split and that decoding may leave out.
        named: ``eos_token``, ``pad_token`` and the like.
    """
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*first, *scene_words(), *own]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, clean_up_tokenization_spaces=False, **named
    )
