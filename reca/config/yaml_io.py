"""YAML 1.2 for ``params.yaml`` and ``dvc.lock``, by the library that DVC uses: both always read the same values.

PyYAML speaks YAML 1.1, where ``7e-4`` is a string and ``012`` is ten.
"""

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml import YAMLError as YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter


class _Representer(SafeRepresenter):
    """Writes ``1.0e-08`` for 1e-8, which PyYAML reads as a float too; it reads ``1e-08`` as a string."""

    def represent_float(self, data: float) -> ScalarNode:
        node: ScalarNode = super().represent_float(data)
        if "e" in node.value and "." not in node.value:
            node.value = node.value.replace("e", ".0e")
        return node


_Representer.add_representer(float, _Representer.represent_float)


def load(path: Path) -> Any:
    """Return the plain data of a file.

    Raises:
        YAMLError: The file is not YAML, or asks for other than plain data.
    """
    return loads(path.read_text())


def loads(text: str) -> Any:
    """Return the plain data of a text; see :func:`load`."""
    return YAML(typ="safe").load(text)


def dumps(values: Any) -> str:
    """Return plain containers as text with sorted keys, so that equal values give equal bytes."""
    yaml, stream = YAML(typ="safe"), io.StringIO()
    yaml.Representer = _Representer
    yaml.default_flow_style, yaml.allow_unicode, yaml.width = False, True, 120
    yaml.dump(values, stream)
    return stream.getvalue()
