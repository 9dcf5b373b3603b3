"""Show-o's parts and the folders they come from: language model, CLIP, image tokenizer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPVisionModel, PhiConfig, PhiForCausalLM
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding
from transformers.utils import logging as transformers_logging

from reca.models.showo.autoencoder import Magvit, MagvitSizes, SignQuantizer
from reca.models.showo.sequence import Vocabulary
from reca.models.weights import find_weights, load_strictly, read_json, read_weights, write_weights
from reca.runtime.files import atomic_folder

WEIGHTS_STEM = "pytorch_model"
"""The official file is ``pytorch_model.safetensors``."""
STEMS = (WEIGHTS_STEM, "model", "diffusion_pytorch_model", "magvit")
ROTARY_CONSTANTS = "showo.model.layers.*.self_attn.rotary_emb.inv_freq"
"""Older files carry these constants."""
BESIDE_VISION = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
"""A repository of the whole CLIP has its other half too; ``position_ids`` are constants of older files."""
SIZES = ("vocab_size", "llm_vocab_size", "codebook_size", "num_vq_tokens")


@dataclass
class ShowoParts:
    """Everything that a Show-o is made of."""

    config: Mapping[str, Any]
    """``config.json`` as it stands."""
    phi: PhiForCausalLM
    tokenizer: Any
    vocabulary: Vocabulary
    magvit: Magvit
    clip: CLIPVisionModel | None = None
    projector: nn.Sequential | None = None
    """CLIP's width to Phi's; with CLIP only."""
    inside: frozenset[str] = frozenset({"clip", "magvit"})
    """Parts that lie in the checkpoint itself, and hence are written with it."""
    stem: str = WEIGHTS_STEM
    """The weights' file name, less its ending."""


def build_vocabulary(config: Mapping[str, Any], eos: int) -> Vocabulary:
    """Ids of the shared table, from the sizes in ``config.json``.

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
    vocabulary = Vocabulary.after(text, eos, special, codebook)
    if config.get("mask_token_id", vocabulary.mask) != vocabulary.mask:
        raise ValueError(
            f"config.json: mask_token_id is {config['mask_token_id']}, expected the last, {vocabulary.mask}"
        )
    return vocabulary


def empty_phi(config: PhiConfig, vocab_size: int, device: str = "meta") -> PhiForCausalLM:
    """Show-o's language model without weights: queries and keys are normed whatever Phi's own config says."""
    config.vocab_size, config.qk_layernorm, config.tie_word_embeddings = vocab_size, True, False
    with torch.device(device):
        phi = PhiForCausalLM(config)
    phi.model.rotary_emb = PhiRotaryEmbedding(config=config)  # constants, in no file
    return phi


def empty_projector(width_in: int, width: int, width_out: int, device: str = "meta") -> nn.Sequential:
    """CLIP's width to Phi's."""
    with torch.device(device):
        return nn.Sequential(nn.Linear(width_in, width), nn.GELU(), nn.Linear(width, width_out))


def read_checkpoint(checkpoint: Path, elsewhere: Mapping[str, str]) -> ShowoParts:
    """Read all parts, on the CPU, in the dtype of their weights.

    Args:
        checkpoint: Folder with ``config.json`` and the weights.
        elsewhere: Folders (or a weights file, for ``magvit``) of the parts that ``checkpoint`` does not hold.

    Raises:
        FileNotFoundError: A file or a part is missing.
        ValueError: A file cannot be read, or does not fit its config.
    """
    config = read_json(checkpoint / "config.json")
    if absent := [name for name in SIZES if name not in config]:
        raise ValueError(f"{checkpoint / 'config.json'} is no Show-o's: {', '.join(absent)} is missing")
    transformers_logging.disable_progress_bar()
    weights_file = find_weights(checkpoint, STEMS[:3])
    weights = read_weights(weights_file)
    with_clip = bool(config.get("w_clip_vit", "mm_projector.0.weight" in weights))
    places = {name: _place(checkpoint, name, elsewhere) for name in ("phi", "magvit", *(["clip"] if with_clip else []))}
    tokenizer = _read_tokenizer(places["phi"])
    vocabulary = build_vocabulary(config, tokenizer.eos_token_id)
    if not 0 <= vocabulary.eos < vocabulary.pad:
        raise ValueError(
            f"{places['phi']}: the tokenizer's end of text is {vocabulary.eos}, no text token of this model"
        )
    magvit = _read_magvit(places["magvit"])
    if magvit.sizes.codebook != vocabulary.codebook:
        raise ValueError(
            f"{places['magvit']} has {magvit.sizes.codebook} codes, {checkpoint / 'config.json'} {vocabulary.codebook}"
        )
    clip = _read_clip(places["clip"]) if with_clip else None
    phi = empty_phi(PhiConfig.from_pretrained(places["phi"], local_files_only=True), int(config["vocab_size"]))
    whole = nn.ModuleDict({"showo": phi})
    projector = None
    if clip is not None:
        if "mm_projector.0.weight" not in weights:
            raise ValueError(f"{weights_file} has no mm_projector, though config.json says w_clip_vit")
        width = weights["mm_projector.0.weight"].shape[0]
        projector = empty_projector(clip.config.hidden_size, width, phi.config.hidden_size)
        whole["mm_projector"] = projector
    load_strictly(whole, weights, weights_file, may_ignore=(ROTARY_CONSTANTS,))
    return ShowoParts(
        config=config,
        phi=phi,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        magvit=magvit,
        clip=clip,
        projector=projector,
        inside=frozenset(name for name in ("clip", "magvit") if name in places and places[name].parent == checkpoint),
        stem="model" if weights_file.name.startswith("model.") else WEIGHTS_STEM,
    )


def write_checkpoint(path: Path, parts: ShowoParts, clip_moved: bool) -> None:
    """Write the layout that :func:`read_checkpoint` reads, whole or not at all.

    Phi's config and tokenizer go along, for they are small; CLIP and the image tokenizer only if they lay in the
    checkpoint before, or (CLIP) have been trained.
    """
    with atomic_folder(path) as folder:
        (folder / "config.json").write_text(json.dumps(dict(parts.config), indent=2) + "\n")
        state: dict[str, Tensor] = {f"showo.{name}": value for name, value in parts.phi.state_dict().items()}
        if parts.projector is not None:
            state |= {f"mm_projector.{name}": value for name, value in parts.projector.state_dict().items()}
        write_weights(state, folder, parts.stem)
        parts.phi.config.save_pretrained(folder / "phi")
        parts.tokenizer.save_pretrained(folder / "phi")
        if parts.clip is not None and ("clip" in parts.inside or clip_moved):
            parts.clip.save_pretrained(folder / "clip")
            for file in (folder / "clip").glob("*.safetensors"):
                file.chmod(0o644)
        if "magvit" in parts.inside:
            (folder / "magvit").mkdir()
            write_weights(parts.magvit.state_dict(), folder / "magvit", WEIGHTS_STEM)


def _place(checkpoint: Path, name: str, elsewhere: Mapping[str, str]) -> Path:
    """The folder of a part: inside the checkpoint first, since training may have moved what lies there."""
    if (checkpoint / name).is_dir():
        return checkpoint / name
    if name in elsewhere and Path(elsewhere[name]).exists():
        return Path(elsewhere[name])
    named = f"{elsewhere[name]} does not exist" if name in elsewhere else "it names none"
    raise FileNotFoundError(
        f"Show-o's part {name!r} is missing: {checkpoint / name} is no folder; set model.parts.{name} ({named})"
    )


def _read_tokenizer(place: Path) -> Any:
    for name in ("config.json", "tokenizer.json"):
        if not (place / name).is_file():
            raise FileNotFoundError(f"{place / name} is missing: {place} lacks Phi's config or tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    for name in ("is_local", "local_files_only"):  # how it was read, which transformers would write down
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def _read_magvit(place: Path) -> Magvit:
    file = find_weights(place, STEMS) if place.is_dir() else place
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


def _read_clip(place: Path) -> CLIPVisionModel:
    if not (place / "config.json").is_file():
        raise FileNotFoundError(f"{place / 'config.json'} is missing: {place} is no CLIP checkpoint")
    try:
        clip, report = CLIPVisionModel.from_pretrained(
            place, output_loading_info=True, local_files_only=True, dtype=torch.float32
        )
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"the weights of {place} cannot be read: {error}") from None
    unexpected = [key for key in report["unexpected_keys"] if not _beside_vision(key)]
    wrong = {"missing": report["missing_keys"], "unexpected": unexpected, "other sizes": report["mismatched_keys"]}
    if any(wrong.values()):
        found = {kind: sorted(map(str, keys))[:8] for kind, keys in wrong.items() if keys}
        raise ValueError(f"the weights of {place} do not fit their config: {found}")
    return clip


def _beside_vision(key: str) -> bool:
    return key.startswith(BESIDE_VISION) or key.endswith("embeddings.position_ids")
