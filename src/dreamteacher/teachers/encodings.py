"""Encodings: how pictures become noisy inputs of a diffusion model (Sec 3.1, Tab 10)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from dreamteacher.errors import UserError
from dreamteacher.settings.pretraining import EncodingSettings
from dreamteacher.training.randomness import StepRandom
from dreamteacher.training.transfer import constant

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


class Denoiser(Protocol):
    """The network to encode for.

    Attributes:
        scheduler: has `alphas_cumprod`, alpha_bar of each noise step.
    """

    scheduler: DDPMScheduler

    def predict_noise(self, noisy: Tensor, steps: Tensor) -> Tensor:
        """The predicted noise in inputs `(B, C, h, w)` at noise steps `(B,)`, float32 of the same shape."""
        ...


class Encoded(NamedTuple):
    """Noisy inputs `(B, C, h, w)` at noise steps `(B,)`, int64, and the corresponding clean inputs."""

    noisy: Tensor
    steps: Tensor
    clean: Tensor


class Encoding(Protocol):
    """An encoding. Equal encodings encode in the same way."""

    def check(self, scheduler: DDPMScheduler) -> None:
        """Raises UserError if the schedule lacks the requested noise steps."""
        ...

    def encode(self, network: Denoiser, inputs: Tensor, random: StepRandom) -> Encoded:
        """Encode clean inputs `(B, C, h, w)` in the scale of the network (pictures in [-1, 1], or latents).

        `Encoded.clean` is `inputs` itself, unless the encoding samples pictures.
        """
        ...


def get_encoding(settings: EncodingSettings | dict[str, Any]) -> Encoding:
    """The encoding of the settings `distill` or `interpreter`, or of their dict recorded by an earlier run (perhaps only T)."""
    if isinstance(settings, dict):
        names = EncodingSettings.model_fields
        settings = EncodingSettings.model_validate({name: value for name, value in settings.items() if name in names})
    if settings.encoding == "stratified":
        return Stratified(tuple(settings.strata))
    if settings.encoding == "stochastic":
        return Stochastic(settings.T)
    return (Inversion if settings.encoding == "ddim" else Dream)(settings.T, settings.passes)


def encoding_of_pictures(settings: EncodingSettings | dict[str, Any]) -> Encoding:
    """As `get_encoding`, but for encoding given pictures: `dream` is replaced by the stochastic encoding at T."""
    encoding = get_encoding(settings)
    return Stochastic(encoding.T) if isinstance(encoding, Dream) else encoding


@dataclass(frozen=True)
class Stochastic:
    """Forward diffusion of each picture to noise step `T`, with new noise."""

    T: int

    def check(self, scheduler: DDPMScheduler) -> None:
        """0 <= T < steps of the schedule."""
        _check_step(self.T, scheduler)

    def encode(self, network: Denoiser, inputs: Tensor, random: StepRandom) -> Encoded:
        """q(x_T | x_0)."""
        steps = torch.full((len(inputs),), self.T, device=inputs.device, dtype=torch.long)
        return Encoded(network.scheduler.add_noise(inputs, random.normal(inputs.shape), cast(Any, steps)), steps, inputs)


@dataclass(frozen=True)
class Stratified:
    """Forward diffusion with a random noise step per picture.

    The strata are [edges[0], edges[1]), [edges[1], edges[2]), ...: the pictures of a batch are assigned to them in turn, and draw a step
    within their stratum. So each batch has all strata about equally often.
    """

    edges: tuple[int, ...]

    def check(self, scheduler: DDPMScheduler) -> None:
        """0 <= edges, and the last not above the steps of the schedule."""
        _check_step(self.edges[0], scheduler)
        _check_step(self.edges[-1] - 1, scheduler)

    def encode(self, network: Denoiser, inputs: Tensor, random: StepRandom) -> Encoded:
        """q(x_t | x_0), t of each picture."""
        edges = constant(self.edges, inputs.device)
        stratum = (random.positions(len(inputs)) + random.step) % (len(edges) - 1)
        low, width = edges[stratum], (edges[1:] - edges[:-1])[stratum]
        steps = low + random.integers(0, 2**31, len(inputs)) % width
        return Encoded(network.scheduler.add_noise(inputs, random.normal(inputs.shape), cast(Any, steps)), steps, inputs)


@dataclass(frozen=True)
class Inversion:
    """Deterministic encoding: DDIM's ordinary differential equation from the picture to noise step `T`, in `passes` steps."""

    T: int
    passes: int

    def check(self, scheduler: DDPMScheduler) -> None:
        """0 <= T < steps of the schedule."""
        _check_step(self.T, scheduler)

    def encode(self, network: Denoiser, inputs: Tensor, random: StepRandom) -> Encoded:
        """x_T by reversing Eq 14 of Song et al. 2021; deterministic."""
        noisy = inputs
        for before, after in pairwise([None, *_grid(0, self.T, self.passes)]):
            noisy = _ddim_step(network, noisy, before, after, at=before or 0)
        return Encoded(noisy, torch.full((len(inputs),), self.T, device=inputs.device, dtype=torch.long), inputs)


@dataclass(frozen=True)
class Dream:
    """Pictures sampled from the teacher by DDIM, in about `passes` steps, one of them at noise step `T` (Sec 3.1, "synthesised").

    Their features are those of the forward pass at T. Of the input pictures, only size and number matter. With zero terminal SNR,
    sampling starts one step earlier, since pure noise contains no information about the picture.
    """

    T: int
    passes: int

    def check(self, scheduler: DDPMScheduler) -> None:
        """0 <= T < steps of the schedule, and the SNR at T is above 0.

        Raises:
            UserError: T is invalid.
        """
        _check_step(self.T, scheduler)
        if _last_with_a_picture(scheduler) < self.T:
            raise UserError(f"noise step T = {self.T} of this teacher is noise alone; take {self.T - 1} or less")

    def encode(self, network: Denoiser, inputs: Tensor, random: StepRandom) -> Encoded:
        """x_T and x_0 of one generative pass."""
        last = _last_with_a_picture(network.scheduler)
        above = max(1, round(self.passes * (last - self.T) / max(last, 1)))
        x = random.normal(inputs.shape)
        for before, after in pairwise(reversed([self.T, *_grid(self.T, last, above)])):
            x = _ddim_step(network, x, before, after, at=before)
        at_T = x
        below = [*reversed(_grid(0, self.T, max(1, self.passes - above)))]
        for before, then in zip(below, [*below[1:], None], strict=True):
            x = _ddim_step(network, x, before, then, at=before)
        return Encoded(at_T, torch.full((len(inputs),), self.T, device=inputs.device, dtype=torch.long), x)


def _last_with_a_picture(scheduler: DDPMScheduler) -> int:
    last = scheduler.config.num_train_timesteps - 1
    return last if float(_kept(scheduler)[last]) > 0 else last - 1


def _kept(scheduler: DDPMScheduler) -> Tensor:
    """`alphas_cumprod` on the CPU, to avoid synchronising."""
    return scheduler.alphas.cumprod(0)


def _grid(low: int, high: int, passes: int) -> list[int]:
    """`passes` noise steps (or all, if fewer), evenly spaced from above `low` to `high`; only `high` if they are equal."""
    return sorted({round(low + (high - low) * i / passes) for i in range(1, passes + 1)} - {low}) or [high]


def _ddim_step(network: Denoiser, x: Tensor, before: int | None, after: int | None, at: int) -> Tensor:
    """From noise step `before` to `after` along the noise that is predicted at step `at`; None: no noise at all (Eq 12, sigma = 0)."""
    kept = _kept(network.scheduler)
    now, then = (1.0 if step is None else float(kept[step]) for step in (before, after))
    noise = network.predict_noise(x, torch.full((len(x),), at, device=x.device, dtype=torch.long))
    clean = (x - (1 - now) ** 0.5 * noise) / now**0.5
    return then**0.5 * clean + (1 - then) ** 0.5 * noise


def _check_step(step: int, scheduler: DDPMScheduler) -> None:
    if not 0 <= step < scheduler.config.num_train_timesteps:
        raise UserError(f"noise step T = {step} does not fit the teacher, which has {scheduler.config.num_train_timesteps} of them")
