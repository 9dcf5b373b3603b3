"""Commands and links in the documents exist."""

import re
import subprocess
import sys

import pytest

from reca.cli import parser
from reca.config import ROOT

MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
HEAVY = ("torch", "transformers", "diffusers", "mlflow", "prefect", "pandas", "dvc", "hydra", "scipy", "matplotlib")


def verbs() -> set[str]:
    """Return the verbs of the command line."""
    actions = (action.choices for action in parser()._actions if action.choices)
    return {verb for choices in actions for verb in choices}


def commands(text: str) -> list[list[str]]:
    """Return lines of code blocks and inline code, split into words."""
    blocks = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)
    return [line.strip().removeprefix("$ ").split() for line in lines if line.strip()]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 250


def test_the_readme_lists_every_file() -> None:
    tree = (ROOT / "README.md").read_text().split("## The tree\n```\n")[1].split("```")[0]
    paths = [path for top in ("reca", "flows", "tools") for path in (ROOT / top).rglob("*.py")]
    summarised = (ROOT / "tools/memory", ROOT / "tools/tiny_bases")  # one line each
    names = {path.name for path in paths if path.parent not in summarised and path.name != "__init__.py"}
    missing = names - set(re.findall(r"\w+\.py", tree))
    assert not missing, f"README.md: add {sorted(missing)} to the tree"
    gone = set(re.findall(r"\w+\.py", tree)) - names
    assert not gone, f"README.md: {sorted(gone)} are no longer there"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_in_documents_exist(path) -> None:
    for words in commands(path.read_text()):
        if words[0] == "make" and len(words) > 1:
            assert words[1] in MAKE_TARGETS, f"no such target: {' '.join(words)}"
        if words[0] in ("reca", ".venv/bin/reca") and len(words) > 1 and words[1].islower() and words[1].isalpha():
            assert words[1] in verbs(), f"no such verb: {' '.join(words)}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_in_documents_exist(path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_command_line_starts_light() -> None:
    """Stages import heavy packages themselves, because a run starts `reca` once per stage."""
    code = f"import sys, reca.cli; reca.cli.parser(); print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
