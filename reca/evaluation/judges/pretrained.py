"""Networks in local folders in the layout of transformers, with a strict account of what is there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError


@contextmanager
def told(folder: Path, what: str) -> Iterator[None]:
    """Say of which folder transformers has no use, whatever it raises.

    Args:
        folder: What is loaded.
        what: What it should hold, such as ``CLIP``.

    Raises:
        FileNotFoundError: ``config.json`` is missing.
        ValueError: It holds something else.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder / 'config.json'} is missing: there is no {what}")
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ValueError(f"{folder} is no {what} that transformers can load: {error}") from None


def load_whole(kind: Any, folder: Path, what: str) -> Any:
    """A network of a class of transformers, in float32 on the CPU.

    Raises:
        FileNotFoundError: ``config.json`` is missing.
        ValueError: It is another network, or lacks weights.
    """
    with told(folder, what):
        network, report = kind.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} weights of its {what}, such as {missing[0]}")
    return network
