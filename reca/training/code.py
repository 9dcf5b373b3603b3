"""The identity of our own code, for work that may be interrupted and continued by an edited version of it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from reca.digest import file_digest

CODE = Path(__file__).resolve().parent.parent
DATA = ("data/batches.py", "data/embeddings.py", "data/images.py", "data/manifest.py")
TRAINING = ("training", "objectives", "models", "nn", "stages/train.py", "data/dialogues.py", *DATA)
"""The code that training runs."""
EXTRACTION = (
    "models",
    "nn",
    "stages/extract.py",
    *(f"training/{name}.py" for name in ("base_model", "embeddings_writer", "encoder", "extractions", "read_ahead")),
    *DATA,
)
"""The code that extraction runs."""


def code_digest(parts: Sequence[str] = TRAINING) -> str:
    """Digest (16 hex digits) of code, by default what training runs: an edit between two attempts must be visible."""
    digest = hashlib.sha256()
    for part in parts:
        path = CODE / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(CODE).as_posix()}\0{file_digest(file)}\n".encode())
    return digest.hexdigest()[:16]
