"""Checkpoints of guided-diffusion against an independent implementation of the architecture."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from adm_reference import ADM
from diffusers import DDPMPipeline
from torch import Tensor

from dreamteacher.errors import UserError
from dreamteacher.teachers import adm
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.teachers.folder import open_teacher, read_facts
from dreamteacher.teachers.importing import import_teacher
from dreamteacher.training.randomness import StepRandom

LEGACY = {"use_new_attention_order": "False", "num_head_channels": "16", "noise_schedule": "linear"}
NEW = {"use_new_attention_order": "True", "num_head_channels": "16", "noise_schedule": "cosine"}
# Published configurations, with 32 channels in place of 192 and 256, heads of 16, and pictures of 32 and 64 px.
STYLES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "256": ({"mult": (1, 1, 2, 2, 4, 4), "depth": 2, "attention": (8, 16, 32)}, LEGACY),
    "lsun": ({"mult": (1, 1, 2, 2, 4, 4), "depth": 2, "attention": (8, 16, 32)}, LEGACY | {"dropout": "0.1", "class_cond": "False"}),
    "64": ({"mult": (1, 2, 3, 4), "depth": 3, "attention": (2, 4, 8), "new_order": True, "classes": 10}, NEW),
    "bdd": ({"mult": (1, 1, 2, 2, 3, 4), "depth": 2, "attention": (16, 32)}, LEGACY),
    "512": ({"mult": (1, 1, 1, 2, 2, 4, 4), "depth": 1, "attention": (16, 32, 64), "classes": 5}, LEGACY),
    "128, heads by number": (
        {"mult": (1, 1, 2, 3, 4), "depth": 1, "attention": (4, 8, 16), "head_channels": 0, "heads": 4, "classes": 3},
        {"use_new_attention_order": "False", "num_heads": "4", "num_head_channels": "-1", "noise_schedule": "linear"},
    ),
    "improved-diffusion": (
        {"mult": (1, 2, 2), "depth": 1, "attention": (2,), "residual": False, "scale_shift": False, "learn_sigma": False},
        LEGACY | {"noise_schedule": "cosine", "diffusion_steps": "4000"},
    ),
}


def build(style: str) -> ADM:
    """With weights that make every part count: ADM begins its residual branches at zero."""
    torch.manual_seed(0)
    reference = ADM(32, **STYLES[style][0]).eval()
    for module in reference.modules():
        if isinstance(module, torch.nn.GroupNorm):
            torch.nn.init.normal_(module.weight, 1, 0.2)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return reference


def convert(reference: ADM, folder: Path, options: dict[str, str], out: str = "teacher") -> Path:
    torch.save(reference.state_dict(), folder / "model.pt")
    import_teacher("adm", str(folder / "model.pt"), folder / out, [f"{key}={value}" for key, value in options.items()])
    return folder / out


def kept(schedule: str, steps: int, T: int) -> float:
    """Share of the picture's variance at step T, from the papers: the product of 1 - beta; or by the cosine of Nichol & Dhariwal, Eq 17."""
    if schedule == "linear":
        return math.prod(1 - (1e-4 + (2e-2 - 1e-4) * t / (steps - 1)) for t in range(T + 1))
    f = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, T + 1)]
    return f[1] / f[0]


def noisy(pictures: Tensor, options: dict[str, str], T: int) -> Tensor:
    a = kept(options["noise_schedule"], int(options.get("diffusion_steps", "1000")), T)
    return math.sqrt(a) * (pictures * 2 - 1) + math.sqrt(1 - a) * StepRandom(3, 0, 0, 1).normal(pictures.shape)


@pytest.mark.parametrize("style", STYLES)
def test_every_tap_is_that_of_the_architecture(style: str, tmp_path: Path) -> None:
    reference, options = build(style), STYLES[style][1]
    teacher = open_teacher(convert(reference, tmp_path, options), None, Stochastic(40))
    pictures = torch.rand(1, 3, teacher.multiple, 2 * teacher.multiple, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []
    teacher.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features = teacher.teach(pictures, StepRandom(3, 0, 0, 1)).features
    torch.testing.assert_close(seen[0], noisy(pictures, options, 40), rtol=0, atol=1e-4)  # the schedule is one of float32
    classes = STYLES[style][0].get("classes", 0)
    shares = torch.full((1, classes), 1 / classes) if classes else None  # by default the mean of all classes
    reference(seen[0], torch.tensor([40]), shares)
    assert len(features) == len(reference.taps) == len(STYLES[style][0]["mult"])
    for tap, maps, expected in zip(teacher.taps, features, reference.taps, strict=True):
        assert maps.shape[2] * tap.stride == teacher.multiple
        torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-5)


def test_the_other_order_of_qkv_would_be_noticed(tmp_path: Path) -> None:
    reference = build("256")
    pictures = torch.rand(1, 3, 32, 32)
    wrong = open_teacher(convert(reference, tmp_path, LEGACY | {"use_new_attention_order": "True"}), None, Stochastic(40))
    reference(noisy(pictures, LEGACY, 40), torch.tensor([40]))
    maps = wrong.teach(pictures, StepRandom(3, 0, 0, 1)).features
    assert (maps[2] - reference.taps[2]).abs().max() > 1e-2


def test_the_folder_is_a_whole_pipeline_of_diffusers(tmp_path: Path) -> None:
    """With the learned variance: diffusers' own pass, and its ancestral sampling, work on it."""
    reference = build("256")
    folder = convert(reference, tmp_path, LEGACY | {"image_size": "32", "licence": "MIT"})
    pipeline = DDPMPipeline.from_pretrained(folder)
    x, t = torch.rand(1, 3, 32, 32), torch.tensor([7])
    with torch.no_grad():
        torch.testing.assert_close(pipeline.unet(x, t).sample, reference(x, t), rtol=1e-5, atol=1e-5)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 32, 32, 3)
    facts = read_facts(folder)
    assert (facts["licence"], facts["steps"], facts["multiple"], facts["resolution"]) == ("MIT", 1000, 32, 32)
    assert facts["sha256"] == hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()
    assert [tap["channels"] for tap in facts["taps"]] == [32, 32, 64, 64, 128, 128]


@pytest.mark.parametrize(("choice", "shares"), [("3", {3: 1.0}), ("none", {})])
def test_a_class_or_none_is_chosen_for_a_class_conditional_one(choice: str, shares: dict[int, float], tmp_path: Path) -> None:
    reference = build("64")
    teacher = open_teacher(convert(reference, tmp_path, NEW | {"class": choice}), [4], Stochastic(40))
    pictures, weights = torch.rand(1, 3, 16, 16), torch.tensor([[shares.get(i, 0.0) for i in range(10)]])
    reference(noisy(pictures, NEW, 40), torch.tensor([40]), weights)
    torch.testing.assert_close(teacher.teach(pictures, StepRandom(3, 0, 0, 1)).features[0], reference.taps[2], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="--option class=10 is none of mean, none, and 0 to 9"):
        convert(reference, tmp_path, NEW | {"class": "10"}, "other")


def test_half_precision_and_wrapped_checkpoints_are_read_and_averaged_weights_preferred(tmp_path: Path) -> None:
    reference = build("improved-diffusion").half().float()
    averaged = {f"module.unet.{k}": v.half() for k, v in reference.state_dict().items()}
    torch.save({"model": {k: v + 1 for k, v in averaged.items()}, "ema": averaged, "step": 3}, tmp_path / "half.pt")
    options = STYLES["improved-diffusion"][1]
    import_teacher("adm", str(tmp_path / "half.pt"), tmp_path / "half", [f"{k}={v}" for k, v in options.items()])
    whole = convert(reference, tmp_path, options)
    a, b = (
        open_teacher(f, None, Stochastic(9)).teach(torch.ones(1, 3, 8, 8), StepRandom(0, 0, 0, 1)).features
        for f in (whole, tmp_path / "half")
    )
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_known_checkpoint_needs_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(build("256").state_dict(), tmp_path / "known.pt")
    digest = hashlib.sha256((tmp_path / "known.pt").read_bytes()).hexdigest()
    with pytest.raises(
        UserError, match=r"not known by its sha256, .* does not show use_new_attention_order, num_head_channels, noise_schedule; give"
    ):
        import_teacher("adm", str(tmp_path / "known.pt"), tmp_path / "out", [])
    monkeypatch.setitem(adm.KNOWN, digest, LEGACY | {"image_size": "32"})
    import_teacher("adm", str(tmp_path / "known.pt"), tmp_path / "out", [])
    assert json.loads((tmp_path / "out/teacher.json").read_text())["flags"]["use_new_attention_order"] is False


def test_the_paper_s_checkpoint_has_the_published_number_of_weights() -> None:
    """552,814,086 in 256x256_diffusion_uncond.pt."""
    found = {
        "num_channels": 256,
        "num_res_blocks": 2,
        "channel_mult": [256, 256, 512, 512, 1024, 1024],
        "attention_resolutions": [8, 16, 32],
        "learn_sigma": True,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
    }
    with torch.device("meta"):
        unet = adm.build(found, {"num_head_channels": 64, "num_heads": None, "image_size": 256})
    assert sum(p.numel() for p in unet.parameters()) == 552_814_086


@pytest.mark.parametrize(
    ("style", "options", "line"),
    [
        (
            "256",
            {"num_channels": "64"},
            r"--option num_channels=64 does not fit .*model\.pt, whose state dict has 32; leave it out or correct it",
        ),
        ("256", {"num_res_blocks": "3"}, r"num_res_blocks=3 does not fit .* has 2"),
        ("256", {"channel_mult": "1,2,3,4"}, r"channel_mult=1,2,3,4 does not fit .* has 1,1,2,2,4,4"),
        ("256", {"image_size": "32", "attention_resolutions": "8,4"}, r"attention_resolutions=8,4 does not fit .* has 1,2,4"),
        ("256", {"attention_resolutions": "8,4"}, r"attention_resolutions counts in pixels; give --option image_size as well"),
        ("256", {"class_cond": "True"}, r"class_cond=True does not fit .* has False"),
        ("256", {"learn_sigma": "False"}, r"learn_sigma=False does not fit .* has True"),
        ("256", {"use_scale_shift_norm": "False"}, r"use_scale_shift_norm=False does not fit .* has True"),
        ("improved-diffusion", {"resblock_updown": "True"}, r"resblock_updown=True does not fit .* has False"),
        ("256", {"num_head_channels": "48"}, r"num_head_channels=48 does not fit an attention over 64 channels"),
        ("256", {"num_head_channels": "wide"}, r"num_head_channels=wide is no whole number above 0"),
        ("256", {"num_head_channels": "-1"}, r"its state dict does not show num_head_channels; give them"),
        ("256", {"num_head_channels": "-1", "num_heads": "0"}, r"num_heads=0 is no whole number above 0"),
        ("256", {"num_head_channels": "-1", "num_heads": "3"}, r"num_heads=3 does not fit an attention over 64 channels"),
        ("256", {"channel_mult": "wide"}, r"channel_mult=wide is no number"),
        ("256", {"image_size": "32", "attention_resolutions": "8,x"}, r"attention_resolutions=x is no whole number above 0"),
        ("256", {"diffusion_steps": "-1"}, r"diffusion_steps=-1 is no whole number above 0"),
        ("256", {"use_new_attention_order": "legacy"}, r"use_new_attention_order=legacy is neither True nor False"),
        ("256", {"noise_schedule": "sqrt"}, r"noise_schedule=sqrt is none of linear, cosine"),
        ("256", {"num_chanels": "32"}, r"there is no --option num_chanels; near: num_channels"),
    ],
)
def test_an_option_that_does_not_fit_is_named(style: str, options: dict[str, str], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        convert(build(style), tmp_path, STYLES[style][1] | options)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_other_networks_are_refused_in_one_line(tmp_path: Path) -> None:
    state = build("improved-diffusion").state_dict()
    changed = {
        "is no U-Net of guided-diffusion": {"conv1.weight": torch.ones(3)},
        r"is a U-Net for latents \(import its pipeline as kind diffusers\); a teacher of kind adm takes RGB": {
            "model.diffusion_model." + key: value for key, value in state.items()
        }
        | {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(32, 4, 3, 3), "first_stage_model.a": torch.ones(3)},
        "is a U-Net for a picture and a smaller one": state | {"input_blocks.0.0.weight": torch.ones(32, 6, 3, 3)},
        "1 weights differ, such as up_blocks.0.resnets.0.conv2.weight": {k: v for k, v in state.items() if k != "middle_block.9"}
        | {"output_blocks.0.0.out_layers.3.weight": torch.ones(64, 8, 3, 3)},
        "weights differ, such as mid_block.resnets.1.conv1.bias": {
            k: v for k, v in state.items() if k != "middle_block.2.in_layers.2.bias"
        },
    }
    for line, content in changed.items():
        torch.save(content, tmp_path / "model.pt")
        with pytest.raises(UserError, match=line):
            import_teacher(
                "adm", str(tmp_path / "model.pt"), tmp_path / "out", [f"{k}={v}" for k, v in STYLES["improved-diffusion"][1].items()]
            )
