"""The order of stages that could start, and the stages that need devices."""

from flows.graph import Stage
from flows.schedule import by_urgency
from reca.config import compose


def make_stage(name: str, *needs: str) -> Stage:
    return Stage(name, frozenset(needs), stale=True, resource=None)


def test_by_urgency_puts_the_longest_chain_first() -> None:
    stages = [
        make_stage("generate-base"),
        make_stage("score-base", "generate-base"),
        make_stage("ingest"),
        make_stage("train", "ingest"),
        make_stage("generate-aligned", "train"),
        make_stage("score-aligned", "generate-aligned"),
        make_stage("report", "score-base", "score-aligned"),
    ]
    names = [stage.name for stage in by_urgency(stages)]
    assert names[:2] == ["ingest", "train"]
    assert all(names.index(need) < names.index(stage.name) for stage in stages for need in stage.needs)
    assert names[-1] == "report"


def test_score_needs_a_device_for_a_local_judge_network() -> None:
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
