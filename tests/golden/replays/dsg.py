"""DSG: recorded answers of real VQA models, scored by DSG's rule and by DPG-Bench's."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from scipy.stats import kendalltau, spearmanr

from reca.evaluation.benchmarks.dpgbench.rules import apply_dependencies
from tests.golden.replays.comparison import CORRELATIONS, MEANS, Folder, Tally, read_json
from tests.golden.replays.dpg import read_exactly

Dependencies = Literal["cascade", "raw", "none"]
"""DPG-Bench's rule, DSG's rule, and no rule."""

RULES: dict[str, Dependencies] = {
    "dsg_with_dependency": "raw",
    "dsg_without_dependency": "none",
    "dpg_cascade": "cascade",
}
TABLE_ROWS = {
    "tifa": ("tifa160",),
    "paragraph": ("stanford_paragraph", "localized_narratives"),
    "relation": ("vrd",),
    "count": ("countbench",),
    "real_user": ("diffusiondb", "midjourney"),
    "pose": ("posescript",),
    "defying": ("whoops",),
    "text": ("drawtext",),
}
"""Rows of DSG's published table -> the data sets of their prompts."""
ONE_DECIMAL = 5.001e-2


def replay(folder: Folder) -> None:
    folder.replay("recorded_answers*.json*", _recorded)
    folder.supports("tifa160_answers_likert*.json*")
    folder.replay("published*.json", partial(_published, folder))


def score_image(scores: Mapping[int, float], parents: Mapping[int, Sequence[int]], rule: Dependencies) -> float:
    """Return the share of an image's questions that hold.

    Args:
        scores: Question number -> 1 or 0.
        parents: Question number -> the questions that it depends on; 0 means none.
        rule: ``cascade`` lets a question that was set to 0 take its children with it (DPG-Bench); ``raw`` uses the
            answers as they were given (DSG); ``none`` ignores the dependencies.
    """
    if rule == "cascade":
        results = apply_dependencies(scores, parents)
    else:
        results = dict(scores)
        for number, required in parents.items():
            if rule == "raw" and any(parent and scores[parent] == 0 for parent in required):
                results[number] = 0.0
    return sum(results.values()) / len(results)


def _score(answers: dict[str, str], dependency: dict[str, list[int]], rule: Dependencies) -> float:
    scores = {int(number): read_exactly(reply) for number, reply in answers.items()}
    return score_image(scores, {int(number): parents for number, parents in dependency.items()}, rule)


def _recorded(tally: Tally, path: Path) -> None:
    def compare(item: str, case: dict[str, Any]) -> None:
        for judge, expected in case["expect"].items():
            for rule, score in expected.items():
                if rule not in RULES:
                    tally.notes.append(f"{item}, {judge}, {rule}: an unknown rule")
                    continue
                ours = partial(_score, case["answers"][judge], case["dependency"], RULES[rule])
                tally.case(f"{item}, {judge}, {rule}", score, ours, MEANS)

    tally.each(read_json(path).items(), compare)


def _published(folder: Folder, tally: Tally, path: Path) -> None:
    recorded = read_json(path)
    items = {k: v for file in sorted(folder.path.glob("recorded_answers*.json*")) for k, v in read_json(file).items()}
    total = recorded.get("n_items", len(items))
    if len(items) == total:
        _means(tally, recorded, items)
        _tables(tally, recorded.get("published", {}), items)
    else:
        tally.notes.append(f"means over {total} items: this folder has the answers for {len(items)}")
    likert = sorted(folder.path.glob("tifa160_answers_likert*.json*"))
    correlations = recorded.get("published", {}).get("tifa160_likert_correlation", {})
    if likert and correlations:
        _correlations(tally, correlations, read_json(likert[0]))
    elif correlations:
        tally.notes.append("correlations with people: this folder lacks tifa160_answers_likert.json.gz")


def _means(tally: Tally, recorded: dict[str, Any], items: dict[str, Any]) -> None:
    for judge, expected in recorded.get("mean", {}).items():
        cases = [(case["answers"][judge], case["dependency"]) for case in items.values() if judge in case["answers"]]
        scores = {name: [_score(*case, rule) for case in cases] for name, rule in RULES.items()}
        for name in scores.keys() & expected.keys():
            tally.case(f"mean of {judge}, {name}", expected[name], lambda s=scores[name]: sum(s) / len(s), MEANS)
        differ = [abs(a - b) > MEANS for a, b in zip(scores["dsg_with_dependency"], scores["dpg_cascade"], strict=True)]
        for name, value in (("n", len(cases)), ("items_where_cascade_differs", sum(differ))):
            if name in expected:
                tally.case(f"{judge}, {name}", expected[name], lambda v=value: v)


def _tables(tally: Tally, published: dict[str, Any], items: dict[str, Any]) -> None:
    """Compare DSG's table (one decimal): means over a data set's items by DSG's rule, times 100."""
    judges = {_plain(judge): judge for case in items.values() for judge in case["answers"]}
    first = published.get("readme_table_pali17b_sd2dot1", {})
    tables = {"pali17b": first, **published.get("rerun_here", {})}
    sizes = first.get("n", {})
    left_out: set[str] = set()
    for name, table in tables.items():
        judge = next((judge for plain, judge in judges.items() if _plain(name).startswith(plain)), None)
        if not isinstance(table, dict) or judge is None:
            continue
        for row in table.keys() & (TABLE_ROWS.keys() | {"all"}):
            scores = [
                _score(case["answers"][judge], case["dependency"], "raw")
                for item, case in items.items()
                if row == "all" or re.sub(r"_?\d+$", "", item) in TABLE_ROWS[row]
            ]
            if len(scores) != sizes.get(row, len(scores)):
                left_out.add(f"{row} (answers for {len(scores)} of {sizes[row]} items)")
            else:
                tally.case(f"table of {name}, {row}", table[row], lambda s=scores: 100 * sum(s) / len(s), ONE_DECIMAL)
    if left_out:
        tally.notes.append(f"rows of the published tables: {', '.join(sorted(left_out))}")


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _correlations(tally: Tally, expected: dict[str, Any], likert: dict[str, Any]) -> None:
    measures = {"spearman": spearmanr, "kendall": kendalltau}
    for name, by_rule in expected.items():
        rows = [row for row in likert["rows"] if _plain(name).startswith(_plain(row["vqa"]))]
        if not isinstance(by_rule, dict) or not rows:
            if name == "n":
                numbers = {row["vqa"]: 0 for row in likert["rows"]}
                for row in likert["rows"]:
                    numbers[row["vqa"]] += 1
                tally.case("answers of each judge", [by_rule], lambda n=numbers: sorted(set(n.values())))
            continue
        people = [row["likert"] for row in rows]
        for rule, values in by_rule.items():
            dependencies: Dependencies = "raw" if rule == "dsg" else "none"
            scores = []
            for row in rows:  # DSG's own script scores an item without answers 0
                parents = likert["dependency"][row["item"]]
                scores.append(_score(row["answers"], parents, dependencies) if row["answers"] else 0.0)
            for measure, value in values.items():
                ours = partial(measures[measure], scores, people)
                tally.case(f"{name}, {rule}, {measure}", value, lambda o=ours: float(o().statistic), CORRELATIONS)
