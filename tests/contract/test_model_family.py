"""What every model family must do, run over each of them (reca/models/base.py says why)."""

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
from reca.data.synthetic.scenes import QUESTION_KINDS, render, sample_scene
from reca.models.base import Dialogue, Loss, Sampling, Semantic, UnifiedModel, load_model
from reca.models.harmon.dropout import SampleDropout
from reca.runtime.seeding import SampleRng

PRESETS = sorted(path.stem for path in (ROOT / "conf/model").glob("*_tiny.yaml"))
CPU = torch.device("cpu")
PROMPTS = ["a photo of a red circle", "two squares and a blue ring", "a bar left of a cross"]
TEMPLATE = "describe the image in detail"
QUESTIONS = [Dialogue("what color is the circle", "red"), Dialogue("how many rings are there", "two")]


@cache
def base(preset: str) -> Path:
    """A preset's base; where none is committed, one with random weights."""
    section = compose([f"model={preset}"]).model
    committed = ROOT / section.checkpoint
    if committed.is_dir():
        return committed
    torch.manual_seed(0)
    folder = Path(mkdtemp(prefix=preset)) / "base"
    import_module(f"tools.tiny_bases.{preset}").build().save_official(folder)
    return folder


def load(preset: str, folder: Path | None = None, **options: object) -> UnifiedModel:
    """A preset's base, or another checkpoint under its options."""
    section = compose([f"model={preset}"]).model
    return load_model(section.family, folder or base(preset), {**section.load_options(ROOT), **options}, CPU)


def is_trained(preset: str) -> bool:
    """Whether the base is a committed one; in new weights, last layers may start at zero."""
    return base(preset).is_relative_to(ROOT)


def drawing(guidance_scale: float = 2.0) -> Sampling:
    """Few steps: what is drawn does not matter here."""
    return Sampling(guidance_scale, num_steps=3)


@pytest.fixture(scope="module", params=PRESETS)
def preset(request: pytest.FixtureRequest) -> str:
    """Each family's tiny preset."""
    return str(request.param)


@pytest.fixture(scope="module")
def model(preset: str) -> UnifiedModel:
    """Its base, without dropout: losses are compared."""
    return load(preset, prompt_dropout=0.0)


def pictures(model: UnifiedModel, count: int, size: int) -> Tensor:
    """Rendered scenes as the model reads them."""
    from PIL import Image

    scenes = [sample_scene(12345, index) for index in range(count)]
    return square_tensor([Image.fromarray(image) for image in render(scenes, 24)], size)


def losses(model: UnifiedModel, rows: Sequence[int] = (0, 1, 2)) -> dict[str, Callable[[], Loss]]:
    """The losses on three images, or some of them; of the first two, one has a question each."""
    rows, asked = list(rows), [row for row in rows if row < len(QUESTIONS)]
    seen = pictures(model, 3, model.spec.understanding_size)
    shown = pictures(model, 3, model.spec.generation_size)[rows]
    target = model.encode_target(shown, SampleRng([1 + row for row in rows]))

    def reconstruction() -> Loss:
        rng = SampleRng([4 + row for row in rows])
        return model.reconstruction_loss(model.encode_semantic(seen[rows], rng), [TEMPLATE] * len(rows), target, rng)

    def text_to_image() -> Loss:
        return model.text_to_image_loss([PROMPTS[row] for row in rows], target, SampleRng([4 + row for row in rows]))

    def understanding() -> Loss:
        rng = SampleRng([7 + row for row in asked])
        return model.understanding_loss(seen[asked], [QUESTIONS[row] for row in asked], rng)

    found = {"reconstruction": reconstruction, "text_to_image": text_to_image}
    return {**found, "understanding": understanding} if asked else found


def dropping(model: UnifiedModel, rate: float = 0.1) -> UnifiedModel:
    """In training, with the dropout that large models of the family have; the tiny ones have none."""
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
    drawn = model.generate(PROMPTS, drawing(), SampleRng([1, 2, 3]))
    assert drawn.shape == (3, 3, spec.generation_size, spec.generation_size)
    assert drawn.min() >= -1
    assert drawn.max() <= 1


def test_gradients_reach_exactly_what_is_trainable(model: UnifiedModel, preset: str) -> None:
    for parameter in model.parameters():
        parameter.grad = None
    for loss in losses(model).values():
        value = loss().value
        if value.requires_grad:  # questions teach nothing where understanding is frozen
            value.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == set(model.trainable())
    still = {n for n, p in model.named_parameters() if p.grad is not None and not bool(p.grad.abs().sum() > 0)}
    assert not still or not is_trained(preset), "these are trained in name only"


def test_a_loss_is_a_mean_over_its_targets(model: UnifiedModel) -> None:
    with torch.no_grad():
        for name, loss in losses(model).items():
            found = loss()
            assert torch.isfinite(found.value), name
            assert found.n_targets > 0
    target = model.encode_target(pictures(model, 3, model.spec.generation_size), SampleRng([1, 2, 3]))
    with torch.no_grad():
        whole = model.text_to_image_loss(PROMPTS, target, SampleRng([1, 2, 3]))
        parts = [
            model.text_to_image_loss([prompt], type(target)(target.values[row : row + 1]), SampleRng([row + 1]))
            for row, prompt in enumerate(PROMPTS)
        ]
    together = sum(float(part.value) * part.n_targets for part in parts) / sum(part.n_targets for part in parts)
    assert together == pytest.approx(float(whole.value), rel=1e-5)
    assert whole.n_targets == sum(part.n_targets for part in parts)


def test_in_training_too_a_loss_depends_on_its_own_samples_only(preset: str) -> None:
    """Neither on their neighbours nor on what torch's generator would draw, dropout of all kinds included."""
    model = dropping(load(preset, prompt_dropout=0.5))
    reads = model.family not in ("bagel", "openuni")  # else the understanding half is frozen, and may be refused
    state = torch.get_rng_state()
    for kind in ("reconstruction", "text_to_image", *(("understanding",) if reads else ())):
        with torch.no_grad():
            whole = losses(model)[kind]()
            parts = [losses(model, [row])[kind]() for row in range(2 if kind == "understanding" else 3)]
        assert whole.n_targets == sum(part.n_targets for part in parts)
        together = sum(float(part.value) * part.n_targets for part in parts) / whole.n_targets
        assert together == pytest.approx(float(whole.value), rel=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_loss_on_cached_embeddings_is_the_live_loss(model: UnifiedModel) -> None:
    assert "target" in model.cacheable
    seen = pictures(model, 2, model.spec.understanding_size)
    target = model.encode_target(pictures(model, 2, model.spec.generation_size), SampleRng([1, 2]))
    with torch.no_grad():
        live = model.encode_semantic(seen)
        values = [
            float(model.reconstruction_loss(semantic, [TEMPLATE] * 2, target, SampleRng([1, 2])).value)
            for semantic in (live, Semantic(live.embeds.clone()), Semantic(live.embeds.bfloat16().float()))
        ]
    assert values[0] == values[1]
    if "semantic" in model.cacheable:
        assert values[2] == pytest.approx(values[0], rel=5e-3)  # what storing bf16 costs


def test_training_the_encoder_forbids_caching_it(preset: str) -> None:
    assert "semantic" not in load(preset, train_vision=True).cacheable


def test_dropout_hides_the_condition(preset: str) -> None:
    blind = load(preset, prompt_dropout=1.0).train()
    target = blind.encode_target(pictures(blind, 1, blind.spec.generation_size), SampleRng([1]))
    same_length = ["a photo of a red circle", "a photo of a blue frame"]
    with torch.no_grad():
        first, second = (float(blind.text_to_image_loss([text], target, SampleRng([1])).value) for text in same_length)
    assert first == second
    blind.eval()  # what is measured is measured with its condition
    with torch.no_grad():
        first, second = (float(blind.text_to_image_loss([text], target, SampleRng([1])).value) for text in same_length)
    assert first != second or not is_trained(preset)


def test_save_then_load_is_the_identity(model: UnifiedModel, preset: str, tmp_path: Path) -> None:
    model.save_official(tmp_path / "saved")
    again = load(preset, tmp_path / "saved")
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    again.save_official(tmp_path / "twice")
    written = {path.relative_to(tmp_path / "saved") for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert written == {p.relative_to(tmp_path / "twice") for p in (tmp_path / "twice").rglob("*") if p.is_file()}
    for name in written:
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes(), name
    drawn = [m.generate(PROMPTS[:1], drawing(), SampleRng([3])) for m in (model, again)]
    assert torch.equal(*drawn)


def test_an_image_depends_on_its_seed_and_prompt_only(model: UnifiedModel) -> None:
    together = model.generate(PROMPTS, drawing(), SampleRng([1, 2, 3]))
    alone = model.generate(PROMPTS[1:2], drawing(), SampleRng([2]))
    assert torch.allclose(alone[0], together[1], atol=1e-4)
    other = model.generate(PROMPTS[1:2], drawing(), SampleRng([9]))
    assert not torch.allclose(other[0], together[1], atol=1e-2)
    semantic = model.encode_semantic(pictures(model, 2, model.spec.understanding_size))
    both = model.reconstruct(semantic, drawing(1.0), SampleRng([1, 2]))
    one = model.reconstruct(Semantic(semantic.embeds[1:]), drawing(1.0), SampleRng([2]))
    assert torch.allclose(one[0], both[1], atol=1e-4)


def test_answers_are_words_and_do_not_depend_on_the_batch(model: UnifiedModel) -> None:
    assert QUESTION_KINDS
    images = pictures(model, 2, model.spec.understanding_size)
    asked = ["what color is the circle", "where is the square relative to the ring"]
    together = model.answer(images, asked)
    assert [model.answer(images[row : row + 1], asked[row : row + 1])[0] for row in (0, 1)] == together
    assert all(together)


def test_bad_checkpoints_are_named(preset: str, tmp_path: Path) -> None:
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
        model.generate(["a circle and " * 200], drawing(1.0), SampleRng([1]))


class Read(TorchDispatchMode):
    """Notes which tensors operators are given."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.tensors |= {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        return func(*args, **(kwargs or {}))


def encodings(model: UnifiedModel) -> dict[str, Tensor]:
    """What ``extract`` would store of three images."""
    found = {"target": model.encode_target(pictures(model, 3, model.spec.generation_size), SampleRng([1, 2, 3])).values}
    if "semantic" in model.cacheable:
        found["semantic"] = model.encode_semantic(pictures(model, 3, model.spec.understanding_size)).values
    return found


@torch.no_grad()
@pytest.mark.parametrize("train_vision", [False, True])
def test_encoders_alone_say_what_the_whole_model_says(preset: str, train_vision: bool) -> None:
    model = load(preset, train_vision=train_vision)
    with Read() as read:
        whole = encodings(model)
    needed = {name for name, parameter in model.named_parameters() if id(parameter) in read.tensors}
    parameters = {name: weakref.ref(parameter) for name, parameter in model.named_parameters()}
    alone = encodings(model.keep_encoders())
    assert all(torch.equal(alone[field], whole[field]) for field in whole)
    gc.collect()
    assert {name for name, parameter in parameters.items() if parameter() is not None} == needed < parameters.keys()
