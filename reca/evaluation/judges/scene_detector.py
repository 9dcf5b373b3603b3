"""Finds shapes in small pictures: the judge of the rendered-scenes benchmark.

A convolutional network in the manner of CenterNet (Zhou et al., "Objects as Points", arXiv 1904.07850):
one heat map says where a centre is, and at every centre further maps say which shape, which colour and
how the box lies around it. Shapes keep a minimal distance (a quarter of the image and more), so a local
maximum of the heat map is one object and no suppression of overlapping boxes is needed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 2
"""Pixels per cell of the heat map."""
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Detection:
    """One found object."""

    name: str
    """Class name, for instance ``circle``."""
    color: str
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the image it was found in."""
    score: float
    """Confidence in 0..1: P(a centre is here) x P(class)."""


@dataclass(frozen=True)
class DetectorOutput:
    """Raw maps of a batch, at 1 / ``STRIDE`` of the canonical resolution (height h, width w)."""

    heat: Tensor
    """Logits of "a centre lies in this cell", (B, h, w)."""
    names: Tensor
    """Class logits, (B, K, h, w)."""
    colors: Tensor
    """Colour logits, (B, C, h, w)."""
    edges: Tensor
    """Distances in pixels from the cell's centre to the left, top, right and bottom edge, (B, 4, h, w)."""


class SceneDetector(nn.Module):
    """Shapes, colours and boxes in images that show a rendered scene, or what a model takes for one.

    Args:
        names: Class names, in the order of the class logits.
        colors: Colour names, in the order of the colour logits.
        size: Side in pixels of the square images that the network reads; others are resized to it.
        width: Channels of the middle layers; the last two have twice as many.
    """

    def __init__(self, names: Sequence[str], colors: Sequence[str], size: int = 24, width: int = 32) -> None:
        super().__init__()
        self.names, self.colors, self.size, self.width = tuple(names), tuple(colors), size, width
        self.body = nn.Sequential(
            _block(3, width // 2),
            _block(width // 2, width, STRIDE),
            _block(width, width),
            _block(width, 2 * width),
            _block(2 * width, 2 * width),
        )
        self.head = nn.Conv2d(2 * width, 1 + len(self.names) + len(self.colors) + 4, 1)
        # Nearly every cell is empty: start from "no object", and from boxes of a usual size (pixels).
        with torch.no_grad():
            self.head.get_parameter("bias")[:1] = -3.0
            self.head.get_parameter("bias")[-4:] = size / 8

    def forward(self, images: Tensor) -> DetectorOutput:
        """Raw maps of images (B, 3, ``size``, ``size``) in [-1, 1]."""
        maps = self.head(self.body(images))
        heat, names, colors, edges = maps.split([1, len(self.names), len(self.colors), 4], dim=1)
        return DetectorOutput(heat[:, 0], names, colors, edges)

    @torch.no_grad()
    def detect(self, images: Tensor, threshold: float = 0.05, batch_size: int = 256) -> list[list[Detection]]:
        """Objects in each image, best first.

        Args:
            images: (B, 3, H, W) in [-1, 1]; any size. Boxes are in pixels of these images.
            threshold: Smallest score that is reported; low, because the benchmark applies its own.
            batch_size: Images per forward pass; has no influence on the result.

        Raises:
            ValueError: The shape is another, or values are not finite.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"expected images (B, 3, H, W), got {tuple(images.shape)}")
        if not torch.isfinite(images).all():
            raise ValueError("images hold NaN or infinite values")
        self.eval()
        device = self.head.weight.device
        shapes_found: list[list[Detection]] = []
        for batch in images.split(batch_size):
            shapes_found.extend(self._detect_batch(batch.to(device, torch.float32), threshold))
        return shapes_found

    def _detect_batch(self, images: Tensor, threshold: float) -> list[list[Detection]]:
        height, width = images.shape[-2:]
        if (height, width) != (self.size, self.size):
            images = functional.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        output = self(images.clamp(-1, 1))
        heat = output.heat.sigmoid()
        # A centre is the maximum of its 5 x 5 cells: shapes stand at least 3.8 cells apart along one axis.
        peak = heat == functional.max_pool2d(heat[:, None], 5, 1, 2)[:, 0]
        name_scores, name_ids = output.names.softmax(1).max(1)
        scores, color_ids = heat * name_scores, output.colors.argmax(1)
        image, row, column = (peak & (scores > threshold)).nonzero().T
        middle = torch.stack([column, row], dim=1) * STRIDE + STRIDE / 2  # (M, 2): x, y
        edges = output.edges[image, :, row, column]  # (M, 4)
        boxes = torch.cat([middle - edges[:, :2], middle + edges[:, 2:]], dim=1)
        boxes = boxes * torch.tensor((width, height) * 2, device=boxes.device) / self.size
        result: list[list[Detection]] = [[] for _ in images]
        columns = (
            image,
            name_ids[image, row, column],
            color_ids[image, row, column],
            boxes,
            scores[image, row, column],
        )
        for number, name, color, (left, top, right, bottom), score in zip(*(c.tolist() for c in columns), strict=True):
            box = (left, top, right, bottom)
            result[number].append(Detection(self.names[name], self.colors[color], box, score))
        for detections in result:
            detections.sort(key=lambda detection: -detection.score)
        return result

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``; sizes and names stand in its header."""
        settings = {"names": self.names, "colors": self.colors, "size": self.size, "width": self.width}
        save_file(self.state_dict(), folder / WEIGHTS, {"scene_detector": json.dumps(settings)})
        (folder / WEIGHTS).chmod(0o644)  # the library makes files that only their owner may read

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: There are no weights in ``folder``.
            ValueError: The file is no detector, or is damaged.
        """
        path = folder / WEIGHTS
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; restore it with `git checkout -- {folder}`")
        try:
            with safe_open(path, "pt") as file:
                settings = json.loads((file.metadata() or {})["scene_detector"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            detector = cls(**settings)
            detector.load_state_dict(state)
        except Exception as error:  # safetensors raises its own kinds, torch others: all mean the same here
            raise ValueError(f"{path} is not a scene detector ({error}); restore the file") from error
        return detector.to(device).eval()


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
