"""Several teachers of one student."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from dreamteacher.distillation.features import FeatureObjective
from dreamteacher.distillation.team import Member, Team, TeamRegressor, balance, team_losses
from dreamteacher.distillation.whitening import layernorm
from dreamteacher.errors import UserError
from dreamteacher.settings.section import Training
from dreamteacher.students.backbone import create_backbone
from dreamteacher.students.regressor import FeatureRegressor, load_regressor, save_regressor
from dreamteacher.tasks.model import normalize
from dreamteacher.teachers import unet as unets
from dreamteacher.teachers.base import Lesson, Tap
from dreamteacher.teachers.ddpm import build_scheduler
from dreamteacher.teachers.diffusion import DiffusionTeacher
from dreamteacher.teachers.encodings import Stratified
from dreamteacher.teachers.pixels import Pixels
from dreamteacher.teachers.unet import build_unet
from dreamteacher.tracking import Tracker
from dreamteacher.training.ema import create_ema, update_ema
from dreamteacher.training.loop import train
from dreamteacher.training.randomness import StepRandom
from dreamteacher.training.run import Run, Trained
from slim_unets import SLIM


class Dreamer:
    """Makes pictures of its own, whose features are their halves."""

    taps, multiple = [Tap("half", 8, 3)], 8

    def __init__(self, side: int = 32):
        self.side = side

    def teach(self, images: Tensor, random: StepRandom) -> Lesson:
        own = nn.functional.interpolate(random.normal((len(images), 3, 4, 4)).sigmoid(), size=self.side)
        return Lesson(own, [nn.functional.avg_pool2d(own, 8) / 2])


class Pictures(torch.utils.data.Dataset):
    in_memory = True

    def __len__(self) -> int:
        return 16

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        return {"image": pictures(16)[item[0]]}


def pictures(count: int = 4, side: int = 32) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size=side, mode="bilinear")


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> Team:
    """A diffusion model at many noise steps with a global branch; pixels with a hundred times larger losses; a synthesising teacher."""
    monkeypatch.setitem(unets.SIZES, "tiny", SLIM)
    torch.manual_seed(1)
    encoding = Stratified((0, 100, 200))
    diffusion = DiffusionTeacher(build_unet("tiny", 32), build_scheduler(1000), encoding, [4, 8])
    pixels = Pixels([Tap("stride4", 4, 3)], 4, encoding)
    weights = {"mse": 1.0, "at": 10.0, "global": 1.0}
    return {
        "diffusion": Member(diffusion, FeatureObjective(layernorm, [4, 8], weights)),
        "the.pixels": Member(pixels, FeatureObjective(layernorm, [4], {"mse": 100.0})),
        "keys": Member(Dreamer(), FeatureObjective(layernorm, [8], {"cosine": 1.0})),  # type: ignore[arg-type]
    }


def student(team: Team) -> TeamRegressor:
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet")
    regressors = {}
    for name, member in team.items():
        options = {"pooled": "global" in member.objective.weights, "conditioned": name == "diffusion"}
        channels, strides = [tap.channels for tap in member.teacher.taps], [tap.stride for tap in member.teacher.taps]
        regressors[name] = FeatureRegressor(backbone, channels, strides, 8, **options)
    return TeamRegressor(regressors)


def losses(model: TeamRegressor, team: Team, step: int = 0, drop: float = 0.0) -> dict[str, Tensor]:
    where = {"mean": model.backbone.mean, "std": model.backbone.std}
    return team_losses(model, team, pictures(), StepRandom(0, step, 0, 1), **where, drop=drop)


def test_a_random_student_explains_nothing_of_any_teacher(team: Team) -> None:
    """By the terms: an error of whitened targets of 1, an attention of 1, a cosine of 0."""
    balanced = balance(team, [pictures(4), pictures(2)], seed=3)
    assert balanced["diffusion"].scale == pytest.approx(12, rel=1e-3)
    assert balanced["the.pixels"].scale == pytest.approx(100, rel=1e-3)
    assert balanced["keys"].scale == pytest.approx(1, rel=1e-3)
    model = student(balanced)
    with torch.no_grad():
        for module in model.own:
            for name, parameter in module.named_parameters():
                if "convolution" in name or "pooled" in name:
                    parameter.zero_()
    with torch.no_grad():
        figures = losses(model, balanced)
    assert {name: float(value) for name, value in figures.items()} == pytest.approx(
        {"loss": 1, "unlearned_diffusion": 1, "unlearned_the.pixels": 1, "unlearned_keys": 1}, rel=1e-3
    )


def test_the_loss_is_the_weighted_mean_of_what_each_teacher_alone_would_give(team: Team) -> None:
    team = {name: replace(member, weight=weight, scale=2.0) for (name, member), weight in zip(team.items(), (1, 2, 5), strict=True)}
    model = student(team).eval()
    with torch.no_grad():
        figures = losses(model, team)
    expected = []
    for (name, member), drawn in zip(team.items(), range(3), strict=True):
        random = StepRandom(0, 0, 0, 1)
        random._calls = (0, 2, 2)[drawn]  # the diffusion model drew steps and noise
        lesson = member.teacher.teach(pictures(), random)
        alone = model.regressor(name).eval()
        with torch.no_grad():
            regressed = alone(normalize(lesson.images, model.backbone.mean, model.backbone.std), lesson.step)
        expected.append(float(member.objective(regressed, lesson.features)["loss"]) / 2)
        assert float(figures[f"unlearned_{name}"]) == pytest.approx(expected[-1], rel=1e-3)
    assert float(figures["loss"]) == pytest.approx((expected[0] + 2 * expected[1] + 5 * expected[2]) / 8, rel=1e-3)


def test_the_teacher_that_is_learned_least_is_never_dropped_and_the_others_as_often_as_told(team: Team) -> None:
    team = {name: replace(member, scale=scale) for (name, member), scale in zip(team.items(), (0.5, 50.0, 1.0), strict=True)}
    model = student(team).eval()
    counted = []
    with torch.no_grad():
        for step in range(40):
            figures = {name: float(value) for name, value in losses(model, team, step, drop=0.5).items()}
            shares = list(figures.values())[1:]
            subsets = {k: [shares[0], *(s for i, s in enumerate(shares[1:]) if k >> i & 1)] for k in range(4)}
            counted.append(next(k for k, s in subsets.items() if math.isclose(sum(s) / len(s), figures["loss"], rel_tol=1e-4)))
    assert set(counted) == {0, 1, 2, 3}
    kept = sum(bin(k).count("1") for k in counted) / (2 * len(counted))
    assert 0.35 < kept < 0.65
    assert float(losses(model, team, 0, drop=1.0)["loss"]) == pytest.approx(float(losses(model, team, 0)["unlearned_diffusion"]), rel=1e-4)


def test_each_weight_is_there_once_is_averaged_once_and_learns(team: Team) -> None:
    model = student(team)
    places = [value.data_ptr() for value in model.state_dict().values()]
    assert len(places) == len(set(places))
    losses(model, team)["loss"].backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert all(name.startswith("neck.smooth.2") for name in idle), idle  # no tap reads the level of stride 16
    ema = create_ema(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    update_ema(ema, model, 1000)
    for name, averaged in ema.module.named_parameters():
        torch.testing.assert_close(averaged, model.get_parameter(name) - 0.5, msg=name)


def run(team: Team, folder: Path) -> Trained:
    model = student(team)
    mean, std = model.backbone.mean, model.backbone.std

    def step(network: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        return team_losses(network, team, batch["image"], random, mean=mean, std=std, drop=0.5)

    settings = Training(steps=30, batch_size=4, warmup_steps=2, lr=1e-2, log_every=5, checkpoint_every=1, ema=0.9)
    return train(model, step, Pictures(), settings, SimpleNamespace(title="team", checkpoints=folder, tracker=Tracker()), seed=3)


def test_the_loop_trains_a_student_of_all_and_a_stopped_run_resumes_to_the_same_bytes(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    team = balance(team, [pictures()], seed=3)
    whole = run(team, tmp_path / "whole")
    for name in team:
        assert whole.history[-1][f"unlearned_{name}"] < 0.9 * whole.history[0][f"unlearned_{name}"], name
    take_step = Run.take_step

    def stop(run: Run, parts: Any) -> None:
        if run.done == 7:
            raise KeyboardInterrupt
        take_step(run, parts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "take_step", stop)
        run(team, tmp_path / "stopped")
    resumed = run(team, tmp_path / "stopped")
    assert save(resumed.model.state_dict()) == save(whole.model.state_dict())
    assert resumed.history == whole.history
    averaged = whole.ema
    assert isinstance(averaged, TeamRegressor)
    save_regressor(averaged.regressor("diffusion"), tmp_path / "saved")
    loaded, inputs = load_regressor(tmp_path / "saved").eval(), (torch.randn(2, 3, 32, 32), torch.tensor([3, 150]))
    for a, b in zip(loaded(*inputs), averaged.regressor("diffusion").eval()(*inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_is_refused_in_one_line(team: Team) -> None:
    other = team | {"keys": replace(team["keys"], teacher=Dreamer(64))}  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"teacher 'keys' makes pictures of 64x64 px, another has 32x32 px: set distill\.resolution alike"):
        losses(student(other), other)
    with pytest.raises(UserError, match=r"teacher 'the\.pixels' has the same features everywhere"):
        balance({"the.pixels": team["the.pixels"]}, [torch.full((2, 3, 32, 32), 0.5)], seed=0)
    with pytest.raises(ValueError, match="need one backbone"):
        TeamRegressor({name: FeatureRegressor(create_backbone("test_resnet"), [3], [4], 8) for name in "ab"})
