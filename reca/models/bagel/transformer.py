"""A decoder with two experts that meet in attention only (Mixture-of-Transformers, Liang et al., arXiv 2411.04996).

Every weight of a Qwen2 layer exists twice: for tokens that are read (text, seen images, markers) and, under names that
end in ``_moe_gen``, for the latent tokens of images that are drawn (BAGEL, arXiv 2505.14683). Attention does not care
for the order of its rows as long as masks and positions tell it, so a batch keeps the tokens of each expert side by
side, ``[read | drawn]``, and each expert works on a contiguous tensor: nothing is gathered or scattered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
"""Endings of the names of weights: what reads, what draws."""
PADDING_INDEX = 1 << 40
"""Place of padding: behind everything, so that nobody sees it."""

KeysValues = tuple[Tensor, Tensor]
"""Of one layer: (B, key heads, K, head width) each."""

Mask = Tensor | BlockMask | None
"""What queries see of the keys, (B, 1, T or 1, K), or the blocks of that; ``None``: everything."""


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch stand, (B, T) int64 each, on the CPU. Padding stands at ``PADDING_INDEX``.

    Token q sees token k exactly if ``place[k] <= until[q]``: a token of a causal stretch sees until its own place, a
    token of an image until the image's end.
    """

    place: Tensor
    """In the sample's own sequence."""
    until: Tensor
    position: Tensor
    """Of the rotary embedding; all tokens of an image share one."""

    def __add__(self, other: "Layout") -> "Layout":
        """The tokens of two layouts side by side."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("place", "until", "position"))
        return Layout(*(torch.cat(pair, dim=1) for pair in pairs))

    def rows(self, rows: slice) -> "Layout":
        """Some samples of the batch."""
        return Layout(self.place[rows], self.until[rows], self.position[rows])


@dataclass(frozen=True)
class KVCache:
    """What has been read: keys and values of every layer, and where their tokens stand."""

    layout: Layout
    layers: Sequence[KeysValues]

    def rows(self, rows: slice) -> "KVCache":
        """Some samples of the batch."""
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
        """Attend.

        Args:
            streams: Tokens of each expert, (B, T_e, D).
            rotary: Cosines and sines of all tokens, (B, T, head width).
            masks: What each expert's queries see.
            past: Keys and values of earlier tokens.
            detach_understanding: Let no gradient through what the reading expert's tokens have attended to.

        Returns:
            Results like ``streams``, and the keys and values of all tokens, earlier ones included.
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
        for number, (expert, asked, mask) in enumerate(zip(EXPERTS, queries.split(lengths, dim=2), masks, strict=True)):
            if not lengths[number]:
                results.append(streams[number])
                continue
            with torch.set_grad_enabled(torch.is_grad_enabled() and not (detach_understanding and number == 0)):
                seen = _attend(asked, keys, values, mask)
            results.append(getattr(self, f"o_proj{expert}")(seen.transpose(1, 2).flatten(2)))
        return results, (keys, values)

    def _heads(self, projection: str, norm: str, stream: Tensor) -> Tensor:
        heads: Tensor = getattr(self, projection)(stream).unflatten(-1, (-1, self.head_width))
        if hasattr(self, norm):  # values have none
            heads = getattr(self, norm)(heads)
        return heads.transpose(1, 2)


class MixtureLayer(nn.Module):
    """A Qwen2 decoder layer, twice, around one attention."""

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
        normed = self._each("input_layernorm", streams)
        attended, keys_values = self.self_attn(normed, rotary, masks, past, detach_understanding)
        streams = [stream + change for stream, change in zip(streams, attended, strict=True)]
        changes = self._each("mlp", self._each("post_attention_layernorm", streams))
        return [stream + change for stream, change in zip(streams, changes, strict=True)], keys_values

    def _each(self, name: str, streams: Sequence[Tensor]) -> list[Tensor]:
        return [getattr(self, f"{name}{expert}")(stream) for expert, stream in zip(EXPERTS, streams, strict=True)]


class MixtureDecoder(nn.Module):
    """Embeddings, layers and final norms."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([MixtureLayer(config) for _ in range(config.num_hidden_layers)])
        for expert in EXPERTS:
            self.add_module(f"norm{expert}", Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps))
        with torch.device("cpu"):  # real numbers even when the weights are on the meta device
            rotary = Qwen2RotaryEmbedding(config)
        # In a tuple, where no cast of the model to half precision reaches the frequencies.
        self._rotary = (rotary,)

    def rotary(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions (B, T), (B, T, head width) each, in the type of ``like``."""
        cosines, sines = self._rotary[0](like, position_ids=positions)
        return cosines, sines


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Mask) -> Tensor:
    """(B, heads, T, head width); a group of query heads shares a key head."""
    if not isinstance(mask, BlockMask):
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
    attend = _compiled_flex_attention() if queries.is_cuda else flex_attention
    return attend(queries, keys, values, block_mask=mask, enable_gqa=True)


@cache
def _compiled_flex_attention() -> Any:
    """Without compilation it would compute every score; shapes differ from batch to batch."""
    return torch.compile(flex_attention, dynamic=True)


def _blocks(until: Tensor, keys: Layout, device: torch.device) -> BlockMask:
    """Like :func:`_mask`, as blocks of tokens of which some see nothing of some others, and are left out."""
    place, last = keys.place.to(device), until.to(device)

    def sees(sample: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return place[sample, key] <= last[sample, query]

    return create_block_mask(sees, len(until), None, until.shape[1], place.shape[1], device=str(device))


def _mask(until: Tensor, keys: Layout, device: torch.device) -> Tensor | None:
    """What queries (B, T) see of the keys: (B, 1, T, K), or (B, 1, 1, K) if all see the same; ``None``: everything."""
    if bool((until == until[:, :1]).all()):  # the usual case of drawn tokens
        until = until[:, :1]
    seen = keys.place[:, None, :] <= until[:, :, None]
    return None if bool(seen.all()) else seen[:, None].to(device)


class MixtureOfTransformers(nn.Module):
    """The language model: official names, both experts.

    Args:
        config: Sizes of a Qwen2; ``qk_norm`` (default true) says whether queries and keys are normalised.
    """

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.config = config
        self.model = MixtureDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.detach_understanding = False
        """Let no gradient flow through the reading expert (BAGEL's ``freeze_und``). With its weights frozen and its
        inputs without gradient, cutting its attention is enough: markers around a drawn image attend to that image."""
        self.flex_attention = False
        """Attend block by block where that is possible, without masks of every query and key."""

    def forward(
        self, read: Tensor, drawn: Tensor, layout: Layout, memory: KVCache | None = None, keep: bool = False
    ) -> tuple[Tensor, Tensor, KVCache | None]:
        """Run all layers.

        Args:
            read: Embeddings for the reading expert, (B, U, D).
            drawn: Embeddings for the drawing expert, (B, G, D).
            layout: Where the U + G tokens stand, in this order.
            memory: What these samples have read before.
            keep: Return what is to be remembered of this call.

        Returns:
            Last hidden states like ``read`` and ``drawn``, after the final norm; and the memory, the earlier one
            included, if asked for.
        """
        device = read.device
        known = layout if memory is None else memory.layout + layout
        mask = _blocks if self.flex_attention else _mask
        parts = layout.until.split([read.shape[1], drawn.shape[1]], dim=1)
        masks = [mask(part, known, device) if part.shape[1] else None for part in parts]
        rotary = self.model.rotary(read, layout.position.to(device))
        streams: list[Tensor] = [read, drawn]
        kept: list[KeysValues] = []
        for number, layer in enumerate(self.model.layers):
            past = memory.layers[number] if memory is not None else None
            streams, keys_values = layer(streams, rotary, masks, past, self.detach_understanding)
            if keep:
                kept.append(keys_values)
        read, drawn = (getattr(self.model, f"norm{e}")(stream) for e, stream in zip(EXPERTS, streams, strict=True))
        return read, drawn, KVCache(known, kept) if keep else None
