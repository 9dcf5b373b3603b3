"""Sources of images: one module per value of ``data.source``, with a function ``from_config``."""

from importlib import import_module
from pathlib import Path

from reca.config import DataSection
from reca.data.sources.base import ImageSource


def open_source(data: DataSection, seed: int, root: Path, largest_file: int) -> ImageSource:
    """Return the source that the configuration names.

    Args:
        data: The section ``data``.
        seed: The run's seed; only rendered scenes and collages depend on it.
        root: The project; paths in ``data`` are relative to it.
        largest_file: Files with more bytes are refused unread.

    Raises:
        UserError: The source is missing or cannot be opened.
    """
    module = import_module(f"reca.data.sources.{data.source}")
    source: ImageSource = module.from_config(data, seed, root, largest_file)
    return source
