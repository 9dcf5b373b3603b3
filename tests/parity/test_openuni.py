"""OpenUni against the official code's recorded numbers, the contract on a tiny model, and the real sizes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reca.models.base import Dialogue, UnifiedModel
from reca.models.loading import load_model
from reca.models.openuni.model import OpenUni
from reca.models.openuni.network import OpenUniNetwork
from reca.models.sampling import Sampling
from reca.runtime.seeding import SampleRng
from tests.contract.published import OPENUNI_TRAINED, write_openuni
from tests.parity.comparison import options_of
from tests.parity.replay import replay
from tools.tiny_bases import openuni_tiny

RECORDING = Path(__file__).parent / "fixtures/openuni"
CPU = torch.device("cpu")
PROMPTS = ["a photo of a red circle", "two squares and a blue ring", "a bar left of a cross"]
TEMPLATE = "describe the image in detail"
FEW = Sampling(2.0, num_steps=3)


def test_everything_recorded_is_reproduced() -> None:
    rows = replay("openuni", RECORDING)
    assert len(rows) == 97
    assert not [str(row) for row in rows if row.verdict != "ok"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an untrained tiny model."""
    folder = tmp_path_factory.mktemp("openuni") / "base"
    torch.manual_seed(0)
    openuni_tiny.build().save_official(folder)
    return folder


def load(folder: Path, **options: object) -> UnifiedModel:
    return load_model("openuni", folder, options_of("openuni", **options), CPU)


@pytest.fixture(scope="module")
def model(base: Path) -> UnifiedModel:
    return load(base)


def pictures(count: int, size: int = openuni_tiny.IMAGE_SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1


def reached(model: UnifiedModel, understanding: bool = False) -> set[str]:
    """Return the parameters with a non-zero gradient."""
    for parameter in model.parameters():
        parameter.grad = None
    target = model.encode_target(pictures(3), SampleRng([1, 2, 3]))
    semantic = model.encode_semantic(pictures(3))
    model.reconstruction_loss(semantic, [TEMPLATE] * 3, target, SampleRng([4, 5, 6])).value.backward()
    model.text_to_image_loss(PROMPTS, target, SampleRng([4, 5, 6])).value.backward()
    if understanding:
        dialogues = [Dialogue("what color is the circle", "red"), Dialogue("how many rings are there", "two")]
        model.understanding_loss(pictures(2), dialogues, SampleRng([7, 8])).value.backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}


def test_gradients_reach_exactly_the_trainable_parameters(base: Path) -> None:
    paper = load(base)
    assert reached(paper) == set(paper.trainable())
    assert not [name for name in paper.trainable() if name.startswith(("network.lmm.", "network.vae."))]
    frozen = load(base, train_transformer=False)
    assert reached(frozen) == set(frozen.trainable())
    assert not [name for name in frozen.trainable() if name.startswith("network.transformer.")]
    seeing = load(base, train_vision=True)
    assert reached(seeing, understanding=True) == set(seeing.trainable())
    assert seeing.cacheable == {"target"}
    assert paper.cacheable == {"semantic", "target"}


def test_understanding_loss_has_no_gradient_while_internvl_is_frozen(model: UnifiedModel) -> None:
    loss = model.understanding_loss(pictures(1), [Dialogue("what color is the circle", "red")], SampleRng([7]))
    assert not loss.value.requires_grad
    assert loss.n_targets == 2  # the word, and the end of the turn


def test_dropout_hides_text_and_image_in_training_only(base: Path) -> None:
    blind = load(base, prompt_dropout=1.0).train()
    target = blind.encode_target(pictures(1), SampleRng([1]))
    with torch.no_grad():
        for mode, hidden in ((True, True), (False, False)):
            blind.train(mode)
            first = blind.text_to_image_loss(PROMPTS[:1], target, SampleRng([1])).value
            second = blind.reconstruction_loss(
                blind.encode_semantic(pictures(1)), [TEMPLATE], target, SampleRng([1])
            ).value
            assert (float(first) == float(second)) is hidden


def official_layout(base: Path, folder: Path, trained: tuple[str, ...] = OPENUNI_TRAINED) -> dict[str, str]:
    """Write the tiny model in the official layout: parts in folders of their own, trained weights in one ``.pth``."""
    model = load(base)
    assert isinstance(model, OpenUni)
    folders = {name: folder / name for name in ("lmm", "sana")} | {"vae": folder / "sana/vae"}
    folders["checkpoint"] = folder / "trained"
    for path in folders.values():
        path.mkdir(parents=True)
    write_openuni(model, folders, trained=trained, dtype=torch.float32)
    model.tokenizer.save_pretrained(folder / "lmm")
    return {"lmm": str(folder / "lmm"), "sana": str(folder / "sana")}


@pytest.mark.parametrize("everything", [False, True])
def test_official_layout_loads(base: Path, tmp_path: Path, everything: bool) -> None:
    parts = official_layout(base, tmp_path, OPENUNI_TRAINED + (("lmm.", "vae.") if everything else ()))
    loaded, direct = load(tmp_path / "trained", parts=parts).state_dict(), load(base).state_dict()
    assert loaded.keys() == direct.keys()
    assert all(torch.equal(loaded[name], direct[name]) for name in direct)


def test_files_that_do_not_fit_the_official_layout_are_refused(base: Path, tmp_path: Path) -> None:
    parts = official_layout(base, tmp_path)
    trained = tmp_path / "trained"
    with pytest.raises(ValueError, match=r"model\.parts\.sana"):
        load(trained, parts={"lmm": parts["lmm"]})
    with pytest.raises(ValueError, match="unknown part 'clip'"):
        load(trained, parts={"clip": parts["lmm"]})
    torch.save({"meta_queries": torch.zeros(2, 2)}, trained / "other.pth")
    with pytest.raises(ValueError, match=r"openuni\.pth, other\.pth.*model\.options\.weights"):
        load(trained, parts=parts)
    with pytest.raises(ValueError, match=r"projector\.weight.*not OpenUni's weights"):
        load(trained, parts=parts, weights="other.pth")
    (trained / "other.pth").write_bytes((trained / "openuni.pth").read_bytes()[:9000])
    with pytest.raises(ValueError, match=r"other\.pth cannot be read"):
        load(trained, parts=parts, weights="other.pth")
    state = torch.load(trained / "openuni.pth", weights_only=True)["state_dict"]
    torch.save(state | {"adapter.weight": torch.zeros(2)}, trained / "other.pth")
    with pytest.raises(ValueError, match=r"1 unexpected: adapter\.weight"):
        load(trained, parts=parts, weights="other.pth")
    (tmp_path / "sana/transformer/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="transformer"):
        load(trained, parts=parts, weights="openuni.pth")


def test_bad_checkpoints_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load(tmp_path)
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = (base / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load(tmp_path)
    model = load(base)
    assert isinstance(model, OpenUni)
    state = model.network.to_official()
    queries = state.pop("meta_queries")
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="1 missing: meta_queries"):
        load(tmp_path)
    save_file({**state, "meta_queries": queries[:3].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"meta_queries \(3, 96\), expected \(16, 96\)"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        load(tmp_path)


def test_bad_inputs_are_refused(model: UnifiedModel, base: Path) -> None:
    with pytest.raises(ValueError, match="tokens"):
        model.generate(["a circle and " * 200], FEW, SampleRng([1]))
    with pytest.raises(ValueError, match="multiple of 4"):
        model.encode_target(pictures(1, 3), SampleRng([1]))
    with pytest.raises(ValueError, match="shape"):
        model.encode_semantic(pictures(1)[0])
    with pytest.raises(ValueError, match=r"model\.understanding_size is 25"):
        load(base, understanding_size=25)


def real_config(
    width: int, layers: int, heads: int, inner: int, connector: int, sana: tuple[int, int, int, int]
) -> dict:
    """Return the configuration of OpenUni-B or -L, from the published configurations of their parts."""
    channels, blocks = [128, 256, 512, 512, 1024, 1024], ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
    sana_heads, sana_layers, cross_heads, cross_size = sana
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    return {
        "lmm": {
            "vision_config": {**vision, "image_size": 448, "patch_size": 14, "qkv_bias": True},
            "llm_config": {
                "architectures": ["Qwen2ForCausalLM"],
                "vocab_size": 151674,
                "hidden_size": width,
                "intermediate_size": inner,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": 2,
                "max_position_embeddings": 32768,
                "rope_theta": 1e6,
                "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
                "tie_word_embeddings": False,
                "torch_dtype": "bfloat16",
                "top_k": 50,
            },
            "downsample_ratio": 0.5,
        },
        "connector": {
            "hidden_size": width,
            "intermediate_size": connector,
            "num_hidden_layers": 6,
            "num_attention_heads": width // 64,
        },
        "transformer": {
            "in_channels": 32,
            "out_channels": 32,
            "num_attention_heads": sana_heads,
            "attention_head_dim": 32,
            "num_layers": sana_layers,
            "num_cross_attention_heads": cross_heads,
            "cross_attention_head_dim": cross_size,
            "cross_attention_dim": cross_heads * cross_size,
            "caption_channels": 2304,
            "mlp_ratio": 2.5,
            "sample_size": 16,
        },
        "vae": {
            "latent_channels": 32,
            "attention_head_dim": 32,
            "encoder_block_types": blocks,
            "decoder_block_types": blocks,
            "encoder_block_out_channels": channels,
            "decoder_block_out_channels": channels,
            "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
            "decoder_layers_per_block": [3] * 6,
            "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
            "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
        },
        "sched": {},
        "num_queries": 256,
        "vit_input_size": 448,
    }


@pytest.mark.parametrize(
    ("sizes", "millions"),
    [
        pytest.param((896, 24, 14, 4864, 3072, (36, 28, 16, 72)), (304, 592, 646, 1897), id="openuni_b_512"),
        pytest.param((1536, 28, 12, 8960, 8960, (70, 20, 20, 112)), (304, 1604, 1830, 4232), id="openuni_l_512"),
    ],
)
def test_real_sizes_have_the_known_parameter_counts(sizes: tuple, millions: tuple[int, int, int, int]) -> None:
    """Parameters in millions: InternViT-300M, SANA (592 and 1604 on their cards), trained by RecA, all."""
    with torch.device("meta"):
        model = OpenUni(OpenUniNetwork(real_config(*sizes)), None, options_of("openuni"))
    assert (model.spec.semantic_tokens, model.spec.understanding_size) == (256, 448)
    assert (model.spec.target_tokens, model.spec.generation_size) == (256, 512)
    named = dict(model.named_parameters())
    counts = [
        sum(value.numel() for name, value in named.items() if name.startswith(prefix))
        for prefix in ("network.lmm.vision_model.", "network.transformer.")
    ]
    counts += [sum(named[name].numel() for name in model.trainable()), sum(value.numel() for value in named.values())]
    assert tuple(round(count / 1e6) for count in counts) == millions
