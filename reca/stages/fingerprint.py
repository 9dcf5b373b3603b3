"""``fingerprint``: hash what DVC cannot hash well, our own code and the base model.

Both are written to small files on which the other stages depend. Rewording a docstring, or the base's model card, then
makes no stage stale (:mod:`reca.runtime.code_digest`).
"""

from pathlib import Path

from reca.config import Config
from reca.runtime.code_digest import all_digests
from reca.runtime.errors import UserError
from reca.runtime.files import write_json
from reca.runtime.hashing import checkpoint_digests

FOLDER = Path("outputs/fingerprint")


def fingerprint(config: Config, root: Path, subject: str) -> None:
    """Write ``outputs/fingerprint/<subject>.json``; the subject is ``code`` or ``base``.

    Raises:
        UserError: ``subject`` is neither, or the base model's folder is missing.
    """
    if subject not in ("code", "base"):
        raise UserError(f"unknown subject {subject!r}; choose code or base")
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    values = all_digests() if subject == "code" else checkpoint_digests(root / config.model.checkpoint)
    write_json(root / FOLDER / f"{subject}.json", values)
