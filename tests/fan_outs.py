"""Ways to do a stage's work items other than its own plain loop, without Ray."""

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from reca.runtime.fan_out import Worker


def one_worker_per_item(items: Sequence[Any], make_worker: Callable[[], Worker], hardware: object) -> Iterator[Any]:
    """Do every item in its own worker, in reverse order; items, workers and results travel as they do to Ray's."""
    for item in reversed(items):
        worker = pickle.loads(pickle.dumps(make_worker))()
        for result in worker([json.loads(json.dumps(item))]):
            yield json.loads(json.dumps(result))


def no_worker(*_: object) -> Iterator[Any]:
    """Fail, because the stage was to do without workers."""
    pytest.fail("items were handed to workers")
