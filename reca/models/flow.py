"""Rectified flow (Liu et al., arXiv 2209.03003): a straight path from an image to noise, and the way back.

x_t = (1 - t) x_0 + t ε,   v = dx/dt = ε - x_0,   t in [0, 1]
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Renorm = Literal["global", "channel", "text_channel"]
"""Over what a guided velocity is shrunk back to the length of the unguided one: the whole image, every token, or every
token after the guidance by text but before the one by image."""


def shift_times(times: Tensor, shift: float) -> Tensor:
    """Move times towards noise: s t / (1 + (s - 1) t) (Esser et al., arXiv 2403.03206, equation 23)."""
    return shift * times / (1 + (shift - 1) * times)


def noised(clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """x_t; ``times`` broadcasts against the images."""
    return (1 - times) * clean + times * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """What a network is to say at x_t, whatever t."""
    return noise - clean


def guide(
    full: Tensor,
    without_text: Tensor | None,
    without_image: Tensor | None,
    text_scale: float,
    image_scale: float,
    renorm: Renorm,
) -> Tensor:
    """Classifier-free guidance by text and by image (Brooks et al., arXiv 2211.09800), without growing the velocity.

    Args:
        full: Velocities given text and image, (B, T, C).
        without_text: Given the image only; ``None``: no guidance by text.
        without_image: Given the text only; ``None``: no guidance by image.
        text_scale: Weight of the text; 1 changes nothing.
        image_scale: Weight of the image; 1 changes nothing.
        renorm: Over what lengths are compared; a guided velocity is never longer than ``full``.
    """
    guided = full if without_text is None else without_text + text_scale * (full - without_text)
    if renorm == "text_channel":
        guided = _no_longer(guided, full, (-1,))
    if without_image is not None:
        guided = without_image + image_scale * (guided - without_image)
    if renorm == "text_channel":
        return guided
    return _no_longer(guided, full, (-2, -1) if renorm == "global" else (-1,))


def _no_longer(vectors: Tensor, than: Tensor, dims: tuple[int, ...]) -> Tensor:
    lengths = [torch.linalg.vector_norm(each, dim=dims, keepdim=True) for each in (than, vectors)]
    return vectors * (lengths[0] / (lengths[1] + 1e-8)).clamp(max=1)


def integrate(noise: Tensor, velocity_at: Callable[[Tensor, float], Tensor], num_steps: int, shift: float) -> Tensor:
    """Euler's method from t = 1 to 0.

    Args:
        noise: x_1.
        velocity_at: (x_t, t) -> velocities.
        num_steps: Calls of ``velocity_at``; the times between are even before they are shifted.
        shift: See :func:`shift_times`.

    Raises:
        ValueError: There is not a single step.
    """
    if num_steps < 1:
        raise ValueError(f"drawing needs at least one step, got num_steps={num_steps}")
    times = shift_times(torch.linspace(1, 0, num_steps + 1), shift)
    state = noise
    for now, then in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        state = state - (now - then) * velocity_at(state, now)
    return state
