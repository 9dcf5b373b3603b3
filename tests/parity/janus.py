"""Replay a Janus recording: our prompts, masks, loss and code-by-code sampling against the stock network.

There is no official RecA for Janus; the recorded loss is the cross-entropy that :mod:`reca.models.janus.model` defines,
taken from the stock class in one forward pass.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import JanusForConditionalGeneration
from transformers.utils import logging as transformers_logging

from reca.models.base import Target
from reca.models.janus.model import BOI, IMAGE, Janus, read_config
from reca.models.sampling import Sampling
from reca.runtime.seeding import SampleRng
from tests.parity.comparison import EMBEDDING, LOSS, THROUGH_VAE, Recording, options_of
from tests.parity.tokens import RecordedTokenizer, prompts, unpadded

DEFAULTS = {"guidance_scale": 5.0}
"""The stock ``generate``'s, and of the first recording, whose ``config.json`` has none."""


class GreedyRng(SampleRng):
    """Chooses the most likely code, as the recording did, and stores the choices."""

    def __init__(self, size: int) -> None:
        super().__init__([0] * size)
        self.codes: list[Tensor] = []

    def categorical(self, name: str, logits: Tensor) -> Tensor:
        """Return the most likely class per row."""
        self.codes.append(logits.argmax(dim=-1))
        return self.codes[-1]


def build(folder: Path) -> Janus:
    """Build our model from the folder's weights with all parts trainable, so that gradients can be compared."""
    transformers_logging.disable_progress_bar()
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder / 'model.safetensors'} is missing")
    try:
        network, report = JanusForConditionalGeneration.from_pretrained(
            folder, config=read_config(folder), output_loading_info=True, local_files_only=True, dtype=torch.float32
        )
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder / 'model.safetensors'} does not fit {folder / 'config.json'}: {error}") from None
    wrong = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
    if wrong:
        raise ValueError(f"{folder / 'model.safetensors'} does not fit {folder / 'config.json'}: {wrong}")
    return Janus(network, None, options_of("janus", train_vision=True)).eval()


def prompts_of(model: Janus, ids: Tensor, mask: Tensor | None) -> list[str]:
    """Install a tokenizer for the recorded ids without padding and final <boi>, and return its prompts."""
    config = model.network.config
    text = config.text_config
    rows = unpadded(ids, mask, text.pad_token_id)
    endings = {row[-1] for row in rows}
    if len(endings) != 1:
        raise ValueError(f"every recorded prompt should end with <begin_of_image>; the last ids are {sorted(endings)}")
    model.tokenizer = RecordedTokenizer(
        [row[:-1] for row in rows],
        {BOI: endings.pop(), IMAGE: config.image_token_id},
        text.pad_token_id,
        text.bos_token_id,
        text.eos_token_id,
    )
    return prompts(rows)


def captured(module: torch.nn.Module, run: Callable[[], Any]) -> tuple[Any, Tensor]:
    """Return the result of ``run`` and the last output of ``module`` during it."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        return run(), outputs[-1]
    finally:
        handle.remove()


def replay(recording: Recording) -> None:
    """Compare one folder; see :mod:`tests.parity.replay`."""
    model = build(recording.folder)
    inputs = recording.inputs

    def encoders() -> None:
        images = inputs["pixel_values"]
        recording.check("image_features", model.encode_semantic(images).embeds, EMBEDDING)
        recording.check("codes", model.encode_target(images, SampleRng([0] * len(images))).values, 0)

    def reconstruction() -> None:
        images = inputs["pixel_values"]
        texts = prompts_of(model, inputs["recon.input_ids"], inputs.get("recon.attention_mask"))
        target = recording.outputs.get("codes")
        if target is None:
            target = model.encode_target(images, SampleRng([0] * len(images))).values
        loss, logits = captured(
            model.network.model.generation_head,
            lambda: model.reconstruction_loss(
                model.encode_semantic(images), texts, Target(target), SampleRng([0] * len(images))
            ),
        )
        loss.value.backward()
        recording.check("recon.loss", loss.value, LOSS)
        recording.check("recon.logits", logits, EMBEDDING)
        recording.check_gradients("recon.gradnorm.", model.network.named_parameters())

    def sampling(name: str) -> None:
        ids = recording.input(name, "input_ids")
        assert ids is not None
        texts = prompts_of(model, ids, recording.input(name, "attention_mask"))
        rng = GreedyRng(len(texts))
        model.generate(texts, Sampling(float(recording.arguments(name, DEFAULTS)["guidance_scale"])), rng)
        codes = torch.stack(rng.codes, dim=1)
        recording.check(f"{name}.tokens", codes, 0)
        with torch.no_grad():
            images = model.network.model.vqmodel.decode(codes)
        recording.check(f"{name}.image", images.permute(0, 2, 3, 1), THROUGH_VAE)

    recording.part("the encoders", ["pixel_values"], encoders, ["image_features", "codes"])
    recording.part("the loss", ["pixel_values", "recon.input_ids"], reconstruction, ["recon."])
    for name in recording.runs("gen"):
        needs = [f"{name}.input_ids" if f"{name}.input_ids" in inputs else "gen.input_ids"]
        recording.part(f"sampling {name}", needs, lambda name=name: sampling(name), [f"{name}."])
