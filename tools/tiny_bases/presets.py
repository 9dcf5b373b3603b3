"""Model options of the tiny presets, and their tokenizer with a token per word."""

from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from reca.config import ROOT, compose
from reca.data.synthetic.scenes import COLORS, NUMBERS, RELATIONS, SHAPES, plural
from reca.training.losses import TEMPLATES

UNKNOWN = "<unk>"
QUESTION_WORDS = "a an and of photo what color is the how many are there where relative to shape yes no"
TOKENIZED_TEMPLATES = 8
"""Templates whose words are in the vocabulary: the first, short ones."""


def options_of(preset: str, **changes: Any) -> dict[str, Any]:
    """Return the model options of a preset, with ``changes``."""
    return {**compose([f"model={preset}"]).model.load_options(ROOT), **changes}


def scene_words() -> list[str]:
    """Return all words of scenes, captions, questions and the first templates."""
    words = [*SHAPES, *map(plural, SHAPES), *COLORS, *NUMBERS, *QUESTION_WORDS.split()]
    return words + " ".join(RELATIONS).split() + " ".join(TEMPLATES[:TOKENIZED_TEMPLATES]).split()


def word_tokenizer(
    first: Iterable[str], last: Iterable[str], special: Iterable[str], token_names: Mapping[str, str]
) -> PreTrainedTokenizerFast:
    """Build a tokenizer that splits at white space.

    Args:
        first: Tokens before the words of scenes; :data:`UNKNOWN` among them.
        last: Words, or tokens, after them.
        special: Tokens that are never split and that decoding may skip.
        token_names: ``eos_token``, ``pad_token`` and the like.
    """
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*first, *scene_words(), *last]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, clean_up_tokenization_spaces=False, **token_names
    )
