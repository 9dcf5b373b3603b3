"""MMMU's scoring rules, pure functions: letters of multiple choice, and short answers.

After Yue et al., "MMMU" (arXiv 2311.16502; MMMU-Benchmark/MMMU@51ce7f3, Apache-2.0), in the form that InternVL, BAGEL
and RecA share, and of lmms-eval (MIT), written independently from the rules and proven on their answers
(``tests/golden/understanding``). The original draws a letter at random for an unreadable reply; here such a reply is
unparsable, counted and wrong.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

SUBJECTS = (
    "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science",
    "Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design",
    "Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics", "Energy_and_Power", "Finance", "Geography",
    "History", "Literature", "Manage", "Marketing", "Materials", "Math", "Mechanical_Engineering", "Music", "Pharmacy",
    "Physics", "Psychology", "Public_Health", "Sociology",
)  # fmt: skip
QUESTIONS = dict.fromkeys(SUBJECTS, 30)
"""Questions of the validation split by subject, 900 in all: 847 of multiple choice, 53 with a short answer."""

Rule = Literal["official", "lmms-eval"]

_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.2e3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
_BEFORE_ANSWERS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")


def parse_choice(reply: str, letters: Sequence[str], options: Mapping[str, str], rule: Rule = "official") -> str | None:
    """Return the letter that a reply chooses, or ``None`` if the original would draw one at random.

    In this order: letters in brackets; letters between blanks; and, if the reply has more than five words, the text of
    the options. Of several the last counts. lmms-eval accepts a letter before a blank or, failing that, before a full
    stop.
    """
    for mark in ",.!?;:'":
        reply = reply.strip(mark)
    text = f" {reply} "
    forms = ["({})", " {} "] if rule == "official" else ["({})", "{} ", "{}."]
    for form in forms:
        if matches := [letter for letter in letters if form.format(letter) in text]:
            last_form = "({})" if form == "({})" else " {} "  # the original searches the last one in this form
            return max(matches, key=lambda letter: text.rfind(last_form.format(letter)))
    if len(text.split()) > 5:
        lower = text.lower()
        if matches := [letter for letter, option in options.items() if option.lower() in lower]:
            return max(matches, key=lambda letter: lower.rfind(options[letter].lower()))
    return None


def parse_open(reply: str) -> list[str | float]:
    """Return the possible answers in a reply to a short-answer question: phrases after "is" etc., and numbers.

    Each sentence gives the shortest of the phrases that follow the last "is", the last "answer" etc.; without any, the
    whole reply counts. Numbers are rounded to two digits.
    """
    text = reply.strip().strip(".").lower()
    sentences = re.split(
        r"\.\s(?=[A-Z])|\n", text
    )  # in lower case only line breaks separate sentences, as in the original
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
    """Return a number rounded to two digits, or text in lower case; a single letter only with an adjacent blank."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
    return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def open_is_right(gold: str | Sequence[str], reply: str) -> bool:
    """Return whether a reply contains one of the right short answers: an equal number, or text within text."""
    answers = [value for answer in ([gold] if isinstance(gold, str) else gold) for value in _normalise(answer)]
    for candidate in parse_open(reply):
        if isinstance(candidate, str):
            if any(isinstance(answer, str) and answer in candidate for answer in answers):
                return True
        elif candidate in answers:
            return True
    return False
