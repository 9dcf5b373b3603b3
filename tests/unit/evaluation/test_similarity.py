"""SSIM has the paper's window and constants; GMSD equals piq's."""

import numpy as np
import pytest
from skimage import data

from reca.evaluation import similarity


def gaussian_windows(length: int) -> np.ndarray:
    """Return the weights of each window of 11 pixels, one per row."""
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    rows = [np.pad(weights / weights.sum(), (row, length - 11 - row)) for row in range(length - 10)]
    return np.stack(rows)


@pytest.mark.parametrize("seed", range(5))
def test_ssim_equals_its_formula(seed):
    """Equations 13 to 16 of Wang et al., in float64; 1e-9 is a million roundings."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(11, 60, 2)
    first = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    second = np.clip(first + rng.normal(0, 40, first.shape), 0, 255).astype(np.uint8)
    x, y = (image.astype(np.float64).transpose(2, 0, 1) / 255 for image in (first, second))
    down, across = gaussian_windows(height), gaussian_windows(width)
    smooth = lambda image: down @ image @ across.T  # noqa: E731
    mean_x, mean_y = smooth(x), smooth(y)
    variances = smooth(x * x) - mean_x**2 + smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    ssim = (2 * mean_x * mean_y + 0.01**2) * (2 * covariance + 0.03**2)
    ssim /= (mean_x**2 + mean_y**2 + 0.01**2) * (variances + 0.03**2)
    assert similarity.structural_similarity(first, second) == pytest.approx(ssim.mean(), abs=1e-9)
    error = np.mean((255 * x - 255 * y) ** 2)
    assert similarity.peak_signal_to_noise(first, second) == pytest.approx(10 * np.log10(255**2 / error))


@pytest.mark.parametrize(("noise", "reference"), [(5, 0.00606780097820967), (20, 0.06405206005969427)])
def test_gradient_deviation_equals_the_reference(noise, reference):
    """``piq.gmsd`` of piq 0.8.0, in float64, on the same pixels; it cannot be installed with this project's torch."""
    original = data.astronaut()[100:180, 150:250]
    changed = np.clip(original + np.random.default_rng(0).normal(0, noise, original.shape), 0, 255).astype(np.uint8)
    assert similarity.gradient_deviation(original, changed) == pytest.approx(reference, rel=1e-12)
    assert similarity.gradient_deviation(changed, original) == pytest.approx(reference, rel=1e-12)
    assert similarity.gradient_deviation(original, original) == 0


def test_equal_images():
    image = data.coffee()[:24, :24]
    assert similarity.structural_similarity(image, image) == pytest.approx(1)
    assert similarity.peak_signal_to_noise(image, image) is None


def test_what_cannot_be_compared_is_refused():
    image = np.zeros((24, 24, 3), np.uint8)
    with pytest.raises(ValueError, match="different size"):
        similarity.structural_similarity(image, image[:20])
    with pytest.raises(ValueError, match="smaller than the window of 11"):
        similarity.structural_similarity(image[:8], image[:8])
    with pytest.raises(ValueError, match="have no gradients to compare"):
        similarity.gradient_deviation(image, image[:20])
