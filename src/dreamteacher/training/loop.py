"""The training loop: every stage passes it a model, a step function and data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset

from dreamteacher.errors import Interrupted, UserError
from dreamteacher.settings.section import Training
from dreamteacher.training.optim import Rate
from dreamteacher.training.order import Batches, choose_workers, open_loader
from dreamteacher.training.processes import Processes
from dreamteacher.training.progress import Display, Records
from dreamteacher.training.run import Part, Place, Row, Run, Step, Trained
from dreamteacher.training.signals import Stop, StopRequest, stop_request


def train(
    model: nn.Module,
    step: Step,
    data: Dataset,
    settings: Training,
    place: Place,
    *,
    seed: int,
    count: Callable[[Part], int] | None = None,
    on_eval: Callable[[nn.Module, int], dict[str, float]] | None = None,
    eval_every: int | None = None,
    rates: Callable[[str], Rate] | None = None,
    after_step: Callable[[nn.Module, int], None] | None = None,
    kept: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> Trained:
    """Train `model` for settings.steps optimiser steps, from the newest good checkpoint of `place` if there is one.

    Args:
        model: trained in place; must have the same weights in every process.
        step: computes the losses of a batch.
        data: map-style, with items addressed by (index, seed of the augmentation); each a dict of tensors.
        place: the stage, with the folder of its checkpoints and its tracker.
        seed: seed of sample order, augmentation and all noise.
        count: number of items in an accumulation part (on the CPU) that the loss is a mean over, such as labelled pixels. batch["count"] is
            then the mean count over all parts and processes (of at least one item in all): a sum divided by it has the same gradient
            however the batch is split.
        on_eval: measures the `kept` part of the EMA model (without EMA, of the trained model), in eval mode on the device, every
            `eval_every` steps and at the end, in the first process. Its metrics are added to the history.
        rates: learning rates of the parameters, by name; None: settings.lr for all.
        after_step: updates the model after an optimiser step (from 0), identically in every process, such as momentum encoders. It gets the
            model without DDP. Its state must be in the model's state dict, so that checkpoints contain it.
        kept: the part of the model that EMA averages and on_eval measures; default: the whole model.

    Raises:
        UserError: the batch cannot be split evenly, the loss or gradient is not finite, checkpoints cannot be written.
        Interrupted: SIGTERM or Ctrl-C came; the checkpoint of the last step is written, or the message says why not.
    """
    processes = Processes()
    parts = settings.accumulate * processes.count
    if settings.batch_size % parts:
        raise UserError(
            f"{place.title}: a batch of {settings.batch_size} cannot be split evenly into {parts} parts "
            f"({processes.count} processes x accumulate {settings.accumulate}); make batch_size a multiple of {parts}"
        )
    length = len(data)  # type: ignore[arg-type]
    if not length:
        raise UserError(f"{place.title}: there are no pictures to train on; ingest some first")

    run = Run(model, step, settings, place, processes, seed=seed, count=count, rates=rates, after_step=after_step, kept=kept)
    with (
        Display(run.title, settings.steps, processes.is_first) as display,
        stop_request(alone=processes.count == 1) as request,
        _stopped_though_unsaved(run, request),
    ):
        run.restore(display.say)
        workers = choose_workers(data, settings.workers, run.device)
        display.say(_describe(run, workers))
        records = Records(run.checkpoints / "log.jsonl", run.done) if processes.is_first else None
        batches = Batches(
            length,
            settings.batch_size,
            seed=seed,
            start=run.done,
            steps=settings.steps,
            accumulate=settings.accumulate,
            rank=processes.rank,
            processes=processes.count,
        )
        display.start_at(run.done)
        run.pace.restart()
        with open_loader(data, batches, workers, processes.device) as loader:
            while run.done < settings.steps:
                try:
                    with request.at_once():  # the state is that after a complete step
                        parts = run.fetch(loader)
                except Stop:
                    run.save()
                    raise Interrupted(request.signum, run.done) from None
                run.take_step(parts)
                last = run.done == settings.steps
                row: Row = {}
                clock: Row = {}
                if last or run.done % settings.log_every == 0:
                    row, clock = run.read_log(), run.read_clock()
                    display.record(row | clock)
                if on_eval and (last or (eval_every and run.done % eval_every == 0)):
                    row |= run.evaluate(on_eval)
                if row:
                    run.history.append({"step": run.done, **row})
                    if records:
                        records.add({"step": run.done, **row, **clock})
                        place.tracker.metrics(row | clock, step=run.done)
                signum = int(processes.reduce(torch.tensor(request.signum), dist.ReduceOp.MAX))
                if signum or last or run.done % settings.checkpoint_every == 0:
                    run.save()
                display.step(run.done)
                if signum:
                    raise Interrupted(signum, run.done)
    return run.result()


@contextmanager
def _stopped_though_unsaved(run: Run, request: StopRequest) -> Iterator[None]:
    """Once a stop is requested, what cannot be written, as on a full disk, does not make it a failure: earlier checkpoints are intact."""
    try:
        yield
    except (UserError, OSError) as error:
        if not request.signum:
            raise
        raise Interrupted(request.signum, run.done, unsaved=str(error)) from error


def _describe(run: Run, workers: int) -> str:
    """The chosen device, precision and batch split in one line."""
    settings, count = run.settings, run.processes.count
    split = f" = {count} processes x {settings.accumulate} parts" if count * settings.accumulate > 1 else ""
    start = f"resumes after step {run.done} of" if run.done else "starts"
    precision = ("bf16" if run.dtype == torch.bfloat16 else "fp32") + ", compiled" * settings.compile
    return (
        f"{run.title}: {start} {settings.steps} steps of {settings.batch_size} pictures{split} "
        f"on {run.device.type}, {precision}, {workers} loader processes"
    )
