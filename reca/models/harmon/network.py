"""Harmon's networks and their wiring (arXiv 2503.21979): one MAR encoder for both tasks, a language model between.

    understanding   h_v = proj_in(encoder(latents)), all tokens visible; the buffers come last
    generation      s   = encoder(visible latents)
                    s'  = s + proj_out(LM([prefix] proj_in(s)))      causal, buffers last
                    x_i ~ head(decoder(s')_i) for each hidden latent i

Latents are the mode of KL16's posterior times ``vae_scale``. Parameters have the names of the official checkpoints,
except the autoencoder's, which :mod:`reca.models.autoencoder_kl` translates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache

from reca.models.autoencoder_kl import Kl16Sizes, to_official, to_stock
from reca.models.harmon.mar import Mar, MarSizes, VisibleTokens

VAE = "vae."
VAE_SCALE = 0.2325
CLASS_EMBEDDING = "mar.class_emb.weight"
"""The class table of MAR: in the checkpoints, but unused by Harmon's tasks."""
LM_HEAD, TOKEN_EMBEDDING = "llm.lm_head.weight", "llm.model.embed_tokens.weight"


@dataclass(frozen=True)
class Prefix:
    """Embedded prompts that precede image tokens: embeddings (B, L, D) and attention mask (B, L), padded right."""

    embeds: Tensor
    mask: Tensor


class HarmonNetwork(nn.Module):
    """Language model, MAR, projectors and autoencoder under their official names.

    Args:
        config: An official ``config.json``: ``llm`` (Qwen2), ``mar``, and optionally ``vae`` and ``vae_scale``.
        autoencoder: Sizes of KL16.

    Raises:
        ValueError: The autoencoder's latents do not have the shape that MAR takes.
    """

    def __init__(self, config: Mapping[str, Any], autoencoder: Kl16Sizes) -> None:
        super().__init__()
        sizes = MarSizes.from_config(config["mar"])
        if (autoencoder.stride, autoencoder.z_channels) != (sizes.vae_stride, sizes.vae_embed_dim):
            raise ValueError(
                f"the autoencoder gives {autoencoder.z_channels} channels per {autoencoder.stride} pixels, but MAR "
                f"(config.json) takes {sizes.vae_embed_dim} per {sizes.vae_stride}: they do not belong together"
            )
        self.llm = Qwen2ForCausalLM(Qwen2Config(**config["llm"]))
        self.mar = Mar(sizes)
        llm_width, mar_width = self.llm.config.hidden_size, sizes.encoder_embed_dim
        self.proj_in = nn.Sequential(nn.Linear(mar_width, llm_width), nn.SiLU(), nn.Linear(llm_width, llm_width))
        self.proj_out = nn.Sequential(nn.Linear(llm_width, llm_width), nn.SiLU(), nn.Linear(llm_width, mar_width))
        self.vae: AutoencoderKL = autoencoder.build()
        self.vae_scale = float(config.get("vae_scale", VAE_SCALE))

    @torch.no_grad()
    def to_latents(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w), the posterior's mode.

        Contiguous, here and below, because of :class:`reca.models.autoencoder_kl.ContiguousAttention`.
        """
        return self.vae.encode(images.contiguous()).latent_dist.mode().contiguous() * self.vae_scale

    @torch.no_grad()
    def to_images(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, H, W), not clamped to [-1, 1]."""
        return self.vae.decode((latents / self.vae_scale).contiguous()).sample

    def encode_semantic(self, latents: Tensor, keys: Tensor | None = None) -> Tensor:
        """h_v of latents (B, C, h, w): (B, T + n, D); ``keys`` as in :meth:`conditions`."""
        tokens, grid = self.mar.tokens(latents), self.grid(latents)
        return self.proj_in(self.buffers_last(self.mar.encode(tokens, grid, keys=keys)))

    def grid(self, latents: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens."""
        patch = self.mar.sizes.patch_size
        return latents.shape[-2] // patch, latents.shape[-1] // patch

    def buffers_last(self, states: Tensor) -> Tensor:
        """Reorder positions (B, L, …) from MAR's order to the language model's."""
        return states.roll(-self.mar.sizes.buffer_size, dims=1)

    def buffers_first(self, states: Tensor) -> Tensor:
        """Invert :meth:`buffers_last`."""
        return states.roll(self.mar.sizes.buffer_size, dims=1)

    def conditions(
        self,
        prefix: Prefix,
        tokens: Tensor,
        grid: tuple[int, int],
        visible: VisibleTokens,
        cache: DynamicCache | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """Conditions of the diffusion head for every token: (B, T, D').

        Args:
            prefix: Prompts that precede the image.
            tokens: (B, T, C); only the visible ones are read.
            grid: Rows and columns.
            visible: Visible tokens.
            cache: KV cache of the prefix if it has been run already; it is unchanged afterwards.
            keys: Sample keys for dropout in training, (B,) int32; ``None``: no dropout.
        """
        states = self.mar.encode(tokens, grid, visible, keys)
        token_mask = self.mar.attention_mask(visible)
        if token_mask is None:
            token_mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        inputs = self.proj_in(self.buffers_last(states))
        mask = torch.cat([prefix.mask, self.buffers_last(token_mask)], dim=1)
        if cache is None:
            outputs = self.run_llm(torch.cat([prefix.embeds, inputs], dim=1), mask)[:, prefix.embeds.shape[1] :]
        else:
            outputs = self.run_llm(inputs, mask, cache)
            cache.crop(-inputs.shape[1])
        states = states + self.buffers_first(self.proj_out(outputs))
        return self.mar.decode(states, grid, visible, keys)

    def run_llm(self, embeds: Tensor, mask: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """Last hidden states (B, L, D) of the newest L positions; ``mask`` (B, K) covers all K so far."""
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, mask.shape[1] - embeds.shape[1] :]
        return self.llm.model(
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def official_state(self) -> dict[str, Tensor]:
        """All tensors under their official names."""
        state = self.state_dict()
        rest = {key: value for key, value in state.items() if not key.startswith(VAE)}
        if rest[LM_HEAD].data_ptr() == rest[TOKEN_EMBEDDING].data_ptr():
            rest[LM_HEAD] = rest[LM_HEAD].clone()  # safetensors refuses shared tensors; the official files have both
        stock = {key.removeprefix(VAE): value for key, value in state.items() if key.startswith(VAE)}
        return rest | {VAE + key: value for key, value in to_official(stock).items()}


def from_official_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint's tensors to the parameters of :class:`HarmonNetwork`."""
    rest = {key: value for key, value in state.items() if not key.startswith(VAE)}
    official = {key.removeprefix(VAE): value for key, value in state.items() if key.startswith(VAE)}
    return rest | {VAE + key: value for key, value in to_stock(official).items()}
