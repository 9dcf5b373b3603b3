"""Folders as the published repositories are: their file names, formats, indexes and tokenizers, with small numbers.

Real weights are random, in the dtype of the release. What the repositories hold is from their authors' loaders and
READMEs; names that could not be learnt (RecA's for Harmon and OpenUni) are made up, as the loaders take any.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from reca.config import ROOT, compose
from reca.config.model import ModelSection
from reca.data.download import UNUSED
from reca.models.autoencoder_kl import Kl16Sizes
from reca.models.bagel.autoencoder import official_state
from reca.models.base import UnifiedModel
from reca.models.harmon.checkpoint import HEADS_BY_WIDTH
from reca.models.harmon.network import HarmonNetwork
from reca.models.loading import load_model
from reca.models.weights import write_weights
from tools.tiny_bases import harmon_tiny

PRESETS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml") if "hub" in path.read_text())
SMALL_SHARDS = 3 * 2**20
"""Bytes per shard where the real files are sharded."""
TINY_OPTIONS: dict[str, Any] = {"understanding_size": None, "generation_size": None}
"""The presets' sizes are in pixels of the real models."""
State = Mapping[str, Tensor]


def publish(preset: str, root: Path, patch: pytest.MonkeyPatch) -> ModelSection:
    """Write a preset's checkpoint and parts below ``root`` where the preset expects them; return its section."""
    section = compose([f"model={preset}"]).model
    module = import_module(f"tools.tiny_bases.{section.family}_tiny")
    tokenizer = byte_tokenizer(module.build_tokenizer(), root / "tokenizer")
    patch.setattr(module, "build_tokenizer", lambda: tokenizer)
    torch.manual_seed(0)
    folders = {name: root / folder for name, folder in {"checkpoint": section.checkpoint, **section.parts}.items()}
    folders["tokenizer"] = root / "tokenizer"
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    patch.setattr("reca.models.weights.SHARD_BYTES", SMALL_SHARDS)
    patch.setitem(HEADS_BY_WIDTH, harmon_tiny.WIDTH, harmon_tiny.HEADS)
    WRITERS[section.family](module.build(), preset, folders)
    for part, source in section.hub.items():
        _keep_what_is_fetched(folders[part], source, set(folders.values()))
    return section


def _keep_what_is_fetched(folder: Path, source: str, folders: set[Path]) -> None:
    """Delete the files of a repository that the download leaves out; parts below it are other repositories."""
    others = [other for other in folders if other != folder and other.is_relative_to(folder)]
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in files if not any(map(path.is_relative_to, others))}
    patterns = source.partition("#")[2].split(",") if "#" in source else None
    fetched = set(filter_repo_objects(names, allow_patterns=patterns, ignore_patterns=UNUSED))
    assert fetched, source
    for name in names.keys() - fetched:
        names[name].unlink()


def load(section: ModelSection, root: Path, folder: str | Path | None = None, **changes: Any) -> UnifiedModel:
    """Load a published layout, or a folder that was written from it, with the preset's options."""
    options = {**section.load_options(root), **TINY_OPTIONS, **changes}
    return load_model(section.family, root / (folder or section.checkpoint), options, torch.device("cpu"))


def byte_tokenizer(words: PreTrainedTokenizerFast, folder: Path) -> Any:
    """Return a byte-level tokenizer with the special tokens of another one, loaded from published files."""
    specials = sorted(words.get_added_vocab(), key=words.convert_tokens_to_ids)
    vocabulary = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    added = {token: len(vocabulary) + number for number, token in enumerate(specials)}
    _json(folder / "added_tokens.json", added)
    names = {
        name: value
        for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        if (value := getattr(words, name)) is not None
    }
    _json(folder / "special_tokens_map.json", names)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    decoder = {str(number): {"content": token, **flags} for token, number in added.items()}
    _json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder, **names, "model_max_length": 4096})
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _tokenizer(source: Path, folder: Path, tokenizer_class: str, without: tuple[str, ...] = (), **entries: Any) -> None:
    """Copy the tokenizer's files, as a repository of this class has them."""
    for file in source.iterdir():
        if file.name not in without:
            shutil.copy(file, folder)
    config = json.loads((source / "tokenizer_config.json").read_text())
    _json(folder / "tokenizer_config.json", {**config, "tokenizer_class": tokenizer_class, **entries})


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _part(state: State, prefix: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return a part's own state dict."""
    found = {name: value for name, value in state.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): value.to(dtype).contiguous() for name, value in found.items()}


def _janus(model: Any, preset: str, folders: Mapping[str, Path]) -> None:
    folder = folders["checkpoint"]
    del model.network.config.gist  # ours
    model.network.bfloat16().save_pretrained(folder, max_shard_size="1MB" if preset.endswith("7b") else "50GB")
    _json(folder / "preprocessor_config.json", {"image_processor_type": "JanusImageProcessor"})
    _json(folder / "processor_config.json", {"processor_class": "JanusProcessor", "num_image_tokens": 16})
    named = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    without = ("vocab.json", "merges.txt", "added_tokens.json")
    _tokenizer(folders["tokenizer"], folder, "LlamaTokenizerFast", without, extra_special_tokens=named)


OPENUNI_TRAINED = ("connector.", "projector.", "meta_queries", "transformer.")


def write_openuni(
    model: Any,
    folders: Mapping[str, Path],
    weights: str = "openuni.pth",
    trained: tuple[str, ...] = OPENUNI_TRAINED,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write OpenUni's parts in the layouts of their repositories, and what begins like ``trained`` in one ``.pth``."""
    state, config = model.network.to_official(), model.network.config
    diffusers = {"_diffusers_version": "0.32.0"}
    remote = {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}
    _json(folders["lmm"] / "config.json", {**config["lmm"], "model_type": "internvl_chat", "auto_map": remote})
    (folders["lmm"] / "configuration_internvl_chat.py").write_text("raise RuntimeError('remote code')\n")
    write_weights(_part(state, "lmm.", dtype), folders["lmm"])
    for part, folder in (("transformer", folders["sana"] / "transformer"), ("vae", folders["vae"])):
        _json(folder / "config.json", {**config[part], **diffusers})
        write_weights(_part(state, f"{part}."), folder, "diffusion_pytorch_model")
    _json(folders["sana"] / "scheduler/scheduler_config.json", {**config["sched"], **diffusers})
    for name in ("transformer/diffusion_pytorch_model.fp16", "text_encoder/model", "tokenizer/tokenizer"):
        _json(folders["sana"] / f"{name}.safetensors", {})
    found = {key: value.to(dtype) for key, value in state.items() if key.startswith(trained)}
    torch.save({"state_dict": found}, folders["checkpoint"] / weights)


def _openuni(model: Any, preset: str, folders: Mapping[str, Path]) -> None:
    write_openuni(model, folders, compose([f"model={preset}"]).model.options.weights or "openuni_reca.pth")
    _tokenizer(folders["tokenizer"], folders["lmm"], "Qwen2Tokenizer", ("tokenizer.json",))


def _showo(model: Any, preset: str, folders: Mapping[str, Path]) -> None:
    config, with_clip = dict(model.parts.config), "clip" in folders
    state = _part(model.showo.state_dict(), "")
    state = {f"showo.{name}": value for name, value in state.items()}
    if with_clip:
        state |= {f"mm_projector.{name}": value for name, value in model.mm_projector.state_dict().items()}
        clip = folders["clip"]
        _json(clip / "config.json", {"model_type": "clip", "vision_config": model.clip.config.to_dict()})
        whole = {f"vision_model.{name}": value for name, value in model.clip.state_dict().items()}
        whole |= {"text_model.embeddings.token_embedding.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(())}
        torch.save(whole, clip / "pytorch_model.bin")
    _json(folders["checkpoint"] / "config.json", {**config, "w_clip_vit": with_clip})
    save_file(state, folders["checkpoint"] / "pytorch_model.safetensors")
    save_file(_part(model.magvit.state_dict(), ""), folders["magvit"] / "pytorch_model.safetensors")
    _json(folders["phi"] / "config.json", model.showo.config.to_dict() | {"qk_layernorm": False})
    _json(folders["phi"] / "model.safetensors", {})
    _tokenizer(folders["tokenizer"], folders["phi"], "CodeGenTokenizer")


def _bagel(model: Any, preset: str, folders: Mapping[str, Path]) -> None:
    reca = "base" in folders
    base, configs = folders["base" if reca else "checkpoint"], model._configs
    _json(base / "llm_config.json", configs.llm)
    _json(base / "vit_config.json", configs.vit)
    _json(base / "config.json", {"model_type": "bagel", "architectures": ["BagelForConditionalGeneration"]})
    state = _part(model.network.state_dict(), "", torch.bfloat16)
    autoencoder = official_state(model.autoencoder)
    save_file(state, base / "ema.safetensors")
    save_file(autoencoder, base / "ae.safetensors")
    files = dict.fromkeys(state, "ema.safetensors") | dict.fromkeys(autoencoder, "ae.safetensors")
    _json(base / "model.safetensors.index.json", {"metadata": {"total_size": 0}, "weight_map": files})
    _tokenizer(folders["tokenizer"], base, "Qwen2Tokenizer", ("added_tokens.json", "special_tokens_map.json"))
    if reca:  # weights alone, without the fixed tables
        trained = {name: value for name, value in state.items() if not name.endswith("pos_embed.pos_embed")}
        save_file(trained, folders["checkpoint"] / "model_bf16.safetensors")


def write_harmon_parts(state: State, llm: Mapping[str, Any], folders: Mapping[str, Path]) -> None:
    """Write Harmon as its trainers do: a ``.pth`` without autoencoder, ``kl16.ckpt``, and Qwen2.5's sizes."""
    _json(folders["llm"] / "config.json", {**llm, "model_type": "qwen2", "torch_dtype": "bfloat16"})
    torch.save({"model": _part(state, "vae.") | {"loss.logvar": torch.zeros(())}}, folders["vae"] / "kl16.ckpt")
    weights = {key: value for key, value in state.items() if not key.startswith("vae.")}
    torch.save(weights, folders["checkpoint"] / "harmon_tiny.pth")


def _harmon(model: Any, preset: str, folders: Mapping[str, Path]) -> None:
    state, config, folder = model.network.official_state(), model.config, folders["checkpoint"]
    if preset.endswith("_reca"):
        mar = {key: value for key, value in config["mar"].items() if key != "mlp_ratio"}  # no shape shows this size
        sizes = Kl16Sizes.of(_part(state, "vae."))
        write_harmon_parts(HarmonNetwork({**config, "mar": mar}, sizes).official_state(), config["llm"], folders)
        _tokenizer(folders["tokenizer"], folders["llm"], "Qwen2Tokenizer", ("added_tokens.json", "merges.txt"))
        return
    remote = {"AutoConfig": "configuration_harmon.HarmonConfig", "AutoModel": "modeling_harmon.HarmonModel"}
    _json(folder / "config.json", {**config, "model_type": "harmon", "auto_map": remote})
    for name in ("configuration_harmon.py", "modeling_harmon.py"):
        (folder / name).write_text("raise RuntimeError('remote code')\n")
    write_weights(state, folder)
    _tokenizer(folders["tokenizer"], folder, "Qwen2Tokenizer")


WRITERS: dict[str, Callable[[Any, str, Mapping[str, Path]], None]] = {
    "janus": _janus,
    "openuni": _openuni,
    "showo": _showo,
    "bagel": _bagel,
    "harmon": _harmon,
}
