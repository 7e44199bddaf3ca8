"""Class-conditional and synthesising teachers through the stages; and unsupported combinations."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chain import brief_params, draw

from dreamteacher.data.dataset import ImageSet, Samples
from dreamteacher.data.transforms import pretrain_crop, with_class
from dreamteacher.errors import UserError
from dreamteacher.stages import distill_features, distill_labels, ingest, train_interpreter, train_teacher
from dreamteacher.teachers import unet
from dreamteacher.teachers.encodings import Dream, Stratified
from dreamteacher.teachers.folder import open_teacher


@pytest.fixture(autouse=True)
def slim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(unet.SIZES, "tiny", {**unet.SIZES["tiny"], "widths": (8, 8, 16, 16, 16), "head_dim": 8, "groups": 4})


@pytest.mark.parametrize("kind", ["ddpm", "edm"])
def test_a_teacher_is_told_classes_and_a_backbone_learns_from_it(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    params = brief_params(draw("classification", tmp_path / "source"))
    teacher = params.teacher.model_copy(update={"kind": kind, "conditional": True, "self_conditioning": True})
    params = params.model_copy(update={"teacher": teacher})
    data: dict[str, Any] = {"data": tmp_path / "data", "params": params}
    ingest.run(params, source=tmp_path / "source", out=tmp_path / "data")
    with caplog.at_level(logging.WARNING):
        train_teacher.run(**data, out=tmp_path / "teacher")
    assert "the teacher is told the classes of 10 pictures, more than few_labels = 6" in caplog.text
    assert json.loads((tmp_path / "teacher/teacher.json").read_text())["classes"] == ["green", "red"]
    metrics = distill_features.run(**data, teacher=tmp_path / "teacher", out=tmp_path / "features")
    assert metrics["loss"] > 0


def test_labels_are_read_from_dreams_in_a_share_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"labels": {"dreams": 0.5, "passes": 3, "mode": "labels"}}
    params = brief_params(draw("classification", tmp_path / "source"), **changes)
    data: dict[str, Any] = {"data": tmp_path / "data", "params": params}
    ingest.run(params, source=tmp_path / "source", out=tmp_path / "data")
    train_teacher.run(**data, out=tmp_path / "teacher")
    distill_features.run(**data, teacher=tmp_path / "teacher", out=tmp_path / "features")
    train_interpreter.run(**data, teacher=tmp_path / "teacher", seed=0, out=tmp_path / "interpreter")
    encode, dreamt, seen = Dream.encode, [], []
    soft_labels = distill_labels.soft_label_cross_entropy

    def watched(self: Dream, *args: Any) -> Any:
        dreamt.append((self, encode(self, *args)))
        return dreamt[-1][1]

    def learned(logits: torch.Tensor, soft: torch.Tensor, tau: float) -> torch.Tensor:
        seen.append(len(dreamt))
        return soft_labels(logits, soft, tau)

    monkeypatch.setattr(Dream, "encode", watched)
    monkeypatch.setattr(distill_labels, "soft_label_cross_entropy", learned)
    folders = {name: tmp_path / name for name in ("teacher", "features", "interpreter")}
    distill_labels.run(**data, **folders, seed=0, recipe="labels", out=tmp_path / "labels")
    assert seen == [0, 1, 1, 2]  # of four steps every second one
    assert all(encoding == Dream(params.interpreter.T, 3) for encoding, _ in dreamt)
    for encoding, words in (
        (Stratified((1, 5, 9)), "needs an interpreter of one noise step"),
        (None, "needs a teacher that is a diffusion"),
    ):
        teacher = open_teacher(tmp_path / "teacher", [4, 8], encoding) if encoding else torch.nn.Identity()
        with pytest.raises(UserError, match=rf"labels\.dreams {words}"):
            distill_labels._dreaming(teacher, params.labels)  # type: ignore[arg-type]


def test_pictures_without_a_label_are_of_no_class(tmp_path: Path) -> None:
    params = brief_params(draw("classification", tmp_path / "source"))
    ingest.run(params, source=tmp_path / "source", out=tmp_path / "data")
    images = ImageSet(tmp_path / "data", "train")
    samples = Samples(images, with_class(pretrain_crop(16), 2))
    class_ids = {images.names[i].split("/")[1]: int(samples[i, 0]["class"]) for i in range(len(images))}
    assert class_ids == {"green": 0, "red": 1, "unlabelled": 2}
    plain = Samples(images, pretrain_crop(16))
    assert all(torch.equal(samples[i, 7]["image"], plain[i, 7]["image"]) for i in range(len(images)))


@pytest.mark.parametrize(
    ("task", "kind", "words"),
    [
        ("segmentation", "ddpm", r"teacher\.conditional needs pictures with a class each .*, and the data set has labels of segmentation"),
        ("classification", "stylegan2", r"a teacher of kind 'stylegan2' cannot be told of classes; set teacher\.conditional = false"),
    ],
)
def test_what_has_no_classes_is_refused_in_one_line(task: str, kind: str, words: str, tmp_path: Path) -> None:
    params = brief_params(draw(task, tmp_path / "source"))
    params = params.model_copy(update={"teacher": params.teacher.model_copy(update={"kind": kind, "conditional": True})})
    ingest.run(params, source=tmp_path / "source", out=tmp_path / "data")
    with pytest.raises(UserError, match=words):
        train_teacher.run(params, data=tmp_path / "data", out=tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()
