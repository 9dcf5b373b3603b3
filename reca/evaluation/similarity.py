"""Similarity of two images without a network: SSIM and PSNR by scikit-image, and GMSD."""

import numpy as np
from numpy.typing import NDArray

from reca.evaluation.samples import Pixels

WINDOW = 11
"""Side in pixels of SSIM's Gaussian window, for the paper's sigma of 1.5."""
GRADIENT = 170 / 255**2
"""The constant of GMSD, with values in 0..1."""
LUMA = (0.299, 0.587, 0.114)


def structural_similarity(first: Pixels, second: Pixels) -> float:
    """Return the mean SSIM (Wang et al., 2004) over all windows inside the image and the channels; 1 for equal images.

    SSIM instead of a squared error: it is bounded, models can be compared without a choice of scale, and a shape that
    is half a pixel off still gets most of its credit.

    Raises:
        ValueError: The sizes differ, or a side is shorter than the window.
    """
    from skimage import metrics  # its import takes a second

    if first.shape != second.shape:
        raise ValueError(f"images of different size: {first.shape} and {second.shape}")
    if min(first.shape[:2]) < WINDOW:
        raise ValueError(f"images of {first.shape[:2]} are smaller than the window of {WINDOW} pixels")
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(metrics.structural_similarity(first, second, data_range=255, channel_axis=2, **gaussian))


def peak_signal_to_noise(first: Pixels, second: Pixels) -> float | None:
    """Return PSNR in decibels; ``None`` for equal images, where it is infinite."""
    from skimage import metrics

    if np.array_equal(first, second):
        return None
    return float(metrics.peak_signal_noise_ratio(first, second, data_range=255))


def gradient_deviation(first: Pixels, second: Pixels) -> float:
    """Return the gradient magnitude similarity deviation (Xue et al., 2014), a perceptual distance; 0 for equal images.

    It is the standard deviation of the similarity of Prewitt gradients of the half-size luminance.

    Raises:
        ValueError: The sizes differ, or a side is shorter than two pixels.
    """
    if first.shape != second.shape or min(first.shape[:2]) < 2:
        raise ValueError(f"images of {first.shape} and {second.shape} have no gradients to compare")
    x, y = (_gradients(image.astype(np.float64) @ np.array(LUMA) / 255) for image in (first, second))
    return float(((2 * x * y + GRADIENT) / (x * x + y * y + GRADIENT)).std())


def _gradients(luminance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the gradients' magnitudes, (H, W) -> (H // 2, W // 2), of means of 2 x 2 pixels, padded with zeros."""
    height, width = (side // 2 for side in luminance.shape)
    half = luminance[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))
    framed = np.pad(half, 1)
    down, across = framed[2:] - framed[:-2], framed[:, 2:] - framed[:, :-2]
    rows = (down[:, :-2] + down[:, 1:-1] + down[:, 2:]) / 3
    columns = (across[:-2] + across[1:-1] + across[2:]) / 3
    return np.hypot(rows, columns)
