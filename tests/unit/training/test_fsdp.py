"""What training on several ranks relies on; tests/integration/training/test_training_sharded.py shows that it works."""

import pytest
from torch import nn

from reca.training.activation_checkpointing import blocks
from tests.contract.test_model_family import PRESETS, load, losses


def reached_parameters(preset: str, prompt_dropout: float, kind: str) -> set[str]:
    model = load(preset, prompt_dropout=prompt_dropout)
    model.freeze()
    model.train()
    losses(model)[kind]().value.backward()
    return {name for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", ["reconstruction", "text_to_image"])
def test_a_dropped_prompt_reaches_the_same_parameters(preset: str, kind: str) -> None:
    """Processes whose samples keep their prompts add up gradients with others whose samples have lost them."""
    assert reached_parameters(preset, 1.0, kind) == reached_parameters(preset, 0.0, kind) != set()


def test_blocks_are_called_and_have_parts() -> None:
    class Level(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.ModuleList([nn.Sequential(nn.Linear(1, 1))])

    layer, lone = nn.Sequential(nn.Linear(1, 1)), nn.Linear(1, 1)
    level = Level()
    model = nn.Sequential(nn.ModuleList([layer, lone, level]), nn.Linear(1, 1))
    assert list(blocks(model)) == [layer, level.block[0]]
