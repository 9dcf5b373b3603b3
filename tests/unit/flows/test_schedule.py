"""Which of the stages that could start does."""

from flows.graph import Stage
from flows.schedule import by_urgency


def stage(name: str, *needs: str) -> Stage:
    return Stage(name, frozenset(needs), stale=True, resource=None)


def test_the_longest_chain_goes_first() -> None:
    stages = [
        stage("generate-base"),
        stage("score-base", "generate-base"),
        stage("ingest"),
        stage("train", "ingest"),
        stage("generate-aligned", "train"),
        stage("score-aligned", "generate-aligned"),
        stage("report", "score-base", "score-aligned"),
    ]
    names = [one.name for one in by_urgency(stages)]
    assert names[:2] == ["ingest", "train"]
    assert all(names.index(need) < names.index(one.name) for one in stages for need in one.needs)
    assert names[-1] == "report"
