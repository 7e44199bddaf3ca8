"""StyleGAN2 checkpoints: exact round trip, and equality with a reference implementation."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import gan_files
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dreamteacher.errors import UserError
from dreamteacher.settings.pretraining import Teacher
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.teachers.folder import open_teacher
from dreamteacher.teachers.importing import import_teacher
from dreamteacher.teachers.stylegan2 import SIZES, Generator
from dreamteacher.teachers.stylegan2_network import Discriminator, Synthesizer
from dreamteacher.training.randomness import StepRandom

CHANNELS = [8, 6, 4]


def players(classes: int = 0, clamp: float | None = None) -> tuple[Synthesizer, Discriminator]:
    torch.manual_seed(0)
    generator, judge = Synthesizer(8, 2, CHANNELS, classes=classes, width=12, clamp=clamp), Discriminator(CHANNELS, clamp)
    with torch.no_grad():
        for network in (generator, judge):
            for parameter in network.parameters():
                parameter.normal_()
        generator.mapping.average.normal_()
    return generator.eval(), judge.eval()


def same(path: Path, generator: Synthesizer, judge: Discriminator | None) -> None:
    """The folder's tensors are those of the networks."""
    teacher = open_teacher(path, None, Stochastic(0))
    found = teacher.network.state_dict()  # type: ignore[attr-defined]
    assert found.keys() == generator.state_dict().keys()
    assert all(torch.equal(value, found[name]) for name, value in generator.state_dict().items())
    assert (path / "discriminator.safetensors").exists() == (judge is not None)


def test_a_checkpoint_of_rosinality_becomes_the_same_network(tmp_path: Path) -> None:
    generator, judge = players()
    torch.save(gan_files.rosinality(generator, judge), tmp_path / "face.pt")
    import_teacher("stylegan2", str(tmp_path / "face.pt"), tmp_path / "teacher", ["licence=MIT", "truncation=0.7"])
    same(tmp_path / "teacher", generator, judge)
    facts = json.loads((tmp_path / "teacher/teacher.json").read_text())
    assert (facts["licence"], facts["network"]["truncation"]) == ("MIT", 0.7)
    assert [(tap["name"], tap["stride"], tap["channels"]) for tap in facts["taps"]] == [("b16", 1, 4), ("b8", 2, 6), ("b4", 4, 8)]


def test_of_a_training_run_its_options_are_passed_over_and_the_mean_of_w_is_measured(tmp_path: Path) -> None:
    generator, _ = players()
    content = gan_files.rosinality(generator)
    del content["latent_avg"]
    torch.save({**content, "args": argparse.Namespace(lr=0.002, path="ffhq")}, tmp_path / "run.pt")
    import_teacher("stylegan2", str(tmp_path / "run.pt"), tmp_path / "teacher", [])
    teacher = open_teacher(tmp_path / "teacher", None, Stochastic(0))
    mean = generator.mapping(torch.randn(20_000, 8, generator=torch.Generator().manual_seed(1))).mean(0)
    torch.testing.assert_close(teacher.network.mapping.average, mean, atol=0.05, rtol=0.05)  # type: ignore[attr-defined]


@pytest.mark.parametrize("classes", [0, 3])
def test_a_pickle_of_ada_becomes_the_same_network_and_its_source_is_not_run(classes: int, tmp_path: Path) -> None:
    generator, judge = players(classes, clamp=256.0)
    path = gan_files.ada(generator, judge, tmp_path / "network.pkl", channel_base=16384, conv_clamp=256.0, num_fp16_res=4)
    import_teacher("stylegan2", str(path), tmp_path / "teacher", [])
    same(tmp_path / "teacher", generator, None if classes else judge)
    lesson = open_teacher(tmp_path / "teacher", [2], Stochastic(0)).teach(torch.zeros(2, 3, 4, 4), StepRandom(0, 0, 0, 1))
    assert lesson.images.shape == (2, 3, 16, 16)


def reference(weights: dict[str, Tensor], z: Tensor, noises: list[Tensor]) -> Tensor:
    """The picture of one z by a checkpoint in rosinality's layout, layer by layer from the paper's equations."""
    noises = list(noises)

    def dense(x: Tensor, name: str, rate: float = 1.0) -> Tensor:
        weight = weights[f"{name}.weight"]
        return weight @ x * rate / math.sqrt(weight.shape[1]) + weights[f"{name}.bias"] * rate

    def active(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)

    def resample(x: Tensor, before: int, after: int) -> Tensor:
        channels = F.pad(x, [before, after, before, after])
        return torch.stack([F.conv2d(c[None, None], gan_files.KERNEL[None, None] * 4)[0, 0] for c in channels])

    def stretch(x: Tensor) -> Tensor:
        wide = x.new_zeros(len(x), 2 * x.shape[1], 2 * x.shape[2])
        wide[:, ::2, ::2] = x
        return wide

    def kernel(name: str, w: Tensor, demodulate: bool) -> Tensor:
        weight = weights[f"{name}.conv.weight"][0]
        weight = weight * dense(w, f"{name}.conv.modulation")[None, :, None, None] / math.sqrt(weight[0].numel())
        return weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt() if demodulate else weight

    def layer(x: Tensor, name: str, w: Tensor, up: bool = False) -> Tensor:
        weight = kernel(name, w, True)
        if up:
            x = resample(F.conv2d(F.pad(stretch(x), [2, 1, 2, 1])[None], weight.flip(2, 3))[0], 1, 1)
        else:
            x = F.conv2d(x[None], weight, padding=1)[0]
        x = x + weights[f"{name}.noise.weight"] * noises.pop(0)[0, 0]
        return active(x + weights[f"{name}.activate.bias"][:, None, None])

    def rgb(x: Tensor, name: str, w: Tensor) -> Tensor:
        return F.conv2d(x[None], kernel(name, w, False))[0] + weights[f"{name}.bias"][0]

    w = z / (z.square().mean() + 1e-8).sqrt()
    for i in (1, 2):
        w = active(dense(w, f"style.{i}", 0.01))
    x = layer(weights["input.input"][0], "conv1", w)
    picture = rgb(x, "to_rgb1", w)
    for level in range(2):
        x = layer(layer(x, f"convs.{2 * level}", w, up=True), f"convs.{2 * level + 1}", w)
        picture = resample(stretch(picture), 2, 1) + rgb(x, f"to_rgbs.{level}", w)
    return picture


def test_the_network_is_that_of_the_equations_on_the_files_own_tensors() -> None:
    generator, _ = players()
    z = torch.randn(2, 8)
    noises = generator.draw_noises(2, StepRandom(0, 0, 0, 1))
    with torch.no_grad():
        pictures, _ = generator(generator.mapping(z), noises)
        weights = gan_files.rosinality(generator)["g_ema"]
        for i in range(2):
            alone = [noise[i : i + 1] for level in noises for noise in level]
            torch.testing.assert_close(pictures[i], reference(weights, z[i], alone), rtol=1e-4, atol=1e-4)


def test_training_continues_from_an_import_of_the_same_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", (8, 2, 64, 8))
    kind = Generator(Teacher(resolution=16))
    made = kind.build()
    torch.save(gan_files.rosinality(made.generator, made.discriminator), tmp_path / "own.pt")
    import_teacher("stylegan2", str(tmp_path / "own.pt"), tmp_path / "teacher", [])
    other = kind.build()
    kind.load_weights(other, tmp_path / "teacher")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in made.state_dict().items())


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    generator, _ = players()

    def refused(message: str, options: list[str] | None = None, name: str = "a.pt") -> None:
        with pytest.raises(UserError, match=message):
            import_teacher("stylegan2", str(tmp_path / name), tmp_path / "teacher", options or [])
        assert not (tmp_path / "teacher").exists()

    content = gan_files.rosinality(generator)

    def write(**changes: Tensor | None) -> None:
        weights = {name: value for name, value in {**content["g_ema"], **changes}.items() if value is not None}
        torch.save({"g_ema": weights, "latent_avg": content["latent_avg"]}, tmp_path / "a.pt")

    write(**{"convs.0.conv.blur.kernel": torch.ones(4, 4)})
    refused(r"another resampling filter \(convs\.0\.conv\.blur\.kernel\) than \[1, 3, 3, 1\]")
    write(**{"convs.7.conv.something": torch.ones(4, 4)})
    refused(r"a\.pt does not fit a Synthesizer|is no whole StyleGAN2")
    write(**{"head.weight": torch.ones(4, 4)})
    refused(r"has head\.weight, which a generator of this layout has not")
    write(**{"to_rgbs.1.conv.weight": None})
    refused(r"of blocks\.2\.rgb\.weight it has none, the network \(3, 4, 1, 1\)")
    write(**{"conv1.conv.weight": torch.ones(1, 8, 7, 3, 3)})
    refused(r"of blocks\.0\.conv\.weight it has \(8, 7, 3, 3\), the network \(8, 8, 3, 3\)")
    write()
    refused("there is no --option psi; near: ", ["psi=1"])
    refused("truncation=2 is no number above 0 and up to 1", ["truncation=2"])
    torch.save({"state_dict": {}}, tmp_path / "a.pt")
    refused("has no g_ema")
    refused(r"b\.pkl is no file", name="b.pkl")
    gan_files.ada(generator, None, tmp_path / "b.pkl", architecture="resnet")
    refused("was made with architecture = 'resnet'; only 'skip', the default, is read", name="b.pkl")
