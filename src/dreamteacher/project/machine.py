"""Hardware and measured training speed of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dreamteacher.distillation.features import create_regressor, feature_objective
from dreamteacher.distillation.whitening import layernorm
from dreamteacher.limits import cores, memory_limit
from dreamteacher.settings.schema import Params
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks.model import normalize
from dreamteacher.teachers.ddpm import DDPMTeacher, Generator
from dreamteacher.teachers.encodings import get_encoding
from dreamteacher.training.precision import choose_layout, choose_precision
from dreamteacher.training.randomness import StepRandom

GB = 1e9
SECONDS = 2  # minimum seconds of a measurement, after its first step


@dataclass(frozen=True)
class Machine:
    """device: "cpu" or "cuda". name: of the GPU, or how many cores. memory: of the device, bytes. bf16: it computes bfloat16 fast."""

    device: str
    name: str
    memory: float
    bf16: bool

    def line(self) -> str:
        """For the user."""
        return f"machine: {self.name}, {self.memory / GB:.0f} GB, {'bf16' if self.bf16 else 'fp32'}"


@dataclass(frozen=True)
class Speed:
    """Seconds for each picture of a step: teacher, its training; features, the generator's forward pass and the student's training."""

    teacher: float
    features: float


def look() -> Machine:
    """This machine; its first GPU, if it has one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = choose_precision("auto", device) == torch.bfloat16
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(0)
        return Machine("cuda", about.name, about.total_memory, bf16)
    memory = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_limit())
    return Machine("cpu", f"{cores()} CPU core{'s' if cores() > 1 else ''}", memory, bf16)


def measure(params: Params, machine: Machine) -> Speed:
    """Time training steps of the networks that `params` names, on random pictures, with a part of the batch."""
    device = torch.device(machine.device)
    random = StepRandom(0, 0, 0, 1, device)
    generator = Generator(params.teacher)
    unet = generator.build().to(device)
    some = min(16, params.teacher.batch_size)
    crops = torch.rand(some, 3, params.teacher.resolution, params.teacher.resolution, device=device)
    teacher = step_seconds(lambda: generator.loss(unet, crops, random)["loss"], unet, device) / some

    strides = None if params.taps == "auto" else list(params.taps)
    frozen = DDPMTeacher(unet, generator.scheduler, get_encoding(params.distill), strides)
    backbone = create_backbone(params.student.backbone, finest=params.student.finest_stride)
    student = create_regressor(backbone, frozen.taps, params.student, params.distill).to(device)
    objective = feature_objective(params.distill, layernorm, frozen.taps)
    crops = torch.rand(some, 3, params.distill.resolution, params.distill.resolution, device=device)

    def distil() -> torch.Tensor:
        lesson = frozen.teach(crops, random)
        return objective(student(normalize(lesson.images, backbone.mean, backbone.std), lesson.step), lesson.features)["loss"]

    return Speed(teacher, step_seconds(distil, student, device) / some)


def step_seconds(loss: Callable[[], torch.Tensor], model: torch.nn.Module, device: torch.device) -> float:
    """Seconds for one forward and backward pass, in the precision and layout of training."""
    precision = choose_precision("auto", device)
    model.to(memory_format=choose_layout(device, precision))
    start, steps = 0.0, -1
    while steps < 2 or time.perf_counter() - start < SECONDS:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            value = loss()
        value.backward()
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        steps += 1
        if steps == 0:  # the first step allocates and selects algorithms
            start = time.perf_counter()
    return (time.perf_counter() - start) / steps
