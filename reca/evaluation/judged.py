"""Base class of the benchmarks whose samples a judge model scores."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from reca.config import Config
from reca.config.evaluate import JudgedBenchmarkSettings, JudgeSettings
from reca.evaluation.benchmark import Benchmark, ItemScore, Judge, prompt_limit_difference, protocol_label
from reca.evaluation.judges.judge import JudgeClient, count_replies
from reca.evaluation.judges.reply_cache import Reply
from reca.evaluation.judges.requests import Request
from reca.evaluation.samples import (
    Pixels,
    Row,
    UnreadableSample,
    draw_samples,
    edit_samples,
    first_per_category,
    read_image,
    save_png,
)
from reca.runtime.errors import UserError
from reca.runtime.seeding import derive_seed

if TYPE_CHECKING:
    from reca.models.base import UnifiedModel
    from reca.models.sampling import Sampling

S = TypeVar("S", bound=JudgedBenchmarkSettings)


class JudgedBenchmark(Benchmark, Generic[S]):
    """A benchmark whose samples are images, drawn by the model and scored by a judge."""

    asks_model: ClassVar[bool] = True

    def __init__(self, settings: S, config: Config, root: Path) -> None:
        self.root, self._settings, self.seed = root, settings, settings.seed
        replies = root / config.paths.state / "replies" / f"{self.name}.jsonl"
        self.judge_client = JudgeClient(settings.judge, config.hardware.judge, root, replies, config.hardware.device)

    @classmethod
    def from_config(cls, config: Config, root: Path) -> Self:
        """Create the benchmark from its section of ``evaluate``."""
        return cls(getattr(config.evaluate, cls.name), config, root)

    @property
    def judge(self) -> Judge:
        """The judge's name and version."""
        return self.judge_client.identity

    @property
    def protocol(self) -> str:
        """``official``, or the differences from the published protocol."""
        settings = self._settings
        published = type(settings).model_fields["judge"].default
        return protocol_label(
            [
                *self.judge_changes(),
                judge_differences(settings.judge, published),
                prompt_limit_difference(settings.max_prompts),
                *self.scoring_changes(),
            ]
        )

    @abstractmethod
    def judge_changes(self) -> Sequence[str]:
        """Return the differences from the published judge and its instructions."""

    def scoring_changes(self) -> Sequence[str]:
        """Return the differences from the published number of images and reading of the replies."""
        return ()

    @abstractmethod
    def prompts(self) -> list[Row]:
        """Return all published prompts: ``prompt_id``, ``category``, ``prompt`` and more."""

    @abstractmethod
    def files(self, prompt: Row, index: int) -> dict[str, str]:
        """Return the paths of an image in the folder of samples, in the original's layout."""

    def plan(self) -> list[Row]:
        """Return one row per prompt and image.

        Raises:
            UserError: The prompts are missing or are not the published ones.
        """
        return [
            {
                **prompt,
                "index": index,
                "seed": derive_seed(self.name, self.seed, prompt["prompt_id"], index),
                **self.files(prompt, index),
            }
            for prompt in first_per_category(self.prompts(), self._settings.max_prompts)
            for index in range(self.images_per_prompt)
        ]

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Draw one image per row."""
        return draw_samples(model, rows, sampling, folder)

    @abstractmethod
    def requests(self, rows: Sequence[Row], folder: Path) -> list[Request]:
        """Return all requests about a folder of samples, without those about unreadable samples."""

    @abstractmethod
    def read(self, rows: Sequence[Row], replies: Mapping[str, Reply]) -> list[ItemScore]:
        """Return the scores from the judge's replies."""

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """Score from stored replies, asking the judge for those that are missing."""
        return self.read(rows, self.judge_client.replies(self.requests(rows, folder)))

    def ask(self, rows: Sequence[Row], folder: Path) -> None:
        """Ask about some of the samples, so that :meth:`score` finds their replies stored."""
        self.judge_client.replies(self.requests(rows, folder))

    def configure_judge(self, replies: Path, *, only_stored: bool = False) -> None:
        """Set the folder of the judge's replies, and whether only stored replies count."""
        self.judge_client.file, self.judge_client.only_stored = replies / f"{self.name}.jsonl", only_stored

    def estimate(self, rows: Sequence[Row], folder: Path) -> str:
        """Return the number of requests and the cost of :meth:`score` in words; no request is sent."""
        return str(self.judge_client.estimate(self.requests(rows, folder)))

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return the number of replies by status."""
        return {"replies": count_replies(dict(detail) for item in items for detail in item.details)}

    def image_for_judge(self, row: Row, folder: Path, like: Pixels | None = None) -> Path | None:
        """Return the file of a sample to send to the judge; ``None`` for a missing or unreadable image.

        This is the sample's own file, unless only a part counts or it must first be resized.

        Args:
            row: The sample.
            folder: The folder of samples.
            like: An image (H, W, 3) whose size the sample must have.
        """
        import numpy as np
        from PIL import Image

        try:
            pixels = read_image(folder, row)
        except UnreadableSample:
            return None
        resize = like is not None and like.shape != pixels.shape
        if "box" not in row and not resize:
            return folder / row["file"]
        if like is not None and resize:
            pixels = np.asarray(Image.fromarray(pixels).resize((like.shape[1], like.shape[0])))
        path = self.judge_client.file.parent / f"{self.name}-shown" / f"{row['prompt_id']}_{row['index']}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(pixels, path)
        return path


class JudgedEditing(JudgedBenchmark[S]):
    """A judged benchmark whose samples are edits of published images."""

    @abstractmethod
    def source(self, row: Row) -> tuple[Path, str]:
        """Return the folder and the path in it of the image that a row edits."""

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Edit the source image of every row.

        Raises:
            UserError: A source image cannot be read, or the model's family does not edit.
        """
        sources = []
        for row in rows:
            source_folder, file = self.source(row)
            try:
                sources.append(read_image(source_folder, {"file": file}))
            except UnreadableSample as error:
                raise UserError(f"a source image of {self.name} cannot be read: {error}") from None
        return edit_samples(model, rows, sources, sampling, folder)


def judge_differences(judge: JudgeSettings, published: JudgeSettings) -> str:
    """Describe how a judge is asked differently from the published one, whichever model it is.

    More tokens than published are not a difference, because replies of a few lines never reach the limit.
    """
    fewer = judge.max_tokens < published.max_tokens
    differences = [
        "in a local folder" if judge.folder else "at another endpoint" if judge.url != published.url else "",
        "" if judge.temperature == published.temperature else f"at temperature {judge.temperature}",
        f"for at most {judge.max_tokens} tokens" if fewer else "",
    ]
    return f"judge asked {', '.join(filter(None, differences))}" if any(differences) else ""
