"""The weights of equation 3 as sample counts and λ."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reca.training.mixture import Mixture, build_mixture


def mixture_of(reconstruction: float, text_to_image: float, understanding: float, batch: int = 64) -> Mixture:
    weights = {"reconstruction": reconstruction, "text_to_image": text_to_image, "understanding": understanding}
    return build_mixture(weights, batch)


def test_mixture_adds_dialogues_to_the_images() -> None:
    mixture = mixture_of(1, 1, 0.25)
    assert mixture.counts == {"reconstruction": 32, "text_to_image": 32, "understanding": 16}
    assert mixture.loss_weights == {"reconstruction": 0.5, "text_to_image": 0.5, "understanding": 0.25}


def test_mixture_of_the_control_has_as_many_images_as_reca() -> None:
    control = mixture_of(0, 1, 0.25)
    assert control.counts == {"reconstruction": 0, "text_to_image": 64, "understanding": 16}
    assert control.kinds == ("text_to_image", "understanding")


def test_mixture_of_one_loss_gets_the_whole_batch() -> None:
    assert mixture_of(2, 0, 0).counts == {"reconstruction": 64, "text_to_image": 0, "understanding": 0}
    assert mixture_of(0, 0, 1).counts == {"reconstruction": 0, "text_to_image": 0, "understanding": 64}


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0, 2), st.integers(128, 512), st.floats(0.1, 10))
def test_mixture_depends_on_the_ratio_of_image_weights_only(
    a: float, b: float, c: float, batch: int, factor: float
) -> None:
    mixture = mixture_of(a, b, 0, batch)
    assert sum(mixture.counts.values()) == batch
    assert mixture.loss_weights["reconstruction"] + mixture.loss_weights["text_to_image"] == pytest.approx(1)
    assert abs(mixture.counts["reconstruction"] - batch * a / (a + b)) <= 0.5 + 1e-9
    scaled = mixture_of(a * factor, b * factor, 0, batch)
    assert abs(scaled.counts["reconstruction"] - mixture.counts["reconstruction"]) <= 1  # a tie may round either way


@pytest.mark.parametrize(
    ("weights", "key"),
    [((1, 0.001, 0), "text_to_image"), ((0.001, 1, 0), "reconstruction"), ((1, 1, 0.001), "understanding")],
)
def test_mixture_names_a_weight_too_small_for_a_sample(weights: tuple[float, float, float], key: str) -> None:
    with pytest.raises(ValueError, match=rf"train\.mixture\.{key}.*train\.global_batch_size=64"):
        mixture_of(*weights)


@pytest.mark.parametrize("weights", [(0, 0, 0), (-1, 1, 0)])
def test_mixture_refuses_zero_and_negative_weights(weights: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"train\.mixture"):
        mixture_of(*weights)
