"""Low-rank adapters instead of full training: LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353), by peft.

    W x + b   becomes   W x + b + s B A x       W and b frozen, A (rank, in) random, B (out, rank) zero at first

with s = alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv 2312.03732). DoRA also trains the norm of every row of
W + s B A. After training the sum is written into W, so that the model is saved in the family's official layout.
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
"""Layers that compute logits; adapted only if a pattern names them."""


def adapt(model: UnifiedModel, settings: AdapterSection, seed: int) -> None:
    """Add adapters to linear layers that RecA would train, in place; ``trainable()`` then names only the adapters.

    The model's outputs stay the same, because B is zero. A is a function of ``seed``.

    Raises:
        UserError: A pattern matches no layer, or DoRA cannot adapt a layer.
    """
    full = sum(model.get_parameter(name).numel() for name in model.trainable())
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
    # The families select trained parameters by name prefixes, which the frozen layers inside adapters share.
    names = [name for name in model.trainable() if ".lora_" in name]
    model.trainable = lambda: names  # type: ignore[method-assign]
    model.freeze()
    trained = sum(model.get_parameter(name).numel() for name in names)
    kind = "DoRA" if settings.dora else "LoRA"
    print(
        f"{kind} of rank {settings.rank} on {len(layers)} layers: {trained:,} parameters train, not {full:,}",
        flush=True,
    )


def merge(model: UnifiedModel) -> None:
    """Add the adapters to the weights and remove them, in place; names and layout are the family's again.

    Args:
        model: In float32, so that the sums are not rounded to a smaller type.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
    del model.trainable, model.peft_config
    model.freeze()


def targets(model: UnifiedModel, patterns: Sequence[str] | None) -> list[str]:
    """Return the names of the linear layers to adapt, in the order of the model.

    Args:
        model: Without adapters.
        patterns: Shell patterns of full names, such as ``*.q_proj``; ``None``: all that RecA trains except ``HEADS``.

    Raises:
        UserError: A pattern matches no linear layer that RecA trains.
    """
    trained = set(model.trainable())
    # Exactly this class: of some subclasses (in nn.MultiheadAttention) only the weight is read.
    layers = [
        name for name, module in model.named_modules() if type(module) is nn.Linear and f"{name}.weight" in trained
    ]
    if patterns is None:
        return [name for name in layers if not name.endswith(HEADS)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            examples = ", ".join(sorted({f"*.{name.rpartition('.')[2]}" for name in layers}))
            raise UserError(
                f"train.adapter.targets: {pattern!r} matches no linear layer that RecA trains here; these would: "
                f"{examples} (full names are like {layers[0]})"
            )
    return [name for name in layers if any(fnmatchcase(name, pattern) for pattern in patterns)]


class _Float32Lora(LoraModel):
    """peft's LoRA with float32 adapters on layers of any type; peft uses the type of the layer."""

    def _create_and_replace(self, config: LoraConfig, adapter: str, target: Any, *args: Any, **kwargs: Any) -> None:
        stored_weight = target.weight.data
        target.weight.data = stored_weight.float()
        super()._create_and_replace(config, adapter, target, *args, **kwargs)
        target.weight.data = stored_weight


def _check_rows(model: nn.Module, layers: Sequence[str]) -> None:
    for name in layers:
        if not model.get_parameter(f"{name}.weight").any(dim=1).all():
            raise UserError(
                f"train.adapter.dora: {name} has rows of zeros, whose length DoRA divides by; name other layers in "
                "train.adapter.targets, or set train.adapter.dora=false"
            )
