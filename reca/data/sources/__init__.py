"""Where images come from; one module a source, chosen by ``data.source``."""

from pathlib import Path

from reca.config import DataSection, FolderData, HubData, ScenesData, StampsData
from reca.data.sources.base import Source


def open_source(data: DataSection, seed: int, root: Path, largest_file: int) -> Source:
    """The source that the configuration names.

    Args:
        data: The section ``data``.
        seed: The run's seed; only rendered scenes and collages depend on it.
        root: The project; paths in ``data`` are relative to it.
        largest_file: Files with more bytes are refused unread.

    Raises:
        UserError: The source does not exist or cannot be opened.
    """
    if isinstance(data, ScenesData):
        from reca.data.sources.scenes import ScenesSource

        return ScenesSource(data, seed)
    if isinstance(data, StampsData):
        from reca.data.sources.stamps import StampsSource

        return StampsSource(data, seed, root / data.path)
    if isinstance(data, FolderData):
        from reca.data.sources.folder import FolderSource

        return FolderSource(root / data.path, largest_file)
    if isinstance(data, HubData):
        from reca.data.sources.hub import HubSource

        return HubSource(data, root, largest_file)
    from reca.data.sources.webdataset import WebDatasetSource

    return WebDatasetSource(data, root, largest_file)
