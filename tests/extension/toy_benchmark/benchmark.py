"""Toy: the smallest benchmark that passes the contract; it asks for bright images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from reca.config import Config
from reca.evaluation.benchmark import Benchmark, ItemScore, Judge
from reca.evaluation.samples import Row, UnreadableSample, draw_samples, read_image
from reca.runtime.seeding import derive_seed

if TYPE_CHECKING:
    from reca.models.base import UnifiedModel
    from reca.models.sampling import Sampling


class ToyBenchmark(Benchmark):
    """Brightness of generated images."""

    name: ClassVar[str] = "toy"
    protocol = "variant: mean brightness"
    judge = Judge(name="brightness", version="1")

    def __init__(self, num_prompts: int) -> None:
        self._num_prompts = num_prompts

    @classmethod
    def from_config(cls, config: Config, root: Path) -> Self:
        """Set up from ``evaluate.toy``."""
        return cls(config.evaluate.toy.num_prompts)

    def plan(self) -> list[Row]:
        """Return one row per prompt."""
        return [
            {
                "prompt_id": str(number),
                "category": "bright",
                "prompt": f"{number} lamps",
                "index": 0,
                "seed": derive_seed(self.name, self.seed, str(number)),
                "file": f"{number}.png",
            }
            for number in range(self._num_prompts)
        ]

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Generate one image per row."""
        return draw_samples(model, rows, sampling, folder)

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """Score the mean brightness of each image."""
        return [
            ItemScore(row["prompt_id"], row["category"], (_brightness(folder, row),), (row["file"],), ({},))
            for row in rows
        ]

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return no facts."""
        return {}


def _brightness(folder: Path, row: Row) -> float | None:
    try:
        return float(read_image(folder, row).mean() / 255)
    except UnreadableSample:
        return None
