"""MME, POPE, MMMU: recorded answers by two rules each."""

from functools import partial
from pathlib import Path
from typing import Any

from reca.benchmarks.rules import mme, mmmu, pope
from tests.golden.replays.comparison import MEANS, Folder, Tally, Unusable, read_json

MME_RULES = {"bagel_internvl_script": "official", "lmms_eval": "lmms-eval"}
POINTS = 1e-6
"""MME's points go to 2000."""


def replay(folder: Folder) -> None:
    folder.replay("mme*.json", _mme)
    folder.replay("pope*.json", _pope)
    folder.replay("mmmu*.json", _mmmu)


def _mme(tally: Tally, path: Path) -> None:
    recorded = read_json(path)
    for case in recorded.get("parser", []):
        for key, rule in (("bagel", "official"), ("lmms_eval", "lmms-eval")):
            if key in case:
                tally.case(f"{key}, {case['text']!r}", case[key], partial(mme.parse, case["text"], rule))
    rows = [
        mme.Row(row["category"], row["question_id"], row["answer"], row["prediction"])
        for row in recorded.get("rows", [])
    ]
    for name, rule in MME_RULES.items():
        if name not in recorded:
            continue
        ours = mme.summarise(rows, rule)
        values = {"per_task": ours.subtasks, "perception": ours.perception, "cognition": ours.cognition}
        for key, expected in recorded[name].items():
            if key == "per_task":
                for task, score in expected.items():
                    tally.case(f"{name}, {task}", score, partial(ours.subtasks.__getitem__, task), POINTS)
            elif key in values:
                tally.case(f"{name}, {key}", expected, lambda v=values[key]: v, POINTS)
            else:
                tally.notes.append(f"{name}, {key}")


def _pope(tally: Tally, path: Path) -> None:
    recorded = read_json(path)
    rows = [(row["label"], row["text"]) for row in recorded["rows"]]
    official = pope.count(rows)
    expected = recorded.get("official_rule", {})
    if "message" in expected:
        tally.case("official message", expected["message"].split(), lambda: pope.report(official).split())
    for name in ("f1", "accuracy", "precision", "recall", "yes_ratio"):
        if name in expected:
            tally.case(f"official {name}", expected[name], partial(getattr, official, name), MEANS)
    lmms = pope.count(rows, "lmms-eval")
    values = {
        "accuracy": lmms.accuracy,
        "precision": lmms.precision,
        "recall": lmms.recall,
        "f1_score": lmms.f1,
        "yes_ratio": pope.label_yes_ratio(label for label, _ in rows),
    }
    for name, value in recorded.get("lmms_eval", {}).items():
        if name in values:
            tally.case(f"lmms_eval {name}", value, partial(values.__getitem__, name), MEANS)


def _mmmu(tally: Tally, path: Path) -> None:
    recorded: dict[str, Any] = read_json(path)
    if not {"multi_choice", "open_parse", "open_eval"} & recorded.keys():
        raise Unusable("it has none of multi_choice, open_parse, open_eval")
    for case in recorded.get("multi_choice", []):
        letters = case.get("choices", recorded.get("choices"))
        options = case.get("index2ans", recorded.get("index2ans"))
        expected = (
            None if case["parsed"] == "RANDOM" else case["parsed"]
        )  # where the original guesses, we do not answer
        ours = partial(mmmu.parse_choice, case["response"], letters, options)
        tally.case(f"choice, {case['response']!r}", expected, ours)
    for case in recorded.get("open_parse", []):
        ours = partial(lambda text: sorted(map(str, mmmu.parse_open(text))), case["response"])
        tally.case(f"open, {case['response']!r}", case["parsed"], ours)
    for case in recorded.get("open_eval", []):
        ours = partial(mmmu.open_is_right, case["gold"], case["response"])
        tally.case(f"gold {case['gold']!r}, {case['response']!r}", case["correct"], ours)
