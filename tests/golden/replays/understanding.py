"""MME, POPE, MMMU: recorded answers, scored by two rules each."""

from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

from reca.evaluation.benchmarks.mme import rules as mme
from reca.evaluation.benchmarks.mmmu import rules as mmmu
from reca.evaluation.benchmarks.pope import rules as pope
from tests.golden.replays.comparison import MEANS, Folder, Tally, Unusable, numbered, read_json

MME_RULES = {"bagel_internvl_script": "official", "lmms_eval": "lmms-eval"}
POINTS = 1e-6
"""Tolerance of MME's points, which go up to 2000."""


def replay(folder: Folder) -> None:
    folder.replay("mme*.json", _mme)
    folder.replay("pope*.json", _pope)
    folder.replay("mmmu*.json", _mmmu)


def _mme(tally: Tally, path: Path) -> None:
    recorded = read_json(path)

    def parse(name: str, case: dict[str, Any]) -> None:
        for key, rule in (("bagel", "official"), ("lmms_eval", "lmms-eval")):
            if key in case:
                tally.case(f"{name}, {key}, {case['text']!r}", case[key], partial(mme.parse, case["text"], rule))

    tally.each(numbered(recorded.get("parser", [])), parse)
    rows = [
        mme.MmeAnswer(row["category"], row["question_id"], row["answer"], row["prediction"])
        for row in recorded.get("rows", [])
    ]
    for name, rule in MME_RULES.items():
        ours = cache(partial(mme.summarise, rows, rule))
        for key, expected in recorded.get(name, {}).items():
            if key == "per_task":
                for task, score in expected.items():
                    tally.case(f"{name}, {task}", score, lambda o=ours, t=task: o().subtasks[t], POINTS)
            elif key in ("perception", "cognition"):
                tally.case(f"{name}, {key}", expected, lambda o=ours, k=key: getattr(o(), k), POINTS)
            else:
                tally.notes.append(f"{name}, {key}")


def _pope(tally: Tally, path: Path) -> None:
    recorded = read_json(path)
    rows = [(row["label"], row["text"]) for row in recorded["rows"]]
    official, lmms = cache(partial(pope.count, rows)), cache(partial(pope.count, rows, "lmms-eval"))
    expected = recorded.get("official_rule", {})
    if "message" in expected:
        tally.case("official message", expected["message"].split(), lambda: _printed(official()).split())
    for name in ("f1", "accuracy", "precision", "recall", "yes_ratio"):
        if name in expected:
            tally.case(f"official {name}", expected[name], lambda n=name: getattr(official(), n), MEANS)
    values = {
        "accuracy": lambda: lmms().accuracy,
        "precision": lambda: lmms().precision,
        "recall": lambda: lmms().recall,
        "f1_score": lambda: lmms().f1,
        "yes_ratio": lambda: _label_yes_ratio(label for label, _ in rows),
    }
    for name, value in recorded.get("lmms_eval", {}).items():
        if name in values:
            tally.case(f"lmms_eval {name}", value, values[name], MEANS)


def _label_yes_ratio(labels: Iterable[str]) -> float:
    """Return lmms-eval's "yes ratio": the share of yeses among the truths, independent of the model's answers."""
    truths = [label.strip().lower() == "yes" for label in labels]
    return sum(truths) / len(truths)


def _printed(counts: pope.Counts) -> str:
    """Return the text that the official script prints."""
    numbers = (counts.f1, counts.accuracy, counts.precision, counts.recall, counts.yes_ratio)
    return (
        "TP\tFP\tTN\tFN\t\n"
        f"{counts.true_positive}\t{counts.false_positive}\t{counts.true_negative}\t{counts.false_negative}\n"
        f"Accuracy: {counts.accuracy}\nPrecision: {counts.precision}\nRecall: {counts.recall}\nF1 score: {counts.f1}\n"
        f"Yes ratio: {counts.yes_ratio}\n{', '.join(f'{value:.3f}' for value in numbers)}\n"
    )


def _mmmu(tally: Tally, path: Path) -> None:
    recorded: dict[str, Any] = read_json(path)
    if not {"multi_choice", "open_parse", "open_eval"} & recorded.keys():
        raise Unusable("it has none of multi_choice, open_parse, open_eval")

    def choice(name: str, case: dict[str, Any]) -> None:
        letters = case.get("choices", recorded.get("choices"))
        options = case.get("index2ans", recorded.get("index2ans"))
        # Our code gives no answer where the original guesses.
        expected = None if case["parsed"] == "RANDOM" else case["parsed"]
        ours = partial(mmmu.parse_choice, case["response"], letters, options)
        tally.case(f"choice, {name}, {case['response']!r}", expected, ours)

    def meanings(name: str, case: dict[str, Any]) -> None:
        ours = partial(lambda text: sorted(map(str, mmmu.parse_open(text))), case["response"])
        tally.case(f"open, {name}, {case['response']!r}", sorted(case["parsed"]), ours)

    def right(name: str, case: dict[str, Any]) -> None:
        ours = partial(mmmu.open_is_right, case["gold"], case["response"])
        tally.case(f"gold, {name}, {case['gold']!r}, {case['response']!r}", case["correct"], ours)

    for key, compare in (("multi_choice", choice), ("open_parse", meanings), ("open_eval", right)):
        tally.each(numbered(recorded.get(key, [])), compare)
