"""A decoder with two experts that share attention (Mixture-of-Transformers, Liang et al., arXiv 2411.04996).

Every weight of a Qwen2 layer exists twice (BAGEL, arXiv 2505.14683): the understanding expert computes text, image
embeddings and markers, the generation expert (names ending in ``_moe_gen``) the latent tokens of images. Attention does
not depend on the order of its rows as long as masks and positions are given, so a batch keeps the tokens of the experts
next to each other, ``[understanding | generation]``, and both work on contiguous tensors without gather or scatter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2MLP,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
    apply_rotary_pos_emb,
)

EXPERTS = ("", "_moe_gen")
"""Suffixes of parameter names: understanding expert, generation expert."""
PADDING_INDEX = 1 << 40
"""Index of padding tokens: beyond every ``attend_until``, so that no token attends to them."""

KeysValues = tuple[Tensor, Tensor]
"""A layer's keys and values, (B, key heads, K, head width) each."""

Mask = Tensor | BlockMask | None
"""Attention mask, (B, 1, T or 1, K) bool or as blocks; ``None``: every token attends to all keys."""


@dataclass(frozen=True)
class Layout:
    """Order, attention and positions of the tokens of a batch, (B, T) int64 each, on the CPU.

    Token q attends to token k exactly if ``index[k] <= attend_until[q]``: in a causal segment up to itself, in an image
    up to the image's last token.
    """

    index: Tensor
    """Index in the sample's sequence; ``PADDING_INDEX`` for padding."""
    attend_until: Tensor
    """Index of the last token to attend to."""
    position: Tensor
    """Position of the rotary embedding; all tokens of an image share one."""

    def __add__(self, other: "Layout") -> "Layout":
        """Concatenate along T."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Layout(*(torch.cat(pair, dim=1) for pair in pairs))

    def rows(self, rows: slice) -> "Layout":
        """Return a slice of the batch."""
        return Layout(self.index[rows], self.attend_until[rows], self.position[rows])


@dataclass(frozen=True)
class KVCache:
    """Keys and values of all layers for the tokens before a call, with their layout."""

    layout: Layout
    layers: Sequence[KeysValues]

    def rows(self, rows: slice) -> "KVCache":
        """Return a slice of the batch."""
        return KVCache(self.layout.rows(rows), [(keys[rows], values[rows]) for keys, values in self.layers])


class MixtureAttention(nn.Module):
    """Grouped-query attention over the tokens of both experts, with normalised queries and keys."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.head_width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        queries = config.num_attention_heads * self.head_width
        keys = config.num_key_value_heads * self.head_width
        normalised = getattr(config, "qk_norm", True)
        for expert in EXPERTS:
            self.add_module(f"q_proj{expert}", nn.Linear(config.hidden_size, queries))
            self.add_module(f"k_proj{expert}", nn.Linear(config.hidden_size, keys))
            self.add_module(f"v_proj{expert}", nn.Linear(config.hidden_size, keys))
            self.add_module(f"o_proj{expert}", nn.Linear(queries, config.hidden_size, bias=False))
            for name in ("q_norm", "k_norm"):
                norm = Qwen2RMSNorm(self.head_width, config.rms_norm_eps) if normalised else nn.Identity()
                self.add_module(f"{name}{expert}", norm)

    def forward(
        self,
        streams: Sequence[Tensor],
        rotary: tuple[Tensor, Tensor],
        masks: Sequence[Mask],
        past: KeysValues | None,
        detach_understanding: bool,
    ) -> tuple[list[Tensor], KeysValues]:
        """Attend over the tokens of both experts.

        Args:
            streams: Hidden states per expert, (B, T_e, D).
            rotary: Cosines and sines of all tokens, (B, T, head width).
            masks: Attention mask per expert.
            past: Cached keys and values.
            detach_understanding: Stop gradients at the attention output of the understanding expert.

        Returns:
            Outputs shaped like ``streams``, and the keys and values of all tokens, cached ones included.
        """
        projected = [
            [self._heads(f"{name}_proj{expert}", f"{name}_norm{expert}", stream) for name in ("q", "k", "v")]
            for expert, stream in zip(EXPERTS, streams, strict=True)
        ]
        queries, keys, values = (torch.cat(parts, dim=2) for parts in zip(*projected, strict=True))
        queries, keys = apply_rotary_pos_emb(queries, keys, *rotary)
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        results = []
        lengths = [stream.shape[1] for stream in streams]
        per_expert = zip(EXPERTS, streams, queries.split(lengths, dim=2), masks, strict=True)
        for expert, stream, expert_queries, mask in per_expert:
            if not stream.shape[1]:
                results.append(stream)
                continue
            is_detached = detach_understanding and expert == EXPERTS[0]
            with torch.set_grad_enabled(torch.is_grad_enabled() and not is_detached):
                output = _attend(expert_queries, keys, values, mask)
            results.append(getattr(self, f"o_proj{expert}")(output.transpose(1, 2).flatten(2)))
        return results, (keys, values)

    def _heads(self, projection: str, norm: str, stream: Tensor) -> Tensor:
        heads: Tensor = getattr(self, projection)(stream).unflatten(-1, (-1, self.head_width))
        if hasattr(self, norm):  # values are not normalised
            heads = getattr(self, norm)(heads)
        return heads.transpose(1, 2)


class MixtureLayer(nn.Module):
    """A Qwen2 decoder layer with the norms and MLPs of both experts around one attention."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.self_attn = MixtureAttention(config)
        for expert in EXPERTS:
            self.add_module(f"mlp{expert}", Qwen2MLP(config))
            for name in ("input_layernorm", "post_attention_layernorm"):
                self.add_module(f"{name}{expert}", Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps))

    def forward(
        self,
        streams: Sequence[Tensor],
        rotary: tuple[Tensor, Tensor],
        masks: Sequence[Mask],
        past: KeysValues | None,
        detach_understanding: bool,
    ) -> tuple[list[Tensor], KeysValues]:
        """See :meth:`MixtureAttention.forward`."""
        normed = self._per_expert("input_layernorm", streams)
        attended, keys_values = self.self_attn(normed, rotary, masks, past, detach_understanding)
        streams = [stream + change for stream, change in zip(streams, attended, strict=True)]
        changes = self._per_expert("mlp", self._per_expert("post_attention_layernorm", streams))
        return [stream + change for stream, change in zip(streams, changes, strict=True)], keys_values

    def _per_expert(self, name: str, streams: Sequence[Tensor]) -> list[Tensor]:
        return [getattr(self, f"{name}{expert}")(stream) for expert, stream in zip(EXPERTS, streams, strict=True)]


class MixtureDecoder(nn.Module):
    """Embeddings, layers and final norms."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([MixtureLayer(config) for _ in range(config.num_hidden_layers)])
        for expert in EXPERTS:
            self.add_module(f"norm{expert}", Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps))
        with torch.device("cpu"):  # computed even when the weights are on the meta device
            rotary = Qwen2RotaryEmbedding(config)
        # In a tuple, so that casting the model to half precision does not round the frequencies.
        self._rotary = (rotary,)

    def rotary(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of positions (B, T), (B, T, head width) each, in the dtype of ``like``."""
        cosines, sines = self._rotary[0](like, position_ids=positions)
        return cosines, sines


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Mask) -> Tensor:
    """Return (B, heads, T, head width); a group of query heads shares a key head."""
    if not isinstance(mask, BlockMask):
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
    attend = _compiled_flex_attention() if queries.is_cuda else flex_attention
    return attend(queries, keys, values, block_mask=mask, enable_gqa=True)


@cache
def _compiled_flex_attention() -> Any:
    """Return the compiled kernel: uncompiled it computes every score. Shapes differ from batch to batch."""
    return torch.compile(flex_attention, dynamic=True)


def _block_mask(attend_until: Tensor, keys: Layout, device: torch.device) -> BlockMask:
    """Return :func:`_dense_mask` in blocks of tokens; FlexAttention skips blocks that are masked out."""
    index, last = keys.index.to(device), attend_until.to(device)

    def attends(sample: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return index[sample, key] <= last[sample, query]

    return create_block_mask(attends, len(last), None, last.shape[1], index.shape[1], device=str(device))


def _dense_mask(attend_until: Tensor, keys: Layout, device: torch.device) -> Tensor | None:
    """Return the mask of queries (B, T): (B, 1, T, K), (B, 1, 1, K) if all are alike, ``None`` if all is visible."""
    if bool((attend_until == attend_until[:, :1]).all()):  # the usual case of latent tokens
        attend_until = attend_until[:, :1]
    visible = keys.index[:, None, :] <= attend_until[:, :, None]
    return None if bool(visible.all()) else visible[:, None].to(device)


class MixtureOfTransformers(nn.Module):
    """The language model with both experts, under official names.

    Args:
        config: Sizes of a Qwen2; ``qk_norm`` (default true) says whether queries and keys are normalised.
    """

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.config = config
        self.model = MixtureDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.detach_understanding = False
        """Stop gradients through the understanding expert (BAGEL's ``freeze_und``). With frozen weights and inputs
        without gradient, detaching its attention is enough: markers around a noisy image attend to that image."""
        self.flex_attention = False
        """Use FlexAttention, which needs no dense mask of every query and key."""

    def forward(
        self,
        understanding: Tensor,
        generation: Tensor,
        layout: Layout,
        cache: KVCache | None = None,
        return_cache: bool = False,
    ) -> tuple[Tensor, Tensor, KVCache | None]:
        """Run all layers.

        Args:
            understanding: Embeddings for the understanding expert, (B, U, D).
            generation: Embeddings for the generation expert, (B, G, D).
            layout: Layout of the U + G tokens, in this order.
            cache: Keys and values of the tokens before them.
            return_cache: Return the cache extended by these tokens.

        Returns:
            Last hidden states (B, U, D) and (B, G, D) after the final norm, and the extended cache or ``None``.
        """
        device = understanding.device
        all_tokens = layout if cache is None else cache.layout + layout
        mask = _block_mask if self.flex_attention else _dense_mask
        per_expert = layout.attend_until.split([understanding.shape[1], generation.shape[1]], dim=1)
        masks = [mask(part, all_tokens, device) if part.shape[1] else None for part in per_expert]
        rotary = self.model.rotary(understanding, layout.position.to(device))
        streams: list[Tensor] = [understanding, generation]
        new_cache: list[KeysValues] = []
        for number, layer in enumerate(self.model.layers):
            past = cache.layers[number] if cache is not None else None
            streams, keys_values = layer(streams, rotary, masks, past, self.detach_understanding)
            if return_cache:
                new_cache.append(keys_values)
        outputs = [getattr(self.model, f"norm{e}")(stream) for e, stream in zip(EXPERTS, streams, strict=True)]
        return outputs[0], outputs[1], KVCache(all_tokens, new_cache) if return_cache else None
