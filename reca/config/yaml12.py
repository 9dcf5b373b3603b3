"""``params.yaml`` and ``dvc.lock`` as PyYAML reads and writes them without surprise.

PyYAML speaks YAML 1.1, DVC 1.2. They differ where it hurts: ``7e-4`` is a number for DVC and a word for PyYAML, so a
learning rate would come back as text, and a commit id such as ``12e4567`` would reach DVC as a number. Here both
read and write numbers the 1.2 way: what looks like a number to either of them is a number, or stands in quotes.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml import YAMLError as YAMLError

FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
"""A float with an exponent in YAML 1.2 (core schema); PyYAML wants a point and a signed exponent."""


class Loader(yaml.SafeLoader):
    """Reads plain data only."""


class Dumper(yaml.SafeDumper):
    """Writes plain data only."""


for _one in (Loader, Dumper):
    _one.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def loads(text: str) -> Any:
    """Parse one document.

    Raises:
        YAMLError: It is no YAML, or asks for more than plain data.
    """
    return yaml.load(text, Loader=Loader)  # noqa: S506 - a SafeLoader


def load(path: Path) -> Any:
    """Parse a file; see :func:`loads`."""
    return loads(path.read_text())


def dumps(values: Any) -> str:
    """Plain containers as text, keys sorted: equal values give equal bytes."""
    return yaml.dump(values, Dumper=Dumper, sort_keys=True, allow_unicode=True, width=120)
