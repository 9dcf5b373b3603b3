"""Replay a Harmon recording: our autoencoder, encoder, prompts, masks, losses and step-by-step drawing.

Inputs are raw: images, unpadded token ids (-200 where the image goes), masking orders, and the numbers that were drawn.
"""

import re
from collections.abc import Mapping
from dataclasses import replace as changed

import torch
import torch.nn.functional as F
from torch import Tensor

from reca.models.base import Target
from reca.models.harmon.checkpoint import load_network
from reca.models.harmon.diffusion_head import TRAINING_STEPS, NoiseSchedule
from reca.models.harmon.mar import mask_first
from reca.models.harmon.model import ChatTurn, Harmon
from reca.models.sampling import Sampling
from tests.parity.comparison import LOSS, THROUGH_VAE, RecordedRng, Recording, options_of
from tests.parity.tokens import unpadded

IMAGE = -200
DEFAULTS = {"guidance_scale": 3.0, "guidance_schedule": "constant", "temperature": 1.0}
"""Arguments of the first recording, whose ``config.json`` has none."""
SIZE = 512
"""Pixels that ``pixel_values_low`` is enlarged to, if neither latents nor masks show the size."""
SAMPLED = 1e-4


class Replay:
    """One folder's model and what its parts share."""

    def __init__(self, recording: Recording) -> None:
        self.recording, self.inputs = recording, recording.inputs
        network, config = load_network(recording.folder, {})
        self.model = Harmon(network, config, None, options_of("harmon")).eval()
        self.network = network

    def images(self) -> Tensor:
        """The images as they were encoded: as recorded, or the recorded small ones enlarged."""
        if "pixel_values" in self.inputs:
            return self.inputs["pixel_values"]
        small = self.inputs["pixel_values_low"]
        pixels = self.network.mar.sizes.pixels
        size = (SIZE, SIZE)
        masks = [self.inputs[key] for key in ("recon.mask", "t2i.mask") if key in self.inputs]
        if "latents" in self.recording.outputs:
            rows, columns = self.recording.outputs["latents"].shape[1:3]
            size = (rows * pixels, columns * pixels)
        elif masks:
            rows = round((masks[0].shape[1] * small.shape[2] / small.shape[3]) ** 0.5)
            size = (rows * pixels, masks[0].shape[1] // rows * pixels)
        return F.interpolate(small, size=size, mode="bilinear", align_corners=False)

    def autoencoder(self) -> None:
        """Latents, understanding embeddings, and the latents decoded again."""
        target = self.target()
        rows, columns = self.network.grid(target.values)
        tokens = self.network.mar.tokens(target.values)
        self.recording.check("latents", tokens.unflatten(1, (rows, columns)), THROUGH_VAE)
        with torch.no_grad():
            self.recording.check("x_enc", self.network.mar.encode(tokens, (rows, columns)), THROUGH_VAE)
            self.recording.check("z_enc", self.model.semantic_of(target).embeds, THROUGH_VAE)
        if "decoded_low" in self.recording.outputs:
            decoded = self.network.to_images(target.values)
            size = self.recording.outputs["decoded_low"].shape[-2:]
            self.recording.check("decoded_low", F.interpolate(decoded, size=size, mode="area"), THROUGH_VAE)

    def target(self) -> Target:
        """Our latents of the recorded images."""
        images = self.images()
        return self.model.encode_target(images, RecordedRng({}, len(images)))

    def turns(self, part: str, images: Tensor | None = None, labels: Tensor | None = None) -> list[ChatTurn]:
        """Recorded ids as turns: padding and image placeholders taken out, ours put in."""
        named = part if f"{part}.input_ids" in self.inputs else "recon"
        ids, mask = self.inputs[f"{named}.input_ids"], self.inputs.get(f"{named}.attention_mask")
        label_rows = None if labels is None else unpadded(labels, mask)
        turns = []
        for row, tokens in enumerate(unpadded(ids, mask)):
            row_labels = None if label_rows is None else label_rows[row]
            image, position = None, 0
            if IMAGE in tokens:
                position = tokens.index(IMAGE)
                image = None if images is None else images[row]
                row_labels = None if row_labels is None else [*row_labels[:position], *row_labels[position + 1 :]]
                tokens = [*tokens[:position], *tokens[position + 1 :]]
            turns.append(ChatTurn(tokens, image, position, row_labels))
        return turns

    def diffusion_loss(self, part: str, turns: list[ChatTurn], target: Target) -> Tensor:
        """The drawing loss with the recorded mask, timesteps and noise."""
        recorded = self.inputs[f"{part}.mask"].bool()
        batch, length = recorded.shape
        hidden = recorded
        if f"{part}.orders" in self.inputs:
            hidden = mask_first(self.inputs[f"{part}.orders"], recorded.sum(1))
        steps, noise = draws(self.inputs, part, "randint")[0], draws(self.inputs, part, "randn_like")[0]
        repeats = steps.numel() // recorded.numel()
        mar = self.network.mar
        mar.sizes = changed(mar.sizes, diffusion_batch_mul=repeats)
        # Recorded copy after copy of the whole batch; ours are drawn sample by sample.
        uniform = (steps.view(repeats, batch, length).transpose(0, 1).double() + 0.5) / TRAINING_STEPS
        noise = noise.view(repeats, batch, length, -1).transpose(0, 1)
        rng = RecordedRng({"timestep": uniform, "noise": noise}, batch)
        prefix, _ = self.model.prefix(turns)
        return self.model.diffusion_loss(prefix, target, hidden, rng).value

    def reconstruction(self) -> None:
        """The RecA loss and its gradients."""
        self.model.zero_grad()
        target = self.target()
        images = self.model.scale_gradient(self.model.semantic_of(target))
        loss = self.diffusion_loss("recon", self.turns("recon", images), target)
        self.check_with_gradients("recon", loss)

    def check_with_gradients(self, part: str, loss: Tensor) -> None:
        """A loss, and the norms of its gradients if they were recorded."""
        self.recording.check(f"{part}.loss", loss, LOSS)
        if any(key.startswith(f"{part}.gradnorm.") for key in self.recording.outputs):
            loss.backward()
            self.recording.check_gradients(f"{part}.gradnorm.", self.network.named_parameters())

    def text_to_image(self) -> None:
        """The same from text."""
        self.model.zero_grad()
        loss = self.diffusion_loss("t2i", self.turns("t2i"), self.target())
        self.check_with_gradients("t2i", loss)

    def understanding(self) -> None:
        """Cross-entropy of recorded answers, and its gradients."""
        self.model.zero_grad()
        images = self.model.scale_gradient(self.model.semantic_of(self.target()))
        loss = self.model.answer_loss(self.turns("i2t", images, self.inputs["i2t.labels"])).value
        self.check_with_gradients("i2t", loss)

    def drawing(self, name: str) -> None:
        """Latents, with the recorded order and noise."""
        rounds: list[list[Tensor]] = []
        for key in sorted(key for key in self.inputs if re.fullmatch(rf"{name}\.rng\.\d+\.randn(_like)?", key)):
            if not key.endswith("_like"):
                rounds.append([])
            rounds[-1].append(self.inputs[key])
        copies = len(rounds[0][1]) // len(rounds[0][0]) if len(rounds[0]) > 1 else 1
        ids, orders = self.recording.input(name, "input_ids"), self.recording.input(name, "orders")
        assert ids is not None
        assert orders is not None
        turns = self.turns(name if f"{name}.input_ids" in self.inputs else "gen", self._shown(ids))
        batch = len(turns) // copies
        mar = self.network.mar
        if len(rounds[0]) - 1 != len(mar.diffloss.sampling_schedule.steps):
            mar.diffloss.sampling_schedule = NoiseSchedule(len(rounds[0]) - 1)
        orders = orders[:batch]
        recorded_draws = {
            "order": orders,
            "latent_noise": [first.view(batch, -1, first.shape[-1]) for first, *_ in rounds],
            # Both halves of guidance drew; the conditional one is kept. The last step's noise is multiplied by 0.
            "step_noise": [
                step[: len(first)].view(batch, -1, first.shape[-1]) for first, *rest in rounds for step in rest[:-1]
            ],
        }
        run = self.recording.arguments(name, DEFAULTS)
        sampling = Sampling(
            float(run["guidance_scale"]) if copies > 1 else 1.0,
            float(run["temperature"]),
            num_steps=int(run.get("num_steps", len(rounds))),
            guidance_schedule=run["guidance_schedule"],
        )
        grid = self._grid(name, orders.shape[1])
        latents = self.model.sample_latents(turns, grid, sampling, RecordedRng(recorded_draws, batch))
        tokens = mar.tokens(latents).unflatten(1, grid)
        recorded = self.recording.outputs[f"{name}.latents"]
        self.recording.check(f"{name}.latents", tokens.repeat(len(recorded) // batch, 1, 1, 1), SAMPLED)
        if f"{name}.image" in self.recording.outputs:
            images = self.network.to_images(latents)
            self.recording.check(f"{name}.image", images, SAMPLED)

    def _shown(self, ids: Tensor) -> Tensor | None:
        """Embeddings for recorded reconstructions, whose ids hold the placeholder."""
        if not bool((ids == IMAGE).any()):
            return None
        images = self.model.semantic_of(self.target()).embeds.detach()
        return images.repeat(-(-len(ids) // len(images)), 1, 1)[: len(ids)]

    def _grid(self, name: str, length: int) -> tuple[int, int]:
        recorded = self.recording.outputs[f"{name}.latents"]
        if recorded.ndim == 4 and recorded.shape[1] * recorded.shape[2] == length:
            return recorded.shape[1], recorded.shape[2]
        return round(length**0.5), round(length**0.5)


def draws(inputs: Mapping[str, Tensor], part: str, kind: str) -> list[Tensor]:
    """Recorded draws of a kind, in their order."""
    return [inputs[key] for key in sorted(inputs) if re.fullmatch(rf"{part}\.rng\.\d+\.{kind}", key)]


def replay(recording: Recording) -> None:
    """Compare one folder; see :mod:`tests.parity.replay`."""
    now = Replay(recording)
    pixels = "pixel_values" if "pixel_values" in recording.inputs else "pixel_values_low"

    def needs(part: str, *keys: str) -> list[str]:
        """Keys that a generation loss needs, and patterns of missing draws."""
        required = [f"{part}.input_ids", f"{part}.mask", *keys]
        return required + [
            f"{part}.rng.*.{kind}" for kind in ("randint", "randn_like") if not draws(now.inputs, part, kind)
        ]

    recording.part("the encoders", [pixels], now.autoencoder, ["latents", "x_enc", "z_enc", "decoded_low"])
    recording.part("the RecA loss", needs("recon", pixels), now.reconstruction, ["recon."])
    recording.part("the text-to-image loss", needs("t2i", pixels), now.text_to_image, ["t2i."])
    ids = "i2t.input_ids" if "i2t.input_ids" in now.inputs else "recon.input_ids"
    recording.part("the answer loss", [pixels, ids, "i2t.labels"], now.understanding, ["i2t."])
    for name in recording.runs("gen"):
        keys = [f"{name}.{key}" if f"{name}.{key}" in now.inputs else f"gen.{key}" for key in ("input_ids", "orders")]
        noise = [] if draws(now.inputs, name, "randn") else [f"{name}.rng.*.randn"]
        recording.part(f"drawing {name}", [*keys, *noise], lambda name=name: now.drawing(name), [f"{name}."])
