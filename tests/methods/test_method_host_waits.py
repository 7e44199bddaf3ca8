"""No step of a method makes the host wait for the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_method import BASELINES, SIDE, create

from dreamteacher.distillation.features import create_regressor, feature_objective
from dreamteacher.distillation.team import Member, TeamRegressor, team_losses
from dreamteacher.distillation.whitening import KINDS, fit_whitening
from dreamteacher.methods.base import normal
from dreamteacher.settings.pretraining import OBJECTIVES
from dreamteacher.settings.schema import Params
from dreamteacher.students.backbone import Backbone, create_backbone
from dreamteacher.teachers import unet
from dreamteacher.teachers.ddpm import build_scheduler
from dreamteacher.teachers.diffusion import DiffusionTeacher
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.training.randomness import StepRandom
from host_waits import GPU, SLIM, HostWaits, never_waits, pictures, pretended_gpu


@pytest.mark.parametrize("name", BASELINES)
def test_no_baseline_makes_the_host_wait(name: str) -> None:
    method, network = create(name, steps=100)
    with pretended_gpu():
        network.to(GPU)

        def step(random: StepRandom) -> None:
            method.loss(network, {"image": pictures(side=SIDE), "other": pictures(side=SIDE)}, random)
            method.after_step(network, random.step)

        never_waits(step)


@pytest.fixture
def teachers(monkeypatch: pytest.MonkeyPatch) -> list[DiffusionTeacher]:
    monkeypatch.setitem(unet.SIZES, "tiny", SLIM)
    return [DiffusionTeacher(unet.build_unet("tiny", SIDE), build_scheduler(100), Stochastic(10), [4, 8]) for _ in range(2)]


@pytest.mark.parametrize("whitening", KINDS)
def test_feature_distillation_never_makes_the_host_wait(whitening: str, teachers: list[DiffusionTeacher], tmp_path: Path) -> None:
    params = Params.model_validate(
        {"student": {"width": 8}, "distill": {"T": 10, "objectives": dict.fromkeys([*OBJECTIVES, "global"], 1.0), "margin": 4}}
    )
    generator, backbone = teachers[0], create_backbone("test_resnet")
    regressor = create_regressor(backbone, generator.taps, params.student, params.distill)
    whiten, _ = fit_whitening(whitening, generator, [torch.rand(2, 3, SIDE, SIDE)], 0, tmp_path)
    objective = feature_objective(params.distill, whiten, generator.taps)
    with pretended_gpu():
        generator.to(GPU), regressor.to(GPU)

        def step(random: StepRandom) -> None:
            lesson = generator.teach(pictures(side=SIDE), random)
            objective(regressor(normal(lesson.images, backbone), lesson.step), lesson.features)

        never_waits(step)


def test_a_team_never_makes_the_host_wait(teachers: list[DiffusionTeacher], tmp_path: Path) -> None:
    params = Params.model_validate({"student": {"width": 8}, "distill": {"T": 10}})
    backbone = create_backbone("test_resnet")
    team = {}
    for name, generator in zip(("one", "two"), teachers, strict=True):
        whiten, _ = fit_whitening("layernorm", generator, [], 0, tmp_path)
        team[name] = Member(generator, feature_objective(params.distill, whiten, generator.taps))
    regressor = TeamRegressor(
        {name: create_regressor(backbone, member.teacher.taps, params.student, params.distill) for name, member in team.items()}
    )
    with pretended_gpu():
        regressor.to(GPU)
        for member in team.values():
            member.teacher.to(GPU)
        never_waits(lambda random: team_losses(regressor, team, pictures(side=SIDE), random, **scale(backbone), drop=0.5))


def scale(backbone: Backbone) -> dict[str, Any]:
    return {"mean": backbone.mean, "std": backbone.std}


@pytest.mark.parametrize(
    ("name", "wait"),
    [
        ("a constant", lambda images: images * torch.tensor([1.0, 2.0, 3.0], device=GPU).view(3, 1, 1)),
        ("a number read", lambda images: float(images.mean())),
        ("a condition", lambda images: 1 if images.mean() > 0 else 0),
        ("a mask", lambda images: images[images > 0]),
        ("what is kept on the host", lambda images: images.mean().cpu()),
    ],
)
def test_the_pretended_gpu_notices_each_kind_of_wait(name: str, wait: Any) -> None:
    with pretended_gpu(), pytest.raises(HostWaits):
        never_waits(lambda random: wait(pictures()))
