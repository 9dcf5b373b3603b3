"""BAGEL keeps the shape of images: the contract on a tiny BAGEL with images of several shapes."""

import pytest
import torch
from torch import Tensor

from reca.models.bagel.model import Bagel
from reca.models.base import Dialogue, Loss, Semantic, Target
from reca.models.sampling import Sampling
from reca.runtime.seeding import SampleRng
from tools.tiny_bases import bagel_tiny

TARGET_SIZES = [(24, 24), (12, 24), (24, 16), (12, 24)]
"""Height and width in pixels of the images to generate; multiples of 4."""
CONDITION_SIZES = [(24, 24), (12, 24), (24, 18), (12, 24)]
"""Height and width in pixels of the images to understand; multiples of 6."""
DIALOGUES = [Dialogue("what color is the circle", "red"), Dialogue("how many rings are there in a photo", "two")]
TEMPLATES = ["describe the image", "what is in the image", "describe the image in detail", "a photo of a ring"]


@pytest.fixture(scope="module")
def model() -> Bagel:
    torch.manual_seed(0)
    return bagel_tiny.build(prompt_dropout=0.0)


def random_images(sizes: list[tuple[int, int]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, *size, generator=generator) * 2 - 1 for size in sizes]


def loss(model: Bagel, rows: list[int], semantic: Semantic | None = None, target: Target | None = None) -> Loss:
    conditions, targets = random_images(CONDITION_SIZES), random_images(TARGET_SIZES)
    semantic = semantic or model.encode_semantic([conditions[row] for row in rows])
    target = target or model.encode_target([targets[row] for row in rows], SampleRng([0] * len(rows)))
    rng = SampleRng([10 + row for row in rows])
    return model.reconstruction_loss(semantic, [TEMPLATES[row] for row in rows], target, rng)


def test_encoders_return_one_row_per_patch_and_latent(model: Bagel) -> None:
    semantic = model.encode_semantic(random_images(CONDITION_SIZES))
    assert [len(row) for row in semantic.rows()] == [16, 8, 12, 8]
    target = model.encode_target(random_images(TARGET_SIZES), SampleRng([0] * 4))
    assert [row.shape[1:].numel() for row in target.rows()] == [
        height * width // model.stride**2 * model.network.sizes.latent_patch**2 for height, width in TARGET_SIZES
    ]


@torch.no_grad()
def test_loss_of_a_mixed_batch_is_the_token_weighted_mean(model: Bagel) -> None:
    together = loss(model, [0, 1, 2, 3])
    parts = [loss(model, [row]) for row in range(4)]
    assert [part.n_targets for part in parts] == [36, 18, 24, 18]
    assert together.n_targets == sum(part.n_targets for part in parts)
    expected = sum(float(part.value) * part.n_targets for part in parts) / together.n_targets
    assert float(together.value) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_loss_on_cached_embeddings_equals_the_live_loss(model: Bagel) -> None:
    semantic = model.encode_semantic(random_images(CONDITION_SIZES))
    target = model.encode_target(random_images(TARGET_SIZES), SampleRng([0] * 4))
    live = loss(model, [0, 1, 2, 3])
    stored = (
        Semantic.from_rows([row.clone() for row in semantic.rows()]),
        Target.from_rows([row.clone() for row in target.rows()]),
    )
    assert float(loss(model, [0, 1, 2, 3], *stored).value) == float(live.value)
    bf16 = Semantic.from_rows([row.bfloat16().float() for row in semantic.rows()])
    assert float(loss(model, [0, 1, 2, 3], bf16, target).value) == pytest.approx(float(live.value), rel=2**-9)


@torch.no_grad()
def test_a_list_of_squares_encodes_like_a_batch(model: Bagel) -> None:
    images = random_images([(24, 24)] * 3)
    listed, stacked = model.encode_semantic(images), model.encode_semantic(torch.stack(images))
    assert torch.equal(listed.embeds, stacked.embeds)
    assert listed.embeds.shape == (3, model.spec.semantic_tokens, listed.embeds.shape[-1])
    targets = [model.encode_target(batch, SampleRng([0] * 3)) for batch in (images, torch.stack(images))]
    torch.testing.assert_close(targets[0].values, targets[1].values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"freeze_understanding": False, "train_vision": True}])
def test_gradients_of_mixed_shapes_reach_exactly_the_trainable_parameters(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = bagel_tiny.build(prompt_dropout=0.0, **options)
    value = loss(model, [0, 1, 2]).value
    if options:  # only answers train the understanding expert's last layer
        value = value + model.understanding_loss(random_images(CONDITION_SIZES[:2]), DIALOGUES, SampleRng([1, 2])).value
    value.backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert with_gradient == set(model.trainable())


@torch.no_grad()
def test_images_have_the_requested_size(model: Bagel) -> None:
    sampling = Sampling(3.0, num_steps=2, size=(12, 24))
    assert model.generate(TEMPLATES[:2], sampling, SampleRng([1, 2])).shape == (2, 3, 12, 24)
    semantic = model.encode_semantic(random_images(CONDITION_SIZES))
    images = model.reconstruct(semantic, sampling, SampleRng([1, 2, 3, 4]))
    assert images.shape == (4, 3, 12, 24)
    single = model.reconstruct(Semantic.from_rows(semantic.rows()[2:3]), sampling, SampleRng([3]))
    torch.testing.assert_close(images[2:3], single, atol=1e-4, rtol=1e-4)
    assert model.reconstruct(semantic, Sampling(1.0, num_steps=1), SampleRng([1, 2, 3, 4])).shape == (4, 3, 24, 24)


def test_answers_about_images_of_any_shape_do_not_depend_on_the_batch(model: Bagel) -> None:
    together = model.answer(random_images(CONDITION_SIZES), [dialogue.question for dialogue in DIALOGUES * 2])
    assert together[1] == model.answer(random_images(CONDITION_SIZES)[1:2], [DIALOGUES[1].question])[0]


def test_sizes_that_do_not_fit_are_refused(model: Bagel) -> None:
    valid = random_images([(24, 24)])
    with pytest.raises(ValueError, match="4 x 24 cannot be cut into patches of 6 x 6"):
        model.encode_semantic([*valid, torch.zeros(3, 4, 24)])
    with pytest.raises(ValueError, match="2 x 24 pixels cannot be generated.*multiples of 4"):
        model.encode_target([*valid, torch.zeros(3, 2, 24)], SampleRng([1, 2]))
    with pytest.raises(ValueError, match="12 x 48 pixels cannot be generated.*at most 24"):
        model.generate(TEMPLATES[:1], Sampling(1.0, num_steps=1, size=(12, 48)), SampleRng([1]))
