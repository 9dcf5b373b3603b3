"""Harmon: the official code's recorded numbers, the contract on a tiny model, the published sizes."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reca.models.autoencoder_kl import Kl16Sizes, to_official, to_stock
from reca.models.base import Dialogue, Semantic, Target, UnifiedModel
from reca.models.harmon.checkpoint import complete_mar_config
from reca.models.harmon.diffusion_head import cosine_betas, spaced_steps
from reca.models.harmon.mar import VisibleTokens, mask_first, mask_ratios, unmasking_schedule
from reca.models.harmon.model import Harmon
from reca.models.harmon.network import HarmonNetwork
from reca.models.loading import load_model
from reca.models.sampling import Sampling
from reca.models.weights import write_weights
from reca.runtime.seeding import SampleRng
from tests.contract.published import write_harmon_parts
from tests.parity.comparison import options_of
from tests.parity.replay import replay
from tools.tiny_bases import harmon_tiny

RECORDING = Path(__file__).parent / "fixtures/harmon"
CPU = torch.device("cpu")
PROMPTS = ["a photo of a red circle", "two squares and a blue ring", "a bar left of a cross"]
TEMPLATE = "describe the image in detail"
FEW = Sampling(2.0, num_steps=3)


def test_harmon_reproduces_the_recording() -> None:
    rows = replay("harmon", RECORDING)
    assert len(rows) == 133
    assert not [str(row) for row in rows if row.verdict != "ok"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, not trained; what starts at zero is moved, so that everything takes part."""
    folder = tmp_path_factory.mktemp("harmon") / "base"
    torch.manual_seed(0)
    model = harmon_tiny.build(prompt_dropout=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.save_official(folder.with_name("built"))
    load(folder.with_name("built")).save_official(folder)  # loading leaves its mark in tokenizer_config.json
    return folder


def load(folder: Path, **options: object) -> Harmon:
    model = load_model("harmon", folder, options_of("harmon", **options), CPU)
    assert isinstance(model, Harmon)
    return model


@pytest.fixture(scope="module")
def model(base: Path) -> Harmon:
    return load(base)


def pictures(count: int, size: int = harmon_tiny.IMAGE_SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1


def reached(model: UnifiedModel) -> set[str]:
    """Parameters that get a gradient which is not zero."""
    for parameter in model.parameters():
        parameter.grad = None
    target = model.encode_target(pictures(3), SampleRng([1, 2, 3]))
    semantic = model.encode_semantic(pictures(3))
    model.reconstruction_loss(semantic, [TEMPLATE] * 3, target, SampleRng([4, 5, 6])).value.backward()
    model.text_to_image_loss(PROMPTS, target, SampleRng([4, 5, 6])).value.backward()
    dialogues = [Dialogue("what color is the circle", "red"), Dialogue("how many rings are there", "two")]
    model.understanding_loss(pictures(2), dialogues, SampleRng([7, 8])).value.backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}


def test_condition_and_target_can_differ_in_size(base: Path) -> None:
    other = load(base, understanding_size=12, generation_size=32)
    assert (other.spec.semantic_tokens, other.spec.target_tokens) == (3 * 3 + harmon_tiny.BUFFERS, 8 * 8)
    semantic = other.encode_semantic(pictures(2, 12))
    assert semantic.embeds.shape[1] == other.spec.semantic_tokens
    target = other.encode_target(pictures(2, 32), SampleRng([1, 2]))
    loss = other.reconstruction_loss(semantic, [TEMPLATE] * 2, target, SampleRng([1, 2]))
    assert torch.isfinite(loss.value)
    assert 0.7 * 2 * 64 <= loss.n_targets <= 2 * 64


def test_gradients_reach_exactly_the_trainable_parameters(base: Path) -> None:
    paper = load(base)
    assert reached(paper) == set(paper.trainable())
    frozen = {name for name, _ in paper.named_parameters()} - set(paper.trainable())
    assert {name for name in frozen if not name.startswith("network.vae.")} == {"network.mar.class_emb.weight"}
    assert paper.cacheable == {"target"}
    for option, beginning in (("train_encoder", "network.mar.encoder"), ("train_llm", "network.llm.")):
        half = load(base, **{option: False})
        assert reached(half) == set(half.trainable())
        assert not [name for name in half.trainable() if name.startswith(beginning)]
        assert ("semantic" in half.cacheable) is (option == "train_encoder")


def test_gradient_of_the_condition_is_scaled(base: Path) -> None:
    norms = []
    for scale in (0.0, 0.1, 1.0):
        scaled = load(base, gradient_scale=scale)
        semantic = scaled.encode_semantic(pictures(1))
        semantic.embeds.retain_grad()
        target = scaled.encode_target(pictures(1), SampleRng([1]))
        loss = scaled.reconstruction_loss(semantic, [TEMPLATE], target, SampleRng([1])).value
        loss.backward()
        assert semantic.embeds.grad is not None
        norms.append((float(loss.detach()), float(semantic.embeds.grad.norm())))
    assert norms[0][0] == norms[1][0] == norms[2][0]
    assert norms[0][1] == 0
    assert norms[1][1] == pytest.approx(0.1 * norms[2][1], rel=1e-4)


def test_gradient_of_answers_into_the_encoder_is_scaled(base: Path) -> None:
    norms = {}
    for scale in (0.0, 0.1, 1.0):
        scaled = load(base, gradient_scale=scale)
        scaled.understanding_loss(
            pictures(1), [Dialogue("what color is the circle", "red")], SampleRng([7])
        ).value.backward()
        parameters = dict(scaled.named_parameters())
        norms[scale] = [
            0.0 if (gradient := parameters[name].grad) is None else float(gradient.norm())
            for name in ("network.proj_in.0.weight", "network.llm.model.norm.weight")
        ]
    assert norms[0.0][0] == 0
    assert norms[0.1][0] == pytest.approx(0.1 * norms[1.0][0], rel=1e-4)
    assert norms[0.1][1] == pytest.approx(norms[1.0][1], rel=1e-6), "only the path through the image is scaled"


def test_loss_on_cached_latents_equals_loss_on_images(model: Harmon) -> None:
    live = model.encode_target(pictures(2), SampleRng([1, 2]))
    with torch.no_grad():
        semantic = model.encode_semantic(pictures(2))
        values = [
            float(model.reconstruction_loss(condition, [TEMPLATE] * 2, target, SampleRng([1, 2])).value)
            for condition, target in (
                (semantic, live),
                (semantic, Target(live.values.clone())),
                (Semantic(semantic.embeds.bfloat16().float()), live),
            )
        ]
    assert values[0] == values[1]
    assert values[2] == pytest.approx(values[0], rel=2**-9)  # the unit roundoff of bfloat16


def test_dropout_hides_text_but_not_image(base: Path) -> None:
    blind = load(base, prompt_dropout=1.0).train()
    target = blind.encode_target(pictures(1), SampleRng([1]))
    semantic, other = (Semantic(blind.semantic_of(target).embeds.detach() * factor) for factor in (1, -1))
    with torch.no_grad():
        for training in (True, False):
            blind.train(training)
            texts = [float(blind.text_to_image_loss([t], target, SampleRng([1])).value) for t in PROMPTS[:2]]
            assert (texts[0] == texts[1]) is training
            images = [
                float(blind.reconstruction_loss(s, [TEMPLATE], target, SampleRng([1])).value) for s in (semantic, other)
            ]
            assert images[0] != images[1]


def test_save_official_restores_the_official_names(tmp_path: Path) -> None:
    from reca.models.harmon.checkpoint import load_network

    network, config = load_network(RECORDING, {})
    Harmon(network, config, None, options_of("harmon")).save_official(tmp_path / "saved")
    official, saved = load_file(RECORDING / "model.safetensors"), load_file(tmp_path / "saved/model.safetensors")
    assert saved.keys() == official.keys()
    assert all(torch.equal(saved[name], official[name]) for name in official)
    assert json.loads((tmp_path / "saved/config.json").read_text())["mar"] == config["mar"]


def authors_layout(base: Path, folder: Path) -> dict[str, str]:
    """The tiny model as the authors publish theirs: a ``.pth`` without autoencoder, ``kl16.ckpt``, Qwen's folder."""
    state, config = load_file(base / "model.safetensors"), json.loads((base / "config.json").read_text())
    folders = {"llm": folder / "llm", "checkpoint": folder / "trained", "vae": folder / "vae"}
    for path in folders.values():
        path.mkdir(parents=True)
    write_harmon_parts(state, config.pop("llm"), folders)
    (folder / "trained/config.json").write_text(json.dumps(config))
    for file in base.glob("tokenizer*"):
        (folder / "llm" / file.name).write_bytes(file.read_bytes())
    return {"llm": str(folder / "llm"), "vae": str(folder / "vae")}


def test_authors_layout_loads(base: Path, tmp_path: Path) -> None:
    parts = authors_layout(base, tmp_path)
    loaded, direct = load(tmp_path / "trained", parts=parts), load(base)
    state, expected = loaded.state_dict(), direct.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    with pytest.raises(FileNotFoundError, match=r"kl16\.ckpt.*model\.parts\.vae"):
        load(tmp_path / "trained", parts={"llm": parts["llm"]})
    with pytest.raises(ValueError, match=r"model\.parts\.llm"):
        load(tmp_path / "trained", parts={"vae": parts["vae"]})
    with pytest.raises(ValueError, match="unknown part 'clip'"):
        load(tmp_path / "trained", parts={**parts, "clip": parts["vae"]})
    torch.save({"proj_in.0.weight": torch.zeros(2, 2)}, tmp_path / "trained/other.pth")
    with pytest.raises(ValueError, match=r"harmon_tiny\.pth, other\.pth.*model\.options\.weights"):
        load(tmp_path / "trained", parts=parts)
    with pytest.raises(ValueError, match=r"not Harmon's.*z_proj"):
        load(tmp_path / "trained", parts=parts, weights="other.pth")


def test_sharded_weights_load(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    monkeypatch.setattr("reca.models.weights.SHARD_BYTES", 2**21)
    write_weights(state, tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    expected, state = load(base).state_dict(), load(tmp_path).state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_bad_checkpoints_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load(tmp_path)
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = (base / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load(tmp_path)
    state = load_file(base / "model.safetensors")
    proj = state.pop("proj_in.0.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: proj_in\.0\.weight"):
        load(tmp_path)
    save_file({**state, "proj_in.0.weight": proj[:3].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"proj_in\.0\.weight \(3, 96\), expected \(96, 96\)"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    save_file({**state, "proj_in.0.weight": proj}, tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load(tmp_path)
    config = json.loads((base / "config.json").read_text())
    config["mar"]["vae_embed_dim"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="do not belong together"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        load(tmp_path)


def test_bad_inputs_are_refused(model: Harmon, base: Path) -> None:
    with pytest.raises(ValueError, match="tokens"):
        model.generate(["a circle and " * 200], FEW, SampleRng([1]))
    with pytest.raises(ValueError, match="multiples of 4"):
        model.encode_target(pictures(1, 3), SampleRng([1]))
    with pytest.raises(ValueError, match="shape"):
        model.encode_semantic(pictures(1)[0])
    with pytest.raises(ValueError, match=r"model\.generation_size is 25"):
        load(base, generation_size=25)


def test_mask_ratios_and_schedules() -> None:
    ratios = mask_ratios(torch.linspace(0, 1, 10001)[:-1], 0.7)
    assert float(ratios.min()) == pytest.approx(0.7)
    assert float(ratios.mean()) == pytest.approx(0.867, abs=2e-3)  # the truncated normal's mean
    assert unmasking_schedule(256, 4) == [236, 181, 97, 0]
    for tokens, steps in ((36, 36), (36, 3), (1, 1), (1024, 64)):
        hidden_counts = [tokens, *unmasking_schedule(tokens, steps)]
        assert len(hidden_counts) == steps + 1
        assert all(after < before for before, after in pairwise(hidden_counts))
    hidden = mask_first(torch.tensor([[2, 0, 1, 3], [3, 2, 1, 0]]), torch.tensor([1, 3]))
    assert hidden.tolist() == [[False, False, True, False], [False, True, True, True]]
    visible = VisibleTokens.from_hidden(hidden)
    assert visible.indices[0].tolist() == [0, 1, 3]
    assert visible.indices[1, 0] == 0
    assert visible.is_visible.tolist() == [[True] * 3, [True, False, False]]
    assert spaced_steps(10) == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert float((1 - cosine_betas()).prod()) < 1e-6
    with pytest.raises(ValueError, match="1001"):
        spaced_steps(1001)


def test_autoencoder_names_translate_both_ways() -> None:
    sizes = Kl16Sizes(32, (1, 2, 2), 1, 4, frozenset({1, 2}), frozenset({2}))
    stock = sizes.build().state_dict()
    official = to_official(stock)
    assert "encoder.down.1.attn.0.q.weight" in official
    assert official["decoder.up.2.attn.1.proj_out.weight"].shape == (64, 64, 1, 1)
    assert Kl16Sizes.of(official) == sizes
    back = to_stock(official)
    assert back.keys() == stock.keys()
    assert all(torch.equal(back[name], stock[name]) for name in stock)


REAL = {
    "harmon_0_5b": ((768, 12, 12, 6, 1024), (896, 24, 14, 4864)),
    "harmon_1_5b": ((1280, 20, 16, 12, 1536), (1536, 28, 12, 8960)),
}


@pytest.mark.parametrize(
    ("name", "millions"), [("harmon_0_5b", (494, 208, 704, 771)), ("harmon_1_5b", (1544, 942, 2493, 2561))]
)
def test_published_sizes_have_the_known_parameter_counts(name: str, millions: tuple[int, ...]) -> None:
    """Qwen2.5; MAR (arXiv 2406.11838 says 208 M and 943 M); what RecA trains; all, the autoencoder included.

    Of the tensors of Harmon-0.5B, 684 are not the language model's (hub).
    """
    (wide, deep, heads, head_depth, head_width), (width, layers, llm_heads, inner) = REAL[name]
    mar = {
        "img_size": 256,
        "vae_stride": 16,
        "patch_size": 1,
        **{f"{half}_embed_dim": wide for half in ("encoder", "decoder")},
        **{f"{half}_depth": deep for half in ("encoder", "decoder")},
        **{f"{half}_num_heads": heads for half in ("encoder", "decoder")},
        "vae_embed_dim": 16,
        "diffloss_d": head_depth,
        "diffloss_w": head_width,
    }
    llm = {
        "vocab_size": 151936,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": llm_heads,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    }
    with torch.device("meta"):
        network = HarmonNetwork({"llm": llm, "mar": mar}, Kl16Sizes())
        model = Harmon(network, {}, None, options_of("harmon", generation_size=512))
    assert (model.spec.semantic_tokens, model.spec.target_tokens) == (1088, 1024)
    state = network.official_state()
    if name == "harmon_0_5b":
        assert sum(not key.startswith("llm.") for key in state) == 684
    sizes = complete_mar_config({}, state, Kl16Sizes())  # as for a .pth, which comes without sizes
    assert {key: sizes[key] for key in mar} == mar
    named = dict(model.named_parameters())
    counts = [
        sum(value.numel() for key, value in named.items() if key.startswith(part))
        for part in ("network.llm.", "network.mar.")
    ]
    counts += [sum(named[key].numel() for key in model.trainable()), sum(value.numel() for value in named.values())]
    assert tuple(round(count / 1e6) for count in counts) == millions
