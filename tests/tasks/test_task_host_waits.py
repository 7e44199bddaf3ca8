"""No task's loss makes the host wait for the GPU, nor does training an interpreter or a mix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dreamteacher.distillation.interpreter import FeatureInterpreter
from dreamteacher.distillation.objectives import soft_label_cross_entropy
from dreamteacher.settings.downstream import Finetune
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks.base import get_task
from dreamteacher.tasks.model import TaskModel, normalize
from dreamteacher.training.randomness import StepRandom
from host_waits import GPU, never_waits, pictures, pretended_gpu

SIDE = 64
LABELS = {  # of a batch of 4: shape and type
    "segmentation": ((4, SIDE, SIDE), torch.long),
    "classification": ((4,), torch.long),
    "detection": ((4, 5, 6), torch.float32),
    "keypoints": ((4, 5, 6 + 9), torch.float32),
}


def batch(task: str) -> dict[str, Tensor]:
    """`count` is on the host, as the loop leaves it."""
    shape, dtype = LABELS[task]
    return {"image": pictures(4, SIDE), "label": torch.empty(shape, dtype=dtype, device=GPU), "count": torch.tensor(7.0)}


@pytest.mark.parametrize("name", LABELS)
def test_no_task_makes_the_host_wait(name: str) -> None:
    model, task = TaskModel(create_backbone("test_resnet"), name, ["a", "b", "c"], SIDE, 16), get_task(name)
    with pretended_gpu():
        model.to(GPU)

        def step(random: StepRandom) -> None:
            inputs = batch(name)
            task.loss(model(normalize(inputs["image"], model.mean, model.std)), inputs, Finetune())

        never_waits(step)


@pytest.mark.parametrize("name", ["segmentation", "classification"])
def test_neither_an_interpreter_nor_its_soft_labels_make_the_host_wait(name: str) -> None:
    interpreter = FeatureInterpreter([8, 16], 3, 16, 0.1, dense=name == "segmentation")
    with pretended_gpu():
        interpreter.to(GPU)

        def step(random: StepRandom) -> None:
            features = [torch.empty(4, channels, SIDE // stride, SIDE // stride, device=GPU) for channels, stride in ((8, 4), (16, 8))]
            logits = interpreter(features, (SIDE, SIDE))
            get_task(name).loss(logits, batch(name), Finetune())
            soft_label_cross_entropy(logits, logits, 2.0)

        never_waits(step)
