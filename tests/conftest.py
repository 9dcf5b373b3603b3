"""What every test starts from."""

import os
from pathlib import Path

import pytest

# Workers share two cores; threads of their own, more than there are cores, would wait for each other. Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("reca", deadline=None, max_examples=60)  # machines may be busy
settings.load_profile("reca")
FLOWS = Path(__file__).parent / "integration/flows"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a worker whole files, the flows' together, because they share a server; files with slow tests come first.

    A slow file at the end would keep the other workers waiting. Three workers fill two cores: the flows' mostly waits.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        group = "flows" if item.path.is_relative_to(FLOWS) else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
