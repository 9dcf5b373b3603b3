"""OpenUni's networks (arXiv 2505.23661), all stock classes.

    queries = LM([prompt] [meta_queries])          InternVL: InternViT, mlp1, Qwen2
    c       = projector(connector(queries))        SigLIP layers, one linear
    v       = SANA(x_t, t, c)                      on latents of DC-AE

The flow runs from data to noise: x_t = (1 - s) x + s e; SANA predicts v = e - x.
Parameters have official names except InternViT's, which :mod:`reca.models.openuni.vision_language` converts.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaTransformer2DModel,
)
from torch import Tensor, nn
from transformers import InternVLVisionModel, Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from reca.models.openuni.vision_language import (
    fold,
    image_tokens,
    names_from_official,
    names_to_official,
    projector,
    vision_config,
)
from reca.models.sampling import classifier_free_guidance

VISION = "lmm.vision_model."
CONNECTOR_HEAD_SIZE = 64
"""Head width of the connector in all released checkpoints."""
_LLM_KEYS = {*Qwen2Config.__annotations__, "rope_theta", "rope_scaling"}
"""Entries of ``llm_config`` that describe the network; InternVL's has those of a runtime and of text generation too."""


class MultimodalModel(nn.Module):
    """InternVL under its official names: ``vision_model``, ``mlp1``, ``language_model``.

    Raises:
        ValueError: The language model is not Qwen2.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        language = config["llm_config"]
        architecture = (language.get("architectures") or ["Qwen2ForCausalLM"])[0]
        if architecture != "Qwen2ForCausalLM":
            raise ValueError(f"lmm.llm_config: {architecture}, but OpenUni is built on InternVL3, whose LLM is Qwen2")
        self.config = dict(config)
        self.vision_model = InternVLVisionModel(vision_config(config["vision_config"]))
        self.language_model = Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in language.items() if k in _LLM_KEYS}))
        self.mlp1 = projector(config, language["hidden_size"])

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [-1, 1] as tokens (B, N, D)."""
        return image_tokens(self.vision_model, self.mlp1, self.config, images)


class OpenUniNetwork(nn.Module):
    """All parts under their official names.

    Args:
        config: Configurations of the parts ``lmm``, ``connector``, ``transformer``, ``vae``, ``sched``; and
            ``num_queries``, ``vit_input_size``, ``image_token_id``.

    Raises:
        ValueError: A part is missing, or two parts do not fit each other.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        for name in ("lmm", "connector", "transformer", "vae", "sched", "num_queries", "vit_input_size"):
            if name not in config:
                raise ValueError(f"config.json of an OpenUni lacks {name!r}; it has {', '.join(sorted(config))}")
        self.config = dict(config)
        width = config["lmm"]["llm_config"]["hidden_size"]
        if config["connector"]["hidden_size"] != width:
            raise ValueError(f"connector.hidden_size is {config['connector']['hidden_size']}, the LLM's is {width}")
        self.lmm = MultimodalModel(config["lmm"])
        connector = SiglipVisionConfig(**_without_notes(config["connector"]))
        connector._attn_implementation = "sdpa"
        self.connector = SiglipEncoder(connector)
        self.projector = nn.Linear(width, config["transformer"]["caption_channels"])
        self.meta_queries = nn.Parameter(torch.randn(config["num_queries"], width) / width**0.5)
        self.transformer = SanaTransformer2DModel.from_config(_without_notes(config["transformer"]))
        self.vae = AutoencoderDC.from_config(_without_notes(config["vae"]))
        channels = (self.transformer.config.in_channels, self.vae.config.latent_channels)
        if channels[0] != channels[1]:
            raise ValueError(f"transformer.in_channels is {channels[0]}, vae.latent_channels is {channels[1]}")
        noising = {"num_train_timesteps": config["sched"].get("num_train_timesteps", 1000)}
        self.noising = FlowMatchEulerDiscreteScheduler(**noising, shift=config["sched"].get("shift", 1.0))

    def image_tokens(self, size: int) -> int:
        """Return the number of tokens of a square image with ``size`` pixels per side."""
        return (size // self.patch) ** 2

    @property
    def patch(self) -> int:
        """Side in pixels of a token."""
        patch: int = self.config["lmm"]["vision_config"]["patch_size"] * fold(self.config["lmm"])
        return patch

    @property
    def pixels_per_latent(self) -> int:
        """Side in pixels of a latent."""
        return int(self.vae.spatial_compression_ratio)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [-1, 1] as scaled latents (B, C, h, w); DC-AE is deterministic."""
        latents: Tensor = self.vae.encode(images, return_dict=False)[0] * self.vae.config.scaling_factor
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents (B, C, h, w) to images (B, 3, H, W), not clamped."""
        images: Tensor = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        return images

    def query_states(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Return the states (B, Q, D) of the queries after prompts (B, L, D), padded on the right, with mask (B, L)."""
        queries = self.meta_queries.expand(len(embeds), -1, -1)
        mask = torch.cat([mask, mask.new_ones(queries.shape[:2])], dim=1)
        hidden: Tensor = self.lmm.language_model.model(
            inputs_embeds=torch.cat([embeds, queries], dim=1),
            attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(dim=1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state
        return hidden[:, -queries.shape[1] :]

    def condition(self, queries: Tensor) -> Tensor:
        """Map query states (B, Q, D) to SANA's condition (B, Q, caption_channels)."""
        connected = self.connector(inputs_embeds=queries).last_hidden_state
        condition: Tensor = self.projector(connected)
        return condition

    def velocity(self, latents: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Return SANA's v, (B, C, h, w), at timesteps (B,) in 0..1000."""
        scaled = timesteps * self.transformer.config.timestep_scale
        velocity: Tensor = self.transformer(latents, condition, scaled, return_dict=False)[0]
        return velocity[:, : latents.shape[1]]  # further channels are a learned sigma

    def add_noise(self, latents: Tensor, noise: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_t and its timestep for u ~ U(0, 1), (B,), on the training scheduler's grid."""
        steps = (uniform * self.noising.config.num_train_timesteps).long()
        timesteps = self.noising.timesteps[steps].to(latents.device)
        sigmas = self.noising.sigmas[steps].to(latents.device, latents.dtype)[:, None, None, None]
        return (1 - sigmas) * latents + sigmas * noise, timesteps

    @torch.no_grad()
    def sample(
        self, latents: Tensor, condition: Tensor, unconditional: Tensor | None, guidance_scale: float, num_steps: int
    ) -> Tensor:
        """Turn noise into latents by DPM-Solver++; ``unconditional`` adds classifier-free guidance."""
        solver = DPMSolverMultistepScheduler.from_config(_without_notes(self.config["sched"]))
        solver.set_timesteps(num_steps, device=latents.device)
        both = condition if unconditional is None else torch.cat([unconditional, condition])
        for timestep in solver.timesteps:
            repeated = latents.repeat(len(both) // len(latents), 1, 1, 1)
            velocity = self.velocity(repeated, timestep.expand(len(repeated)), both)
            if unconditional is not None:
                without, with_condition = velocity.chunk(2)
                velocity = classifier_free_guidance(with_condition, without, guidance_scale)
            latents = solver.step(velocity, timestep, latents, return_dict=False)[0]
        return latents

    @staticmethod
    def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename an official state dict to our names."""
        return names_from_official(state, VISION)

    def to_official(self) -> dict[str, Tensor]:
        """Return the state dict under official names, without a head that is tied to the embeddings."""
        state = names_to_official(self.state_dict(), VISION)
        if self.lmm.language_model.config.tie_word_embeddings:
            del state["lmm.language_model.lm_head.weight"]
        return state


def _without_notes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without diffusers' underscored entries (class name, version)."""
    return {key: value for key, value in config.items() if not key.startswith("_")}
