"""The contract of :mod:`reca.models.base`, tested on the tiny preset of every family."""

import dataclasses
import gc
import re
import shutil
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reca.config import ROOT, compose
from reca.data.images import square_tensor
from reca.data.synthetic.scenes import render, sample_scene
from reca.models.base import Dialogue, Loss, Semantic, UnifiedModel
from reca.models.harmon.dropout import SampleDropout
from reca.models.loading import load_model
from reca.models.sampling import Sampling
from reca.runtime.seeding import SampleRng

PRESETS = sorted(path.stem for path in (ROOT / "conf/model").glob("*_tiny.yaml"))
CPU = torch.device("cpu")
PROMPTS = ["a photo of a red circle", "two squares and a blue ring", "a bar left of a cross"]
TEMPLATE = "describe the image in detail"
QUESTIONS = [Dialogue("what color is the circle", "red"), Dialogue("how many rings are there", "two")]


@cache
def base(preset: str) -> Path:
    """Return a preset's base model folder, with random weights if no base is committed."""
    section = compose([f"model={preset}"]).model
    committed = ROOT / section.checkpoint
    if committed.is_dir():
        return committed
    torch.manual_seed(0)
    folder = Path(mkdtemp(prefix=preset)) / "base"
    import_module(f"tools.tiny_bases.{preset}").build().save_official(folder)
    return folder


def load(preset: str, folder: Path | None = None, **options: object) -> UnifiedModel:
    """Load a preset's base model, or another checkpoint with the preset's options."""
    section = compose([f"model={preset}"]).model
    return load_model(section.family, folder or base(preset), {**section.load_options(ROOT), **options}, CPU)


def few_steps(guidance_scale: float = 2.0) -> Sampling:
    """Return settings with few steps, because image quality does not matter here."""
    return Sampling(guidance_scale, num_steps=3)


@pytest.fixture(scope="module", params=PRESETS)
def preset(request: pytest.FixtureRequest) -> str:
    """Return the tiny preset of a family."""
    return str(request.param)


@pytest.fixture(scope="module")
def model(preset: str) -> UnifiedModel:
    """Return the base model without dropout, because losses are compared."""
    return load(preset, prompt_dropout=0.0)


def pictures(model: UnifiedModel, count: int, size: int) -> Tensor:
    """Return rendered scenes, (count, 3, size, size)."""
    from PIL import Image

    scenes = [sample_scene(12345, index) for index in range(count)]
    return square_tensor([Image.fromarray(image) for image in render(scenes, 24)], size)


def losses(model: UnifiedModel, rows: Sequence[int] = (0, 1, 2)) -> dict[str, Callable[[], Loss]]:
    """Return the losses on the given rows of three images; the first two have a question."""
    rows, with_question = list(rows), [row for row in rows if row < len(QUESTIONS)]
    conditions = pictures(model, 3, model.spec.understanding_size)
    images = pictures(model, 3, model.spec.generation_size)[rows]
    target = model.encode_target(images, SampleRng([1 + row for row in rows]))

    def reconstruction() -> Loss:
        rng = SampleRng([4 + row for row in rows])
        return model.reconstruction_loss(
            model.encode_semantic(conditions[rows], rng), [TEMPLATE] * len(rows), target, rng
        )

    def text_to_image() -> Loss:
        return model.text_to_image_loss([PROMPTS[row] for row in rows], target, SampleRng([4 + row for row in rows]))

    def understanding() -> Loss:
        rng = SampleRng([7 + row for row in with_question])
        dialogues = [QUESTIONS[row] for row in with_question]
        return model.understanding_loss(conditions[with_question], dialogues, rng)

    image_losses = {"reconstruction": reconstruction, "text_to_image": text_to_image}
    return {**image_losses, "understanding": understanding} if with_question else image_losses


def dropping(model: UnifiedModel, rate: float = 0.1) -> UnifiedModel:
    """Return the model in training mode with the dropout of the family's large models."""
    for module in model.train().modules():
        if isinstance(module, SampleDropout):
            module.rate = rate
    return model


def test_sizes_are_as_declared(model: UnifiedModel) -> None:
    spec = model.spec
    semantic = model.encode_semantic(pictures(model, 2, spec.understanding_size))
    assert semantic.embeds.shape[:2] == (2, spec.semantic_tokens)
    target = model.encode_target(pictures(model, 2, spec.generation_size), SampleRng([1, 2]))
    assert not target.values.requires_grad
    assert len(target.values) == 2
    if not target.values.is_floating_point():
        assert target.values.shape == (2, spec.target_tokens)
    images = model.generate(PROMPTS, few_steps(), SampleRng([1, 2, 3]))
    assert images.shape == (3, 3, spec.generation_size, spec.generation_size)
    assert images.min() >= -1
    assert images.max() <= 1


def test_another_size_is_drawn_or_refused(model: UnifiedModel) -> None:
    wide = dataclasses.replace(few_steps(), size=(16, 24))
    if model.family in ("bagel", "harmon"):
        assert model.generate(PROMPTS[:1], wide, SampleRng([1])).shape == (1, 3, 16, 24)
    else:
        with pytest.raises(ValueError, match="24 x 24 pixels only"):
            model.generate(PROMPTS[:1], wide, SampleRng([1]))


def test_gradients_reach_exactly_the_trainable_parameters(model: UnifiedModel, preset: str) -> None:
    for parameter in model.parameters():
        parameter.grad = None
    for loss in losses(model).values():
        value = loss().value
        if value.requires_grad:  # no gradient where understanding is frozen
            value.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(model.trainable())
    zero_gradient = {n for n, p in model.named_parameters() if p.grad is not None and not bool(p.grad.abs().sum() > 0)}
    assert not zero_gradient


def test_a_loss_is_a_mean_over_its_targets(model: UnifiedModel) -> None:
    with torch.no_grad():
        for name, loss in losses(model).items():
            result = loss()
            assert torch.isfinite(result.value), name
            assert result.n_targets > 0
    target = model.encode_target(pictures(model, 3, model.spec.generation_size), SampleRng([1, 2, 3]))
    with torch.no_grad():
        batch = model.text_to_image_loss(PROMPTS, target, SampleRng([1, 2, 3]))
        parts = [
            model.text_to_image_loss([prompt], type(target)(target.values[row : row + 1]), SampleRng([row + 1]))
            for row, prompt in enumerate(PROMPTS)
        ]
    mean = sum(float(part.value) * part.n_targets for part in parts) / sum(part.n_targets for part in parts)
    assert mean == pytest.approx(float(batch.value), rel=1e-5)
    assert batch.n_targets == sum(part.n_targets for part in parts)


def test_a_training_loss_depends_on_its_own_samples_only(preset: str) -> None:
    """Neither other samples nor torch's global generator change a loss, with all kinds of dropout."""
    model = dropping(load(preset, prompt_dropout=0.5))
    reads = model.family not in ("bagel", "openuni")  # the others freeze understanding
    state = torch.get_rng_state()
    for kind in ("reconstruction", "text_to_image", *(("understanding",) if reads else ())):
        with torch.no_grad():
            batch = losses(model)[kind]()
            parts = [losses(model, [row])[kind]() for row in range(2 if kind == "understanding" else 3)]
        assert batch.n_targets == sum(part.n_targets for part in parts)
        mean = sum(float(part.value) * part.n_targets for part in parts) / batch.n_targets
        assert mean == pytest.approx(float(batch.value), rel=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_loss_on_cached_embeddings_equals_the_live_loss(model: UnifiedModel) -> None:
    assert "target" in model.cacheable
    conditions = pictures(model, 2, model.spec.understanding_size)
    target = model.encode_target(pictures(model, 2, model.spec.generation_size), SampleRng([1, 2]))
    with torch.no_grad():
        live = model.encode_semantic(conditions)
        values = [
            float(model.reconstruction_loss(semantic, [TEMPLATE] * 2, target, SampleRng([1, 2])).value)
            for semantic in (live, Semantic(live.embeds.clone()), Semantic(live.embeds.bfloat16().float()))
        ]
    assert values[0] == values[1]
    if "semantic" in model.cacheable:
        # bfloat16 moves no embedding by more than 2^-9 of itself, up or down; losses moved by 9e-5 at most.
        assert values[2] == pytest.approx(values[0], rel=2**-9)


def test_training_the_encoder_forbids_caching_it(preset: str) -> None:
    assert "semantic" not in load(preset, train_vision=True).cacheable


def test_dropout_hides_the_condition(preset: str) -> None:
    blind = load(preset, prompt_dropout=1.0).train()
    target = blind.encode_target(pictures(blind, 1, blind.spec.generation_size), SampleRng([1]))
    same_length = ["a photo of a red circle", "a photo of a blue frame"]
    with torch.no_grad():
        first, second = (float(blind.text_to_image_loss([text], target, SampleRng([1])).value) for text in same_length)
    assert first == second
    blind.eval()  # no dropout in evaluation
    with torch.no_grad():
        first, second = (float(blind.text_to_image_loss([text], target, SampleRng([1])).value) for text in same_length)
    assert first != second


def test_save_then_load_is_the_identity(model: UnifiedModel, preset: str, tmp_path: Path) -> None:
    model.save_official(tmp_path / "saved")
    again = load(preset, tmp_path / "saved")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again.save_official(tmp_path / "twice")
    written = {path.relative_to(tmp_path / "saved") for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert written == {p.relative_to(tmp_path / "twice") for p in (tmp_path / "twice").rglob("*") if p.is_file()}
    for name in written:
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes(), name
    images = [m.generate(PROMPTS[:1], few_steps(), SampleRng([3])) for m in (model, again)]
    assert torch.equal(*images)


def test_an_image_depends_on_its_seed_and_prompt_only(model: UnifiedModel) -> None:
    batch = model.generate(PROMPTS, few_steps(), SampleRng([1, 2, 3]))
    single = model.generate(PROMPTS[1:2], few_steps(), SampleRng([2]))
    assert torch.allclose(single[0], batch[1], atol=1e-4)
    other = model.generate(PROMPTS[1:2], few_steps(), SampleRng([9]))
    assert not torch.allclose(other[0], batch[1], atol=1e-2)
    semantic = model.encode_semantic(pictures(model, 2, model.spec.understanding_size))
    both = model.reconstruct(semantic, few_steps(1.0), SampleRng([1, 2]))
    second = model.reconstruct(Semantic(semantic.embeds[1:]), few_steps(1.0), SampleRng([2]))
    assert torch.allclose(second[0], both[1], atol=1e-4)


def test_answers_are_words_and_do_not_depend_on_the_batch(model: UnifiedModel) -> None:
    images = pictures(model, 2, model.spec.understanding_size)
    questions = ["what color is the circle", "where is the square relative to the ring"]
    answers = model.answer(images, questions)
    assert [model.answer(images[row : row + 1], questions[row : row + 1])[0] for row in (0, 1)] == answers
    assert all(answers)


def test_bad_checkpoints_are_refused(preset: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load(preset, tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(base(preset), broken)
    largest = max(broken.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(ValueError, match=re.escape(largest.name)):
        load(preset, broken)


def test_a_prompt_longer_than_the_context_is_refused(model: UnifiedModel) -> None:
    with pytest.raises(ValueError, match="tokens"):
        model.generate(["a circle and " * 200], few_steps(1.0), SampleRng([1]))


class TensorRecorder(TorchDispatchMode):
    """Records the tensors that operators receive."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.tensors |= {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        return func(*args, **(kwargs or {}))


def encodings(model: UnifiedModel) -> dict[str, Tensor]:
    """Return the outputs that ``extract`` would store for three images."""
    outputs = {
        "target": model.encode_target(pictures(model, 3, model.spec.generation_size), SampleRng([1, 2, 3])).values
    }
    if "semantic" in model.cacheable:
        outputs["semantic"] = model.encode_semantic(pictures(model, 3, model.spec.understanding_size)).values
    return outputs


@torch.no_grad()
@pytest.mark.parametrize("train_vision", [False, True])
def test_encoders_alone_give_the_outputs_of_the_whole_model(preset: str, train_vision: bool) -> None:
    model = load(preset, train_vision=train_vision)
    with TensorRecorder() as recorder:
        expected = encodings(model)
    needed = {name for name, parameter in model.named_parameters() if id(parameter) in recorder.tensors}
    parameters = {name: weakref.ref(parameter) for name, parameter in model.named_parameters()}
    actual = encodings(model.keep_encoders())
    assert all(torch.equal(actual[field], expected[field]) for field in expected)
    gc.collect()
    assert {name for name, parameter in parameters.items() if parameter() is not None} == needed < parameters.keys()
