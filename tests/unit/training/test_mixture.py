"""Equation 3's weights as samples and shares."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reca.training.mixture import Mixture, mix


def mixed(reconstruction: float, text_to_image: float, understanding: float, batch: int = 64) -> Mixture:
    weights = {"reconstruction": reconstruction, "text_to_image": text_to_image, "understanding": understanding}
    return mix(weights, batch)


def test_reca_with_dialogues_on_top() -> None:
    mixture = mixed(1, 1, 0.25)
    assert mixture.counts == {"reconstruction": 32, "text_to_image": 32, "understanding": 16}
    assert mixture.shares == {"reconstruction": 0.5, "text_to_image": 0.5, "understanding": 0.25}
    assert mixture.images == 64


def test_control_sees_as_many_images_as_reca() -> None:
    control = mixed(0, 1, 0.25)
    assert control.counts == {"reconstruction": 0, "text_to_image": 64, "understanding": 16}
    assert control.images == mixed(1, 1, 0.25).images
    assert control.kinds == ("text_to_image", "understanding")


def test_only_reconstruction_and_only_dialogues() -> None:
    assert mixed(2, 0, 0).counts == {"reconstruction": 64, "text_to_image": 0, "understanding": 0}
    assert mixed(0, 0, 1).counts == {"reconstruction": 0, "text_to_image": 0, "understanding": 64}


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0, 2), st.integers(128, 512), st.floats(0.1, 10))
def test_only_the_ratio_of_the_image_weights_counts(a: float, b: float, c: float, batch: int, factor: float) -> None:
    mixture = mixed(a, b, 0, batch)
    assert mixture.images == batch
    assert mixture.shares["reconstruction"] + mixture.shares["text_to_image"] == pytest.approx(1)
    assert abs(mixture.counts["reconstruction"] - batch * a / (a + b)) <= 0.5 + 1e-9
    scaled = mixed(a * factor, b * factor, 0, batch)
    assert abs(scaled.counts["reconstruction"] - mixture.counts["reconstruction"]) <= 1  # a tie may round either way


@pytest.mark.parametrize(
    ("weights", "key"),
    [((1, 0.001, 0), "text_to_image"), ((0.001, 1, 0), "reconstruction"), ((1, 1, 0.001), "understanding")],
)
def test_weight_too_small_for_a_sample_is_named(weights: tuple[float, float, float], key: str) -> None:
    with pytest.raises(ValueError, match=rf"train\.mixture\.{key}.*train\.global_batch_size=64"):
        mixed(*weights)


@pytest.mark.parametrize("weights", [(0, 0, 0), (-1, 1, 0)])
def test_senseless_weights(weights: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"train\.mixture"):
        mixed(*weights)
