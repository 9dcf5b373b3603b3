"""Replay an OpenUni recording: InternVL's features, DC-AE, conditions, both losses, gradients, guided sampling.

The recording holds images, token ids and noise; padding, masks, positions, timesteps and the solver are ours.
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers.initialization import no_init_weights

from reca.models.base import Loss, Target
from reca.models.openuni.checkpoint import read_checkpoint
from reca.models.openuni.model import IMAGE, OpenUni
from reca.models.openuni.network import VISION, OpenUniNetwork
from reca.models.openuni.vision_language import names_to_official
from reca.models.sampling import Sampling
from reca.models.weights import load_strictly
from reca.runtime.seeding import SampleRng
from tests.parity.comparison import EMBEDDING, LOSS, THROUGH_VAE, RecordedRng, Recording, options_of
from tests.parity.tokens import RecordedTokenizer, prompts, unpadded

DEFAULTS = {"guidance_scale": 4.5, "num_steps": 5}
"""Arguments of the first recording, whose ``config.json`` has none."""
SAMPLED = 1e-4


def build(recording: Recording) -> OpenUni:
    """Build our model from the folder's weights, with the image size of the recording."""
    files = read_checkpoint(recording.folder, {})
    with no_init_weights():
        network = OpenUniNetwork(files.config)
    tied = ["lmm.language_model.lm_head.weight"] if network.lmm.language_model.config.tie_word_embeddings else []
    load_strictly(network, network.from_official(files.state), files.source, may_lack=tied)
    network.lmm.language_model.tie_weights()
    options = options_of("openuni")
    if "gen.init_latents" in recording.inputs:
        options["generation_size"] = recording.inputs["gen.init_latents"].shape[-1] * network.pixels_per_latent
    return OpenUni(network, None, options).eval()


def read_with(model: OpenUni, ids: Tensor, mask: Tensor | None, otherwise: int = 0) -> list[str]:
    """Install a tokenizer for the recorded ids and return its prompts."""
    padding = model.network.config["lmm"]["llm_config"].get("pad_token_id") or 0
    if mask is None:  # padding is on the right
        mask = (ids != padding).flip(1).cumsum(1).flip(1) > 0
    rows = unpadded(ids, mask)
    # The image placeholder is the most frequent token.
    special = {IMAGE: model.network.config.get("image_token_id", int(ids.flatten().mode().values))}
    model.tokenizer = RecordedTokenizer(rows, special, padding, otherwise=otherwise)
    return prompts(rows)


def official_gradients(model: OpenUni) -> list[tuple[str, Tensor]]:
    """Return tensors under official parameter names, with the gradients of the parameters."""
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.network.named_parameters()
    }
    holders = {name: torch.zeros_like(value) for name, value in names_to_official(gradients, VISION).items()}
    for name, value in names_to_official(gradients, VISION).items():
        holders[name].grad = value
    return list(holders.items())


class _Replay:
    """Replay of a folder, part by part."""

    def __init__(self, recording: Recording) -> None:
        self.recording, self.inputs = recording, recording.inputs
        self.model = build(recording)

    def encoders(self) -> None:
        """Check the understanding features and the latents of the images."""
        images = self.inputs["pixel_values"]
        self.recording.check("vit_embeds", self.model.encode_semantic(images).embeds, EMBEDDING)
        self.recording.check("latents", self._target(images).values, THROUGH_VAE)

    def decoder(self) -> None:
        """Check the images decoded from the recorded latents."""
        latents = self.recording.outputs.get("latents")
        if latents is None:
            latents = self._target(self.inputs["pixel_values"]).values
        with torch.no_grad():
            self.recording.check("decoded", self.model.network.decode(latents), THROUGH_VAE)

    def loss(self, kind: str) -> Callable[[], None]:
        """Return the check of a loss, ``recon`` or ``t2i``."""

        def run() -> None:
            images = self.inputs["pixel_values"]
            texts = read_with(self.model, self.inputs[f"{kind}.input_ids"], self.inputs.get(f"{kind}.attention_mask"))
            self._cross_check(kind, texts)
            draws = {
                "noise": self.inputs[self.draw_key(kind, "randn_like")],
                "timestep": self.inputs[self.draw_key(kind, "rand")],
            }
            rng, target = RecordedRng(draws, len(texts)), self._target(images)
            for parameter in self.model.parameters():
                parameter.grad = None
            loss: Loss
            if kind == "recon":
                loss = self.model.reconstruction_loss(self.model.encode_semantic(images), texts, target, rng)
            else:
                loss = self.model.text_to_image_loss(texts, target, rng)
            loss.value.backward()
            self.recording.check(f"{kind}.loss", loss.value, LOSS)
            self.recording.check_gradients(f"{kind}.gradnorm.", official_gradients(self.model))

        return run

    def draw_key(self, kind: str, function: str) -> str:
        """Return the key of a loss's first draw by a torch function, such as ``recon.rng.000.randn_like``."""
        keys = (key for key in sorted(self.inputs) if re.fullmatch(rf"{kind}\.rng\.\d+\.{function}", key))
        return next(keys, f"{kind}.rng.*.{function}")

    def conditions(self) -> None:
        """Check the query states and SANA's condition for captions."""
        ids, mask = self._generation_turns()
        texts = read_with(self.model, ids, mask)
        with torch.no_grad():
            queries = self.model.network.query_states(*self.model.prompt_embeds(texts))
            self.recording.check("query_hidden", queries, EMBEDDING)
            self.recording.check("prompt_embeds", self.model.network.condition(queries), EMBEDDING)

    def sampling(self, name: str) -> None:
        """Check guided sampling from recorded noise.

        The recording has a prompt per noise, then the unconditional one; with fewer, the first prompt is repeated.
        """
        noise, kind = self.recording.input(name, "init_latents"), name if f"{name}.input_ids" in self.inputs else "gen"
        ids, mask = self._generation_turns(kind)
        run = self.recording.arguments(name, DEFAULTS)
        assert noise is not None
        if len(ids) < 2:
            self.recording.skip(f"{name}.", "guidance needs a prompt and an unconditional one, one is recorded")
            return
        repeated = len(ids) <= len(noise)
        texts = read_with(self.model, ids, mask, otherwise=1 if repeated else len(noise))
        texts = texts[:1] * len(noise) if repeated else texts[: len(noise)]
        sampling = Sampling(float(run["guidance_scale"]), num_steps=int(run["num_steps"]))
        side = noise.shape[-1] * self.model.network.pixels_per_latent
        self.model.spec = replace(self.model.spec, generation=replace(self.model.spec.generation, max_side=side))
        latents = self.model.sample_latents(texts, None, sampling, RecordedRng({"latents": noise}, len(noise)))
        self.recording.check(f"{name}.latents", latents, SAMPLED)
        if f"{name}.image" in self.recording.outputs:
            with torch.no_grad():
                self.recording.check(f"{name}.image", self.model.network.decode(latents), SAMPLED)

    def _generation_turns(self, kind: str = "gen") -> tuple[Tensor, Tensor | None]:
        kind = kind if f"{kind}.input_ids" in self.inputs else "t2i"
        return self.inputs[f"{kind}.input_ids"], self.inputs.get(f"{kind}.attention_mask")

    def _target(self, images: Tensor) -> Target:
        return self.model.encode_target(images, SampleRng([0] * len(images)))

    def _cross_check(self, kind: str, texts: list[str]) -> None:
        """Warn if our mask differs from the recorded one."""
        mask = self.inputs.get(f"{kind}.attention_mask")
        ours = self.model._ids(texts)[1]
        if mask is not None and not torch.equal(ours, mask[:, : ours.shape[1]].bool()):
            warnings.warn(f"{kind}: our mask is not the recorded one", stacklevel=2)


def replay(recording: Recording) -> None:
    """Compare one folder; see :mod:`tests.parity.replay`."""
    run = _Replay(recording)
    recording.part("the encoders", ["pixel_values"], run.encoders, ["vit_embeds", "latents"])
    decoded_from = [] if "latents" in recording.outputs else ["pixel_values"]
    recording.part("the decoder", decoded_from, run.decoder, ["decoded"])
    for kind in ("recon", "t2i"):
        needs = ["pixel_values", f"{kind}.input_ids", *(run.draw_key(kind, name) for name in ("randn_like", "rand"))]
        recording.part(f"the {kind} loss", needs, run.loss(kind), [f"{kind}."])
    turns = "gen.input_ids" if "gen.input_ids" in recording.inputs else "t2i.input_ids"
    recording.part("the conditions", [turns], run.conditions, ["query_hidden", "prompt_embeds"])
    for name in recording.runs("gen"):
        needs = [f"{name}.init_latents" if f"{name}.init_latents" in recording.inputs else "gen.init_latents", turns]
        recording.part(f"sampling {name}", needs, lambda name=name: run.sampling(name), [f"{name}."])
