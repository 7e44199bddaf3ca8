"""A training run: its state, and the operations of the loop on it."""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from dreamteacher.errors import UserError
from dreamteacher.settings.section import Training
from dreamteacher.training.checkpoint import newest_checkpoint, read_checkpoint, save_checkpoint
from dreamteacher.training.ema import create_ema, update_ema
from dreamteacher.training.optim import Rate, create_optimizer, set_lr
from dreamteacher.training.precision import choose_layout, choose_precision
from dreamteacher.training.processes import Processes
from dreamteacher.training.progress import Idle, Pace
from dreamteacher.training.randomness import StepRandom, derive_seed, seed_everything

if TYPE_CHECKING:
    from dreamteacher.tracking import Tracker

Row = dict[str, float]
Part = dict[str, Tensor]  # of a batch: pictures, and labels if there are any, by name


class Step(Protocol):
    """A step function: the losses of one accumulation part of the batch."""

    def __call__(self, model: nn.Module, batch: Part, random: StepRandom) -> dict[str, Tensor]:
        """Scalars, always with the same names: "loss" is minimised, the others are logged; all are averaged over the parts of the batch.

        A mean over the pictures of a part thus becomes a mean over the whole batch, since parts have equal size. A mean over a varying
        number of items, such as labelled pixels, must be a sum divided by batch["count"] instead: see `train`.

        `batch` is on the device, pictures in its memory format; the call runs under autocast. Call `model` (which may be wrapped
        in DDP) once, and draw noise from `random`; other random numbers (dropout) are reproducible but differ between processes.
        """
        ...


class Place(Protocol):
    """Title, checkpoint folder and tracker of a run; `stage.Stage` implements it."""

    @property
    def title(self) -> str:
        """The name in messages."""
        ...

    @property
    def checkpoints(self) -> Path:
        """Folder for checkpoints and `log.jsonl`."""
        ...

    @property
    def tracker(self) -> Tracker:
        """Receives the metrics of each log record."""
        ...


@dataclass
class Trained:
    """The result: models on the CPU, float32, contiguous, in eval mode; `history` has the metrics that do not depend on time.

    `ema` is the averaged `kept` part of `model`.
    """

    model: nn.Module
    ema: nn.Module | None
    history: list[Row]

    def last_loss(self) -> float:
        """The mean loss of the last ten rows of the history that have one."""
        last = [row["loss"] for row in self.history[-10:] if "loss" in row]
        return sum(last) / len(last)


class Run:
    """The state of a training run, and the operations on it."""

    def __init__(
        self,
        model: nn.Module,
        step: Step,
        settings: Training,
        place: Place,
        processes: Processes,
        *,
        seed: int,
        count: Callable[[Part], int] | None,
        rates: Callable[[str], Rate] | None,
        after_step: Callable[[nn.Module, int], None] | None,
        kept: Callable[[nn.Module], nn.Module],
    ):
        self.step = step
        self.settings = settings
        self.seed = seed
        self.checkpoints = place.checkpoints
        self.title = place.title
        self.count = count
        self.after_step = after_step
        self.kept = kept
        self.pace = Pace()
        self.processes = processes
        self.device = processes.device
        self.dtype = choose_precision(settings.precision, self.device)
        self.layout = choose_layout(self.device, self.dtype)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all crops have the same size

        self.model = model
        # Synchronised batch norm; on a copy, since the result must be loadable without a process group.
        sync = processes.count > 1 and self.device.type == "cuda"
        alone = settings.batch_size == settings.accumulate * processes.count and not sync
        if alone and any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in model.modules()):
            raise UserError(f"{self.title}: batch normalisation needs at least two pictures; raise batch_size or lower accumulate")
        self.module: nn.Module = _sync_batchnorm(model) if sync else model
        self.module.train().to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        self.ema = create_ema(kept(self.module), settings.ema) if settings.ema is not None else None
        if settings.compile:
            warnings.filterwarnings("ignore", module=r"torch\._dynamo")  # about functions of libraries
            self.module.compile()  # in place; the EMA copy is used rarely and is not compiled
        self.ddp = processes.wrap(self.module)
        self.optimizer = create_optimizer(self.module, settings, rates)
        self.trainable = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

        self.done = 0
        self.saved = 0  # step of the newest checkpoint; the initial weights need none
        self.lr = 0.0
        self.history: list[Row] = []
        self.names: list[str] = []  # of the columns of `window`, except the last, the gradient norm
        self.window: list[Tensor] = []  # a row per step since the last record, kept on the device so that no step synchronises
        self.idle = Idle(self.device)

    def fetch(self, loader: Iterator[Part]) -> list[Part]:
        """This process' parts of the next batch, on the CPU."""
        begin = time.perf_counter()
        parts = [next(loader) for _ in range(self.settings.accumulate)]
        pictures = sum(len(next(iter(part.values()))) for part in parts)
        self.pace.add(pictures * self.processes.count, 0.0 if self.idle.on_gpu else time.perf_counter() - begin)
        return parts

    def take_step(self, parts: list[Part]) -> None:
        """One optimiser step."""
        self.idle.ends()
        losses = self.forward_backward(parts)
        norm = self.optimizer_step()
        self.idle.begins()
        self.window.append(torch.cat([losses, norm.float().reshape(1)]))
        self.done += 1

    def forward_backward(self, parts: list[Part]) -> Tensor:
        """Gradients of this process' share of the batch, part by part; returns its mean losses (len(names),)."""
        processes = self.processes
        count = self.mean_count(parts)
        total = torch.zeros((), device=self.device)
        for micro, on_cpu in enumerate(parts):
            batch = {key: self.to_device(value) for key, value in on_cpu.items()} | count
            part = micro * processes.count + processes.rank
            random = StepRandom(self.seed, self.done, part, len(parts) * processes.count, self.device)
            seed_everything(derive_seed("step", self.seed, self.done, part), self.device)
            share = contextlib.nullcontext() if micro == len(parts) - 1 else processes.accelerator.no_sync(self.ddp)
            with share:
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    losses = self.step(self.ddp, batch, random)
                (losses["loss"] / len(parts)).backward()
            self.names = list(losses)
            total = total + torch.stack([value.detach().float() for value in losses.values()]) / len(parts)
        return total

    def mean_count(self, parts: list[Part]) -> Part:
        """The value of batch["count"]; on the CPU, since an accelerator can use a CPU scalar without synchronising."""
        if not self.count:
            return {}
        total = self.processes.reduce(torch.tensor(sum(self.count(part) for part in parts)))
        return {"count": torch.tensor(max(int(total), 1) / (len(parts) * self.processes.count))}

    def to_device(self, value: Tensor) -> Tensor:
        """A part of the batch on the model's device, pictures in its memory format."""
        return value.to(self.device, non_blocking=True, memory_format=self.layout if value.ndim == 4 else torch.preserve_format)

    def optimizer_step(self) -> Tensor:
        """Clip, update weights and averages; returns the gradient's norm before clipping."""
        self.lr = set_lr(self.optimizer, self.done, self.settings)
        gradients = [parameter.grad for parameter in self.trainable if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.settings.clip is not None:
            nn.utils.clip_grads_with_norm_(self.trainable, self.settings.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.after_step:
            self.after_step(self.module, self.done)
        if self.ema:
            update_ema(self.ema, self.kept(self.module), self.done)
        return norm

    def read_window(self) -> Tensor:
        """(steps since the last record, len(names) + 1) on the CPU, the mean over processes.

        Raises:
            UserError: in one of these steps the loss or the gradient was not finite.
        """
        if not self.window:
            return torch.empty(0, len(self.names) + 1)
        rows = self.processes.reduce(torch.stack(self.window).cpu()) / self.processes.count
        columns = [*self.names, "grad_norm"]
        finite = rows.isfinite()
        bad = (~finite[:, [columns.index("loss"), len(self.names)]]).any(1).nonzero()
        if len(bad):
            row = int(bad[0])
            wrong = ", ".join(name for name, good in zip(columns, finite[row].tolist(), strict=True) if not good)
            precision = ", or set precision to fp32" if self.dtype != torch.float32 else ""
            raise UserError(
                f"{self.title}: not finite at step {self.done - len(rows) + row + 1}: {wrong}; "
                f"lower lr (now {self.settings.lr:g}), raise warmup_steps, clip gradients (clip is {self.settings.clip}){precision}"
            )
        return rows

    def read_log(self) -> Row:
        """Mean losses and gradient norm since the last record, and the learning rate of the last step."""
        *losses, norm = self.read_window().double().mean(0).tolist()
        self.window.clear()
        return {**dict(zip(self.names, losses, strict=True)), "lr": self.lr, "grad_norm": norm}

    def read_clock(self) -> Row:
        """Machine-dependent metrics: speed since the last record, and `seconds` and `pictures` of all training so far.

        Call it after `read_log`, which synchronises.
        """
        self.pace.add(0, self.idle.read())
        return {**self.pace.read(), "seconds": self.pace.seconds(), "pictures": self.done * self.settings.batch_size}

    def evaluate(self, on_eval: Callable[[nn.Module, int], dict[str, float]]) -> Row:
        """Measure in the first process, and broadcast."""
        model = self.ema.module if self.ema else self.kept(self.module)
        values: Row = {}
        self.idle.pauses()
        with self.pace.paused():
            if self.processes.is_first:
                model.eval()
                with torch.no_grad():
                    values = {key: float(value) for key, value in on_eval(model, self.done).items()}
                self.module.train()
            return self.processes.from_first(values)

    def save(self) -> None:
        """Write the checkpoint of this step if there is none yet.

        Raises:
            UserError: the weights are not finite, or the checkpoint cannot be written.
        """
        if self.done == self.saved:  # a run stopped before its first step may have only seconds left
            return
        window = self.read_window()
        self.idle.pauses()
        with self.pace.paused():
            if self.processes.is_first:
                state: dict[str, Any] = {
                    "step": self.done,
                    "model": self.module.state_dict(),
                    "ema": self.ema.module.state_dict() if self.ema else None,
                    "optimizer": self.optimizer.state_dict(),
                    "window": window,
                    "history": self.history,
                    "seconds": self.pace.seconds(),
                }
                save_checkpoint(self.checkpoints, self.done, state)
            self.processes.from_first(None)  # no process continues or stops before it is written
        self.saved = self.done

    def restore(self, say: Callable[[str], None]) -> None:
        """Resume from the newest checkpoint that is complete and fits."""
        found = newest_checkpoint(self.checkpoints, self.fits, say) if self.processes.is_first else None
        path = self.processes.from_first(found[0] if found else None)
        if not path:
            return
        state = found[1] if found else read_checkpoint(path)
        self.module.load_state_dict(state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.window = list(state["window"].to(self.device))
        self.history = state["history"]
        self.done = self.saved = state["step"]
        self.pace.go_on_at(state.get("seconds", 0.0))  # missing in older checkpoints

    def fits(self, state: dict[str, Any]) -> bool:
        """Whether a checkpoint's weights match this model by name and shape."""
        shapes = {key: value.shape for key, value in self.module.state_dict().items()}
        return shapes == {key: value.shape for key, value in state["model"].items()} and (state["ema"] is None) == (self.ema is None)

    def result(self) -> Trained:
        """Return the models on the CPU, contiguous."""
        self.optimizer.zero_grad()
        self.module._compiled_call_impl = None
        if self.module is not self.model:
            self.model.load_state_dict(self.module.state_dict())
        ema = self.ema.module if self.ema else None
        for model in (self.model, ema):
            if model is not None:
                model.eval().to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return Trained(self.model, ema, self.history)


def _sync_batchnorm(model: nn.Module) -> nn.Module:
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(copy.deepcopy(model))
