"""What the benchmarks have in common whose samples are judged by a model that is asked about them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from reca.benchmarks.base import ItemScore, Judge
from reca.benchmarks.samples import Pixels, Row, UnreadableSample, read_image, save_png
from reca.config import Config
from reca.config.benchmarks import JudgeSettings

if TYPE_CHECKING:
    from reca.benchmarks.judges.replies import Reply
    from reca.benchmarks.judges.request import Estimate, Request


class Asked(ABC):
    """A benchmark that asks a judge.

    Args:
        settings: Of the judge.
        config: The whole configuration: the judge's limits and the state folder.
        root: The project folder.
    """

    name: ClassVar[str]

    def __init__(self, settings: JudgeSettings, config: Config, root: Path) -> None:
        from reca.benchmarks.judges.asking import Judging

        self.root = root
        file = root / config.paths.state / "replies" / f"{self.name}.jsonl"
        self.judging: Judging = Judging(settings, config.hardware.judge, root, file)

    @property
    def judge(self) -> Judge:
        """Who was asked."""
        return self.judging.identity

    @abstractmethod
    def requests(self, rows: Sequence[Row], folder: Path) -> "list[Request]":
        """All questions about a folder of samples; none about samples that are no images."""

    @abstractmethod
    def read(self, rows: Sequence[Row], replies: "Mapping[str, Reply]") -> list[ItemScore]:
        """Scores from the judge's replies."""

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """Ask, or look up the stored replies, and read them."""
        return self.read(rows, self.judging.replies(self.requests(rows, folder)))

    def estimate(self, rows: Sequence[Row], folder: Path) -> "Estimate":
        """What :meth:`score` would ask and cost; nothing is sent."""
        return self.judging.estimate(self.requests(rows, folder))

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """What became of the replies."""
        from reca.benchmarks.judges.asking import tally

        return {"replies": tally(dict(detail) for item in items for detail in item.details)}

    def shown(self, row: Row, folder: Path, like: Pixels | None = None) -> Path | None:
        """The file that shows a sample to the judge; ``None`` where there is no image.

        It is the sample's own file, unless only a part of it counts or it must first get another image's size.
        """
        try:
            pixels = read_image(folder, row)
        except UnreadableSample:
            return None
        if "box" not in row and (like is None or like.shape == pixels.shape):
            return folder / row["file"]
        if like is not None and like.shape != pixels.shape:
            pixels = _resized(pixels, like)
        path = self.judging.file.parent / f"{self.name}-shown" / f"{row['prompt_id']}_{row['index']}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(pixels, path)
        return path


def _resized(pixels: Pixels, like: Pixels) -> Pixels:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((like.shape[1], like.shape[0])))


def label(differences: Iterable[str]) -> str:
    """``official``, or ``variant: `` and what differs."""
    found = [difference for difference in differences if difference]
    return f"variant: {'; '.join(found)}" if found else "official"


def limited(max_prompts: int | None) -> str:
    """What :func:`label` says of a shortened prompt set."""
    return "" if max_prompts is None else f"only the first {max_prompts} prompts of each category"
