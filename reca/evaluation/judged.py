"""What the benchmarks have in common whose samples are judged by a model that is asked about them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from reca.config import Config
from reca.config.evaluate import JudgedBenchmarkSettings, JudgeSettings
from reca.evaluation.benchmark import ItemScore, Judge
from reca.evaluation.samples import Pixels, Row, UnreadableSample, read_image, save_png

if TYPE_CHECKING:
    from reca.evaluation.judges.reply_cache import Reply
    from reca.evaluation.judges.requests import Estimate, Request

S = TypeVar("S", bound=JudgedBenchmarkSettings)


class Asked(ABC, Generic[S]):
    """A benchmark that asks a judge.

    Args:
        settings: Of the benchmark.
        config: The whole configuration: the judge's limits and the state folder.
        root: The project folder.
    """

    name: ClassVar[str]
    images_per_prompt: int = 1

    def __init__(self, settings: S, config: Config, root: Path) -> None:
        from reca.evaluation.judges.judge import Judging

        self.root, self._settings, self.seed = root, settings, settings.seed
        file = root / config.paths.state / "replies" / f"{self.name}.jsonl"
        self.judging: Judging = Judging(settings.judge, config.hardware.judge, root, file, config.hardware.device)

    @classmethod
    def from_config(cls, config: Config, root: Path) -> Self:
        """Set up from the section of ``evaluate`` that has the benchmark's name."""
        return cls(getattr(config.evaluate, cls.name), config, root)

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

    def ask(self, rows: Sequence[Row], folder: Path) -> None:
        """Ask about some of the samples, so that :meth:`score` finds the replies stored."""
        self.judging.replies(self.requests(rows, folder))

    def estimate(self, rows: Sequence[Row], folder: Path) -> "Estimate":
        """What :meth:`score` would ask and cost; nothing is sent."""
        return self.judging.estimate(self.requests(rows, folder))

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """What became of the replies."""
        from reca.evaluation.judges.judge import tally

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


def asked_otherwise(judge: JudgeSettings, published: JudgeSettings) -> str:
    """What :func:`reca.evaluation.drawing.label` says of a judge that is asked in another way, whoever it is.

    More tokens than were published are no difference: replies of a few lines do not come near.
    """
    fewer = judge.max_tokens < published.max_tokens
    told = [
        "in a local folder" if judge.folder else "at another endpoint" if judge.url != published.url else "",
        "" if judge.temperature == published.temperature else f"at temperature {judge.temperature}",
        f"for at most {judge.max_tokens} tokens" if fewer else "",
    ]
    return f"judge asked {', '.join(filter(None, told))}" if any(told) else ""


def _resized(pixels: Pixels, like: Pixels) -> Pixels:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((like.shape[1], like.shape[0])))
