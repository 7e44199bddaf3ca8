"""What is measured: a network, a step, and pictures that are decoded each time, as of a set that does not fit in memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dreamteacher.data.dataset import Sample
from dreamteacher.data.decode import decode
from dreamteacher.data.transforms import Augmentation, Transform, pretrain_crop
from dreamteacher.distillation.features import create_regressor, feature_objective
from dreamteacher.distillation.whitening import layernorm
from dreamteacher.methods.base import normal
from dreamteacher.settings.pretraining import Teacher
from dreamteacher.settings.schema import Params
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks.base import get_task
from dreamteacher.tasks.model import TaskModel, normalize
from dreamteacher.teachers.ddpm import build_scheduler
from dreamteacher.teachers.diffusion import DiffusionTeacher
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.teachers.folder import get_kind
from dreamteacher.teachers.unet import build_unet
from dreamteacher.training.precision import move_frozen
from dreamteacher.training.randomness import StepRandom
from dreamteacher.training.run import Part, Step

DRY = 32  # side of the pictures of a dry run, pixels
CLASSES = 100
LARGER = 1.25  # by which a picture is larger than its crop


@dataclass(frozen=True)
class Work:
    """What a case trains."""

    network: nn.Module
    step: Step
    transform: Transform
    label: str | None = None  # of the pictures: "class", "mask"; None: none
    count: Callable[[Part], int] | None = None
    teacher: Any = None  # frozen; then its U-Net is what is compiled, else the network
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One row of the table; `batch` is halved until it fits the memory."""

    name: str
    side: int
    batch: int
    build: Callable[[int, bool, torch.device], Work]  # of crops of this side; True: a dry run, of tiny networks
    compiled: bool = False


def generator(kind: str, size: str) -> Callable[[int, bool, torch.device], Work]:
    def build(side: int, dry: bool, device: torch.device) -> Work:
        made: Any = get_kind(kind).Generator(Teacher(kind=kind, size="tiny" if dry else size, resolution=side))  # type: ignore[arg-type]

        def step(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
            return made.loss(model, batch["image"], random)

        return Work(made.build(), step, pretrain_crop(side), settings={"ema": 0.9999, "weight_decay": 0.0})

    return build


def distillation(size: str, backbone: str) -> Callable[[int, bool, torch.device], Work]:
    def build(side: int, dry: bool, device: torch.device) -> Work:
        params = Params.model_validate({"student": {"backbone": "test_resnet" if dry else backbone, "width": 16 if dry else 256}})
        unet = build_unet("tiny" if dry else size, side)
        teacher = move_frozen(DiffusionTeacher(unet, build_scheduler(1000), Stochastic(50), [4, 8]), device)
        student = create_backbone(params.student.backbone)
        objective = feature_objective(params.distill, layernorm, teacher.taps)

        def step(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
            lesson = teacher.teach(batch["image"], random)
            return objective(model(normal(lesson.images, student), lesson.step), lesson.features)

        regressor = create_regressor(student, teacher.taps, params.student, params.distill)
        return Work(regressor, step, pretrain_crop(side), teacher=teacher)

    return build


def finetuning(task_name: str, backbone: str) -> Callable[[int, bool, torch.device], Work]:
    def build(side: int, dry: bool, device: torch.device) -> Work:
        task, settings = get_task(task_name), Params().finetune
        student = create_backbone("test_resnet" if dry else backbone)
        model = TaskModel(student, task_name, [str(i) for i in range(CLASSES)], side, 16 if dry else 256)

        def step(network: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
            return task.loss(network(normalize(batch["image"], model.mean, model.std)), batch, settings)

        label = "mask" if task_name == "segmentation" else "class"
        return Work(model.train(), step, task.crop(side, Augmentation()), label, task.count)

    return build


# The most telling first: the script may run out of time.
CASES = [
    Case("distil ResNet-50 from ADM", 224, 64, distillation("adm-256", "resnet50")),
    Case("train ADM", 256, 16, generator("ddpm", "adm-256")),
    Case("fine-tune ResNet-50, classes", 224, 256, finetuning("classification", "resnet50")),
    Case("train EDM of 36M", 32, 512, generator("edm", "small")),
    Case("train EDM of 15M", 32, 512, generator("edm", "mini")),
    Case("train EDM of 15M, 128 px", 128, 64, generator("edm", "mini")),
    Case("distil ResNet-50 from ADM, compiled", 224, 64, distillation("adm-256", "resnet50"), compiled=True),
    Case("distil ViT-S from ADM", 224, 64, distillation("adm-256", "vit_small_patch16_224")),
    Case("fine-tune ResNet-50, pixels", 512, 16, finetuning("segmentation", "resnet50")),
    Case("train EDM of 36M, compiled", 32, 512, generator("edm", "small"), compiled=True),
    Case("train EDM of 15M, compiled", 32, 512, generator("edm", "mini"), compiled=True),
]


class Pictures(torch.utils.data.Dataset):
    """JPEG files of noise with structure, a little larger than the crops, in memory but not decoded."""

    in_memory = False

    def __init__(self, side: int, transform: Transform, label: str | None, count: int = 256):
        generator = np.random.default_rng(0)
        size = round(LARGER * side)
        self.transform, self.label, self.files = transform, label, []
        for _ in range(count):
            coarse = Image.fromarray(generator.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            coarse.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            self.files.append(buffer.getvalue())
        self.mask = generator.integers(0, CLASSES, (size, size), dtype=np.uint8)

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        index, seed = item
        torch.default_generator.manual_seed(seed)
        label = {None: None, "class": index % CLASSES, "mask": self.mask}[self.label]
        image = decode(self.files[index % len(self.files)], max_pixels=1 << 40).image
        return self.transform(Sample(image, label, str(index)))
