"""The champion's scores and a candidate's are paired prompt by prompt; what could not be scored makes no pair."""

import json

from reca.config import compose
from reca.stages.register import _paired, _values


def _write(path, several):
    rows = [{"category": "colors", "prompt_id": f"p{n}", "values": values} for n, values in enumerate(several)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return _values(path)


def test_prompts_without_a_score_on_one_side_make_no_pair(tmp_path):
    champion = _write(tmp_path / "champion.jsonl", [[0.0, None], [None, None], [1.0, None]])
    candidate = _write(tmp_path / "candidate.jsonl", [[1.0, 1.0], [1.0, 1.0], [1.0, None]])
    delta = _paired(champion, candidate, compose([]))["categories"]["colors"]
    assert delta["delta"] == 0.5  # images right: 1 of 2 -> 3 of 3; p1 is left out
