"""Harmon's networks and their wiring (arXiv 2503.21979): one MAR encoder for both tasks, a language model between.

    understand   h_v = proj_in(encoder(latents)), nothing hidden; the buffers stand last
    draw         s   = encoder(visible latents)
                 s'  = s + proj_out(LM([prefix] proj_in(s)))      causal, buffers last
                 x_i ~ head(decoder(s')_i) wherever latent i is hidden

Latents are the mode of KL16's posterior times ``vae_scale``. Parameters have the names of the official checkpoints, but
for the autoencoder's, which :mod:`reca.models.autoencoder_kl` translates.
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
from reca.models.harmon.mar import Mar, MarSizes, Visible

VAE = "vae."
VAE_SCALE = 0.2325
UNUSED = "mar.class_emb.weight"
"""The class table of MAR: in the checkpoints, but no task of Harmon reads it."""
TIED, EMBEDDING = "llm.lm_head.weight", "llm.model.embed_tokens.weight"


@dataclass(frozen=True)
class Prefix:
    """What the language model reads before an image is drawn: embeddings (B, L, D) and which are real (B, L)."""

    embeds: Tensor
    mask: Tensor


class HarmonNetwork(nn.Module):
    """All parts, under their official names.

    Args:
        config: An official ``config.json``: ``llm`` (Qwen2), ``mar``, and optionally ``vae`` and ``vae_scale``.
        autoencoder: Sizes of KL16.

    Raises:
        ValueError: The autoencoder's latents are not those that MAR was made for.
    """

    def __init__(self, config: Mapping[str, Any], autoencoder: Kl16Sizes) -> None:
        super().__init__()
        sizes = MarSizes.from_config(config["mar"])
        if (autoencoder.stride, autoencoder.z_channels) != (sizes.vae_stride, sizes.vae_embed_dim):
            raise ValueError(
                f"the autoencoder gives {autoencoder.z_channels} channels per {autoencoder.stride} pixels, but MAR "
                f"(config.json) wants {sizes.vae_embed_dim} per {sizes.vae_stride}: these two are no pair"
            )
        self.llm = Qwen2ForCausalLM(Qwen2Config(**config["llm"]))
        self.mar = Mar(sizes)
        width, wide = self.llm.config.hidden_size, sizes.encoder_embed_dim
        self.proj_in = nn.Sequential(nn.Linear(wide, width), nn.SiLU(), nn.Linear(width, width))
        self.proj_out = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, wide))
        self.vae: AutoencoderKL = autoencoder.build()
        self.vae_scale = float(config.get("vae_scale", VAE_SCALE))

    @torch.no_grad()
    def to_latents(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w). Nothing random: the mode.

        Contiguous, here and below, for the reason that :class:`reca.models.autoencoder_kl.ContiguousAttention` gives.
        """
        return self.vae.encode(images.contiguous()).latent_dist.mode().contiguous() * self.vae_scale

    @torch.no_grad()
    def to_images(self, latents: Tensor) -> Tensor:
        """The other way, not yet clamped to [-1, 1]."""
        return self.vae.decode((latents / self.vae_scale).contiguous()).sample

    def understand(self, latents: Tensor, keys: Tensor | None = None) -> Tensor:
        """h_v of latents (B, C, h, w): (B, T + n, D); ``keys`` as for :meth:`conditions`."""
        tokens, grid = self.mar.tokens(latents), self.grid(latents)
        return self.proj_in(self.buffers_last(self.mar.encode(tokens, grid, keys=keys)))

    def grid(self, latents: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens."""
        patch = self.mar.sizes.patch_size
        return latents.shape[-2] // patch, latents.shape[-1] // patch

    def buffers_last(self, states: Tensor) -> Tensor:
        """From the order of MAR to that of the language model."""
        return states.roll(-self.mar.sizes.buffer_size, dims=1)

    def buffers_first(self, states: Tensor) -> Tensor:
        """The inverse."""
        return states.roll(self.mar.sizes.buffer_size, dims=1)

    def conditions(
        self,
        prefix: Prefix,
        tokens: Tensor,
        grid: tuple[int, int],
        visible: Visible,
        cache: DynamicCache | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """What the diffusion head needs for every token: (B, T, D').

        Args:
            prefix: What was said before.
            tokens: (B, T, C); only the visible ones are read.
            grid: Rows and columns.
            visible: Which are.
            cache: Keys and values of the prefix if it has been read already; it is left as it was.
            keys: Of the samples, for dropout in training, (B,) int32; ``None``: nothing is dropped.
        """
        states = self.mar.encode(tokens, grid, visible, keys)
        seen = self.mar.seen(visible)
        if seen is None:
            seen = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        asked = self.proj_in(self.buffers_last(states))
        mask = torch.cat([prefix.mask, self.buffers_last(seen)], dim=1)
        if cache is None:
            read = self.read(torch.cat([prefix.embeds, asked], dim=1), mask)[:, prefix.embeds.shape[1] :]
        else:
            read = self.read(asked, mask, cache)
            cache.crop(-asked.shape[1])
        states = states + self.buffers_first(self.proj_out(read))
        return self.mar.decode(states, grid, visible, keys)

    def read(self, embeds: Tensor, mask: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """The language model's last states of the newest positions, (B, L, D); ``mask`` (B, K) covers all so far."""
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
        own = {key: value for key, value in state.items() if not key.startswith(VAE)}
        if own[TIED].data_ptr() == own[EMBEDDING].data_ptr():
            own[TIED] = own[TIED].clone()  # one tensor under two names, which safetensors refuses; the files have both
        stock = {key.removeprefix(VAE): value for key, value in state.items() if key.startswith(VAE)}
        return own | {VAE + key: value for key, value in to_official(stock).items()}


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's names -> those of :class:`HarmonNetwork`."""
    own = {key: value for key, value in state.items() if not key.startswith(VAE)}
    official = {key.removeprefix(VAE): value for key, value in state.items() if key.startswith(VAE)}
    return own | {VAE + key: value for key, value in to_stock(official).items()}
