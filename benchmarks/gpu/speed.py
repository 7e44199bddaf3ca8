"""Throughput, model-FLOPs use, data wait and peak memory of a case, through the product's own loop."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.cases import DRY, Case, Pictures, Work
from benchmarks.gpu.machine import peak
from dreamteacher.settings.section import Training
from dreamteacher.tracking import Tracker
from dreamteacher.training.loop import train
from dreamteacher.training.precision import choose_layout, choose_precision
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom

WINDOW = 20  # steps that are measured, after as many that choose kernels and fill the loader
COUNTED = 2  # pictures whose operations are counted


class Records(Tracker):
    """Keeps the loop's records."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        self.rows.append(values)


def measure(case: Case, dry: bool = False) -> dict[str, Any]:
    """Figures of a case, with the largest batch that fits of those halved from its own. `dry`: tiny, for a look on a CPU."""
    side, batch, window = (DRY, 4, 2) if dry else (case.side, case.batch, WINDOW)
    while True:
        try:
            return _measure(case, side, batch, window, dry)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            torch.cuda.empty_cache()


def _measure(case: Case, side: int, batch: int, window: int, dry: bool) -> dict[str, Any]:
    device = this_process().device
    torch.manual_seed(0)
    work = case.build(side, dry, device)
    data = Pictures(side, work.transform, work.label, count=8 if dry else 256)
    settings = Training(
        steps=3 * window, batch_size=batch, log_every=window, checkpoint_every=10**9, workers=0 if dry else "auto", **work.settings
    )
    operations = flops(work, data, device)
    if case.compiled:
        # A dry run needs no compiler of its machine.
        (work.network if work.teacher is None else work.teacher.unet).compile(backend="aot_eager" if dry else "inductor")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    records, begin = Records(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        place = SimpleNamespace(title=case.name, checkpoints=Path(folder), tracker=records)
        train(work.network, work.step, data, settings, place, seed=0, count=work.count)
    last = records.rows[-1]
    tflops = last["img_per_s"] * operations / 1e12
    most = peak(torch.cuda.get_device_name()) if device.type == "cuda" else None
    return {
        "side": side,
        "batch": batch,
        "precision": str(choose_precision("auto", device)).removeprefix("torch."),
        "img_per_s": last["img_per_s"],
        "gflop_per_img": operations / 1e9,
        "tflop_per_s": tflops,
        "mfu": tflops / most if most else None,
        "data_wait": last["data_wait"],
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
        "seconds": time.perf_counter() - begin,
    }


def flops(work: Work, data: Pictures, device: torch.device) -> float:
    """Floating-point operations of forward and backward of one picture, the teacher's pass included; a multiply-add counts as two."""
    dtype = choose_precision("auto", device)
    network: Any = work.network.train()
    network.to(device, memory_format=choose_layout(device, dtype))
    batch = default_collate([data[i, i] for i in range(COUNTED)])
    count = {"count": torch.tensor(float(work.count(batch)))} if work.count else {}
    batch = {key: value.to(device) for key, value in batch.items()} | count
    with FlopCounterMode(display=False) as counter:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = work.step(network, batch, StepRandom(0, 1, 0, 1, device))["loss"]
        loss.backward()
    network.zero_grad()
    return counter.get_total_flops() / COUNTED
