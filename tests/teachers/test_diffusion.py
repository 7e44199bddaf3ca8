"""Taps against a full pass with hooks, noise against the closed form, folders against diffusers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from torch.utils.flop_counter import FlopCounterMode

from dreamteacher.errors import UserError
from dreamteacher.settings import presets
from dreamteacher.settings.pretraining import Teacher
from dreamteacher.teachers import unet as unets
from dreamteacher.teachers.ddpm import Generator, build_scheduler, denoising_loss
from dreamteacher.teachers.diffusion import DiffusionTeacher, decoder_taps
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.teachers.folder import choose_strides, open_teacher
from dreamteacher.teachers.unet import build_unet
from dreamteacher.training.randomness import StepRandom

# The presets with the same blocks but few channels.
SLIM: dict[str, dict[str, Any]] = {
    "tiny": {"widths": (8, 8, 16, 16), "head_dim": 8, "groups": 4},
    "small": {"widths": (8, 16, 16, 16), "head_dim": 8, "groups": 4},
    "adm-256": {"widths": (8, 8, 16, 16, 24, 24), "head_dim": 8, "groups": 4},
}
SIDE = 32
AT_50 = Stochastic(50)


@pytest.fixture(params=SLIM)
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(unets.SIZES, request.param, {**unets.SIZES[request.param], **SLIM[request.param]})
    return request.param


@pytest.fixture
def unet(size: str) -> UNet2DModel:
    torch.manual_seed(0)
    return build_unet(size, SIDE)


def random(step: int = 0) -> StepRandom:
    return StepRandom(3, step, 0, 1)


def images(count: int = 2, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def maps_before_upsampling(unet: UNet2DModel, pictures: torch.Tensor, T: int) -> list[torch.Tensor]:
    """What a full pass of an untouched U-Net gives to each up-sampler (and, at full resolution, to the output's norm), fine to coarse."""
    seen = []
    handles = [
        module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        for module in [*(block.upsamplers[0] for block in unet.up_blocks[:-1]), unet.conv_norm_out]
    ]
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))[T]
    noise = random().normal(pictures.shape)
    noisy = float(np.sqrt(alpha_bar)) * (2 * pictures - 1) + float(np.sqrt(1 - alpha_bar)) * noise
    with torch.no_grad():
        unet.eval()(noisy, T)
    for handle in handles:
        handle.remove()
    return seen[::-1]


def test_taps_are_what_a_full_pass_hands_to_the_upsamplers(unet: UNet2DModel) -> None:
    expected = maps_before_upsampling(copy.deepcopy(unet), images(), 50)
    teacher = DiffusionTeacher(unet, build_scheduler(1000), AT_50)
    pictures = images()
    lesson = teacher.teach(pictures, random())
    assert lesson.images is pictures
    features = lesson.features
    assert len(features) == len(expected) == len(teacher.taps)
    for tap, maps, reference in zip(teacher.taps, features, expected, strict=True):
        assert maps.shape == (2, tap.channels, SIDE // tap.stride, SIDE // tap.stride)
        torch.testing.assert_close(maps, reference, rtol=1e-4, atol=1e-5)


def test_pictures_need_not_be_square(unet: UNet2DModel) -> None:
    wide = images(1, SIDE, 2 * SIDE)
    expected = maps_before_upsampling(copy.deepcopy(unet), wide, 7)
    teacher = DiffusionTeacher(unet, build_scheduler(1000), Stochastic(7))
    for maps, reference in zip(teacher.teach(wide, random()).features, expected, strict=True):
        torch.testing.assert_close(maps, reference, rtol=1e-4, atol=1e-5)


def test_nothing_runs_beyond_the_finest_wanted_tap(unet: UNet2DModel) -> None:
    whole = copy.deepcopy(unet).eval()
    tap = decoder_taps(unet)[-2]
    with FlopCounterMode(display=False) as full:
        whole(images(1) * 2 - 1, 0)
    last = int(tap.name.split(".")[1])
    beyond = [f"up_blocks.{i}" for i in range(last + 1, len(whole.up_blocks))] + [f"{tap.name}.upsamplers.0", "conv_out"]
    flops = {name.removeprefix("UNet2DModel."): sum(counts.values()) for name, counts in full.get_flop_counts().items()}
    spared = sum(flops[name] for name in beyond)

    teacher = DiffusionTeacher(unet, build_scheduler(1000), Stochastic(0), [tap.stride, 2 * tap.stride])
    with FlopCounterMode(display=False) as cut:
        teacher.teach(images(1), random())
    assert [tap.stride for tap in teacher.taps] == [tap.stride, 2 * tap.stride]
    assert cut.get_total_flops() == full.get_total_flops() - spared
    assert spared > 0.2 * full.get_total_flops()


def test_the_cut_network_has_no_parameter_that_is_not_used(unet: UNet2DModel) -> None:
    teacher = DiffusionTeacher(unet, build_scheduler(1000), AT_50, [decoder_taps(unet)[1].stride])
    outputs: list[torch.Tensor] = []
    tap = teacher.unet.get_submodule(teacher.taps[0].name)
    tap.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    teacher.unet.requires_grad_(True)
    teacher.unet(images(1), 5)
    outputs[0].square().sum().backward()
    assert [name for name, p in teacher.unet.named_parameters() if p.grad is None] == []


def test_the_teacher_is_frozen_and_stays_in_eval() -> None:
    teacher = DiffusionTeacher(build_unet("tiny", 16), build_scheduler(1000), AT_50)
    holder = torch.nn.ModuleList([teacher]).train()
    assert not any(module.training for module in teacher.modules())
    assert holder.training
    assert not any(p.requires_grad for p in teacher.parameters())
    with torch.enable_grad():
        features = teacher.teach(images(1, 16, 16).requires_grad_(), random()).features
    assert not any(maps.requires_grad for maps in features)
    assert not teacher._maps


def test_dropout_of_the_generator_does_not_reach_its_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(unets.SIZES, "tiny", {**unets.SIZES["tiny"], **SLIM["tiny"], "dropout": 0.5})
    teacher = DiffusionTeacher(build_unet("tiny", 16), build_scheduler(1000), AT_50)
    teacher.train()
    first, second = (teacher.teach(images(1, 16, 16), random()).features for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_features_are_float32_under_bf16_autocast() -> None:
    teacher = DiffusionTeacher(build_unet("tiny", 16), build_scheduler(1000), AT_50)
    exact = teacher.teach(images(2, 16, 16), random()).features
    with torch.autocast("cpu", torch.bfloat16):
        maps = teacher.teach(images(2, 16, 16), random()).features
    assert {m.dtype for m in maps} == {torch.float32}
    for a, b in zip(maps, exact, strict=True):
        assert (a - b).norm() / b.norm() < 0.05


def test_noise_follows_the_closed_form_of_a_linear_schedule() -> None:
    """x_T = sqrt(alpha_bar_T) x + sqrt(1 - alpha_bar_T) eps, alpha_bar the running product of 1 - beta, x in [-1, 1]."""
    teacher = DiffusionTeacher(build_unet("tiny", 16), build_scheduler(1000), AT_50)
    calls = []
    teacher.unet.register_forward_pre_hook(lambda module, inputs: calls.append(inputs))
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    pictures = images(2, 16, 16)
    for T in (0, 50, 250, 999):
        teacher.with_encoding(Stochastic(T)).teach(pictures, random(T))
        noisy, steps = calls.pop()
        noise = random(T).normal(pictures.shape).numpy()
        expected = np.sqrt(alpha_bar[T]) * (2 * pictures.numpy() - 1) + np.sqrt(1 - alpha_bar[T]) * noise
        np.testing.assert_allclose(noisy.numpy(), expected, atol=1e-5)
        assert steps.tolist() == [T, T]


def test_denoising_loss_is_the_error_of_the_predicted_noise_at_each_pictures_own_step() -> None:
    unet, scheduler = build_unet("tiny", 16).eval(), build_scheduler(1000)
    calls = []
    unet.register_forward_hook(lambda module, inputs, output: calls.append((*inputs, output.sample)))
    loss = denoising_loss(unet, scheduler, images(4, 16, 16), random())
    noisy, steps, predicted = calls[0]
    draws = random()
    noise = draws.normal((4, 3, 16, 16))
    assert steps.tolist() == draws.integers(0, 1000, 4).tolist()
    assert len(set(steps.tolist())) > 1
    alpha_bar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000)))[steps].float()[:, None, None, None]
    torch.testing.assert_close(noisy, alpha_bar.sqrt() * (2 * images(4, 16, 16) - 1) + (1 - alpha_bar).sqrt() * noise, rtol=0, atol=1e-5)
    assert loss.item() == pytest.approx(np.square(predicted.detach().numpy() - noise.numpy()).mean(), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())


def test_adm_256_is_the_papers_network() -> None:
    """552,814,086 parameters less those of the learned variances; strides and channels of blocks 3, 6, 9 and 12 (Sec E.2)."""
    with torch.device("meta"):
        unet = build_unet("adm-256", 256)
    taps = {tap.stride: tap.channels for tap in decoder_taps(unet)}
    assert [taps[stride] for stride in (4, 8, 16, 32)] == [512, 512, 1024, 1024]
    assert sum(p.numel() for p in unet.parameters()) == 552_814_086 - 3 * (256 * 9 + 1)
    heads = {2**level: [a.heads for a in block.attentions] for level, block in enumerate(unet.down_blocks) if hasattr(block, "attentions")}
    assert heads == {8: [8, 8], 16: [16, 16], 32: [16, 16]}  # 64 channels each


def test_the_settings_know_how_many_levels_each_size_has() -> None:
    assert {size: len(preset["widths"]) for size, preset in unets.SIZES.items()} == presets.LEVELS


def test_a_saved_teacher_opens_with_diffusers_and_gives_the_same_taps(size: str, unet: UNet2DModel, tmp_path: Path) -> None:
    Generator(Teacher(T_train=500)).save(unet, tmp_path / "teacher", {"resolution": SIDE})
    files = [path.name for path in (tmp_path / "teacher").rglob("*") if path.is_file()]
    assert sorted({Path(name).suffix for name in files}) == [".json", ".safetensors"]

    pipeline = DDPMPipeline.from_pretrained(tmp_path / "teacher")
    assert pipeline.scheduler.config.num_train_timesteps == 500
    foreign = DiffusionTeacher(pipeline.unet, pipeline.scheduler, AT_50).teach(images(1), random()).features
    ours = open_teacher(tmp_path / "teacher", None, AT_50).teach(images(1), random()).features
    direct = DiffusionTeacher(unet, build_scheduler(500), AT_50).teach(images(1), random()).features
    for a, b, c in zip(ours, foreign, direct, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)  # rounding differs with the alignment of the weights in memory

    finest = open_teacher(tmp_path / "teacher", [4], AT_50)
    assert [tap.stride for tap in finest.taps] == [4]
    torch.testing.assert_close(finest.teach(images(1), random()).features[0], ours[2], rtol=1e-4, atol=1e-5)


def test_a_saved_teacher_contains_no_paths_and_no_times(tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.manual_seed(0)
        Generator(Teacher()).save(build_unet("tiny", 16), tmp_path / name, {})
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert [(tmp_path / "a" / file).read_bytes() for file in files] == [(tmp_path / "b" / file).read_bytes() for file in files]


@pytest.mark.parametrize(
    ("strides", "chosen"),
    [
        ([1, 2, 4, 8, 16, 32], [4, 8, 16, 32]),
        ([1, 2, 4, 8, 16], [2, 4, 8, 16]),
        ([1, 2, 4, 8], [2, 4, 8]),
        ([8, 16, 32, 64], [8, 16, 32]),
        ([64], [64]),
    ],
)
def test_auto_takes_the_coarsest_four_that_backbones_have_but_not_1(tmp_path: Path, strides: list[int], chosen: list[int]) -> None:
    (tmp_path / "teacher.json").write_text(json.dumps({"taps": [{"stride": s} for s in strides]}))
    assert choose_strides(tmp_path, "auto") == chosen
    assert choose_strides(tmp_path, [8, 2]) == [2, 8]


@pytest.mark.parametrize("share", [0, 0.5])
@pytest.mark.parametrize(
    "file", ["teacher.json", "unet/diffusion_pytorch_model.safetensors", "unet/config.json", "scheduler/scheduler_config.json"]
)
def test_a_damaged_teacher_is_refused_in_one_line(tmp_path: Path, file: str, share: float) -> None:
    Generator(Teacher()).save(build_unet("tiny", 16), tmp_path / "teacher", {})
    content = (tmp_path / "teacher" / file).read_bytes()
    (tmp_path / "teacher" / file).write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"teacher is damaged \(.+\); fetch it again \(`dvc checkout`\), or remove it and run") as caught:
        open_teacher(tmp_path / "teacher", None, AT_50)
    assert "\n" not in str(caught.value)


def test_a_damaged_teacher_to_continue_from_is_refused_in_one_line(tmp_path: Path) -> None:
    Generator(Teacher()).save(build_unet("tiny", 16), tmp_path, {})
    weights = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"is damaged \(.+\); fetch it again"):
        Generator(Teacher()).load_weights(build_unet("tiny", 16), tmp_path)


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(unets.SIZES, "tiny", {**unets.SIZES["tiny"], **SLIM["tiny"]})
    with pytest.raises(UserError, match=r"teacher\.resolution = 36 does not fit the 'tiny' U-Net: take a multiple of 8"):
        build_unet("tiny", 36)
    with pytest.raises(UserError, match=r"no tap at stride 16; it has \[1, 2, 4, 8\]"):
        DiffusionTeacher(build_unet("tiny", 16), build_scheduler(1000), AT_50, [4, 16])
    teacher = DiffusionTeacher(build_unet("tiny", 16), build_scheduler(100), AT_50)
    with pytest.raises(UserError, match="20x16 px do not fit the teacher: their sides must be multiples of 8"):
        teacher.teach(images(1, 20, 16), random())
    with pytest.raises(UserError, match="T = 100 does not fit the teacher, which has 100"):
        teacher.with_encoding(Stochastic(100))
    with pytest.raises(UserError, match="run `dreamteacher train-teacher` first"):
        open_teacher(tmp_path, None, AT_50)


def test_v_prediction_regresses_the_velocity_of_the_schedule() -> None:
    """v = sqrt(a_t) noise - sqrt(1 - a_t) picture, here of a network that predicts nothing: the loss is its mean square."""
    scheduler, pictures = build_scheduler(1000, "v_prediction"), images(64)

    class Nothing(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, steps: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(sample=torch.zeros_like(noisy))

    draws = random()
    noise, steps = draws.normal(pictures.shape), draws.integers(0, 1000, len(pictures))
    a = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000), 0)[steps].view(-1, 1, 1, 1)
    velocity = a.sqrt() * noise - (1 - a).sqrt() * (pictures * 2 - 1)
    torch.testing.assert_close(denoising_loss(Nothing(), scheduler, pictures, random()), velocity.square().mean())
    assert not torch.allclose(denoising_loss(Nothing(), build_scheduler(1000), pictures, random()), velocity.square().mean(), rtol=1e-3)
