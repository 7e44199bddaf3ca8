"""A teacher kind from another package: one file, without a change of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_chain import Chain, brief_params

from dreamteacher.errors import UserError
from dreamteacher.settings.pretraining import Teacher
from dreamteacher.stages import distill_features, distill_labels, train_interpreter, train_teacher
from dreamteacher.students.regressor import load_regressor
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.teachers.folder import open_teacher
from dreamteacher.teachers.pixels import Generator
from dreamteacher.training.randomness import StepRandom
from helpers import install_package

TOY = '''
"""Blurs: a teacher whose one feature map is a learnt blur of the picture, four times as small."""

import torch
from safetensors.torch import load_file, save_file

from dreamteacher.teachers.base import Lesson, Tap
from dreamteacher.teachers.folder import write_facts

TAPS = [Tap("blurred", 4, 3)]


class Generator:
    trains = True

    def __init__(self, settings):
        self.settings = settings

    def build(self):
        return torch.nn.Conv2d(3, 3, 4, stride=4)

    def loss(self, network, images, random):
        return {"loss": (network(images) - torch.nn.functional.avg_pool2d(images, 4)).square().mean()}

    def sample(self, network, count, seed):
        return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))

    def load_weights(self, network, folder):
        network.load_state_dict(load_file(folder / "blur.safetensors"))

    def save(self, network, folder, facts):
        save_file(network.state_dict(), folder / "blur.safetensors")
        write_facts(folder, "blurs", TAPS, facts)


class Blurs(torch.nn.Module):
    taps, multiple = TAPS, 4

    def __init__(self, network, encoding):
        super().__init__()
        self.network, self.encoding = network, encoding

    def with_encoding(self, encoding):
        return Blurs(self.network, encoding)

    @torch.no_grad()
    def teach(self, images, random):
        return Lesson(images, [self.network(images)])


def open_folder(folder, strides, encoding):
    network = torch.nn.Conv2d(3, 3, 4, stride=4)
    network.load_state_dict(load_file(folder / "blur.safetensors"))
    return Blurs(network, encoding)
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip would leave it: the module, and its distribution's entry points."""
    install_package(monkeypatch, tmp_path / "site-packages", "[dreamteacher.teachers]\nblurs = toy_blurs\n", toy_blurs=TOY)


def test_another_kind_is_trained_and_teaches(chains: dict[str, Chain], installed: None, tmp_path: Path) -> None:
    chain = chains["segmentation"]
    params = brief_params(chain.source, teacher={"kind": "blurs"}).model_copy(update={"taps": [4]})
    data = chain.root / "data"
    assert train_teacher.run(params, data=data, out=tmp_path / "teacher")["loss"] > 0
    facts = json.loads((tmp_path / "teacher/teacher.json").read_text())
    assert (facts["kind"], facts["taps"]) == ("blurs", [{"name": "blurred", "stride": 4, "channels": 3}])
    metrics = distill_features.run(params, data=data, teacher=tmp_path / "teacher", out=tmp_path / "features")
    assert metrics["explained_variance"] == metrics["ev_stride4"]
    assert load_regressor(tmp_path / "features").heads.strides == [4]
    train_interpreter.run(params, data=data, teacher=tmp_path / "teacher", seed=0, out=tmp_path / "interpreter")
    again = brief_params(chain.source).model_copy(update={"taps": [4]})
    with pytest.raises(UserError, match=r"is a teacher of kind 'blurs'; set teacher\.kind alike, or take no pretrained one"):
        train_teacher.run(again, data=data, start=tmp_path / "teacher", out=tmp_path / "other")


def test_an_edm_is_trained_goes_on_and_teaches(chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains["segmentation"]
    params, data = brief_params(chain.source, teacher={"kind": "edm"}), chain.root / "data"
    train_teacher.run(params, data=data, out=tmp_path / "teacher")
    assert json.loads((tmp_path / "teacher/teacher.json").read_text())["kind"] == "edm"
    assert (tmp_path / "teacher/samples.png").exists()
    train_teacher.run(params, data=data, start=tmp_path / "teacher", out=tmp_path / "longer")
    metrics = distill_features.run(params, data=data, teacher=tmp_path / "longer", out=tmp_path / "features")
    assert metrics["explained_variance"] != chain.metrics["features"]["explained_variance"]
    train_interpreter.run(params, data=data, teacher=tmp_path / "longer", seed=0, out=tmp_path / "interpreter")


@pytest.mark.parametrize("kind", ["random", "pixels"])
def test_a_control_teaches_without_having_been_trained(kind: str, chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains["segmentation"]
    params, data = brief_params(chain.source, teacher={"kind": kind, "steps": 1_000_000}), chain.root / "data"
    assert train_teacher.run(params, data=data, out=tmp_path / "teacher") == {"loss": 0.0}
    assert json.loads((tmp_path / "teacher/teacher.json").read_text())["trained_on"] is None
    assert not (tmp_path / "teacher/samples.png").exists()
    metrics = distill_features.run(params, data=data, teacher=tmp_path / "teacher", out=tmp_path / "features")
    assert metrics["explained_variance"] != chain.metrics["features"]["explained_variance"]
    train_interpreter.run(params, data=data, teacher=tmp_path / "teacher", seed=0, out=tmp_path / "interpreter")
    folders = {"teacher": tmp_path / "teacher", "features": tmp_path / "features", "interpreter": tmp_path / "interpreter"}
    assert distill_labels.run(params, data=data, **folders, seed=0, out=tmp_path / "mix")["loss"] > 0


def test_pixels_are_averages_of_the_picture(tmp_path: Path) -> None:
    Generator(Teacher()).save(torch.nn.Identity(), tmp_path, {})
    pictures = torch.rand(2, 3, 32, 48)
    lesson = open_teacher(tmp_path, [2, 8], Stochastic(50)).teach(pictures, StepRandom(0, 0, 0, 1))
    assert [tuple(maps.shape) for maps in lesson.features] == [(2, 3, 16, 24), (2, 3, 4, 6)]
    torch.testing.assert_close(lesson.features[1][1, 2, 3, 5], pictures[1, 2, 24:32, 40:48].mean() * 2 - 1)
    with pytest.raises(UserError, match=r"no tap at stride 32; it has \[1, 2, 4, 8, 16\]"):
        open_teacher(tmp_path, [32], Stochastic(50))
    with pytest.raises(UserError, match="24x32 px do not fit the teacher: their sides must be multiples of 16"):
        open_teacher(tmp_path, [8], Stochastic(50)).teach(torch.rand(1, 3, 24, 32), StepRandom(0, 0, 0, 1))


def test_an_unknown_kind_is_refused_in_one_line(chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains["segmentation"]
    with pytest.raises(UserError, match=r"no kind of teacher is called 'dppm'; name ddpm, or install the package"):
        train_teacher.run(brief_params(chain.source, teacher={"kind": "dppm"}), data=chain.root / "data", out=tmp_path / "teacher")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/teacher.json").write_text(json.dumps({"kind": "sd99", "taps": [{"name": "a", "stride": 4, "channels": 1}]}))
    with pytest.raises(UserError, match=r"no kind of teacher is called 'sd99'; name adm or .*ddpm or .*random.*, or install"):
        distill_features.run(chain.params, data=chain.root / "data", teacher=tmp_path / "other", out=tmp_path / "features")
