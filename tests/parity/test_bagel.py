"""BAGEL against the official code's numbers, and the contract on a small random model."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2Config, SiglipVisionConfig

from reca.data.resize import Resize
from reca.models.bagel.model import Bagel
from reca.models.bagel.network import BagelNetwork, Markers, Sizes
from reca.models.bagel.sampling import fit
from reca.models.base import Dialogue, Loss, Semantic
from reca.models.loading import load_model
from reca.models.sampling import Sampling
from reca.models.weights import write_weights
from reca.runtime.seeding import SampleRng
from tests.parity import bagel
from tests.parity.comparison import Recording, options_of
from tests.parity.replay import replay
from tools.tiny_bases import bagel_tiny

FIXTURE = Path(__file__).parent / "fixtures/bagel"
PROMPTS = ["a photo of a red circle", "two squares and a blue ring", "a red bar left of a blue cross"]
TEMPLATE = "describe the image in detail"
DIALOGUES = [Dialogue("what color is the circle", "red"), Dialogue("how many rings are there in a photo", "two")]
SAMPLING = Sampling(3.0, num_steps=4)


# -- against the official code ---------------------------------------------------------------------------------


def test_every_recorded_number_is_reproduced() -> None:
    rows = replay("bagel", FIXTURE)
    assert not [str(row) for row in rows if row.verdict not in ("ok", "input")]
    replayed = {row.key for row in rows if row.verdict == "input"}
    assert replayed == {
        *(f"{name}.noise" for name in ("full", "freeze_und", "full_shift3")),
        *("t2i.init_noise", "t2i_nocfg.init_noise", "t2i.prompt_ids", "und.prompt_ids"),
        *("edit.noise.0.randn_like", "edit.noise.1.randn"),
    }


def test_packing_equals_the_official_packing() -> None:
    recording = Recording(FIXTURE)
    model = bagel.build(FIXTURE)
    texts = bagel.numbered(recording.inputs, "text_ids")
    assert bagel.packing_differences(model, recording, "batch", texts) == []
    assert bagel.packing_differences(model, recording, "dropped", [None]) == []
    images = bagel.numbered(recording.inputs, "vae_image")
    latents = bagel.padded_latents(model, images, recording.inputs["vae_noise"])
    torch.testing.assert_close(latents, recording.inputs["padded_latent"])


def test_frozen_understanding_equals_the_official_detach() -> None:
    recording = Recording(FIXTURE)
    model = bagel.build(FIXTURE)
    batch = bagel.flow_samples(model, recording, recording.outputs["freeze_und.noise"])
    torch.cat(bagel.squared_errors(model.network, batch, 1.0)).mean().backward()
    with_gradient = {name for name, parameter in model.network.named_parameters() if parameter.grad is not None}
    prefix = "freeze_und.gradnorm."
    assert with_gradient == {key.removeprefix(prefix) for key in recording.outputs if key.startswith(prefix)}
    assert {f"network.{name}" for name in with_gradient} == set(model.trainable())


def test_an_incomplete_recording_is_replayed_in_part(tmp_path: Path) -> None:
    folder = tmp_path / "poorer"
    shutil.copytree(FIXTURE, folder, ignore=shutil.ignore_patterns("README.md"))
    weights = {key: value for key, value in load_file(FIXTURE / "model.safetensors").items() if "pos_embed" not in key}
    weights["latent_pos_embed.pos_embed"] = load_file(FIXTURE / "model.safetensors")["latent_pos_embed.pos_embed"]
    save_file(weights, folder / "model.safetensors")
    inputs = load_file(FIXTURE / "inputs.safetensors")
    save_file({key: value for key, value in inputs.items() if key != "text_ids.1"}, folder / "inputs.safetensors")
    outputs = load_file(FIXTURE / "outputs.safetensors")
    outputs = {key: value for key, value in outputs.items() if key not in {"t2i.image", "edit.noise.0.randn_like"}}
    save_file({**outputs, "unheard.of": torch.zeros(1)}, folder / "outputs.safetensors")
    rows = {row.key: row for row in replay("bagel", folder)}
    assert {row.verdict for row in rows.values()} == {"ok", "input", "not compared"}
    assert "text_ids.1" in rows["full.loss"].why
    assert "two draws" in rows["edit.latent"].why
    assert rows["t2i.latent"].verdict == "ok"
    assert rows["unheard.of"].verdict == "not compared"


# -- the contract, small ----------------------------------------------------------------------------------------


def tiny(**options: object) -> Bagel:
    torch.manual_seed(0)
    return bagel_tiny.build(**{"prompt_dropout": 0.0, **options})


@pytest.fixture(scope="module")
def model() -> Bagel:
    return tiny()


def pictures(count: int, size: int = bagel_tiny.IMAGE_SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1


def image_losses(model: Bagel) -> list[Loss]:
    target = model.encode_target(pictures(3), SampleRng([1, 2, 3]))
    semantic = model.encode_semantic(pictures(3))
    return [
        model.reconstruction_loss(semantic, [TEMPLATE] * 3, target, SampleRng([4, 5, 6])),
        model.text_to_image_loss(PROMPTS, target, SampleRng([4, 5, 6])),
    ]


def reached(model: Bagel) -> set[str]:
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"freeze_understanding": False},
        {"freeze_understanding": False, "train_vision": True},
        {"train_vision": True},
    ],
)
def test_gradients_reach_exactly_the_trainable_parameters(options: dict[str, bool]) -> None:
    model = tiny(**options)
    losses = image_losses(model)
    if not model.freeze_understanding:
        losses.append(model.understanding_loss(pictures(2), DIALOGUES, SampleRng([7, 8])))
    sum(loss.value for loss in losses).backward()
    assert reached(model) == set(model.trainable())
    assert ("semantic" in model.cacheable) == (not options)


def test_dropout_hides_the_prompt_but_not_the_image() -> None:
    blind = tiny(prompt_dropout=1.0).train()
    target = blind.encode_target(pictures(1), SampleRng([1]))

    def loss(prompt: str, semantic: Semantic | None) -> float:
        if semantic is None:
            return float(blind.text_to_image_loss([prompt], target, SampleRng([2])).value)
        return float(blind.reconstruction_loss(semantic, [prompt], target, SampleRng([2])).value)

    with torch.no_grad():
        assert loss(PROMPTS[0], None) == loss(PROMPTS[1], None)
        embeds = [blind.encode_semantic(pictures(2)[row : row + 1]) for row in (0, 1)]
        assert loss(TEMPLATE, embeds[0]) == loss(PROMPTS[0], embeds[0]) != loss(TEMPLATE, embeds[1])
        blind.eval()
        assert loss(PROMPTS[0], None) != loss(PROMPTS[1], None)


def test_understanding_loss_is_refused_in_training_when_frozen(model: Bagel) -> None:
    loss = model.understanding_loss(pictures(2), DIALOGUES, SampleRng([1, 2]))
    assert loss.n_targets == 4  # two words, each with an end token
    assert not loss.value.requires_grad
    with pytest.raises(ValueError, match="freeze_understanding"):
        tiny().train().understanding_loss(pictures(2), DIALOGUES, SampleRng([1, 2]))


def test_edits_keep_the_image_shape_and_do_not_depend_on_the_batch(model: Bagel) -> None:
    sampling = Sampling(4.0, num_steps=2, image_guidance_scale=2.0)
    images = [pictures(1)[0], pictures(1, 24)[0, :, :, :12], pictures(1, 50)[0]]
    together = model.edit(images, PROMPTS, sampling, SampleRng([1, 2, 3]))
    assert [tuple(image.shape) for image in together] == [(3, 24, 24), (3, 24, 12), (3, 24, 24)]
    torch.testing.assert_close(model.edit(images[1:2], PROMPTS[1:2], sampling, SampleRng([2]))[0], together[1])


def test_half_precision_generates_and_answers() -> None:
    model = tiny().bfloat16()
    assert torch.isfinite(model.generate(PROMPTS, SAMPLING, SampleRng([1, 2, 3]))).all()
    assert len(model.answer(pictures(2), [dialogue.question for dialogue in DIALOGUES])) == 2
    edited = model.edit(list(pictures(1)), PROMPTS[:1], Sampling(3.0, num_steps=1), SampleRng([1]))
    assert torch.isfinite(edited[0]).all()
    with torch.no_grad():
        assert all(torch.isfinite(loss.value) for loss in image_losses(model))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1024, 1024), (1024, 1024)), ((2048, 1024), (1024, 512)), ((100, 300), (336, 1024)), ((600, 800), (608, 800))],
)
def test_an_image_to_edit_is_resized_between_its_limits(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fit(torch.zeros(3, *shape), Resize("fit", 1024, 512, 16)).shape[1:] == expected


# -- files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(model: Bagel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bagel") / "saved"
    model.save_official(folder)
    return folder


def load(folder: Path, **options: object) -> Bagel:
    model = load_model("bagel", folder, options_of("bagel", **options), torch.device("cpu"))
    assert isinstance(model, Bagel)
    return model


def test_the_autoencoder_is_written_under_its_official_names() -> None:
    model = bagel.build(FIXTURE)
    official, written = load_file(FIXTURE / "ae.safetensors"), bagel.flux_autoencoder.official_state(model.autoencoder)
    assert official.keys() == written.keys()
    assert all(torch.equal(official[name], written[name]) for name in official)


def test_weights_load_from_shards_torch_files_and_with_a_base(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_file(saved / "model.safetensors")
    folder = tmp_path / "shards"
    shutil.copytree(saved, folder)
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("reca.models.weights.SHARD_BYTES", 2_000_000)
    write_weights(state, folder, "ema")
    assert len(list(folder.glob("ema-*.safetensors"))) > 1
    weights = tmp_path / "weights"
    weights.mkdir()
    # RecA's repositories hold weights only; here also without the frozen tower and the fixed tables.
    trained = {
        key: value for key, value in state.items() if not key.startswith(("vit_model.", "vit_pos", "latent_pos"))
    }
    torch.save({"model": trained}, weights / "model_bf16.pt")
    for path, options in ((folder, {}), (weights, {"parts": {"base": str(saved)}})):
        loaded = load(path, **options).network.state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in state.items())
    with pytest.raises(FileNotFoundError, match=r"llm_config\.json .*parts\.base"):
        load(weights)


def test_bad_folders_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"llm_config\.json"):
        load(tmp_path)
    for name in ("model.safetensors", "ae.safetensors"):
        broken = tmp_path / name
        shutil.copytree(saved, broken)
        (broken / name).write_bytes((saved / name).read_bytes()[:5000])
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            load(broken)
    smaller = tmp_path / "smaller"
    shutil.copytree(saved, smaller)
    save_file(
        {"vae2llm.weight": torch.zeros(2, 16), "time_embedder.mlp.0.weight": torch.zeros(2, 2)},
        smaller / "model.safetensors",
    )
    with pytest.raises(ValueError, match=r"missing: .*connector\.fc1\.bias"):
        load(smaller)


def test_bad_requests_are_refused(model: Bagel) -> None:
    with pytest.raises(ValueError, match="600 tokens"):
        model.generate(["a circle and " * 200], SAMPLING, SampleRng([1]))
    with pytest.raises(ValueError, match="24 x 26"):
        model.encode_target(torch.zeros(1, 3, 24, 26), SampleRng([1]))
    with pytest.raises(ValueError, match=r"cannot be cut into patches|too small"):
        model.encode_semantic(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="use a smaller image"):
        model.encode_semantic(torch.zeros(1, 3, 48, 48))
    with pytest.raises(ValueError, match=r"model\.understanding_size=22"):
        tiny(understanding_size=22)
    with pytest.raises(ValueError, match="num_steps=0"):
        Sampling(1.0, num_steps=0)


# -- real sizes -------------------------------------------------------------------------------------------------


def test_released_size_has_the_known_parameter_count() -> None:
    text = Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
    vision = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=26,
        num_attention_heads=16,
        image_size=980,
        patch_size=14,
    )
    with torch.device("meta"):
        sizes = Sizes(text, vision, latent_patch=2, latent_channels=16, max_latent_size=64, vision_side=70)
        network = BagelNetwork(sizes, Markers(0, 1, 2, 3))
        autoencoder = bagel.flux_autoencoder.empty_autoencoder((128, 256, 512, 512), 2, 16)
        model = Bagel(network, autoencoder, None, options_of("bagel", prompt_dropout=0.1))
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    experts = sum(count for name, count in counts.items() if ".layers." in name and "_moe_gen." in name)
    assert experts / 1e9 == pytest.approx(6.53, abs=0.005)
    trained = sum(counts[name] for name in model.trainable())
    assert trained - experts < 0.02e9
    assert sum(counts.values()) / 1e9 == pytest.approx(14.6, abs=0.1)
    assert network.vit_pos_embed.pos_embed.shape == (4900, 3584)
    assert network.latent_pos_embed.pos_embed.shape == (4096, 3584)
    assert network.vit_model.vision_model.embeddings.patch_embedding.weight.shape == (1152, 588)
    assert (model.spec.understanding_size, model.spec.semantic_tokens) == (224, 256)
    assert (model.spec.generation_size, model.spec.target_tokens) == (1024, 4096)
