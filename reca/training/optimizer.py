"""AdamW over the trained parameters, which are chosen here too."""

from collections.abc import Mapping

import torch
from torch import nn

from reca.training.low_bit_adamw import LowBitAdamW, StateDtype


def freeze(model: nn.Module, trainable: set[str]) -> dict[str, nn.Parameter]:
    """Freeze all but the named parameters, without gradient or optimizer state; returns those that train.

    Raises:
        ValueError: A name is not a parameter of the model, or there is no name.
    """
    parameters = dict(model.named_parameters())
    unknown = sorted(trainable - parameters.keys())
    if unknown or not trainable:
        raise ValueError(f"the model has no parameters {unknown[:3]}" if unknown else "the model trains no parameter")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trainable)
    return {name: parameter for name, parameter in parameters.items() if name in trainable}


def set_training_mode(model: nn.Module) -> None:
    """Set training mode for modules that hold trained parameters, and evaluation mode for fully frozen ones."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    betas: tuple[float, float],
    weight_decay: float,
    eps: float = 1e-8,
    no_weight_decay: tuple[str, ...] = (),
    state_dtype: StateDtype = "float32",
) -> torch.optim.AdamW:
    """Return an AdamW, whose learning rate must be set before every step.

    Args:
        parameters: The trained parameters by name.
        betas: Decay rates of both moments.
        weight_decay: For matrices; one-dimensional parameters (biases, norms) have none.
        eps: Added to the root of the second moment.
        no_weight_decay: Name prefixes of matrices without weight decay.
        state_dtype: Storage of both moments; see :mod:`reca.training.low_bit_adamw`.
    """
    decayed, undecayed = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in parameters.items():
        (decayed if parameter.ndim > 1 and not name.startswith(no_weight_decay) else undecayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if state_dtype != "float32":
        return LowBitAdamW(groups, state_dtype, lr=0.0, betas=betas, eps=eps)
    on_cuda = all(parameter.is_cuda for parameter in parameters.values())
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=on_cuda)
