"""KL16, the image autoencoder of MAR and Harmon: a stock ``AutoencoderKL`` under the names of latent diffusion.

Its checkpoints (``kl16.ckpt``) follow CompVis' latent-diffusion: levels count from the full resolution in both halves,
and attention is made of 1x1 convolutions. The stock class counts the decoder's levels from the latents and uses linear
layers. The stock converter drops the attention that KL16 has outside the middle block, so the table here is complete
and works in both directions.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

_NAMES = (
    ("mid.block_1.", "mid_block.resnets.0."),
    ("mid.block_2.", "mid_block.resnets.1."),
    ("mid.attn_1.", "mid_block.attentions.0."),
    ("down.#.block.", "down_blocks.#.resnets."),
    ("down.#.attn.", "down_blocks.#.attentions."),
    ("down.#.downsample.", "down_blocks.#.downsamplers.0."),
    ("up.#.block.", "up_blocks.#.resnets."),
    ("up.#.attn.", "up_blocks.#.attentions."),
    ("up.#.upsample.", "up_blocks.#.upsamplers.0."),
    (".norm_out.", ".conv_norm_out."),
    (".nin_shortcut.", ".conv_shortcut."),
    *(
        (f".attentions.#.{official}.", f".attentions.#.{stock}.")
        for official, stock in (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"))
    ),
    (".attentions.#.proj_out.", ".attentions.#.to_out.0."),
)
"""Parts of names: latent diffusion, stock class; ``#`` is a number. The first column is replaced from top to bottom."""
_UP = re.compile(r"up_blocks\.(\d+)\.")


class ContiguousAttention(AttnProcessor2_0):
    """The stock attention with contiguous output; its channels-last output would make all later layers channels-last.

    On the CPU, torch's group norm is far less exact then: at 512 pixels, decoded images were off by 4e-5 relative.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """See the stock class."""
        output = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        return output.contiguous()


@dataclass(frozen=True)
class Kl16Sizes:
    """Sizes under latent diffusion's names, by default those of ``kl16.ckpt``."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 16
    encoder_attention: frozenset[int] | None = None
    """Levels of the encoder with attention; ``None``: the last."""
    decoder_attention: frozenset[int] = frozenset()
    """Levels of the decoder with attention, counted like the encoder's."""

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Self:
        """Return the sizes that the weights' shapes and names show.

        Raises:
            ValueError: These are not the weights of such an autoencoder.
        """
        for name in ("encoder.conv_in.weight", "quant_conv.weight"):
            if name not in weights:
                raise ValueError(f"these are not KL16 weights: {name} is missing")
        width = weights["encoder.conv_in.weight"].shape[0]
        channels, blocks = level_sizes(weights, "encoder.down")
        return cls(
            ch=width,
            ch_mult=tuple(output // width for output in channels),
            num_res_blocks=max(blocks, default=0),
            z_channels=weights["quant_conv.weight"].shape[0] // 2,
            encoder_attention=_levels_with_attention(weights, "encoder.down"),
            decoder_attention=_levels_with_attention(weights, "decoder.up"),
        )

    @property
    def stride(self) -> int:
        """Side in pixels of a latent."""
        return int(2 ** (len(self.ch_mult) - 1))

    def build(self) -> AutoencoderKL:
        """Return a randomly initialised autoencoder of the stock class."""
        levels = len(self.ch_mult)
        attention = {levels - 1} if self.encoder_attention is None else self.encoder_attention
        down = ["AttnDownEncoderBlock2D" if n in attention else "DownEncoderBlock2D" for n in range(levels)]
        up = ["AttnUpDecoderBlock2D" if n in self.decoder_attention else "UpDecoderBlock2D" for n in range(levels)]
        autoencoder = AutoencoderKL(
            block_out_channels=tuple(self.ch * factor for factor in self.ch_mult),
            down_block_types=tuple(down),
            up_block_types=tuple(reversed(up)),
            layers_per_block=self.num_res_blocks,
            latent_channels=self.z_channels,
            norm_num_groups=32,
            sample_size=256,
        )
        autoencoder.set_attn_processor(ContiguousAttention())
        return autoencoder


def level_sizes(weights: Mapping[str, Tensor], half: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return channels and residual blocks per level of ``encoder.down`` or ``decoder.up``, full resolution first."""
    channels: dict[int, int] = {}
    blocks = Counter[int]()
    for key, weight in weights.items():
        if match := re.fullmatch(rf"{re.escape(half)}\.(\d+)\.block\.\d+\.conv2\.weight", key):
            channels[int(match[1])] = weight.shape[0]  # the same in all blocks of a level
            blocks[int(match[1])] += 1
    levels = sorted(channels)
    return tuple(channels[level] for level in levels), tuple(blocks[level] for level in levels)


def _levels_with_attention(weights: Mapping[str, Tensor], half: str) -> frozenset[int]:
    matches = (re.match(rf"{re.escape(half)}\.(\d+)\.attn\.0\.", key) for key in weights)
    return frozenset(int(match[1]) for match in matches if match)


def to_stock(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert latent diffusion's names and shapes to those of ``AutoencoderKL``."""
    last = max((int(m[1]) for key in weights if (m := re.match(r"decoder\.up\.(\d+)\.", key))), default=-1)
    renamed = {}
    for key, value in weights.items():
        name = key
        for official, stock in _NAMES:
            name = _replace(name, official, stock)
        name = _UP.sub(lambda m: f"up_blocks.{last - int(m[1])}.", name)
        is_convolution = _is_attention_matrix(name) and value.ndim == 4
        renamed[name] = value[:, :, 0, 0] if is_convolution else value
    return renamed


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert names and shapes of ``AutoencoderKL`` to latent diffusion's."""
    last = max((int(m[1]) for key in state if (m := re.match(r"decoder\.up_blocks\.(\d+)\.", key))), default=-1)
    renamed = {}
    for key, value in state.items():
        name = _UP.sub(lambda m: f"up_blocks.{last - int(m[1])}.", key)
        for official, stock in reversed(_NAMES):
            name = _replace(name, stock, official)
        renamed[name] = value[:, :, None, None] if _is_attention_matrix(key) else value
    return renamed


def _replace(name: str, old: str, new: str) -> str:
    return re.sub(re.escape(old).replace(r"\#", r"(\d+)"), new.replace("#", r"\1"), name)


def _is_attention_matrix(name: str) -> bool:
    """Return whether a stock name is a linear layer of attention, which is a 1x1 convolution in latent diffusion."""
    return ".attentions." in name and name.endswith(".weight") and "group_norm" not in name
