"""Nouns of the photographs in Debian's ``tuxpaint-stamps-default``, curated by eye from its list of files.

The package is GPL-2 and installed by the user; ``cutout_nouns.toml`` has only names of its files. The longest prefix of
a path in the table decides; without a match the file's caption names the object.
"""

import tomllib
from pathlib import Path

CARTOON = "cartoon"
"""Folders of this name contain drawings, at any level."""

_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
CLASSES: dict[str, list[str]] = _TABLES["classes"]
OTHER_NOUNS: dict[str, list[str]] = _TABLES["other_nouns"]
EXCLUDED: list[str] = _TABLES["excluded"]

_NOUNS: dict[str, str | None] = {
    **{start: noun for table in (CLASSES, OTHER_NOUNS) for noun, starts in table.items() for start in starts},
    **dict.fromkeys(EXCLUDED),
}


def noun_of(stem: str, caption_noun: str | None) -> str | None:
    """Return the noun of a cut-out; ``None``: the file is not used.

    Args:
        stem: The file's path below its folder of cut-outs, without suffix: ``animals/mammals/giraffe``.
        caption_noun: The noun of its caption, used if no prefix in the table matches.
    """
    if CARTOON in stem.split("/")[:-1]:
        return None
    start = max((start for start in _NOUNS if stem.startswith(start)), key=len, default=None)
    return caption_noun if start is None else _NOUNS[start]
