"""How the tiny base models are made: understanding, image tokenizer, drawing (``reca pretrain``)."""

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """``reca pretrain``; see :mod:`reca.pretraining.run`."""
    from reca.pretraining.run import main as run

    return run(arguments)
