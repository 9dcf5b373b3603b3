"""MMMU's scoring rules, pure: letters of multiple choice and short answers.

After Yue et al., "MMMU" (arXiv 2311.16502; MMMU-Benchmark/MMMU@51ce7f3, Apache-2.0), in the form that InternVL, BAGEL
and RecA share, and of lmms-eval (MIT), written anew from the rules and proven on what they answer
(``tests/golden/understanding``). Where the original draws a letter at random, nothing here does: such a reply is
unparsable, counted and wrong.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

SUBJECTS = (
    "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science",
    "Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design",
    "Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics", "Energy_and_Power", "Finance", "Geography",
    "History", "Literature", "Manage", "Marketing", "Materials", "Math", "Mechanical_Engineering", "Music", "Pharmacy",
    "Physics", "Psychology", "Public_Health", "Sociology",
)  # fmt: skip
QUESTIONS = dict.fromkeys(SUBJECTS, 30)
"""Of the validation split by subject, 900 in all: 847 of multiple choice and 53 with a short answer."""

Rule = Literal["official", "lmms-eval"]

_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.2e3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
_BEFORE_ANSWERS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")


@dataclass(frozen=True)
class Summary:
    """Accuracy over questions."""

    accuracy: float
    right: int
    total: int
    unparsable: int


def parse_choice(reply: str, letters: Sequence[str], options: Mapping[str, str], rule: Rule = "official") -> str | None:
    """The letter that a reply chooses, or ``None`` where the original would draw one at random.

    In this order: letters in brackets; letters between blanks; and where the reply has more than five words, the
    options' text. Of several the last counts. lmms-eval takes a letter before a blank or, failing that, before a full
    stop.

    Args:
        reply: What the model wrote.
        letters: The question's letters, for instance A to D.
        options: Letter -> the option's text.
        rule: Whose reading.
    """
    for mark in ",.!?;:'":
        reply = reply.strip(mark)
    text = f" {reply} "
    forms = ["({})", " {} "] if rule == "official" else ["({})", "{} ", "{}."]
    for form in forms:
        if found := [letter for letter in letters if form.format(letter) in text]:
            last_form = "({})" if form == "({})" else " {} "  # the original looks for the last one so
            return max(found, key=lambda letter: text.rfind(last_form.format(letter)))
    if len(text.split()) > 5:
        lower = text.lower()
        if found := [letter for letter, option in options.items() if option.lower() in lower]:
            return max(found, key=lambda letter: lower.rfind(options[letter].lower()))
    return None


def parse_open(reply: str) -> list[str | float]:
    """What a reply to a short-answer question may mean: phrases that follow "is", "answer" and the like, and numbers.

    Each sentence gives what stands behind the last such word, the shortest of these; without any the whole reply
    counts. Numbers are rounded to two digits.
    """
    text = reply.strip().strip(".").lower()
    sentences = re.split(r"\.\s(?=[A-Z])|\n", text)  # in lower case only line breaks part sentences, as in the original
    phrases = []
    for number, sentence in enumerate(sentences):
        words = _BEFORE_ANSWERS + (("=",) if number == len(sentences) - 1 else ())
        tails = [sentence.split(word)[-1].strip() for word in words if word in sentence]
        shortest = ""
        for tail in tails:
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            phrases.append(shortest)
    phrases = phrases or [text]
    numbers = [number for phrase in phrases for kind in _NUMBERS for number in kind.findall(phrase)]
    return list(dict.fromkeys(value for phrase in [*phrases, *numbers] for value in _normalise(phrase)))


def _normalise(text: str) -> list[str | float]:
    """A number rounded to two digits, or text in lower case; a single letter only with a blank beside it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
    return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def open_is_right(gold: str | Sequence[str], reply: str) -> bool:
    """Whether a reply holds one of the right short answers: an equal number, or text within text."""
    answers = [value for answer in ([gold] if isinstance(gold, str) else gold) for value in _normalise(answer)]
    for said in parse_open(reply):
        if isinstance(said, str):
            if any(isinstance(answer, str) and answer in said for answer in answers):
                return True
        elif said in answers:
            return True
    return False


def summarise(results: Iterable[bool | None]) -> Summary:
    """Accuracy over all questions, whatever their kind; ``None`` is unparsable, hence wrong.

    Raises:
        ValueError: There are no results.
    """
    values = list(results)
    if not values:
        raise ValueError("there are no answers to score")
    right = sum(value is True for value in values)
    return Summary(right / len(values), right, len(values), unparsable=values.count(None))
