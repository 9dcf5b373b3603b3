"""A small diffusion model per token: the head that turns a continuous condition into a latent (arXiv 2406.11838).

A token's latent x_0 has no codes; its distribution given a condition z is learnt by denoising:

    x_t  = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e,   t in 0..999, abar by the cosine schedule (arXiv 2102.09672, eq. 17)
    loss = |e - e_net(x_t | t, z)|^2  +  VB         the second term trains the variance only (same, sections 3.1, 3.3)

The network is an MLP whose layers are modulated by t and z. Sampling uses fewer, evenly spaced steps; guidance mixes
the conditional and the unconditional e. Sums over channels are means, VB is in bits.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reca.models.positions import TimestepEmbedder
from reca.models.sampling import classifier_free_guidance
from reca.runtime.seeding import SampleRng

TRAINING_STEPS = 1000
MAX_BETA = 0.999
EPSILON = 1e-6
BIN_HALF_WIDTH = 1 / 255
"""Half the width of the bins of x_0 whose probability is the last VB term (t = 0)."""
OPEN_BIN_EDGE = 0.999
"""Beyond this |x_0| the bin is open and holds the whole tail of the distribution."""


def cosine_betas(steps: int = TRAINING_STEPS) -> Tensor:
    """Noise per step, (steps,) float64: 1 - f(i + 1) / f(i) with f(i) = cos^2((i / steps + 0.008) / 1.008 * pi / 2)."""

    def alpha_bar(step: int) -> float:
        return math.cos((step / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - alpha_bar(step + 1) / alpha_bar(step), MAX_BETA) for step in range(steps)]
    return torch.tensor(betas, dtype=torch.float64)


def spaced_steps(count: int, steps: int = TRAINING_STEPS) -> list[int]:
    """Choose ``count`` of all steps, the first and the last included, as evenly spaced as whole numbers can be.

    Raises:
        ValueError: ``count`` is below one or above ``steps``.
    """
    if not 1 <= count <= steps:
        raise ValueError(f"num_sampling_steps is {count}: it must be between 1 and {steps}, the schedule's steps")
    stride = (steps - 1) / (count - 1) if count > 1 else 1.0
    # Summed up, not multiplied: the last bit decides how .5 is rounded (official code).
    spaced, position = [], 0.0
    for _ in range(count):
        spaced.append(round(position))
        position += stride
    return spaced


class NoiseSchedule:
    """Coefficients of the noising chain per step; stored in float64, used in float32."""

    def __init__(self, count: int = TRAINING_STEPS) -> None:
        self.steps = spaced_steps(count)
        alpha_bars = (1 - cosine_betas()).cumprod(0)[self.steps]
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bars[:-1]])
        betas = 1 - alpha_bars / previous
        variance = betas * (1 - previous) / (1 - alpha_bars)
        # The first step's posterior variance is 0, and its logarithm is needed.
        clipped = torch.cat([variance[1:2], variance[1:]]) if count > 1 else betas
        self.sqrt_alpha_bars, self.sqrt_one_minus_alpha_bars = alpha_bars.sqrt(), (1 - alpha_bars).sqrt()
        self.log_betas, self.log_variance = betas.log(), clipped.log()
        self.sqrt_recip_alpha_bars = (1 / alpha_bars).sqrt()
        self.sqrt_recip_alpha_bars_minus_one = (1 / alpha_bars - 1).sqrt()
        self.posterior_x_0_coefficient = betas * previous.sqrt() / (1 - alpha_bars)
        self.posterior_x_t_coefficient = (1 - previous) * (1 - betas).sqrt() / (1 - alpha_bars)

    @staticmethod
    def at(table: Tensor, t: Tensor) -> Tensor:
        """Look up steps ``t`` (…) in a table: (…, 1) float32 on the device of ``t``."""
        return table.to(t.device)[t].float()[..., None]

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e; all (M, C), t (M,)."""
        return self.at(self.sqrt_alpha_bars, t) * x_0 + self.at(self.sqrt_one_minus_alpha_bars, t) * noise

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0), (M, C)."""
        return self.at(self.posterior_x_0_coefficient, t) * x_0 + self.at(self.posterior_x_t_coefficient, t) * x_t

    def predict_x_0(self, x_t: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Solve x_t for x_0 given the noise, (M, C)."""
        return self.at(self.sqrt_recip_alpha_bars, t) * x_t - self.at(self.sqrt_recip_alpha_bars_minus_one, t) * noise


@dataclass(frozen=True)
class Gaussian:
    """A diagonal normal distribution of x_{t-1}, by mean and log variance (…, C)."""

    mean: Tensor
    log_variance: Tensor


def _zero(linear: nn.Linear) -> nn.Linear:
    """Zero a layer, so that at the start of training every block is the identity and the prediction is 0."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _modulation(width: int, outputs: int) -> nn.Sequential:
    """Layers from a condition to ``outputs`` of shift, scale and gate."""
    return nn.Sequential(nn.SiLU(), _zero(nn.Linear(width, outputs * width)))


class ModulatedBlock(nn.Module):
    """x + gate * MLP(scaled and shifted LayerNorm(x)); shift, scale and gate come from the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = _modulation(width, 3)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        """Hidden states and conditions, both (M, D)."""
        shift, scale, gate = self.adaLN_modulation(condition).chunk(3, dim=-1)
        return hidden + gate * self.mlp(self.in_ln(hidden) * (1 + scale) + shift)


class ModulatedOutput(nn.Module):
    """The last layer: LayerNorm without weights, modulated, then a projection."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=EPSILON, elementwise_affine=False)
        self.linear = _zero(nn.Linear(width, channels))
        self.adaLN_modulation = _modulation(width, 2)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        """Hidden states and conditions (M, D) -> (M, channels)."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(self.norm_final(hidden) * (1 + scale) + shift)


class DenoisingMlp(nn.Module):
    """(x_t, t, z) -> e and the position of the log variance between its two bounds, in [-1, 1]; both (M, C)."""

    def __init__(self, channels: int, condition_width: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = TimestepEmbedder(width)
        self.cond_embed = nn.Linear(condition_width, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ModulatedBlock(width) for _ in range(depth))
        self.final_layer = ModulatedOutput(width, 2 * channels)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Noised latents (M, C), steps in 0..999 (M,), conditions (M, Z)."""
        modulation = self.time_embed(t) + self.cond_embed(condition)
        hidden = self.input_proj(x_t)
        for block in self.res_blocks:
            hidden = block(hidden, modulation)
        noise, variance = self.final_layer(hidden, modulation).chunk(2, dim=-1)
        return noise, variance


class DiffusionHead(nn.Module):
    """The denoising network with its loss and its sampler."""

    def __init__(self, channels: int, condition_width: int, width: int, depth: int, num_sampling_steps: int) -> None:
        super().__init__()
        self.channels = channels
        self.net = DenoisingMlp(channels, condition_width, width, depth)
        with torch.device("cpu"):  # constants, needed also by a model on the meta device
            self.training_schedule = NoiseSchedule()
            self.sampling_schedule = NoiseSchedule(num_sampling_steps)

    def loss(self, latents: Tensor, condition: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both terms of the loss per token.

        Args:
            latents: x_0, (M, C).
            condition: (M, Z).
            t: (M,) int64, 0..999.
            noise: (M, C), standard normal.

        Returns:
            Squared error of e, and VB in bits: (M,) each, means over channels.
        """
        schedule = self.training_schedule
        x_t = schedule.add_noise(latents, noise, t)
        predicted, variance = self.net(x_t, t, condition)
        predicted, variance = predicted.float(), variance.float()
        squared_error = (noise - predicted).square().mean(-1)
        # Detached: VB trains the variance, the squared error the mean.
        estimate = self._denoise(schedule, x_t, t, predicted.detach(), variance)
        posterior = Gaussian(schedule.posterior_mean(latents, x_t, t), schedule.at(schedule.log_variance, t))
        kl = _kl_divergence(posterior, estimate)
        negative_log_likelihood = -_log_bin_probability(latents, estimate)
        bits = torch.where(t == 0, negative_log_likelihood.mean(-1), kl.mean(-1)) / math.log(2)
        return squared_error, bits

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor,
        rng: SampleRng,
        temperature: float = 1.0,
        unconditional: Tensor | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Sample latents: (B, K, Z) -> (B, K, C).

        Args:
            condition: K tokens per sample.
            rng: Draws "latent_noise" once, then "step_noise" at every step but the last, (K, C) each.
            temperature: Factor of the noise that the steps add.
            unconditional: Conditions (B, K, Z) of the unconditional half of guidance; ``None``: no guidance.
            guidance_scale: w in e = e_unconditional + w (e_conditional - e_unconditional).
        """
        schedule = self.sampling_schedule
        batch, tokens, _ = condition.shape
        conditions = condition if unconditional is None else torch.cat([condition, unconditional])
        conditions = conditions.flatten(0, 1)  # (copies * B, K, Z) -> (copies * B * K, Z)
        copies = 1 if unconditional is None else 2
        shape = (tokens, self.channels)
        latents = rng.normal("latent_noise", shape).to(condition.device).flatten(0, 1)
        for index in reversed(range(len(schedule.steps))):
            t = torch.full((copies * batch * tokens,), schedule.steps[index], device=latents.device)
            noise, variance = self.net(latents.repeat(copies, 1).to(conditions.dtype), t, conditions)
            noise, variance = noise.float(), variance.float()
            if unconditional is not None:
                conditional_noise, unconditional_noise = noise.chunk(2)
                noise = classifier_free_guidance(conditional_noise, unconditional_noise, guidance_scale)
                variance = variance.chunk(2)[0]
            indices = torch.full((batch * tokens,), index, device=latents.device)
            estimate = self._denoise(schedule, latents, indices, noise, variance)
            latents = estimate.mean
            if index:
                step_noise = rng.normal("step_noise", shape).to(latents.device).flatten(0, 1)
                latents = latents + (0.5 * estimate.log_variance).exp() * step_noise * temperature
        return latents.view(batch, tokens, -1)

    @staticmethod
    def _denoise(schedule: NoiseSchedule, x_t: Tensor, t: Tensor, noise: Tensor, variance: Tensor) -> Gaussian:
        """Distribution one step back; its log variance is between the posterior's and log beta (eq. 15)."""
        mean = schedule.posterior_mean(schedule.predict_x_0(x_t, noise, t), x_t, t)
        fraction = (variance + 1) / 2
        upper, lower = schedule.at(schedule.log_betas, t), schedule.at(schedule.log_variance, t)
        return Gaussian(mean, fraction * upper + (1 - fraction) * lower)


def _kl_divergence(posterior: Gaussian, estimate: Gaussian) -> Tensor:
    """KL(posterior | estimate) in nats, elementwise."""
    squared_distance = (posterior.mean - estimate.mean).square() * torch.exp(-estimate.log_variance)
    log_ratio = estimate.log_variance - posterior.log_variance
    return 0.5 * (log_ratio - 1 + torch.exp(-log_ratio) + squared_distance)


def _log_bin_probability(values: Tensor, estimate: Gaussian) -> Tensor:
    """Log probability (nats) of the bin around each value."""
    inverse_deviation = torch.exp(-0.5 * estimate.log_variance)
    upper = _normal_cdf((values - estimate.mean + BIN_HALF_WIDTH) * inverse_deviation)
    lower = _normal_cdf((values - estimate.mean - BIN_HALF_WIDTH) * inverse_deviation)
    inner = torch.where(values > OPEN_BIN_EDGE, 1 - lower, upper - lower)
    return torch.where(values < -OPEN_BIN_EDGE, upper, inner).clamp(min=1e-12).log()


def _normal_cdf(values: Tensor) -> Tensor:
    """Normal distribution function by the tanh approximation that the checkpoints were trained with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)))
