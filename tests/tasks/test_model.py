from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

import dreamteacher
from dreamteacher.errors import UserError
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks.model import TaskModel, normalize, save_task_model

CLASSES = ["background", "Zellkern é", "c"]


def model(task: str) -> TaskModel:
    torch.manual_seed(0)
    made = TaskModel(create_backbone("test_resnet"), task, CLASSES, 64, 16)
    made(torch.randn(4, 3, 64, 64))  # moves the running statistics
    return made


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_a_loaded_model_is_the_saved_one(task: str, tmp_path: Path) -> None:
    saved = model(task)
    save_task_model(saved, tmp_path / "model")
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    loaded = dreamteacher.load(tmp_path / "model")
    assert (loaded.task, loaded.classes, loaded.size, loaded.width, loaded.mean, loaded.std) == (
        task,
        CLASSES,
        64,
        16,
        saved.mean,
        saved.std,
    )
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert not loaded.training
    pictures = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pictures), saved.eval()(pictures), rtol=1e-5, atol=1e-6)
    timm.create_model(f"local-dir:{tmp_path / 'model/backbone'}", pretrained=True)


@pytest.mark.parametrize("side", [(64, 64), (32, 96), (50, 70), (33, 32)])
def test_logits_have_the_pictures_own_size(side: tuple[int, int]) -> None:
    pictures = torch.randn(1, 3, *side)
    assert model("segmentation").eval()(pictures).shape == (1, 3, *side)
    assert model("classification").eval()(pictures).shape == (1, 3)


def test_a_classifier_reads_the_average_of_the_last_level() -> None:
    made = model("classification").eval()
    pictures = torch.randn(2, 3, 64, 64)
    last = made.backbone(pictures)[-1]
    expected = last.flatten(2).mean(2) @ made.head.weight.T + made.head.bias
    torch.testing.assert_close(made(pictures), expected, rtol=1e-4, atol=1e-5)


def test_normalize_is_by_channel() -> None:
    pictures = torch.tensor([0.5, 0.25, 1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert normalize(pictures, [0.5, 0.0, 0.5], [1.0, 0.5, 0.25])[0, :, 0, 0].tolist() == [0, 0.5, 2]


def test_a_folder_without_a_model_names_the_stage_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `dreamteacher finetune` first"):
        dreamteacher.load(tmp_path)
