"""Which of the stages that could start does, and which take devices."""

from flows.graph import Stage
from flows.schedule import by_urgency
from reca.config import compose


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


def test_scoring_takes_a_device_where_a_network_judges_here() -> None:
    def uses(name: str, *words: str) -> bool:
        return Stage(name, frozenset(), stale=True, resource="judge").uses_gpu(compose(words).evaluate)

    assert not uses("score@base-scenes")
    assert uses("score@base-geneval", "evaluate.benchmarks=[geneval]")
    assert not uses("score@base-wise", "evaluate.benchmarks=[wise]")
    assert uses("score@base-wise", "evaluate.benchmarks=[wise]", "+evaluate.wise.judge.folder=data/judges/x")
    assert not uses("score@base-fidelity")
    assert uses("score@base-fidelity", "evaluate.fidelity.encoders=[facebook/dinov2-base@main]")
    assert Stage("train", frozenset(), stale=True, resource="gpu").uses_gpu(compose().evaluate)
    assert not Stage("report", frozenset(), stale=True, resource=None).uses_gpu(compose().evaluate)
