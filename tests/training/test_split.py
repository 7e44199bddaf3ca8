"""Splitting a batch into parts or over processes does not change loss and gradient, even with unevenly distributed labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import launch, run
from torch import Tensor, nn

from dreamteacher.data.items import IGNORE
from dreamteacher.distillation.features import FeatureObjective
from dreamteacher.distillation.interpreter import FeatureInterpreter
from dreamteacher.distillation.objectives import soft_label_cross_entropy
from dreamteacher.distillation.whitening import layernorm
from dreamteacher.settings.downstream import Finetune
from dreamteacher.settings.pretraining import Interpreter
from dreamteacher.tasks import classification, segmentation
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom

CLASSES, SIDE = 3, 16
# Of a float32 sum over all pixels, in whatever order a machine's kernels add them: n eps of the largest gradient (Higham, 4.2). Parts that
# are weighted wrongly are some hundredths off.
TOLERANCE = 4 * SIDE**2 * float(np.finfo(np.float32).eps)
# One step of plain gradient descent, so that the weights move by the gradient.
ONE_STEP: dict[str, Any] = {
    "steps": 1, "batch_size": 4, "optimizer": "sgd", "betas": (0, 0), "lr": 1.0, "weight_decay": 0, "clip": None, "warmup_steps": 0,
    "precision": "fp32", "ema": None,
}  # fmt: skip


class Masks(torch.utils.data.Dataset):
    """Four pictures; of the mask of the first only three pixels have a class, of the second a half, of the others all."""

    in_memory = True

    def __len__(self) -> int:
        return 4

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item[0])
        label = torch.randint(0, CLASSES, (SIDE, SIDE), generator=generator)
        label.view(-1)[{0: 3, 1: SIDE * SIDE // 2}.get(item[0], SIDE * SIDE) :] = IGNORE
        return {"image": torch.rand(3, SIDE, SIDE, generator=generator), "label": label, "class": torch.tensor(item[0] % CLASSES)}


class Dense(nn.Module):
    """What finetune trains, without batch normalisation: logits of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def segment(model: nn.Module, batch: dict[str, Tensor], random: StepRandom, dice: float) -> dict[str, Tensor]:
    """The step of finetune."""
    return segmentation.TASK.loss(model(batch["image"]), batch, Finetune(dice_weight=dice))


def interpret(model: nn.Module, batch: dict[str, Tensor], random: StepRandom, dice: float) -> dict[str, Tensor]:
    """The step of train-interpreter, with features that are the pictures at two strides."""
    features = [batch["image"], nn.functional.avg_pool2d(batch["image"], 2)]
    return segmentation.TASK.loss(model(features, (SIDE, SIDE)), batch, Interpreter(dice_weight=dice))


def classify(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
    return classification.TASK.loss(model(batch["image"]).mean((2, 3)), {"label": batch["class"]}, Finetune())


def distill(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
    """The steps of distill-features and distill-labels: whitened MSE, attention transfer, soft labels."""
    regressed, target = model(batch["image"]), batch["image"] * 3 + random.normal(batch["image"].shape)
    losses = FeatureObjective(layernorm, [1], {"mse": 1.0, "at": 10.0})([regressed], [target])
    return {**losses, "loss": losses["loss"] + soft_label_cross_entropy(regressed, target, 4.0)}


CASES: dict[str, tuple[Any, bool]] = {
    "finetune": (partial(segment, dice=0.0), True),
    "finetune with Dice": (partial(segment, dice=1.0), True),
    "interpreter": (partial(interpret, dice=0.0), True),
    "interpreter with Dice": (partial(interpret, dice=3.0), True),
    "classification": (classify, False),
    "distillation": (distill, False),
}


def moved(name: str, folder: Path, accumulate: int) -> tuple[np.ndarray, float]:
    """Gradient and loss of the one step."""
    step, counts = CASES[name]
    torch.manual_seed(0)
    model = FeatureInterpreter([3, 3], CLASSES, 8, 0.0, dense=True) if name.startswith("interpreter") else Dense()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    trained = run(
        folder,
        step,
        model=model,
        data=Masks(),
        settings={**ONE_STEP, "accumulate": accumulate},
        count=segmentation.TASK.count if counts else None,
        on_eval=None,
    )
    return (before - nn.utils.parameters_to_vector(trained.model.parameters()).detach()).numpy(), trained.history[0]["loss"]


def assert_same(found: tuple[np.ndarray, float], expected: tuple[np.ndarray, float]) -> None:
    """Gradient and loss, but for the order of sums."""
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=TOLERANCE * np.abs(expected[0]).max())
    assert found[1] == pytest.approx(expected[1], rel=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_parts_have_the_gradient_of_the_whole(tmp_path: Path, name: str) -> None:
    whole = moved(name, tmp_path / "1", 1)
    assert np.abs(whole[0]).max() > 1e-3
    for parts in (2, 4):
        assert_same(moved(name, tmp_path / str(parts), parts), whole)


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    by_rank = launch(moved_in_pair, tmp_path)
    for name in CASES:
        whole = moved(name, tmp_path / name, 1)
        for found in by_rank.values():
            assert_same(found[name], whole)


def moved_in_pair(folder: Path) -> dict[str, tuple[np.ndarray, float]]:
    torch.set_num_threads(1)
    assert this_process().num_processes == 2
    return {name: moved(name, folder / f"pair {name}", 1) for name in CASES}


def test_labels_that_are_all_unknown_train_nothing(tmp_path: Path) -> None:
    class Unknown(Masks):
        def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
            return {**super().__getitem__(item), "label": torch.full((SIDE, SIDE), IGNORE)}

    model = Dense()
    before = model.layers[0].weight.detach().clone()
    settings = {**ONE_STEP, "accumulate": 2}
    step, _ = CASES["finetune with Dice"]
    trained = run(tmp_path, step, model=model, data=Unknown(), settings=settings, count=segmentation.TASK.count, on_eval=None)
    assert trained.history[0]["loss"] == 0
    assert torch.equal(model.layers[0].weight, before)
