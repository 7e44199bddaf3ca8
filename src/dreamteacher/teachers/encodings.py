"""How pictures enter a diffusion model: which noise step they get, and what of the noise (Sec 3.1, Tab 10)."""

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
    """The network that inputs are made for.

    Attributes:
        scheduler: whose `alphas_cumprod` say how much of the picture is left at each noise step.
    """

    scheduler: DDPMScheduler

    def predict_noise(self, noisy: Tensor, steps: Tensor) -> Tensor:
        """The standard normal noise in inputs `(B, C, h, w)` at noise steps `(B,)`, float32 of the same shape."""
        ...


class Encoded(NamedTuple):
    """Inputs `(B, C, h, w)` of the network at noise steps `(B,)`, int64, and the clean inputs of which they are the noisy ones."""

    noisy: Tensor
    steps: Tensor
    clean: Tensor


class Encoding(Protocol):
    """Equal encodings encode alike."""

    def check(self, scheduler: DDPMScheduler) -> None:
        """UserError where the schedule does not have the noise steps that are asked for."""
        ...

    def encode(self, network: Denoiser, inputs: Tensor, random: StepRandom) -> Encoded:
        """Clean inputs `(B, C, h, w)` in the scale of the network (pictures in [-1, 1], or latents), to what it denoises.

        `Encoded.clean` is `inputs` itself, unless the encoding makes pictures of its own.
        """
        ...


def get_encoding(settings: EncodingSettings | dict[str, Any]) -> Encoding:
    """What the settings `distill` or `interpreter` say; as a dict, what an earlier run recorded of them, if only T."""
    if isinstance(settings, dict):
        names = EncodingSettings.model_fields
        settings = EncodingSettings.model_validate({name: value for name, value in settings.items() if name in names})
    if settings.encoding == "stratified":
        return Stratified(tuple(settings.strata))
    if settings.encoding == "stochastic":
        return Stochastic(settings.T)
    return (Inversion if settings.encoding == "ddim" else Dream)(settings.T, settings.passes)


def encoding_of_pictures(settings: EncodingSettings | dict[str, Any]) -> Encoding:
    """As `get_encoding`, for pictures that are given: where the settings have the teacher dream, their stochastic encoding at T."""
    encoding = get_encoding(settings)
    return Stochastic(encoding.T) if isinstance(encoding, Dream) else encoding


@dataclass(frozen=True)
class Stochastic:
    """Forward diffusion of each picture to noise step `T`, with noise of its own."""

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
    """Forward diffusion of each picture to a noise step of its own.

    The strata are [edges[0], edges[1]), [edges[1], edges[2]), ...: the pictures of a batch take them in turn, and in its stratum each
    draws a step. So every batch has all of them equally often, as far as it can be divided.
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
        """x_T of Song et al. 2021, Eq 14, backwards; nothing is drawn."""
        noisy = inputs
        for before, after in pairwise([None, *_grid(0, self.T, self.passes)]):
            noisy = _ddim_step(network, noisy, before, after, at=before or 0)
        return Encoded(noisy, torch.full((len(inputs),), self.T, device=inputs.device, dtype=torch.long), inputs)


@dataclass(frozen=True)
class Dream:
    """Pictures that the teacher makes of noise by DDIM, in about `passes` steps, one of them at noise step `T` (Sec 3.1, "synthesised").

    Their features are those of the pass at T on the way. Of the pictures that are given, only the size and number count. A schedule that
    ends in noise alone (zero terminal SNR) is entered one step before, since no picture can be told from noise alone.
    """

    T: int
    passes: int

    def check(self, scheduler: DDPMScheduler) -> None:
        """0 <= T < steps of the schedule, of which T has some of the picture.

        Raises:
            UserError: T is not so.
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
    """`alphas_cumprod` on the host, which else would have to wait for the device that it may be on."""
    return scheduler.alphas.cumprod(0)


def _grid(low: int, high: int, passes: int) -> list[int]:
    """`passes` noise steps, or all where there are fewer, evenly from above `low` to `high`; high alone where they are equal."""
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
