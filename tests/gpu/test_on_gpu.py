"""On a GPU: the same features and outputs as on the CPU, training that resumes, never waits and exports."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from dreamteacher.distillation.features import create_regressor, feature_objective
from dreamteacher.distillation.whitening import layernorm
from dreamteacher.errors import Interrupted
from dreamteacher.methods.base import BUILT_IN, get_method, normal
from dreamteacher.serving.export import export
from dreamteacher.settings.downstream import Finetune
from dreamteacher.settings.pretraining import Teacher
from dreamteacher.settings.schema import Params
from dreamteacher.settings.section import Training
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks.base import get_task
from dreamteacher.tasks.model import TaskModel, normalize
from dreamteacher.teachers.ddpm import build_scheduler
from dreamteacher.teachers.diffusion import DiffusionTeacher
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.teachers.folder import get_kind, open_teacher
from dreamteacher.teachers.unet import build_unet
from dreamteacher.tracking import Tracker
from dreamteacher.training.loop import train
from dreamteacher.training.precision import move_frozen
from dreamteacher.training.randomness import StepRandom
from dreamteacher.training.run import Run, Trained

GPU, SIDE = torch.device("cuda"), 64
SHAPES: dict[str, Any] = {"segmentation": (SIDE, SIDE), "classification": (), "detection": (2, 6)}  # of a label


class Pictures(torch.utils.data.Dataset):
    """64 patterns, with a second view and, for a task, a label."""

    in_memory = True

    def __init__(self, task: str = ""):
        self.task = task

    def __len__(self) -> int:
        return 64

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(item[0])
        image = nn.functional.interpolate(torch.rand(1, 3, 4, 4, generator=draw), (SIDE, SIDE), mode="bilinear")[0]
        found = {"image": image, "other": image.flip(2)}
        if self.task == "detection":
            found["label"] = torch.tensor([[8.0, 8, 24, 24, item[0] % 3, 0], [-1.0] * 6])
        elif self.task:
            found["label"] = torch.full(SHAPES[self.task], item[0] % 3)
        return found


class Fixed(StepRandom):
    """Draws on the CPU, so that both devices see the same noise."""

    def _generator(self) -> torch.Generator:
        self.device = torch.device("cpu")
        return super()._generator()

    def _slice(self, values: Tensor) -> Tensor:
        self.device = self.there
        return super()._slice(values).to(self.there)

    def __init__(self, device: str):
        super().__init__(3, 1, 0, 1, device)
        self.there = self.device


@pytest.fixture
def exact() -> Iterator[None]:
    """Without TF32 in convolutions."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def errors_where_the_host_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In all steps but the first."""
    take = Run.take_step

    def step(run: Run, parts: list[dict[str, Tensor]]) -> None:
        torch.cuda.set_sync_debug_mode("error" if run.done else "default")
        try:
            take(run, parts)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Run, "take_step", step)
    yield
    torch.cuda.set_sync_debug_mode("default")


def learn(network: nn.Module, step: Any, folder: Path, data: Pictures | None = None, **more: Any) -> Trained:
    hooks = {key: more.pop(key) for key in ("count", "after_step") if key in more}
    settings = Training(**{"steps": 8, "batch_size": 8, "warmup_steps": 2, "log_every": 4, "workers": 2, **more})
    place = SimpleNamespace(title="gpu", checkpoints=folder, tracker=Tracker())
    return train(network, step, data or Pictures(), settings, place, seed=0, **hooks)


def close(ours: Tensor, theirs: Tensor) -> None:
    assert (ours.cpu() - theirs).norm() <= 1e-3 * theirs.norm()


@pytest.mark.parametrize("kind", ["ddpm", "edm", "stylegan2", "pixels", "random"])
def test_a_teachers_features_are_those_of_the_cpu(kind: str, tmp_path: Path, exact: None) -> None:
    generator = get_kind(kind).Generator(Teacher(kind=kind, size="tiny", resolution=SIDE))
    torch.manual_seed(0)
    generator.save(generator.build(), tmp_path, {"resolution": SIDE})
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    there = open_teacher(tmp_path, None, Stochastic(50), GPU).teach(images.to(GPU), Fixed("cuda"))
    here = open_teacher(tmp_path, None, Stochastic(50)).teach(images, Fixed("cpu"))
    for ours, theirs in zip(there.features, here.features, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_a_students_pyramid_is_that_of_the_cpu(name: str, exact: None) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name).eval()
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        here = backbone(images)
        there = backbone.to(GPU, memory_format=torch.channels_last)(images.to(GPU, memory_format=torch.channels_last))  # type: ignore[call-overload]
    for ours, theirs in zip(there, here, strict=True):
        close(ours, theirs)


@pytest.mark.usefixtures("errors_where_the_host_waits")
@pytest.mark.parametrize("name", [name for name in BUILT_IN if name not in ("features", "team")])
def test_a_baseline_learns_and_never_makes_the_host_wait(name: str, tmp_path: Path) -> None:
    params = Params.model_validate({"student": {"width": 16}, "distill": {"method": name, "resolution": SIDE, "batch_size": 8, "steps": 8}})
    method = get_method(name)(params, None, tmp_path, GPU)
    backbone = create_backbone("vit_tiny_patch16_224" if name == "mae" else "resnet18")
    network = method.build(backbone, Pictures())  # type: ignore[arg-type]
    trained = learn(network, method.loss, tmp_path / "checkpoints", after_step=method.after_step)
    assert np.isfinite(trained.last_loss())


@pytest.mark.usefixtures("errors_where_the_host_waits")
@pytest.mark.parametrize("kind", ["ddpm", "edm", "stylegan2"])
def test_a_generator_learns_and_never_makes_the_host_wait(kind: str, tmp_path: Path) -> None:
    """In bf16, which `auto` chooses on a GPU."""
    generator = get_kind(kind).Generator(Teacher(kind=kind, size="tiny", resolution=SIDE))
    trained = learn(generator.build(), lambda model, batch, random: generator.loss(model, batch["image"], random), tmp_path, ema=0.9)
    assert np.isfinite(trained.last_loss())


@pytest.mark.usefixtures("errors_where_the_host_waits")
def test_a_student_learns_a_teachers_features_and_never_makes_the_host_wait(tmp_path: Path) -> None:
    params = Params.model_validate({"student": {"width": 16}})
    teacher = move_frozen(DiffusionTeacher(build_unet("tiny", SIDE), build_scheduler(1000), Stochastic(50), [4, 8]), GPU)
    backbone = create_backbone("resnet18")
    objective = feature_objective(params.distill, layernorm, teacher.taps)

    def step(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        lesson = teacher.teach(batch["image"], random)
        return objective(model(normal(lesson.images, backbone), lesson.step), lesson.features)

    trained = learn(create_regressor(backbone, teacher.taps, params.student, params.distill), step, tmp_path, steps=40, lr=2e-3)
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]


def tune(task_name: str, folder: Path, **more: Any) -> tuple[TaskModel, Trained]:
    torch.manual_seed(0)
    task = get_task(task_name)
    model = TaskModel(create_backbone("resnet18"), task_name, ["a", "b", "c"], SIDE, 32)

    def step(network: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        if random.step == more.get("stop") and not (folder / "stopped").exists():
            (folder / "stopped").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return task.loss(network(normalize(batch["image"], model.mean, model.std)), batch, Finetune())

    settings = {key: value for key, value in more.items() if key != "stop"}
    return model, learn(model, step, folder / "checkpoints", Pictures(task_name), count=task.count, **settings)


@pytest.mark.usefixtures("errors_where_the_host_waits")
@pytest.mark.parametrize("name", SHAPES)
def test_a_task_is_learned_in_bf16_and_never_makes_the_host_wait(name: str, tmp_path: Path) -> None:
    _, trained = tune(name, tmp_path, steps=40, precision="bf16")
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]


def test_a_resumed_run_matches_an_uninterrupted_one(tmp_path: Path) -> None:
    """Except for kernels whose order of summation varies: Adam turns such differences of small gradients into whole steps."""
    (tmp_path / "whole").mkdir(), (tmp_path / "parts").mkdir()
    _, whole = tune("classification", tmp_path / "whole", precision="fp32")
    with pytest.raises(Interrupted):
        tune("classification", tmp_path / "parts", precision="fp32", stop=4)
    _, parts = tune("classification", tmp_path / "parts", precision="fp32", stop=4)
    assert [row["step"] for row in parts.history] == [row["step"] for row in whole.history]
    ours, theirs = (torch.cat([value.float().flatten() for value in each.model.state_dict().values()]) for each in (parts, whole))
    assert (ours - theirs).norm() <= 0.01 * theirs.norm()


def test_a_model_that_was_trained_on_the_gpu_is_exported(tmp_path: Path) -> None:
    model, _ = tune("classification", tmp_path)
    assert all(value.device.type == "cpu" for value in model.state_dict().values())
    export(model, tmp_path / "model.onnx", ["logits"], size=SIDE, opset=17, tolerance=1e-3, metadata={})
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = model(images)
    close(torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), expected)


def test_ddp_over_nccl_gives_the_gradients_of_one_process(tmp_path: Path) -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        pytest.skip("processes are joined already")
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'join'}", rank=0, world_size=1, device_id=torch.device("cuda", 0))
    try:
        torch.manual_seed(0)
        alone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3)).to(GPU)
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(alone), device_ids=[0], gradient_as_bucket_view=True)
        images = torch.rand(4, 3, 16, 16, device=GPU)
        for model in (alone, wrapped):
            model(images).square().mean().backward()
        for ours, theirs in zip(wrapped.parameters(), alone.parameters(), strict=True):
            assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]
    finally:
        dist.destroy_process_group()
