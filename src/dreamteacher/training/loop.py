"""The one training loop: every stage gives it a model, a step function and data."""

from __future__ import annotations

from collections.abc import Callable

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
from dreamteacher.training.signals import Stop, stop_request


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
        model: trained in place; every process must be given the same weights.
        step: computes the losses of a batch.
        data: map-style, with items addressed by (index, seed of the augmentation); each a dict of tensors.
        place: the stage, with the folder of its checkpoints and its tracker.
        seed: of the order of the samples, their augmentation, and all noise.
        count: of a part of a batch, on the CPU, how many things the loss is a mean over, such as labelled pixels. `step` then finds in
            batch["count"] the mean of these counts over all parts and processes (from at least one thing in all): a sum divided by it
            has the same gradient however the batch is split.
        on_eval: measures the averaged (else the trained) model's kept part, which is in eval mode on the device, after every
            `eval_every` steps and at the end, in the first process. Its figures enter the history.
        rates: of the parameters, by name; None: settings.lr for all.
        after_step: changes the model after an optimiser step (from 0), the same in every process: momentum encoders. It sees the
            model without DDP. All that it carries from step to step must be in the model's state dict, which checkpoints hold.
        kept: the part of the model whose average is kept and which on_eval measures; default: all of it.

    Raises:
        UserError: the batch cannot be split evenly, the loss or gradient is not finite, checkpoints cannot be written.
        Interrupted: SIGTERM or Ctrl-C came; the checkpoint of the last step is written.
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
    with Display(run.title, settings.steps, processes.is_first) as display, stop_request(alone=processes.count == 1) as request:
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
                    with request.at_once():  # the state is that after a whole step
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


def _describe(run: Run, workers: int) -> str:
    """What was chosen, in a line."""
    settings, count = run.settings, run.processes.count
    split = f" = {count} processes x {settings.accumulate} parts" if count * settings.accumulate > 1 else ""
    start = f"resumes after step {run.done} of" if run.done else "starts"
    precision = ("bf16" if run.dtype == torch.bfloat16 else "fp32") + ", compiled" * settings.compile
    return (
        f"{run.title}: {start} {settings.steps} steps of {settings.batch_size} pictures{split} "
        f"on {run.device.type}, {precision}, {workers} loader processes"
    )
