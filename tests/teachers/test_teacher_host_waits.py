"""Neither training a generator nor its lessons make the host wait for the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers_models
import pytest

from dreamteacher.settings.pretraining import Distill, Teacher
from dreamteacher.teachers import unet
from dreamteacher.teachers.encodings import get_encoding
from dreamteacher.teachers.folder import get_kind, open_teacher
from dreamteacher.teachers.importing import import_teacher
from host_waits import GPU, SLIM, never_waits, pictures, pretended_gpu

SIDE = 32
ENCODINGS: list[dict[str, Any]] = [
    {"T": 40},
    {"encoding": "stratified", "strata": [0, 20, 60]},
    {"encoding": "ddim", "T": 40, "passes": 2},
    {"encoding": "dream", "T": 40, "passes": 2},
]
MODELS = {"stable_diffusion_xl": ENCODINGS[0], "dit": ENCODINGS[1], "stable_diffusion_3": ENCODINGS[2]}


@pytest.fixture(autouse=True)
def slim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(unet.SIZES, "tiny", SLIM)


@pytest.mark.parametrize("kind", ["ddpm", "edm", "stylegan2"])
def test_no_generators_training_makes_the_host_wait(kind: str) -> None:
    """Of stylegan2 without the steps that regularise, which need gradients."""
    generator = get_kind(kind).Generator(Teacher(kind=kind, size="tiny", resolution=SIDE, prediction="v_prediction"))
    network = generator.build()
    with pretended_gpu():
        network.to(GPU)
        never_waits(lambda random: generator.loss(network, pictures(side=SIDE), random))


def lessons(folder: Path, encoding: dict[str, Any]) -> None:
    teacher = open_teacher(folder, None, get_encoding(Distill(**encoding)))
    with pretended_gpu():
        teacher.to(GPU)
        never_waits(lambda random: teacher.teach(pictures(side=SIDE), random))


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: encoding.get("encoding", "stochastic"))
def test_no_encoding_makes_the_host_wait(encoding: dict[str, Any], tmp_path: Path) -> None:
    own(tmp_path, "ddpm")
    lessons(tmp_path, encoding)


@pytest.mark.parametrize("kind", ["edm", "stylegan2", "pixels"])
def test_no_lesson_makes_the_host_wait(kind: str, tmp_path: Path) -> None:
    own(tmp_path, kind)
    lessons(tmp_path, {"encoding": "ddim", "T": 40, "passes": 2})


def own(folder: Path, kind: str) -> None:
    generator = get_kind(kind).Generator(Teacher(kind=kind, size="tiny", resolution=SIDE, T_train=100))
    generator.save(generator.build(), folder, {"resolution": SIDE})


@pytest.mark.parametrize("name", MODELS)
def test_no_lesson_of_an_imported_diffusion_model_makes_the_host_wait(name: str, tmp_path: Path) -> None:
    options = diffusers_models.MODELS[name](tmp_path)
    import_teacher("diffusers", str(tmp_path / "source"), tmp_path / "teacher", options)
    lessons(tmp_path / "teacher", MODELS[name])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_no_lesson_of_an_encoder_makes_the_host_wait(name: str, tmp_path: Path) -> None:
    import_teacher("timm", name, tmp_path / "teacher", ["pretrained=false"])
    lessons(tmp_path / "teacher", {"T": 40})
