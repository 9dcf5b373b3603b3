"""Low-rank adapters in place of full training: LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353), by peft.

    W x + b   becomes   W x + b + s B A x       W and b frozen, A (rank, in) random, B (out, rank) zero at first

with s = alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv 2312.03732). DoRA also learns the length of each row of
W + s B A. After training the sum is written into W, so that what is saved is the family's own layout.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from torch import nn

from reca.config import AdapterSection
from reca.models.base import UnifiedModel
from reca.runtime.errors import UserError
from reca.runtime.seeding import derive_seed

HEADS = ("lm_head", "vision_head")
"""Layers that give logits; adapted only where they are named."""


def adapt(model: UnifiedModel, settings: AdapterSection, seed: int) -> None:
    """Put adapters on linear layers that RecA would train, in place; from then on ``trainable()`` names these alone.

    The model computes what it did before: B is zero. A is a function of ``seed``.

    Raises:
        UserError: No layer has a name that was asked for, or DoRA is asked for a layer that it cannot adapt.
    """
    whole = sum(model.get_parameter(name).numel() for name in model.trainable())
    layers = targets(model, settings.targets)
    if settings.dora:
        _check_rows(model, layers)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        target_modules=layers,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "adapter"))
        _Float32Lora(model, config, "default")
    # The families tell what trains by the beginnings of names, which the frozen layers inside adapters share.
    names = [name for name in model.trainable() if ".lora_" in name]
    model.trainable = lambda: names  # type: ignore[method-assign]
    model.freeze()
    trained = sum(model.get_parameter(name).numel() for name in names)
    kind = "DoRA" if settings.dora else "LoRA"
    print(
        f"{kind} of rank {settings.rank} on {len(layers)} layers: {trained:,} parameters train, not {whole:,}",
        flush=True,
    )


def merge(model: UnifiedModel) -> None:
    """Write the adapters into the weights and take them out, in place: names and layout are the family's again.

    Args:
        model: In float32, or the sums would be rounded.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
    del model.trainable, model.peft_config
    model.freeze()


def targets(model: UnifiedModel, patterns: Sequence[str] | None) -> list[str]:
    """Names of the linear layers to adapt, in the order of the model.

    Args:
        model: Not yet adapted.
        patterns: Shell patterns of whole names, such as ``*.q_proj``; ``None``: all that RecA trains, but ``HEADS``.

    Raises:
        UserError: A pattern fits no linear layer that RecA trains.
    """
    trained = set(model.trainable())
    # The very class: of its subclasses some (in nn.MultiheadAttention) are never called, only read from.
    layers = [
        name for name, module in model.named_modules() if type(module) is nn.Linear and f"{name}.weight" in trained
    ]
    if patterns is None:
        return [name for name in layers if not name.endswith(HEADS)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            some = ", ".join(sorted({f"*.{name.rpartition('.')[2]}" for name in layers}))
            raise UserError(
                f"train.adapter.targets: {pattern!r} fits no linear layer that RecA trains here; these would: {some} "
                f"(whole names are like {layers[0]})"
            )
    return [name for name in layers if any(fnmatchcase(name, pattern) for pattern in patterns)]


class _Float32Lora(LoraModel):
    """peft's way of putting adapters in, which gives each the type of its layer; ours are float32 beside any."""

    def _create_and_replace(self, config: LoraConfig, adapter: str, target: Any, *args: Any, **kwargs: Any) -> None:
        read = target.weight.data
        target.weight.data = read.float()
        super()._create_and_replace(config, adapter, target, *args, **kwargs)
        target.weight.data = read


def _check_rows(model: nn.Module, layers: Sequence[str]) -> None:
    for name in layers:
        if not model.get_parameter(f"{name}.weight").any(dim=1).all():
            raise UserError(
                f"train.adapter.dora: {name} has rows of zeros, whose length DoRA divides by; name other layers in "
                "train.adapter.targets, or set train.adapter.dora=false"
            )
