from __future__ import annotations

import pytest
import torch

from dreamteacher.distillation.mix import MixStudent
from dreamteacher.students.backbone import create_backbone
from dreamteacher.students.regressor import FeatureRegressor
from dreamteacher.tasks.model import TaskModel
from dreamteacher.tasks.segmentation import SegmentationHead
from dreamteacher.training.ema import create_ema, update_ema


def parts(task: str) -> tuple[TaskModel, FeatureRegressor]:
    torch.manual_seed(0)
    regressor = FeatureRegressor(create_backbone("test_resnet"), [6, 8], [4, 8], 16)
    torch.manual_seed(1)
    return TaskModel(create_backbone("test_resnet"), task, ["a", "b", "c"], 64, 16), regressor


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_task_and_regressor_are_one_network_before_and_after_a_step(task: str) -> None:
    model, regressor = parts(task)
    before = {key: value.clone() for key, value in regressor.state_dict().items()}
    student = MixStudent(model, regressor, regress=True)
    assert {key: value for key, value in regressor.state_dict().items() if not torch.equal(value, before[key])} == {}

    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    pictures = torch.randn(2, 3, 64, 64)
    logits, regressed = student(pictures)
    assert logits.shape == ((2, 3, 64, 64) if task == "segmentation" else (2, 3))
    assert [tuple(maps.shape) for maps in regressed] == [(2, 6, 16, 16), (2, 8, 8, 8)]
    (logits.square().mean() + sum(maps.square().mean() for maps in regressed)).backward()
    optimizer.step()

    moved = [key for key, value in regressor.backbone.state_dict().items() if not torch.equal(value, before[f"backbone.{key}"])]
    assert len(moved) > 20
    for key, value in student.task.backbone.state_dict().items():
        assert torch.equal(value, regressor.backbone.state_dict()[key]), key
    if task == "segmentation":
        assert isinstance(student.task.head, SegmentationHead)
        for key, value in student.task.head.neck.state_dict().items():
            assert torch.equal(value, regressor.neck.state_dict()[key]), key
    # what is evaluated and saved is the trained task model, what is regressed the trained regressor
    student.eval(), regressor.eval()
    logits, regressed = student(pictures)
    torch.testing.assert_close(student.task(pictures), logits, rtol=1e-4, atol=1e-5)
    for a, b in zip(regressor(pictures), regressed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_labels_alone_train_the_task_and_nothing_more(task: str) -> None:
    model, regressor = parts(task)
    student = MixStudent(model, regressor, regress=False)
    logits, regressed = student(torch.randn(2, 3, 64, 64))
    assert regressed == []
    assert {name for name, _ in student.named_parameters()} == {f"task.{name}" for name, _ in model.named_parameters()}
    logits.square().mean().backward()
    assert all(p.grad is not None for p in student.task.head.parameters())


@pytest.mark.parametrize("task", ["segmentation", "classification"])
@pytest.mark.parametrize("regress", [True, False])
def test_each_weight_is_there_once_and_is_averaged_once(task: str, regress: bool) -> None:
    """A weight with two names would be saved twice and averaged with the squared decay."""
    student = MixStudent(*parts(task), regress=regress)
    places = [value.data_ptr() for value in student.state_dict().values()]
    assert len(places) == len(set(places))
    ema = create_ema(student, 0.5)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    update_ema(ema, student, 1000)
    for name, averaged in ema.module.named_parameters():
        torch.testing.assert_close(averaged, student.get_parameter(name) - 0.5, msg=name)


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_every_parameter_of_the_mix_learns(task: str) -> None:
    student = MixStudent(*parts(task), regress=True)
    logits, regressed = student(torch.randn(2, 3, 64, 64))
    (logits.square().mean() + sum(maps.square().mean() for maps in regressed)).backward()
    idle = [name for name, p in student.named_parameters() if p.grad is None]
    # for classification only the taps read the neck, and none its level of stride 16
    assert all(task == "classification" and name.startswith("neck.smooth.2") for name in idle), idle
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_the_mix_conditions_the_heads_of_the_taps_and_not_the_tasks(task: str) -> None:
    torch.manual_seed(0)
    regressor = FeatureRegressor(create_backbone("test_resnet"), [6, 8], [4, 8], 16, pooled=True, conditioned=True)
    torch.nn.init.normal_(regressor.condition.network[-1].weight)  # type: ignore[union-attr]
    student = MixStudent(parts(task)[0], regressor, regress=True).eval()
    regressor.eval()
    pictures = torch.randn(2, 3, 64, 64)
    logits, regressed = student(pictures, torch.tensor([3, 400]))
    for a, b in zip(regressor(pictures, torch.tensor([3, 400])), regressed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(student(pictures, torch.tensor([9, 9]))[0], logits)
    assert len(regressed) == 3
    places = [value.data_ptr() for value in student.state_dict().values()]
    assert len(places) == len(set(places))
