"""How like two images are: SSIM, PSNR and GMSD, without a dependency for sixty lines of algebra."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from reca.evaluation.samples import Pixels

SIGMA, RADIUS = 1.5, 5
"""The paper's Gaussian window of 11 x 11 pixels."""
LUMINANCE, CONTRAST = 0.01**2, 0.03**2
"""The paper's K1 and K2, squared, for values in 0..1."""
GRADIENT = 170 / 255**2
"""GMSD's constant, for values in 0..1."""
LUMA = (0.299, 0.587, 0.114)


def structural_similarity(first: Pixels, second: Pixels) -> float:
    """Mean SSIM (Wang et al., 2004) over all windows inside the image and the three channels, in -1..1; 1 if equal.

    SSIM and not a squared error: it is bounded, one model can be compared with another without a choice of scale,
    and a shape that is drawn half a pixel beside its place still counts for most of its worth.

    Raises:
        ValueError: The sizes differ, or a side is shorter than the window.
    """
    if first.shape != second.shape:
        raise ValueError(f"images of different size: {first.shape} and {second.shape}")
    if min(first.shape[:2]) < 2 * RADIUS + 1:
        raise ValueError(f"images of {first.shape[:2]} are smaller than the window of {2 * RADIUS + 1} pixels")
    x, y = (image.astype(np.float64).transpose(2, 0, 1) / 255 for image in (first, second))
    mean_x, mean_y = _smooth(x), _smooth(y)
    variance_x = _smooth(x * x) - mean_x**2
    variance_y = _smooth(y * y) - mean_y**2
    covariance = _smooth(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + LUMINANCE) * (2 * covariance + CONTRAST)
    ceiling = (mean_x**2 + mean_y**2 + LUMINANCE) * (variance_x + variance_y + CONTRAST)
    return float((likeness / ceiling).mean())


def peak_signal_to_noise(first: Pixels, second: Pixels) -> float | None:
    """PSNR in decibels; ``None`` for equal images, where it is infinite."""
    error = float(np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2))
    return None if error == 0 else 10 * float(np.log10(255**2 / error))


def gradient_deviation(first: Pixels, second: Pixels) -> float:
    """Gradient magnitude similarity deviation (Xue et al., 2014): a perceptual distance without a network; 0 if equal.

    How unevenly edges got lost: the standard deviation of the likeness of Prewitt gradients of the half-size luminance.

    Raises:
        ValueError: The sizes differ, or a side is shorter than two pixels.
    """
    if first.shape != second.shape or min(first.shape[:2]) < 2:
        raise ValueError(f"images of {first.shape} and {second.shape} have no gradients to compare")
    x, y = (_gradients(image.astype(np.float64) @ np.array(LUMA) / 255) for image in (first, second))
    return float(((2 * x * y + GRADIENT) / (x * x + y * y + GRADIENT)).std())


def _gradients(luminance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Magnitudes (H // 2, W // 2) of the gradients of means of 2 x 2 pixels (H, W), zeros around."""
    height, width = (side // 2 for side in luminance.shape)
    half = luminance[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))
    framed = np.pad(half, 1)
    down, across = framed[2:] - framed[:-2], framed[:, 2:] - framed[:, :-2]
    rows = (down[:, :-2] + down[:, 1:-1] + down[:, 2:]) / 3
    columns = (across[:-2] + across[1:-1] + across[2:]) / 3
    return np.hypot(rows, columns)


def _smooth(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian means of all windows that lie inside: (3, H, W) -> (3, H - 10, W - 10)."""
    return _windows(image.shape[1]) @ image @ _windows(image.shape[2]).T


@cache
def _windows(length: int) -> NDArray[np.float64]:
    """One window's weights per row, (length - 10, length)."""
    weights = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    matrix = np.zeros((length - 2 * RADIUS, length))
    for row in range(len(matrix)):
        matrix[row, row : row + len(weights)] = weights / weights.sum()
    return matrix
