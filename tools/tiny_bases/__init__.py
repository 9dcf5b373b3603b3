"""How the tiny base models are made: understanding, image tokenizer, drawing (``python -m tools.tiny_bases``)."""

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """``python -m tools.tiny_bases``: ``janus_tiny`` unless another ``model=…`` is named."""
    named = [word for word in arguments if word.startswith("model=")]
    if named and named != ["model=janus_tiny"]:
        from tools.tiny_bases.short_recipe import main as short

        return short(arguments)
    from tools.tiny_bases.janus_recipe import main as run

    return run([word for word in arguments if word not in named])
