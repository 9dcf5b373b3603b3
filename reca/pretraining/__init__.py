"""How the tiny base models are made: understanding, image tokenizer, drawing (``reca pretrain``)."""

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """``reca pretrain``: ``janus_tiny`` unless another ``model=…`` is named."""
    named = [word for word in arguments if word.startswith("model=")]
    if named and named != ["model=janus_tiny"]:
        from reca.pretraining.brief import main as brief

        return brief(arguments)
    from reca.pretraining.run import main as run

    return run([word for word in arguments if word not in named])
