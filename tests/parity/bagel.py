"""Replay a BAGEL recording: losses with all gradients, embeddings, drawing, editing, and a greedy answer.

Packing, masks and positions are ours; :func:`packing_differences` compares them with the recorded ones (``batch.*``).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2Config, SiglipVisionConfig

from reca.models.bagel import autoencoder as flux_autoencoder
from reca.models.bagel.checkpoint import load_network, read_json
from reca.models.bagel.model import Bagel
from reca.models.bagel.network import Markers
from reca.models.bagel.packing import pack
from reca.models.bagel.sampling import (
    FlowSample,
    answer_ids,
    condition,
    sample_latent_tokens,
    squared_errors,
)
from reca.models.bagel.vision import unpatchify
from reca.models.sampling import Sampling
from reca.models.weights import read_weights
from tests.parity.comparison import EMBEDDING, LOSS, THROUGH_VAE, RecordedRng, Recording, options_of

SAMPLED = 1e-4
DEFAULTS = {"guidance_scale": 4.0, "num_steps": 5, "shift": 3.0, "guidance_interval": (0.4, 1.0)}
EDIT_DEFAULTS = {
    **DEFAULTS,
    "image_guidance_scale": 2.0,
    "guidance_renorm": "text_channel",
    "guidance_interval": (0.0, 1.0),
}
"""Arguments of the first recording, whose ``config.json`` has none."""
EVERYTHING = {"freeze_understanding": False, "train_vision": True}


def build(folder: Path, **options: Any) -> Bagel:
    """Build our model from the folder's weights and ``config.json``."""
    config = read_json(folder / "config.json")
    try:
        llm, vit, vae, bagel, tokens = (config[name] for name in ("llm", "vit", "vae", "bagel", "tokens"))
        names = ("bos_token_id", "eos_token_id", "start_of_image", "end_of_image")
        markers = Markers(*(tokens[name] for name in names))
        scale, shift = vae["scale_factor"], vae["shift_factor"]
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'} lacks {error}: this is not a recording of BAGEL") from None
    if bagel.get("interpolate_pos"):
        raise ValueError(
            f"{folder / 'config.json'}: interpolate_pos is on; we support released models, which have it off"
        )
    path = folder / "ae.safetensors"
    autoencoder = flux_autoencoder.load_autoencoder(read_weights(path), path, scale, shift)
    network = load_network(
        read_weights(folder / "model.safetensors"),
        Qwen2Config(**llm),
        SiglipVisionConfig(**vit),
        autoencoder.config.latent_channels,
        markers,
        folder / "model.safetensors",
        bagel.get("connector_act", "gelu_pytorch_tanh"),
    )
    return Bagel(network, autoencoder, None, options_of("bagel", **options)).eval()


def sampling_of(arguments: Mapping[str, Any]) -> Sampling:
    """Return a run's arguments as the settings of our sampler."""
    names = {field.name for field in fields(Sampling)}
    return Sampling(**{name: value for name, value in arguments.items() if name in names})


def numbered(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """Return the tensors ``name.0``, ``name.1`` and so on."""
    return [tensors[f"{name}.{number}"] for number in takewhile(lambda n: f"{name}.{n}" in tensors, count())]


def flow_samples(
    model: Bagel, recording: Recording, noise: Tensor, rows: Sequence[int] | None = None, drop_text: bool = False
) -> list[FlowSample]:
    """Return the batch of a loss, from raw images, ids and noise: all recorded samples, or some rows.

    The official trainer pads images to a common size with zeros before encoding them, and the padding leaks into their
    latents; the replay does the same.
    """
    inputs = recording.inputs
    images, texts = numbered(inputs, "vae_image"), numbered(inputs, "text_ids")
    grids = [(image.shape[1] // model.stride, image.shape[2] // model.stride) for image in images]
    counts = [rows * columns for rows, columns in grids]
    patch = model.network.sizes.latent_patch
    times = [times[0] for times in inputs["batch.packed_timesteps"].split(counts)]
    latents = padded_latents(model, images, inputs["vae_noise"])
    cropped = [row[:, : grid[0] * patch, : grid[1] * patch] for row, grid in zip(latents, grids, strict=True)]
    embeds = model.network.encode_images(numbered(inputs, "vit_image"))
    rows = range(len(images)) if rows is None else rows
    noises = noise.split([counts[row] for row in rows])
    return [
        FlowSample(cropped[row], noises[n], times[row], embeds[row], None if drop_text else texts[row].tolist())
        for n, row in enumerate(rows)
    ]


@torch.no_grad()
def padded_latents(model: Bagel, images: Sequence[Tensor], noise: Tensor) -> Tensor:
    """Return the latents of images padded to a common size."""
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    padded = torch.stack([F.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images])
    return flux_autoencoder.sample_latents(model.autoencoder, flux_autoencoder.encode(model.autoencoder, padded), noise)


def packing_differences(model: Bagel, recording: Recording, prefix: str, texts: Sequence[Tensor | None]) -> list[str]:
    """Return the differences between our packing and the recorded official one under ``prefix``.

    Rotary positions, masks and the tokens of the generation expert are compared per sample, in the order of tokens.
    """
    inputs, different, offset = recording.inputs, [], 0
    conditions, targets = numbered(inputs, "vit_image"), numbered(inputs, "vae_image")
    with torch.no_grad():
        for number, (small, large, text) in enumerate(zip(conditions, targets, texts, strict=False)):
            grid = (large.shape[1] // model.stride, large.shape[2] // model.stride)
            blank = torch.zeros(grid[0] * grid[1], model.network.vae2llm.in_features)
            latents = model.network.latent_segment(blank, grid, torch.zeros(()))
            ids = None if text is None else text.tolist()
            segments = [*condition(model.network, model.network.encode_images([small])[0], ids), latents]
            batch = pack([segments], None, blank.new_zeros(0, model.network.vae2llm.out_features))
            order = batch.layout.index[0].argsort()
            mask = batch.layout.index[0, order] <= batch.layout.attend_until[0, order][:, None]
            rows = slice(offset, offset + len(order))
            offset += len(order)
            generation = (order >= batch.understanding.shape[1]).nonzero()[:, 0] + rows.start
            recorded = inputs[f"{prefix}.packed_vae_token_indexes"]
            official = recorded[(recorded >= rows.start) & (recorded < rows.stop)]
            if not torch.equal(batch.layout.position[0, order], inputs[f"{prefix}.packed_position_ids"][rows]):
                different.append(f"positions of sample {number}")
            if not torch.equal(mask, inputs[f"{prefix}.mask.{number}"] == 0):
                different.append(f"mask of sample {number}")
            if not torch.equal(generation, official):
                different.append(f"experts of sample {number}")
    return different


def grid_of(model: Bagel, recording: Recording, name: str) -> tuple[int, int]:
    """Return rows and columns of an image's latent tokens: from the image, else from an input with as many tokens."""
    tokens = len(recording.outputs[f"{name}.latent"])
    keys = [key for key in (f"{name}.image", "t2i.image") if key in recording.outputs]
    images = [*(recording.outputs[key][0] for key in keys), *numbered(recording.inputs, "vae_image")]
    grids = [(image.shape[1] // model.stride, image.shape[2] // model.stride) for image in images]
    square = round(tokens**0.5)
    return next((grid for grid in grids if grid[0] * grid[1] == tokens), (square, tokens // square))


class BagelReplay:
    """Replay of a folder, part by part."""

    def __init__(self, recording: Recording) -> None:
        self.recording, self.inputs, self.outputs = recording, recording.inputs, recording.outputs
        self.model = build(recording.folder)

    @torch.no_grad()
    def vision(self) -> None:
        """Check the vision tower, the connector and the positions."""
        images = numbered(self.inputs, "vit_image")
        self.recording.check("vit_tokens", torch.cat(self.model.network.vit_model(images)), EMBEDDING)
        self.recording.check("vit_embeds", torch.cat(self.model.network.encode_images(images)), EMBEDDING)

    def losses(self, name: str) -> None:
        """Check a loss, its error per latent token, and the norm of every gradient."""
        shift = self.recording.config["bagel"].get("timestep_shift", 1.0)
        if match := re.search(r"_shift([\d.]+)$", name):
            shift = match[1]
        defaults = {"shift": shift, "freeze_und": name.startswith("freeze_und"), "samples": None, "drop_text": False}
        run = self.recording.arguments(name, defaults)
        model = build(self.recording.folder, **({} if run["freeze_und"] else EVERYTHING))
        rows = [run["samples"]] if isinstance(run["samples"], int) else run["samples"]
        batch = flow_samples(model, self.recording, self.outputs[f"{name}.noise"], rows, run["drop_text"])
        errors = torch.cat(squared_errors(model.network, batch, float(run["shift"])))
        errors.mean().backward()
        self.recording.skip(f"{name}.noise", "", "input")
        self.recording.check(f"{name}.mse", errors, THROUGH_VAE)
        self.recording.check(f"{name}.loss", errors.mean(), LOSS)
        self.recording.check_gradients(f"{name}.gradnorm.", model.network.named_parameters())

    def text_to_image(self, name: str) -> None:
        """Check an image from a text, with guidance unless the name contains ``nocfg``."""
        network, outputs = self.model.network, self.outputs
        ids = outputs.get(f"{name}.prompt_ids", outputs.get("t2i.prompt_ids"))
        if ids is None:
            self.recording.skip(f"{name}.", "its prompt_ids were not recorded")
            return
        grid, noise = grid_of(self.model, self.recording, name), outputs[f"{name}.init_noise"][None]
        run = self.recording.arguments(name, {**DEFAULTS, **({"guidance_scale": 1.0} if "nocfg" in name else {})})
        text = [condition(network, None, ids.tolist())]
        latents = sample_latent_tokens(network, [text, [[]], text], grid, noise, sampling_of(run), float(run["shift"]))
        self.recording.skip(f"{name}.init_noise", "", "input")
        self.recording.skip(f"{name}.prompt_ids", "", "input")
        self.recording.check(f"{name}.latent", latents[0], SAMPLED)
        if f"{name}.image" in outputs:
            latents = unpatchify(outputs[f"{name}.latent"][None], *grid, network.sizes.latent_patch)
            with torch.no_grad():
                images = flux_autoencoder.decode(self.model.autoencoder, latents)
            self.recording.check(f"{name}.image", images, THROUGH_VAE)

    def editing(self, name: str) -> None:
        """Check an edit of the sample in ``config.json``, or the first of the noise's size."""
        noise = [self.outputs[key] for key in sorted(self.outputs) if key.startswith(f"{name}.noise.")]
        candidates = (self.outputs.get(f"{run}.prompt_ids") for run in (name, "edit", "t2i"))
        ids = next((candidate for candidate in candidates if candidate is not None), None)
        if ids is None or len(noise) != 2:
            self.recording.skip(f"{name}.", "a prompt and two draws are needed: for the posterior, for the start")
            return
        posterior, start = noise
        sides = [side * self.model.stride // self.model.network.sizes.latent_patch for side in posterior.shape[-2:]]
        images = numbered(self.inputs, "vae_image")
        which = next((n for n, image in enumerate(images) if list(image.shape[1:]) == sides), None)
        run = self.recording.arguments(name, {**EDIT_DEFAULTS, "samples": which})
        which = run["samples"][0] if isinstance(run["samples"], list) else run["samples"]
        if which is None:
            self.recording.skip(f"{name}.", f"no vae_image has {sides} pixels, which the recorded noise is for")
            return
        self.model.sampling_shift = float(run["shift"])
        rng = RecordedRng({"posterior": posterior, "noise": start[None]}, 1)
        source, understood = images[which], self.inputs[f"vit_image.{which}"]
        latents = self.model.edit_latents(source, understood, ids.tolist(), sampling_of(run), rng)
        self.recording.skip(f"{name}.noise.", "", "input")
        self.recording.skip(f"{name}.prompt_ids", "", "input")
        self.recording.check(f"{name}.latent", latents[0], SAMPLED)
        if f"{name}.image" in self.outputs:
            image = self.model.decode_latents(self.outputs[f"{name}.latent"][None], self.model._grid(*source.shape[1:]))
            self.recording.check(f"{name}.image", image, THROUGH_VAE)

    def answering(self, name: str) -> None:
        """Check a greedy answer about an image; the recording starts with the marker that opens a text."""
        recorded, network = self.outputs[f"{name}.text_ids"], self.model.network
        which = self.recording.arguments(name, {"samples": 0})["samples"]
        which = which[0] if isinstance(which, list) else which
        questions = [self.outputs.get(f"{name}.prompt_ids", self.outputs.get("und.prompt_ids")).tolist()]
        (ids,) = answer_ids(network, [self.inputs[f"vit_image.{which}"]], questions, len(recorded) - 1)
        self.recording.skip(f"{name}.prompt_ids", "", "input")
        self.recording.check(f"{name}.text_ids", torch.tensor([network.markers.bos, *ids]), 0)


def replay(recording: Recording) -> None:
    """Compare one folder; see :mod:`tests.parity.replay`."""
    parts, outputs = BagelReplay(recording), recording.outputs
    kinds = ("vit_image", "vae_image", "text_ids")
    samples = max(1, *(len([key for key in recording.inputs if key.startswith(f"{kind}.")]) for kind in kinds))
    batch = [f"{kind}.{number}" for kind in kinds for number in range(samples)]
    batch += ["vae_noise", "batch.packed_timesteps"]
    recording.part("the vision tower", ["vit_image.0"], parts.vision, ["vit_"])
    for name in sorted({key.split(".")[0] for key in outputs if re.match(r"(full|freeze_und)\w*\.", key)}):
        if f"{name}.noise" in outputs:
            recording.part(f"the loss {name}", batch, lambda name=name: parts.losses(name), [f"{name}."])
        recording.skip(f"{name}.", f"{name}.noise was not recorded")
    for name in sorted({key.removesuffix(".init_noise") for key in outputs if key.endswith(".init_noise")}):
        if f"{name}.latent" in outputs:
            recording.part(f"the drawing {name}", [], lambda name=name: parts.text_to_image(name), [f"{name}."])
        recording.skip(f"{name}.", f"{name}.latent was not recorded")
    for name in recording.runs("edit"):
        if f"{name}.latent" in outputs:
            needs = ["vae_image.0", "vit_image.0"]
            recording.part(f"the edit {name}", needs, lambda name=name: parts.editing(name), [f"{name}."])
        recording.skip(f"{name}.", f"{name}.latent was not recorded")
    for name in recording.runs("und"):
        if f"{name}.text_ids" in outputs and outputs.keys() & {f"{name}.prompt_ids", "und.prompt_ids"}:
            recording.part(f"the answer {name}", ["vit_image.0"], lambda name=name: parts.answering(name), [f"{name}."])
        recording.skip(f"{name}.", f"{name}.text_ids or its prompt_ids were not recorded")
    recording.skip("t2i", "the noise of this part was not recorded")
