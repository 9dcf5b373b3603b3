"""Show-o's parts and the folders they come from: language model, CLIP, image tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, PhiConfig, PhiForCausalLM
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding

from reca.models.showo.autoencoder import Magvit, MagvitSizes, SignQuantizer
from reca.models.showo.sequence import Vocabulary
from reca.models.tokens import read_tokenizer
from reca.models.weights import find_weights, load_stock, load_strictly, read_json, read_weights, write_weights
from reca.runtime.files import atomic_folder, write_json

WEIGHTS_STEM = "pytorch_model"
"""The official file is ``pytorch_model.safetensors``."""
STEMS = (WEIGHTS_STEM, "model", "diffusion_pytorch_model", "magvit")
ROTARY_CONSTANTS = "showo.model.layers.*.self_attn.rotary_emb.inv_freq"
"""Constants in older files."""
CLIP_UNUSED = ("text_model.*", "text_projection.*", "visual_projection.*", "logit_scale", "*embeddings.position_ids")
"""Other parameters in a repository of the whole CLIP, and constants of older files."""
REQUIRED_SIZES = ("vocab_size", "llm_vocab_size", "codebook_size", "num_vq_tokens")


@dataclass
class ShowoParts:
    """Modules, tokenizer and configuration of a Show-o."""

    config: Mapping[str, Any]
    """``config.json``, unchanged."""
    phi: PhiForCausalLM
    tokenizer: Any
    vocabulary: Vocabulary
    magvit: Magvit
    clip: CLIPVisionModel | None = None
    projector: nn.Sequential | None = None
    """CLIP's width to Phi's; with CLIP only."""
    saved_parts: frozenset[str] = frozenset({"clip", "magvit"})
    """Parts in the checkpoint folder itself, which are therefore written with it."""
    stem: str = WEIGHTS_STEM
    """File name of the weights, without suffix."""


def build_vocabulary(config: Mapping[str, Any], eos: int) -> Vocabulary:
    """Return the ids of the shared table from the sizes in ``config.json``.

    Raises:
        ValueError: The sizes contradict each other.
    """
    text, codebook, size = (int(config[name]) for name in ("llm_vocab_size", "codebook_size", "vocab_size"))
    special = size - text - codebook - 1
    if special < 10:
        raise ValueError(
            f"config.json: vocab_size {size} has no room for {text} text tokens, 10 special tokens, {codebook} image "
            "codes and the mask"
        )
    vocabulary = Vocabulary.from_sizes(text, eos, special, codebook)
    if config.get("mask_token_id", vocabulary.mask) != vocabulary.mask:
        raise ValueError(
            f"config.json: mask_token_id is {config['mask_token_id']}, expected the last, {vocabulary.mask}"
        )
    return vocabulary


def empty_phi(config: PhiConfig, vocab_size: int, device: str = "meta") -> PhiForCausalLM:
    """Build Show-o's language model without weights; it always norms queries and keys, unlike Phi's own config."""
    config.vocab_size, config.qk_layernorm, config.tie_word_embeddings = vocab_size, True, False
    with torch.device(device):
        phi = PhiForCausalLM(config)
    phi.model.rotary_emb = PhiRotaryEmbedding(config=config)  # constants, in no file
    return phi


def empty_projector(width_in: int, width: int, width_out: int, device: str = "meta") -> nn.Sequential:
    """Build the projector from CLIP's width to Phi's, without weights."""
    with torch.device(device):
        return nn.Sequential(nn.Linear(width_in, width), nn.GELU(), nn.Linear(width, width_out))


def read_checkpoint(checkpoint: Path, part_paths: Mapping[str, str]) -> ShowoParts:
    """Read all parts, on the CPU, in the dtype of their weights.

    Args:
        checkpoint: Folder with ``config.json`` and the weights.
        part_paths: Folders (or a weights file, for ``magvit``) of the parts that ``checkpoint`` does not hold.

    Raises:
        FileNotFoundError: A file or a part is missing.
        ValueError: A file cannot be read, or does not fit its config.
    """
    config = read_json(checkpoint / "config.json")
    if absent := [name for name in REQUIRED_SIZES if name not in config]:
        raise ValueError(f"{checkpoint / 'config.json'} is not a Show-o's: {', '.join(absent)} is missing")
    weights_file = find_weights(checkpoint, STEMS[:3])
    weights = read_weights(weights_file)
    with_clip = bool(config.get("w_clip_vit", "mm_projector.0.weight" in weights))
    names = ("phi", "magvit", "clip") if with_clip else ("phi", "magvit")
    folders = {name: _part_folder(checkpoint, name, part_paths) for name in names}
    tokenizer = read_tokenizer(folders["phi"])
    vocabulary = build_vocabulary(config, tokenizer.eos_token_id)
    if not 0 <= vocabulary.eos < vocabulary.pad:
        raise ValueError(
            f"{folders['phi']}: the tokenizer's end of text is {vocabulary.eos}, not a text token of this model"
        )
    magvit = _read_magvit(folders["magvit"])
    if magvit.sizes.codebook != vocabulary.codebook:
        raise ValueError(
            f"{folders['magvit']} has {magvit.sizes.codebook} codes, {checkpoint / 'config.json'} {vocabulary.codebook}"
        )
    clip = load_stock(CLIPVisionModel, folders["clip"], CLIP_UNUSED, dtype=torch.float32) if with_clip else None
    phi = empty_phi(PhiConfig.from_dict(read_json(folders["phi"] / "config.json")), int(config["vocab_size"]))
    modules = nn.ModuleDict({"showo": phi})
    projector = None
    if clip is not None:
        if "mm_projector.0.weight" not in weights:
            raise ValueError(f"{weights_file} has no mm_projector, though config.json says w_clip_vit")
        width = weights["mm_projector.0.weight"].shape[0]
        projector = empty_projector(clip.config.hidden_size, width, phi.config.hidden_size)
        modules["mm_projector"] = projector
    load_strictly(modules, weights, weights_file, may_ignore=(ROTARY_CONSTANTS,))
    return ShowoParts(
        config=config,
        phi=phi,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        magvit=magvit,
        clip=clip,
        projector=projector,
        saved_parts=frozenset(name for name in names if folders[name].parent == checkpoint),
        stem="model" if weights_file.name.startswith("model.") else WEIGHTS_STEM,
    )


def write_checkpoint(path: Path, parts: ShowoParts, clip_trained: bool, sharded: bool) -> None:
    """Write the layout that :func:`read_checkpoint` reads, whole or not at all.

    Phi's config and tokenizer are always written, because they are small; CLIP and the image tokenizer only if they
    were in the checkpoint before, or (CLIP) have been trained.
    """
    with atomic_folder(path) as folder:
        write_json(folder / "config.json", dict(parts.config))
        state: dict[str, Tensor] = {f"showo.{name}": value for name, value in parts.phi.state_dict().items()}
        if parts.projector is not None:
            state |= {f"mm_projector.{name}": value for name, value in parts.projector.state_dict().items()}
        write_weights(state, folder, parts.stem, sharded)
        parts.phi.config.save_pretrained(folder / "phi")
        parts.tokenizer.save_pretrained(folder / "phi")
        if parts.clip is not None and ("clip" in parts.saved_parts or clip_trained):
            parts.clip.save_pretrained(folder / "clip")
            for file in (folder / "clip").glob("*.safetensors"):
                file.chmod(0o644)
        if "magvit" in parts.saved_parts:
            (folder / "magvit").mkdir()
            write_weights(parts.magvit.state_dict(), folder / "magvit", WEIGHTS_STEM)


def _part_folder(checkpoint: Path, name: str, part_paths: Mapping[str, str]) -> Path:
    """Return the folder of a part: the checkpoint's own first, because training may have changed it."""
    folder = checkpoint / name if (checkpoint / name).is_dir() else Path(part_paths.get(name, checkpoint / name))
    if not folder.exists():
        raise FileNotFoundError(f"Show-o's part {name!r} is missing: {folder} does not exist; set model.parts.{name}")
    return folder


def _read_magvit(path: Path) -> Magvit:
    file = find_weights(path, STEMS) if path.is_dir() else path
    weights = read_weights(file)
    try:
        sizes = MagvitSizes.from_weights(weights)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    with torch.device("meta"):
        magvit = Magvit(sizes)
    magvit.quantize = SignQuantizer(sizes.bits)  # constants, so it does not matter if the file lacks them
    load_strictly(magvit, weights, file, may_lack=("quantize.*",), may_ignore=("quantize.*",))
    return magvit
