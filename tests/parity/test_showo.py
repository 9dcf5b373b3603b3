"""Show-o: the official code's numbers, the contract on the tiny model, the published sizes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, PhiConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from reca.models.base import Dialogue, Loss, Semantic
from reca.models.loading import load_model
from reca.models.sampling import Sampling
from reca.models.showo.autoencoder import Magvit, MagvitSizes
from reca.models.showo.checkpoint import ShowoParts, build_vocabulary, empty_phi, empty_projector
from reca.models.showo.model import Showo
from reca.models.showo.sampling import random_mask, sample_codes
from reca.models.showo.sequence import (
    FEATURE_ID,
    Vocabulary,
    generation_sequences,
    reconstruction_sequences,
    understanding_sequences,
)
from reca.runtime.seeding import SampleRng
from tests.parity.comparison import Recording, options_of
from tests.parity.showo import load as load_recorded
from tests.parity.showo import replay
from tools.tiny_bases import showo_tiny

FIXTURE = Path(__file__).parent / "fixtures/showo"
CPU = torch.device("cpu")
OPTIONS = options_of("showo", template_tokens=24, system_prompt="")
PROMPTS = ["a photo of a red circle", "two squares and a blue ring", "a"]
TEMPLATE = "describe the image in detail"
DIALOGUES = [Dialogue("what color is the circle", "red"), Dialogue("how many are there", "two")]


# -- the official numbers --------------------------------------------------------------------------------------


def test_recorded_numbers_are_reproduced(capfd: pytest.CaptureFixture[str]) -> None:
    recording = Recording(FIXTURE)
    replay(recording)
    rows = recording.rows()
    assert [str(row) for row in rows if row.verdict != "ok"] == []
    assert capfd.readouterr().err == "", "our packing and masks are not the recorded ones"


@pytest.mark.parametrize("removed", ["showo_clip.safetensors", "showo_vq.safetensors", "README.md"])
def test_incomplete_recording_is_compared_as_far_as_possible(removed: str, tmp_path: Path) -> None:
    folder = tmp_path / "less"
    shutil.copytree(FIXTURE, folder)
    (folder / removed).unlink()
    recording = Recording(folder)
    recording.inputs = {key: value for key, value in recording.inputs.items() if not key.startswith("t2i.rng")}
    replay(recording)
    verdicts = {row.key: row for row in recording.rows()}
    assert verdicts["t2i.loss"].verdict == "not compared"
    assert ("t2i.rng.000.rand" if removed != "showo_vq.safetensors" else removed) in verdicts["t2i.loss"].why
    assert not any(row.verdict == "differs" for row in verdicts.values())
    compared = {key for key, row in verdicts.items() if row.verdict == "ok"}
    assert ("recon_clip.loss" in compared) == (removed != "showo_clip.safetensors")
    assert ("gen.tokens" in compared) == (removed != "showo_vq.safetensors")


# -- the contract, on the tiny model ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Showo:
    torch.manual_seed(0)
    return showo_tiny.build(prompt_dropout=0.0)


@pytest.fixture(scope="module")
def saved(tiny: Showo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("showo") / "saved"
    tiny.save_official(folder)
    return folder


@pytest.fixture(scope="module")
def by_codes() -> Showo:
    """The variant without CLIP, from the recording."""
    model = load_recorded(Recording(FIXTURE), "vq")
    assert model is not None
    return model


def pictures(count: int, size: int, seed: int = 5) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def losses(model: Showo, size: int = 3) -> dict[str, Callable[[], Loss]]:
    images = pictures(size, model.spec.understanding_size)
    target = model.encode_target(pictures(size, model.spec.generation_size), SampleRng([0] * size))
    return {
        "reconstruction": lambda: model.reconstruction_loss(
            model.encode_semantic(images), [TEMPLATE] * size, target, SampleRng([4, 5, 6])
        ),
        "text_to_image": lambda: model.text_to_image_loss(PROMPTS, target, SampleRng([4, 5, 6])),
        "understanding": lambda: model.understanding_loss(images[:2], DIALOGUES, SampleRng([7, 8])),
    }


def reached(model: Showo, *names: str) -> set[str]:
    model.zero_grad(set_to_none=True)
    for name, loss in losses(model).items():
        if not names or name in names:
            loss().value.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}


def test_gradients_reach_exactly_what_is_trainable(tiny: Showo) -> None:
    assert reached(tiny) == set(tiny.trainable())
    assert not any(name.startswith(("clip.", "magvit.")) for name in tiny.trainable())


def test_reconstruction_trains_projector_and_embeddings_only_with_train_condition(tiny: Showo, saved: Path) -> None:
    embeddings = {name for name in tiny.trainable() if name.startswith("mm_projector") or "embed_tokens" in name}
    assert reached(tiny, "reconstruction") == set(tiny.trainable()) - embeddings
    model = load_model("showo", saved, {**OPTIONS, "train_condition": True}, CPU)
    assert isinstance(model, Showo)
    assert reached(model, "reconstruction") == set(tiny.trainable())


def test_training_the_encoder_forbids_caching_it(tiny: Showo, saved: Path, tmp_path: Path) -> None:
    assert tiny.cacheable == {"semantic", "target"}
    model = load_model("showo", saved, {**OPTIONS, "train_vision": True, "train_condition": True}, CPU)
    assert isinstance(model, Showo)
    assert model.cacheable == {"target"}
    assert reached(model) == set(model.trainable())
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.startswith("clip.") and p.requires_grad).add_(1)
    model.save_official(tmp_path / "moved")
    again = load_model("showo", tmp_path / "moved", {**OPTIONS, "parts": {"clip": str(saved / "clip")}}, CPU)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_loss_on_cached_embeddings_is_the_live_loss(tiny: Showo, by_codes: Showo) -> None:
    for model, exact in ((tiny, False), (by_codes, True)):
        target = model.encode_target(pictures(2, model.spec.generation_size), SampleRng([1, 2]))
        live = model.encode_semantic(pictures(2, model.spec.understanding_size))
        model.tokenizer = tiny.tokenizer if model is tiny else model.tokenizer
        with torch.no_grad():
            first, second, third = (
                float(model.reconstruction_loss(Semantic(embeds), ["a"] * 2, target, SampleRng([1, 2])).value)
                for embeds in (live.embeds, live.embeds.clone(), live.embeds.bfloat16().float())
            )
        assert first == second
        assert third == (first if exact else pytest.approx(first, rel=2**-9))  # the unit roundoff of bfloat16


@pytest.mark.parametrize("clip_normalization", [True, False])
def test_clip_sees_images_of_questions_in_its_own_normalization(clip_normalization: bool) -> None:
    torch.manual_seed(0)
    model, inputs_of_clip = showo_tiny.build(clip_normalization=clip_normalization), []
    assert model.clip is not None
    model.clip.register_forward_pre_hook(lambda _, inputs: inputs_of_clip.append(inputs[0]))
    images = pictures(2, model.spec.understanding_size)
    processor = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, do_rescale=False)
    official = processor(list((images + 1) / 2), return_tensors="pt", input_data_format="channels_first")[
        "pixel_values"
    ]
    with torch.no_grad():
        model.encode_semantic(images)
        model.understanding_loss(images, DIALOGUES, SampleRng([7, 8]))
        model.answer(images, [dialogue.question for dialogue in DIALOGUES])
    reconstructed, *of_questions = inputs_of_clip
    torch.testing.assert_close(reconstructed, images)
    for pixels in of_questions:
        torch.testing.assert_close(pixels, official if clip_normalization else images)
    assert len(of_questions) == 2


def test_images_are_stretched_as_the_authors_do_unless_told_to_crop(tiny: Showo) -> None:
    assert tiny.spec.understanding.rule == tiny.spec.generation.rule == "stretch"
    assert showo_tiny.build(resize="crop").spec.generation.rule == "crop"


def test_prompt_dropout_replaces_the_caption_in_training_only(saved: Path) -> None:
    blind = load_model("showo", saved, {**OPTIONS, "prompt_dropout": 1.0}, CPU)
    target = blind.encode_target(pictures(1, blind.spec.generation_size), SampleRng([1]))

    def both() -> list[float]:
        with torch.no_grad():
            return [float(blind.text_to_image_loss([p], target, SampleRng([1])).value) for p in PROMPTS[:2]]

    blind.train()
    assert len(set(both())) == 1
    blind.eval()
    assert len(set(both())) == 2


def test_shards_and_torch_files_load_too(saved: Path, tmp_path: Path, tiny: Showo) -> None:
    folder = tmp_path / "other"
    shutil.copytree(saved, folder)
    (folder / "pytorch_model.safetensors").unlink()
    state = {f"showo.{name}": value for name, value in tiny.showo.state_dict().items()}
    state |= {f"mm_projector.{name}": value for name, value in tiny.mm_projector.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    shutil.move(folder / "clip", tmp_path / "clip")
    shutil.move(folder / "magvit", tmp_path / "magvit")
    parts = {"clip": str(tmp_path / "clip"), "magvit": str(tmp_path / "magvit")}
    again = load_model("showo", folder, {**OPTIONS, "parts": parts}, CPU)
    assert all(torch.equal(a, b) for a, b in zip(tiny.state_dict().values(), again.state_dict().values(), strict=True))
    again.save_official(tmp_path / "written")  # parts from other folders are not written
    assert not (tmp_path / "written/clip").exists()
    assert (tmp_path / "written/phi/tokenizer.json").is_file()


def test_answer_with_cache_equals_answer_without(tiny: Showo) -> None:
    images = pictures(1, tiny.spec.understanding_size)
    answer = tiny.answer(images, ["what color is the circle"])[0]
    semantic = tiny.encode_semantic(images)
    text = tiny._question_ids(["what color is the circle"])[0]
    words: list[int] = []
    with torch.no_grad():
        for _ in range(4):
            batch = tiny.understanding_batch([[*text, *words]], semantic)
            states = tiny.run_phi(tiny.embed(batch, semantic), batch.attention_mask)
            words.append(int(tiny.showo.lm_head(states[0, -1]).argmax()))
    text_tokens = [word for word in words if word < tiny.vocabulary.eos]
    assert answer.split()[: len(text_tokens)] == tiny.tokenizer.batch_decode([text_tokens])[0].split()


# -- bad input -------------------------------------------------------------------------------------------------


def test_bad_checkpoints_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_model("showo", tmp_path, OPTIONS, CPU)
    folder = tmp_path / "broken"
    shutil.copytree(saved, folder)
    shutil.rmtree(folder / "magvit")
    with pytest.raises(FileNotFoundError, match=r"model\.parts\.magvit"):
        load_model("showo", folder, OPTIONS, CPU)
    weights = (saved / "pytorch_model.safetensors").read_bytes()
    (folder / "pytorch_model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"pytorch_model\.safetensors"):
        load_model("showo", folder, OPTIONS, CPU)
    (folder / "pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="weights"):
        load_model("showo", folder, OPTIONS, CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": 512}, "1024 codes"),
        ({"mask_token_id": 5}, "mask_token_id"),
        ({"llm_vocab_size": 10_000}, "no room"),
        ({"vocab_size": None}, "vocab_size is missing"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(
    change: dict[str, int | None], message: str, saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(saved, folder)
    config = json.loads((folder / "config.json").read_text()) | change
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_model("showo", folder, OPTIONS, CPU)


def test_weights_of_another_size_are_refused(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    shutil.copytree(saved, folder)
    config = json.loads((folder / "phi/config.json").read_text()) | {"num_hidden_layers": 5}
    (folder / "phi/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"unexpected: showo\.model\.layers\.5"):
        load_model("showo", folder, OPTIONS, CPU)


def test_bad_values_are_refused(tiny: Showo, saved: Path, by_codes: Showo) -> None:
    with pytest.raises(ValueError, match="tokens"):
        tiny.generate(["a circle and " * 200], Sampling(1.0), SampleRng([1]))
    semantic = tiny.encode_semantic(pictures(1, tiny.spec.understanding_size))
    target = tiny.encode_target(pictures(1, tiny.spec.generation_size), SampleRng([1]))
    with pytest.raises(ValueError, match=r"model\.template_tokens"):
        tiny.reconstruction_loss(semantic, ["a circle and " * 10], target, SampleRng([1]))
    with pytest.raises(ValueError, match="multiples of 4"):
        tiny.encode_target(pictures(1, 3), SampleRng([1]))
    with pytest.raises(ValueError, match=r"model\.generation_size is 30"):
        load_model("showo", saved, {**OPTIONS, "generation_size": 30}, CPU)
    with pytest.raises(ValueError, match="no CLIP"):
        Showo(by_codes.parts, options_of("showo", train_vision=True))


# -- parts -----------------------------------------------------------------------------------------------------


def test_the_share_that_is_hidden_follows_the_cosine() -> None:
    rng = SampleRng.derived("mask", size=4000)
    hidden = random_mask(rng, 64)
    assert int(hidden.sum(-1).min()) >= 1
    assert float(hidden.float().mean()) == pytest.approx(2 / torch.pi, abs=0.02)
    assert torch.allclose(hidden.float().mean(0), torch.full((64,), 2 / torch.pi), atol=0.05)


@pytest.mark.parametrize("num_steps", [1, 3, 40])
def test_sampling_fills_all_hidden_codes_and_keeps_the_others(num_steps: int) -> None:
    calls: list[int] = []
    given = torch.full((2, 12), 7)
    given[:, 3] = 2

    def predict(codes: Tensor) -> Tensor:
        calls.append(int((codes == 7).sum()))
        assert bool((codes[:, 3] == 2).all())
        return torch.zeros(2, 12, 7)

    codes = sample_codes(predict, given, 7, num_steps, 1.0, SampleRng([1, 2]))
    assert bool((codes < 7).all())
    assert bool((codes[:, 3] == 2).all())
    assert len(calls) == num_steps
    assert calls == sorted(calls, reverse=True)


def test_attention_masks() -> None:
    vocabulary = Vocabulary.from_sizes(100, 99, 10, 64)
    codes = torch.full((2, 4), 64)
    read = torch.arange(4).repeat(2, 1)
    for batch in (
        generation_sequences(vocabulary, [[1, 2], []], codes),
        generation_sequences(vocabulary, [[1, 2], []], codes, read),
    ):
        pads = batch.ids == vocabulary.pad
        assert not bool((batch.attention_mask & pads[:, None, :] & ~pads[:, :, None]).any()), (
            "padding is never attended to"
        )
        assert bool(batch.attention_mask.any(-1).all()), "no row is empty"
        assert not bool(batch.attention_mask[:, : batch.codes.start - 1, batch.codes.start - 1 :].any())
        assert bool(batch.attention_mask[:, batch.codes, batch.codes].all())
    rebuilt = reconstruction_sequences(vocabulary, [[1], [1, 2, 3]], codes, 9, 12)
    assert bool(rebuilt.attention_mask[:, :, 2:11].all()), "every position attends to the image"
    assert rebuilt.codes == slice(25, 29), "whatever the length of the text"
    assert not bool(rebuilt.attention_mask[:, rebuilt.codes, rebuilt.codes.stop].any())
    understood = understanding_sequences(vocabulary, [5], torch.zeros(2, 9, 3), [[1], [1, 2, 3]], pad_left=True)
    assert understood.ids[0].tolist() == [100, 100, 106, 5, 101, *[FEATURE_ID] * 9, 102, 1]
    assert vocabulary.mask == 174


# -- the published sizes ---------------------------------------------------------------------------------------


def test_published_sizes() -> None:
    """1.45 B parameters in the language model; the official file, with the projector, has 5.82 GB of float32."""
    config = {"w_clip_vit": True, "vocab_size": 58498, "llm_vocab_size": 50295, "codebook_size": 8192}
    config |= {"num_vq_tokens": 1024, "mask_token_id": 58497}
    phi = PhiConfig(hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, intermediate_size=8192)
    tokenizer_sizes = MagvitSizes(
        128, (128, 256, 256, 512, 512), (4, 3, 4, 3, 4), (128, 128, 256, 256, 512), (4, 4, 3, 4, 3), 13
    )
    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    with torch.device("meta"):
        vision = CLIPVisionModel(CLIPVisionConfig(image_size=336, patch_size=14, **large))
        magvit = Magvit(tokenizer_sizes)
    parts = ShowoParts(
        config=config,
        phi=empty_phi(phi, 58498),
        tokenizer=None,
        vocabulary=build_vocabulary(config, 50256),
        magvit=magvit,
        clip=vision,
        projector=empty_projector(1024, 2048, 2048),
    )
    model = Showo(parts, options_of("showo", generation_size=512))
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert sizes["showo"] == pytest.approx(1.4475e9, rel=1e-3)
    assert (sizes["showo"] + sizes["mm_projector"]) * 4 == pytest.approx(5.82e9, rel=2e-3)
    assert sizes["clip"] == pytest.approx(303.5e6, rel=2e-3)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sizes["showo"] + sizes["mm_projector"]
    assert (model.spec.semantic_tokens, model.spec.target_tokens, model.spec.understanding_size) == (576, 1024, 336)
    assert (model.vocabulary.pad, model.vocabulary.soi, model.vocabulary.first_code) == (50295, 50296, 50305)
    assert model.magvit.sizes.codebook == 8192
    assert model.magvit.sizes.downsampling == 16
