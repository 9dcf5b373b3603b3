"""POPE's scoring rules, pure functions: does an object appear in the image?

After Li et al., "POPE" (arXiv 2305.10355), in the form of the script that InternVL, BAGEL and RecA share, and of
lmms-eval@75571cf (MIT), written independently from the rules and proven on their answers
(``tests/golden/understanding``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

QUESTIONS = {"random": 3000, "popular": 3000, "adversarial": 3000}
"""Number of questions by split."""

Rule = Literal["official", "lmms-eval"]


@dataclass(frozen=True)
class Counts:
    """Counts of replies by answer and truth; "positive" is yes."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int
    unread: int = 0
    """Replies that are neither yes nor no, by lmms-eval's rule only: wrong, but in no other count."""

    @property
    def total(self) -> int:
        """Number of replies."""
        return self.true_positive + self.false_positive + self.true_negative + self.false_negative + self.unread

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return (self.true_positive + self.true_negative) / self.total

    @property
    def precision(self) -> float:
        """Share of right answers among the yeses; 0 without any."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """Share of the true yeses that were answered yes (lmms-eval: among those answered yes or no)."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall: POPE's score of a split; the benchmark's is the mean over splits."""
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        """Share of yeses among the answers."""
        return (self.true_positive + self.false_positive) / self.total


def parse(reply: str, rule: Rule = "official") -> str:
    """Parse a reply as yes or no.

    Officially the first sentence counts, without commas: "no" if and only if No, not or no is one of its words, else
    always "yes". For lmms-eval the whole reply in lower case is the answer, so "Yes." is neither.
    """
    if rule == "lmms-eval":
        return reply.lower().strip()
    words = reply.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def count(rows: Iterable[tuple[str, str]], rule: Rule = "official") -> Counts:
    """Count the replies of a split, given as pairs of truth (yes or no) and reply.

    Raises:
        ValueError: There are no answers, or a truth is neither yes nor no.
    """
    numbers = {(answer, truth): 0 for answer in ("yes", "no", "other") for truth in ("yes", "no")}
    for label, reply in rows:
        truth, answer = label.strip().lower(), parse(reply, rule)
        if truth not in ("yes", "no"):
            raise ValueError(f"POPE's answers are yes or no, not {label!r}")
        numbers[answer if answer in ("yes", "no") else "other", truth] += 1
    if not any(numbers.values()):
        raise ValueError("there are no answers to score")
    return Counts(
        true_positive=numbers["yes", "yes"],
        false_positive=numbers["yes", "no"],
        true_negative=numbers["no", "no"],
        false_negative=numbers["no", "yes"],
        unread=numbers["other", "yes"] + numbers["other", "no"],
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
