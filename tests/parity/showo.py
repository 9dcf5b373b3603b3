"""Replay a Show-o recording: tokenizer, RecA with CLIP and with codes, text to image, understanding, sampling.

A recording has official weights of both variants (``showo_clip.safetensors``, ``showo_vq.safetensors``), of CLIP
(``clip/``) and of the image tokenizer (``magvit.safetensors``), and Phi's config (``phi/``), but no tokenizer: prompts
are cut out of the recorded ids, and everything around them is batch by us.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from reca.models.base import Semantic, Target
from reca.models.sampling import Sampling
from reca.models.showo.model import Showo
from reca.models.showo.sampling import random_mask
from reca.models.showo.sequence import FEATURE_ID, TokenBatch, generation_sequences, reconstruction_sequences
from reca.runtime.seeding import SampleRng
from tests.parity.comparison import EMBEDDING, LOSS, RecordedRng, Recording, options_of
from tests.parity.tokens import RecordedTokenizer

THROUGH_VAE = 2e-5
DEFAULTS = {"guidance_scale": 5.0, "temperature": 1.0, "num_steps": 6, "seed": 123}
"""Arguments of the first recording, whose ``config.json`` has none; the official scale g is w - 1."""
CPU = torch.device("cpu")


class GeneratorRng(SampleRng):
    """The official sampler's draws: one torch generator for the whole batch, codes by ``torch.multinomial``."""

    def __init__(self, size: int, seed: int) -> None:
        super().__init__([0] * size)
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, name: str, shape: Sequence[int] = ()) -> Tensor:
        """Uniform numbers for the batch at once."""
        return torch.rand((len(self), *shape), generator=self._generator)

    def categorical(self, name: str, logits: Tensor) -> Tensor:
        """Classes of all rows at once."""
        flat = logits.softmax(dim=-1).flatten(0, -2)
        return torch.multinomial(flat, 1, generator=self._generator).view(logits.shape[:-1])


def load(recording: Recording, variant: str, **options: Any) -> Showo | None:
    """Load our model of a variant (``clip``, ``vq``) by the official layout; ``None`` without its weights."""
    folder, config = recording.folder, json.loads((recording.folder / "config.json").read_text())
    weights = folder / f"showo_{variant}.safetensors"
    if not weights.is_file():
        return None
    official = {
        "w_clip_vit": variant == "clip",
        "vocab_size": config["vocab"],
        "llm_vocab_size": config["llm_vocab"],
        "codebook_size": config["codebook"],
        "num_vq_tokens": config["num_vq_tokens"],
        "mask_token_id": config.get("mask_token_id", config["vocab"] - 1),
        "clip_select_layer": config.get("clip_select_layer", -2),
    }
    special = {key.strip("<|>"): value for key, value in config.get("special_ids", {}).items()}
    with tempfile.TemporaryDirectory() as name:
        checkpoint = Path(name)
        (checkpoint / "config.json").write_text(json.dumps(official))
        (checkpoint / "pytorch_model.safetensors").symlink_to(weights.resolve())
        (checkpoint / "phi").mkdir()
        shutil.copyfile(folder / "phi/config.json", checkpoint / "phi/config.json")
        words = tokenizer(config["llm_vocab"], special.get("eot", config["llm_vocab"] - 1))
        words.save_pretrained(checkpoint / "phi")
        parts = {"clip": str(folder / "clip"), "magvit": str(folder / "magvit.safetensors")}
        model = Showo.load(checkpoint, options_of("showo", parts=parts, **options), CPU)
    ours = vars(model.vocabulary) | {"eot": model.vocabulary.eos, "sot": model.vocabulary.eos}
    if differ := sorted(key for key in special.keys() & ours.keys() if special[key] != ours[key]):
        raise ValueError(f"special ids {differ} of {folder / 'config.json'} are not where Show-o has them")
    return model


def tokenizer(size: int, eos: int) -> PreTrainedTokenizerFast:
    """Build the recording's tokenizer as its README describes it: words w0, w1 … and the end of text."""
    words = {("<|endoftext|>" if number == eos else f"w{number}"): number for number in range(size)}
    word_level = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=word_level, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def cut(framed: Sequence[int], eos: int) -> list[int]:
    """The text between bos and eos."""
    text = list(framed)
    text = text[:-1] if text and text[-1] == eos else text
    return text[1:] if text and text[0] == eos else text


def prompts_of(model: Showo, texts: Sequence[Sequence[int]]) -> list[str]:
    """Prompts that the model will tokenize to the recorded ``texts``; any other text becomes the empty one."""
    rows = [*texts, []]
    model.tokenizer = RecordedTokenizer(rows, {}, model.vocabulary.pad, otherwise=len(texts))
    return [f"row {number}" for number in range(len(texts))]


def drawn_texts(model: Showo, ids: Tensor, tokens: int) -> list[list[int]]:
    """Texts of sequences that end in [soi] codes [eoi]: behind the condition's [eoi], or else behind the task."""
    texts = []
    for row in ids.tolist():
        prefix = row[: len(row) - tokens - 2]
        start = (
            prefix.index(model.vocabulary.eoi) if model.vocabulary.eoi in prefix else prefix.index(model.vocabulary.t2i)
        )
        text = prefix[start + 1 :]
        while text and text[-1] == model.vocabulary.pad:
            text.pop()
        texts.append(cut(text, model.vocabulary.eos))
    return texts


def warn_of_differences(recording: Recording, name: str, batch: TokenBatch) -> list[str]:
    """Compare our batch with the recorded one; the recording is never an input."""
    messages = []
    ids, mask = recording.inputs.get(f"{name}.input_ids"), recording.inputs.get(f"{name}.mask")
    if ids is not None and not torch.equal(batch.ids[: len(ids)], ids):
        messages.append(f"{name}: our ids are not the recorded ones")
    if mask is not None and not torch.equal(~batch.attention_mask[:, None], mask):
        messages.append(f"{name}: our mask is not the recorded one")
    for line in messages:
        print(line, file=sys.stderr)
    return messages


def rng_of(recording: Recording, name: str, size: int) -> RecordedRng:
    """The mask's two draws."""
    draws = {"mask_ratio": f"{name}.rng.000.rand", "mask_order": f"{name}.rng.001.rand"}
    return RecordedRng({ours: recording.inputs[key] for ours, key in draws.items()}, size)


def replay(recording: Recording) -> None:
    """Compare everything that the folder has."""
    plain = load(recording, "vq")
    either = plain or load(recording, "clip")
    if either is None:
        raise ValueError(f"{recording.folder} has neither showo_clip.safetensors nor showo_vq.safetensors")
    draws = ("rng.000.rand", "rng.001.rand")

    def needs(name: str) -> list[str]:
        return ["pixel_values", f"{name}.input_ids", *(f"{name}.{draw}" for draw in draws)]

    recording.part("the tokenizer", ["pixel_values"], lambda: _magvit(recording, either), ["vq."])
    if (recording.folder / "showo_clip.safetensors").is_file():
        features = ["recon_clip.clip_feat", "recon_clip.image_embeds"]
        recording.part("CLIP", ["pixel_values"], lambda: _features(recording), features)
        recording.part("recon_clip", needs("recon_clip"), lambda: _clip(recording), ["recon_clip."])
    else:
        recording.skip("recon_clip.", "the folder has no showo_clip.safetensors")
    if plain is None:
        for prefix in ("recon_vq.", "t2i.", "mmu.", "gen."):
            recording.skip(prefix, "the folder has no showo_vq.safetensors, with which this was recorded")
        return
    recording.part("recon_vq", needs("recon_vq"), lambda: _codes(recording), ["recon_vq."])
    recording.part("t2i", needs("t2i"), lambda: _text_to_image(recording, plain), ["t2i."])
    recording.part("mmu", ["pixel_values", "mmu.input_ids"], lambda: _understanding(recording, plain), ["mmu."])
    for name in recording.runs("gen"):
        needs_ids = [f"{name}.input_ids" if f"{name}.input_ids" in recording.inputs else "gen.input_ids"]
        recording.part(name, needs_ids, lambda name=name: _drawing(recording, plain, name), [f"{name}."])


@torch.no_grad()
def _magvit(recording: Recording, model: Showo) -> None:
    images, magvit = recording.inputs["pixel_values"], model.magvit
    latents = magvit.encoder(images)
    recording.check("vq.encoder_out", latents, EMBEDDING)
    codes = model.encode_target(images, SampleRng([0] * len(images))).values
    recording.check("vq.codes", codes, 0)
    recording.check("vq.decoded", magvit.decode(codes, latents.shape[-2]), THROUGH_VAE)


def _reconstruction(
    recording: Recording, name: str, model: Showo, prompts: list[str], batch: TokenBatch, semantic: Semantic
) -> None:
    """Loss and gradients by the contract's own path; logits and embeddings of the sequence at its recorded length."""
    images, size = recording.inputs["pixel_values"], len(prompts)
    target = model.encode_target(images, SampleRng([0] * size))
    warn_of_differences(recording, name, batch)
    with torch.no_grad():
        embeds = model.embed(batch, semantic)
        recording.check(f"{name}.embeds", embeds, EMBEDDING)
        logits = model.showo.lm_head(model.run_phi(embeds, batch.attention_mask)[:, batch.codes])
        recording.check(f"{name}.image_logits", logits, EMBEDDING)
    model.zero_grad()
    loss = model.reconstruction_loss(semantic, prompts, target, rng_of(recording, name, size)).value
    recording.check(f"{name}.loss", loss, LOSS)
    loss.backward()
    recording.check_gradients(f"{name}.gradnorm.", model.named_parameters())


def _hidden_codes(recording: Recording, name: str, model: Showo) -> Tensor:
    """Codes of the images, hidden where our mask hides them."""
    images = recording.inputs["pixel_values"]
    codes = model.encode_target(images, SampleRng([0] * len(images))).values
    hidden = random_mask(rng_of(recording, name, len(codes)), codes.shape[1])
    return codes.masked_fill(hidden, model.vocabulary.codebook)


@torch.no_grad()
def _features(recording: Recording) -> None:
    model = load(recording, "clip")
    assert model is not None
    assert model.mm_projector is not None
    semantic = model.encode_semantic(recording.inputs["pixel_values"])
    recording.check("recon_clip.clip_feat", semantic.embeds, EMBEDDING)
    recording.check("recon_clip.image_embeds", model.mm_projector(semantic.embeds), EMBEDDING)


def _clip(recording: Recording) -> None:
    ids = recording.inputs["recon_clip.input_ids"]
    tokens = recording.inputs["recon_clip.rng.001.rand"].shape[1]
    features = int((ids[0] == FEATURE_ID).sum())
    model = load(recording, "clip", template_tokens=ids.shape[1] - features - 3 - tokens - 2)
    assert model is not None
    prompts = prompts_of(model, drawn_texts(model, ids, tokens))
    semantic = model.encode_semantic(recording.inputs["pixel_values"])
    codes = _hidden_codes(recording, "recon_clip", model)
    texts = model.text_ids(prompts)
    batch = reconstruction_sequences(model.vocabulary, texts, codes, features, model.template_tokens)
    _reconstruction(recording, "recon_clip", model, prompts, batch, semantic)


def _codes(recording: Recording) -> None:
    ids = recording.inputs["recon_vq.input_ids"]
    tokens = recording.inputs["recon_vq.rng.001.rand"].shape[1]
    model = load(recording, "vq")
    assert model is not None
    first = ids[0].tolist()
    condition = first.index(model.vocabulary.eoi) - first.index(model.vocabulary.soi) - 1
    side = round(condition**0.5) * model.magvit.sizes.downsampling
    model = load(recording, "vq", understanding_size=side)
    assert model is not None
    prompts = prompts_of(model, drawn_texts(model, ids, tokens))
    semantic = model.encode_semantic(recording.inputs["pixel_values"])
    codes = _hidden_codes(recording, "recon_vq", model)
    read = model.magvit.quantize(semantic.embeds.movedim(-1, 1))
    batch = generation_sequences(model.vocabulary, model.text_ids(prompts), codes, read, ids.shape[1])
    _reconstruction(recording, "recon_vq", model, prompts, batch, semantic)


def _text_to_image(recording: Recording, model: Showo) -> None:
    ids = recording.inputs["t2i.input_ids"]
    tokens = recording.inputs["t2i.rng.001.rand"].shape[1]
    prompts = prompts_of(model, drawn_texts(model, ids, tokens))
    codes = model.encode_target(recording.inputs["pixel_values"], SampleRng([0] * len(ids))).values
    hidden = _hidden_codes(recording, "t2i", model)
    texts = model.text_ids(prompts)
    warn_of_differences(recording, "t2i", generation_sequences(model.vocabulary, texts, hidden, length=ids.shape[1]))
    rng = rng_of(recording, "t2i", len(ids))
    with torch.no_grad():
        loss = model.text_to_image_loss(prompts, Target(codes), rng)
    recording.check("t2i.loss", loss.value, LOSS)


@torch.no_grad()
def _understanding(recording: Recording, model: Showo) -> None:
    """A caption of an image, read as codes of full size: every token of the text is a target, bos included."""
    ids = recording.inputs["mmu.input_ids"]
    if bool((ids == FEATURE_ID).any()):
        recording.skip("mmu.", "understanding with CLIP: its recorded layout is not known")
        return
    codes = model.encode_target(recording.inputs["pixel_values"], SampleRng([0] * len(ids))).values
    semantic, start = Semantic(model.magvit.signs(codes)), codes.shape[1] + 3
    texts = [[token for token in row[start:] if token != model.vocabulary.pad] for row in ids.tolist()]
    rows = [model.vocabulary.with_bos_eos(cut(text, model.vocabulary.eos)) for text in texts]
    rows[0] += [model.vocabulary.pad] * (ids.shape[1] - start - len(rows[0]))  # to the recorded length
    batch = model.understanding_batch(rows, semantic)
    warn_of_differences(recording, "mmu", batch)
    loss_mask = batch.ids != model.vocabulary.pad
    loss_mask[:, :start] = False
    recording.check("mmu.loss", model.answer_loss(batch, semantic, loss_mask).value, LOSS)


@torch.no_grad()
def _drawing(recording: Recording, model: Showo, name: str) -> None:
    ids = recording.input(name, "input_ids")
    assert ids is not None
    recorded = recording.outputs.get(f"{name}.tokens")
    tokens = model.spec.target_tokens if recorded is None else recorded.shape[1]
    prompts = prompts_of(model, drawn_texts(model, ids, tokens))
    size = len(ids)
    codes = torch.full((size, tokens), model.vocabulary.codebook)
    rows = [*model.text_ids(prompts), *[[]] * size]
    batch = generation_sequences(model.vocabulary, rows, codes.repeat(2, 1), length=ids.shape[1])
    warn_of_differences(recording, name, batch)
    logits = model.showo.lm_head(model.run_phi(model.embed(batch), batch.attention_mask))
    run = recording.arguments(name, DEFAULTS)
    guided = float(run["guidance_scale"]) > 0
    recording.check(f"{name}.step0_logits", logits if guided else logits[:size], EMBEDDING)
    sampling = Sampling(1 + float(run["guidance_scale"]), float(run["temperature"]), int(run["num_steps"]))
    own_codes = model.sample(prompts, None, sampling, GeneratorRng(size, int(run["seed"])))
    recording.check(f"{name}.tokens", own_codes, 0)
    recording.check(f"{name}.image", model.magvit.decode(own_codes), THROUGH_VAE)
