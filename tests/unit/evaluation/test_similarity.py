"""SSIM equals scikit-image's, GMSD piq's; PSNR is what its name says."""

import numpy as np
import pytest
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from reca.evaluation import similarity


@pytest.mark.parametrize("noise", [0, 5, 40])
def test_it_equals_the_reference(noise):
    original = data.astronaut()[100:180, 150:250]
    changed = np.clip(original + np.random.default_rng(0).normal(0, noise, original.shape), 0, 255).astype(np.uint8)
    reference, per_pixel = structural_similarity(
        original, changed, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True,
        data_range=255,
    )  # fmt: skip
    assert similarity.structural_similarity(original, changed) == pytest.approx(per_pixel[5:-5, 5:-5].mean(), abs=1e-6)
    assert similarity.structural_similarity(original, changed) == pytest.approx(reference, abs=1e-6)
    if noise:
        expected = peak_signal_noise_ratio(original, changed)
        assert similarity.peak_signal_to_noise(original, changed) == pytest.approx(expected)


@pytest.mark.parametrize(("noise", "reference"), [(5, 0.00606780097820967), (20, 0.06405206005969427)])
def test_gradient_deviation_equals_the_reference(noise, reference):
    """``piq.gmsd`` of piq 0.8.0, in float64, on the same pixels; it does not install beside this project's torch."""
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
