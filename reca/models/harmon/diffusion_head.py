"""A small diffusion model per token: the head that turns a continuous condition into a latent (arXiv 2406.11838).

A token's latent x has no codes; its distribution given a condition z is learnt by denoising:

    x_t  = sqrt(abar_t) x + sqrt(1 - abar_t) e,   t in 0..999, abar by the cosine schedule (arXiv 2102.09672, eq. 17)
    loss = |e - e_net(x_t | t, z)|^2  +  VB        the second term teaches the variance only (same, sections 3.1, 3.3)

The network is an MLP whose layers are modulated by t and z. Drawing uses fewer, evenly spaced steps; guidance mixes the
two predictions of e. All sums over channels are means, VB is in bits.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reca.models.positions import TimestepEmbedder
from reca.models.sampling import classifier_free_guidance
from reca.runtime.seeding import SampleRng

TRAINING_STEPS = 1000
LARGEST_BETA = 0.999
EPSILON = 1e-6
BIN = 1 / 255
"""Half the width of the bins, in units of x, whose probability is the last VB term."""
OUTERMOST = 0.999
"""Beyond this |x| the bin is open: all the rest of the distribution."""


def cosine_betas(steps: int = TRAINING_STEPS) -> Tensor:
    """Noise per step, (steps,) float64: 1 - f(i + 1) / f(i) with f(i) = cos^2((i / steps + 0.008) / 1.008 * pi / 2)."""

    def kept(step: int) -> float:
        return math.cos((step / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - kept(step + 1) / kept(step), LARGEST_BETA) for step in range(steps)]
    return torch.tensor(betas, dtype=torch.float64)


def spaced_steps(number: int, steps: int = TRAINING_STEPS) -> list[int]:
    """``number`` of all steps, the first and the last included, as evenly spaced as whole numbers can be.

    Raises:
        ValueError: Fewer than one or more than all are asked for.
    """
    if not 1 <= number <= steps:
        raise ValueError(f"{number} diffusion steps are asked for (num_sampling_steps); the schedule has {steps}")
    stride = (steps - 1) / (number - 1) if number > 1 else 1.0
    # Summed up, not multiplied: the last bit decides where .5 is rounded to.
    chosen, place = [], 0.0
    for _ in range(number):
        chosen.append(round(place))
        place += stride
    return chosen


class NoiseSchedule:
    """What the chain of noising steps implies, step by step; held in float64, used in float32.

    Args:
        number: Steps of the chain, of the 1000 that training knows.
    """

    def __init__(self, number: int = TRAINING_STEPS) -> None:
        self.steps = spaced_steps(number)
        products = (1 - cosine_betas()).cumprod(0)[self.steps]
        before = torch.cat([torch.ones(1, dtype=torch.float64), products[:-1]])
        betas = 1 - products / before
        variance = betas * (1 - before) / (1 - products)
        # The first step's variance is 0, and its logarithm is asked for.
        clipped = torch.cat([variance[1:2], variance[1:]]) if number > 1 else betas
        self.signal, self.noise = products.sqrt(), (1 - products).sqrt()
        self.log_betas, self.log_variance = betas.log(), clipped.log()
        self.inverse_signal, self.inverse_noise = (1 / products).sqrt(), (1 / products - 1).sqrt()
        self.mean_of_data = betas * before.sqrt() / (1 - products)
        self.mean_of_noised = (1 - before) * (1 - betas).sqrt() / (1 - products)

    @staticmethod
    def at(table: Tensor, steps: Tensor) -> Tensor:
        """Entries of a table for steps (…): (…, 1) float32 on the steps' device."""
        return table.to(steps.device)[steps].float()[..., None]


@dataclass(frozen=True)
class Denoised:
    """What the network says about the previous step: a normal distribution, by mean and log variance (…, C)."""

    mean: Tensor
    log_variance: Tensor


def _zero(linear: nn.Linear) -> nn.Linear:
    """A layer whose output is 0 when training starts: every block passes its input on, and the prediction is 0."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _modulation(width: int, parts: int) -> nn.Sequential:
    """What turns a condition into ``parts`` of shift, scale and gate."""
    return nn.Sequential(nn.SiLU(), _zero(nn.Linear(width, parts * width)))


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
    """The last layer: LayerNorm without weights of its own, modulated, then a projection."""

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
    """(x_t, t, z) -> e and where the variance lies between its two bounds; both (M, C).

    Args:
        channels: C, of a token's latent.
        condition_width: Of z.
        width: Of the hidden layers.
        depth: Number of modulated blocks.
    """

    def __init__(self, channels: int, condition_width: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = TimestepEmbedder(width)
        self.cond_embed = nn.Linear(condition_width, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ModulatedBlock(width) for _ in range(depth))
        self.final_layer = ModulatedOutput(width, 2 * channels)

    def forward(self, noised: Tensor, steps: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Noised latents (M, C), steps of 0..999 (M,), conditions (M, Z)."""
        modulation = self.time_embed(steps) + self.cond_embed(condition)
        hidden = self.input_proj(noised)
        for block in self.res_blocks:
            hidden = block(hidden, modulation)
        noise, range_ = self.final_layer(hidden, modulation).chunk(2, dim=-1)
        return noise, range_


class DiffusionHead(nn.Module):
    """The network with its loss and its sampler.

    Args:
        channels, condition_width, width, depth: See :class:`DenoisingMlp`.
        num_sampling_steps: Diffusion steps when a latent is drawn.
    """

    def __init__(self, channels: int, condition_width: int, width: int, depth: int, num_sampling_steps: int) -> None:
        super().__init__()
        self.channels = channels
        self.net = DenoisingMlp(channels, condition_width, width, depth)
        with torch.device("cpu"):  # numbers that are known, also of a model that is built without any
            self.training_schedule = NoiseSchedule()
            self.sampling_schedule = NoiseSchedule(num_sampling_steps)

    def loss(self, latents: Tensor, condition: Tensor, steps: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of the loss, token by token.

        Args:
            latents: (M, C).
            condition: (M, Z).
            steps: (M,) int64, 0..999.
            noise: (M, C), standard normal.

        Returns:
            Squared error of e, and VB in bits: (M,) each, means over channels.
        """
        schedule = self.training_schedule
        noised = schedule.at(schedule.signal, steps) * latents + schedule.at(schedule.noise, steps) * noise
        predicted, range_ = self.net(noised, steps, condition)
        predicted, range_ = predicted.float(), range_.float()
        squared_error = (noise - predicted).square().mean(-1)
        # VB must not move the mean: that is the business of the squared error.
        guess = self._denoise(schedule, noised, steps, predicted.detach(), range_)
        true_mean = (
            schedule.at(schedule.mean_of_data, steps) * latents + schedule.at(schedule.mean_of_noised, steps) * noised
        )
        divergence = _kl(Denoised(true_mean, schedule.at(schedule.log_variance, steps)), guess)
        surprise = -_log_bin_probability(latents, guess)
        bits = torch.where(steps == 0, surprise.mean(-1), divergence.mean(-1)) / math.log(2)
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
        """Draw latents: (B, K, Z) -> (B, K, C).

        Args:
            condition: K tokens a sample.
            rng: Draws "latent_noise" once, then "step_noise" at every step but the last, (K, C) each.
            temperature: Factor of the noise that the steps add.
            unconditional: Conditions (B, K, Z) of the unconditional half of guidance; ``None``: no guidance.
            guidance_scale: w in e = e_unconditional + w (e_conditional - e_unconditional).
        """
        schedule = self.sampling_schedule
        batch, tokens, _ = condition.shape
        both = condition if unconditional is None else torch.cat([condition, unconditional])
        both = both.flatten(0, 1)
        shape = (tokens, self.channels)
        latents = rng.normal("latent_noise", shape).to(condition.device).flatten(0, 1)
        for place in reversed(range(len(schedule.steps))):
            copies = 1 if unconditional is None else 2
            known_as = torch.full((copies * batch * tokens,), schedule.steps[place], device=latents.device)
            noise, range_ = self.net(latents.repeat(copies, 1).to(both.dtype), known_as, both)
            noise, range_ = noise.float(), range_.float()
            if unconditional is not None:
                wanted, plain = noise.chunk(2)
                noise, range_ = classifier_free_guidance(wanted, plain, guidance_scale), range_.chunk(2)[0]
            here = torch.full((batch * tokens,), place, device=latents.device)
            step = self._denoise(schedule, latents, here, noise, range_)
            latents = step.mean
            if place:
                fresh = rng.normal("step_noise", shape).to(latents.device).flatten(0, 1)
                latents = latents + (0.5 * step.log_variance).exp() * fresh * temperature
        return latents.view(batch, tokens, -1)

    @staticmethod
    def _denoise(schedule: NoiseSchedule, noised: Tensor, steps: Tensor, noise: Tensor, range_: Tensor) -> Denoised:
        """The distribution one step back; its log variance lies between that of the posterior and log beta."""
        data = schedule.at(schedule.inverse_signal, steps) * noised - schedule.at(schedule.inverse_noise, steps) * noise
        mean = schedule.at(schedule.mean_of_data, steps) * data + schedule.at(schedule.mean_of_noised, steps) * noised
        share = (range_ + 1) / 2
        upper, lower = schedule.at(schedule.log_betas, steps), schedule.at(schedule.log_variance, steps)
        return Denoised(mean, share * upper + (1 - share) * lower)


def _kl(truth: Denoised, guess: Denoised) -> Tensor:
    """KL(truth | guess) of normal distributions, in nats, elementwise."""
    apart = (truth.mean - guess.mean).square() * torch.exp(-guess.log_variance)
    widths = guess.log_variance - truth.log_variance
    return 0.5 * (widths - 1 + torch.exp(-widths) + apart)


def _log_bin_probability(values: Tensor, guess: Denoised) -> Tensor:
    """Log of the probability that a normal distribution gives to the bin around each value (nats)."""
    inverse_width = torch.exp(-0.5 * guess.log_variance)
    upper = _normal_cdf((values - guess.mean + BIN) * inverse_width)
    lower = _normal_cdf((values - guess.mean - BIN) * inverse_width)
    probability = torch.where(values < -OUTERMOST, upper, torch.where(values > OUTERMOST, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def _normal_cdf(values: Tensor) -> Tensor:
    """The usual approximation by tanh, which checkpoints were trained with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)))
