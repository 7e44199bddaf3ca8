"""A task from outside the package: this file alone, trained and evaluated by the stages as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_chain import Chain, brief_params
from torch import Tensor, nn
from torch.nn import functional as F

import dreamteacher
from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.items import IGNORE
from dreamteacher.data.transforms import Augmentation, Transform, full_image, pixel_crop
from dreamteacher.errors import UserError
from dreamteacher.report.figures import Panel
from dreamteacher.report.summary import table
from dreamteacher.settings.downstream import Finetune
from dreamteacher.settings.pretraining import Interpreter
from dreamteacher.stage import open_stage
from dreamteacher.stages import distill_labels, evaluate, finetune, ingest, train_interpreter
from dreamteacher.students.necks import resize
from dreamteacher.tasks.base import NeckHead, Size, Task, get_task
from dreamteacher.tasks.model import normalize
from helpers import install_package

NAME = "crowding"
NEAR = 9  # pixels


def crowding(masks: Tensor) -> Tensor:
    """What the task predicts: the share of class 1 in the square around each pixel, `(B, H, W)` of masks of this shape."""
    return F.avg_pool2d((masks == 1).float()[:, None], NEAR, stride=1, padding=NEAR // 2)[:, 0]


class CrowdingHead(NeckHead):
    def __init__(self, channels: list[int], width: int):
        super().__init__(channels, width)
        self.read = nn.Conv2d(width, 1, 1)

    def from_neck(self, levels: list[Tensor], size: Size) -> Tensor:
        return resize(self.read(levels[0]).sigmoid(), size)


class Fit:
    def __init__(self) -> None:
        self.errors: list[Tensor] = []

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        self.errors.append((predicted - crowding(truth[None])[0]).abs()[truth != IGNORE])

    def compute(self) -> dict[str, float]:
        errors = torch.cat(self.errors)
        return {"close": float((errors < 0.1).float().mean()), "fit": 1 - float(errors.mean())}


class Crowding(Task):
    """A regression in every pixel."""

    figure, title, classifies = "fit", "fit of the crowding", None
    labels = "segmentation"

    def head(self, channels: list[int], width: int, classes: int) -> nn.Module:
        return CrowdingHead(channels, width)

    def crop(self, size: int, augmentation: Augmentation) -> Transform:
        return pixel_crop(size, augmentation)

    def picture_size(self, size: int) -> int | None:
        return None

    def loss(self, outputs: Tensor, batch: dict[str, Tensor], settings: Finetune | Interpreter) -> dict[str, Tensor]:
        return {"loss": F.l1_loss(outputs[:, 0], crowding(batch["label"]))}

    def decode(self, output: Tensor, own: Size, size: Size) -> Tensor:
        return resize(output[None, :, : own[0], : own[1]], size)[0, 0]

    def score(self, classes: list[str]) -> Fit:
        return Fit()

    def draw(self, image: np.ndarray, labels: dict[str, Any], classes: list[str]) -> list[Panel]:
        maps = {name: crowding(torch.from_numpy(label)[None])[0].numpy() if name == "truth" else label for name, label in labels.items()}
        return [("picture", image), *((name, (np.stack([values] * 3, 2) * 255).astype(np.uint8)) for name, values in maps.items())]


TASK = Crowding()


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """As pip would leave a package with this file: its entry points."""
    with pytest.MonkeyPatch.context() as patch:
        install_package(patch, tmp_path_factory.mktemp("site-packages"), f"[dreamteacher.tasks]\ncrowding = {__name__}:TASK\n")
        get_task.cache_clear()
        yield
    get_task.cache_clear()


@pytest.fixture(scope="module")
def data(chains: dict[str, Chain], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The masks of the tiny chain, for this task."""
    folder = tmp_path_factory.mktemp("own") / "data"
    with open_stage("ingest", params={}, inputs={}, out=folder) as stage:
        shutil.copytree(chains["segmentation"].root / "data", stage.tmp, dirs_exist_ok=True, ignore=shutil.ignore_patterns("stage.json"))
        facts = json.loads((stage.tmp / "dataset.json").read_text())
        (stage.tmp / "dataset.json").write_text(json.dumps(facts | {"task": NAME}))
    return folder


def test_ingest_reads_the_labels_of_the_task_that_it_learns_as(chains: dict[str, Chain], tmp_path: Path) -> None:
    params = brief_params(chains["segmentation"].source, ingest={"task": NAME})
    ingest.run(params, source=chains["segmentation"].source, out=tmp_path / "data")
    images = ImageSet(tmp_path / "data", "val")
    assert (images.task, images.form, images.classes) == (NAME, "mask", ["background", "blob"])


def test_it_is_finetuned_and_evaluated(chains: dict[str, Chain], data: Path, tmp_path: Path) -> None:
    chain = chains["segmentation"]
    compare = {"compare": {"inits": ["scratch", "features"], "seeds": [0]}, "export": {"init": "scratch"}}
    params = brief_params(chain.source, finetune={"steps": 30, "lr": 1e-2}, **compare)
    for init, backbone in (("scratch", None), ("features", chain.root / "features")):
        finetune.run(params, data=data, init=init, seed=0, backbone=backbone, out=tmp_path / "finetuned" / init / "0")
    options = {"teachers": chain.root, "backbones": chain.root, "finetuned": tmp_path / "finetuned"}
    returned = evaluate.run(params, data=data, **options, out=tmp_path / "out", metrics=tmp_path / "metrics.json", plots=tmp_path / "plots")

    losses = [float(line.split(",")[1]) for line in (tmp_path / "finetuned/features/0/curves.csv").read_text().splitlines()[1:]]
    assert losses[-1] < 0.7 * losses[0]
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert list(figures["scratch"]) == ["fit_mean", "fit_std", "close_mean", "close_std", "n_seeds"]
    assert set(returned) == {f"{init}_{key}" for init in figures for key in ("fit_mean", "fit_std", "n_seeds")}
    assert "fit mean ± std" in table(figures)
    assert len(list((tmp_path / "out/overlays").iterdir())) == 1
    assert (tmp_path / "out/results.png").exists()

    model, val, errors = dreamteacher.load(tmp_path / "finetuned/features/0"), ImageSet(data, "val"), []
    assert model.task == NAME
    for index in val.labelled():
        sample = val.read(index)
        height, width = sample.image.shape[:2]
        with torch.no_grad():
            predicted = model(normalize(full_image()(sample)["image"][None], model.mean, model.std))[0, 0, :height, :width]
        errors.append((predicted - crowding(torch.from_numpy(sample.label)[None])[0]).abs()[sample.label != IGNORE])
    assert figures["features"]["fit_mean"] == pytest.approx(1 - torch.cat(errors).mean().item(), rel=1e-5)


def test_without_classes_there_is_nothing_to_interpret(chains: dict[str, Chain], data: Path, tmp_path: Path) -> None:
    chain = chains["segmentation"]
    options = {"params": chain.params, "data": data, "teacher": chain.root / "teacher", "seed": 0, "out": tmp_path / "out"}
    with pytest.raises(
        UserError, match=f"{NAME} predicts no classes that an interpreter could read; drop label_recipes, and them from compare"
    ):
        train_interpreter.run(**options)
    distilled = {"features": chain.root / "features", "interpreter": chain.root / "interpreter"}
    with pytest.raises(UserError, match=f"trained for 2 classes of segmentation, .* has 2 classes of {NAME}; run"):
        distill_labels.run(**options, **distilled)
