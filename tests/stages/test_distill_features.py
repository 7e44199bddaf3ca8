from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from tiny_chain import Chain, brief_params

from dreamteacher.data.dataset import ImageSet
from dreamteacher.distillation import features
from dreamteacher.distillation.features import inner_cells
from dreamteacher.errors import UserError
from dreamteacher.methods.features import Features
from dreamteacher.stages import distill_features
from dreamteacher.stages.distill_features import _monitor, hold_out
from dreamteacher.students.backbone import create_backbone
from dreamteacher.students.regressor import load_regressor
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.teachers.folder import open_teacher
from dreamteacher.training.order import global_batch
from dreamteacher.training.randomness import StepRandom, derive_seed


def test_it_leaves_a_timm_backbone_and_its_regressor(chain: Chain) -> None:
    model = timm.create_model(f"local-dir:{chain.root / 'features/backbone'}", pretrained=True)
    regressor = load_regressor(chain.root / "features")
    assert regressor.heads.strides == [4, 8]
    for key, value in model.state_dict().items():
        assert torch.equal(regressor.backbone.model.state_dict()[key], value), key


def test_backbone_neck_and_heads_have_learned(chain: Chain) -> None:
    before, after = chain.begun["features"], load_regressor(chain.root / "features").state_dict()
    assert before.keys() == after.keys()
    still = {key for key, value in before.items() if value.is_floating_point() and torch.equal(value, after[key])}
    # the taps are 4 and 8: nothing reads the smoothed level of stride 16
    assert all(key.startswith("neck.smooth.2.") for key in still), still


def test_quality_is_measured_on_pictures_that_it_never_learns_from(chain: Chain) -> None:
    metrics = chain.metrics["features"]
    assert set(metrics) == {
        "ev_stride4",
        "ev_stride8",
        "explained_variance",
        "explained_within",
        "embedding_spread",
        "loss",
        "mse",
        "at",
        "at_floor",
        "pictures",
    }
    assert metrics["pictures"] == 4 * 4
    assert metrics["explained_variance"] == pytest.approx((metrics["ev_stride4"] + metrics["ev_stride8"]) / 2)
    images = ImageSet(chain.root / "data", "train")
    learned, held = hold_out(images, 3, 32, seed=0)
    assert len(held) == 3
    assert sorted(learned.indices + held.indices) == list(range(len(images)))
    assert hold_out(images, 3, 32, seed=0)[1].indices == held.indices != hold_out(images, 3, 32, seed=1)[1].indices
    with (chain.root / "features/curves.csv").open() as file:
        measured = [row["step"] for row in csv.DictReader(file) if row["explained_variance"]]
    assert measured == ["3", "4"]  # every third step and at the end


def test_quality_is_measured_in_parts_of_the_batch_with_the_same_figures(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As all held-out pictures at once would take tens of GB at 256 px."""
    method = Features(chain.params, chain.root / "teacher", tmp_path, torch.device("cpu"))
    generator = method.generator
    samples, held_out = hold_out(ImageSet(chain.root / "data", "train"), 6, 32, seed=0)
    method.build(create_backbone("test_resnet"), samples)
    regressor = load_regressor(chain.root / "features").eval()
    sizes = []
    teach = generator.teach
    monkeypatch.setattr(generator, "teach", lambda images, random: sizes.append(len(images)) or teach(images, random))
    figures = []
    for batch_size, accumulate in ((6, 1), (8, 2), (5, 1), (1, 1)):
        settings = chain.params.distill.model_copy(update={"batch_size": batch_size, "accumulate": accumulate})
        figures.append(_monitor(method, held_out, settings)(regressor, 0))
    assert sizes == [6, 3, 3, 3, 3, 1, 1, 1, 1, 1, 1]
    for other in figures[1:]:
        assert other == pytest.approx(figures[0], rel=1e-5)
    assert figures[0]["explained_variance"] != 0


def test_the_margin_leaves_the_border_out_of_loss_and_quality(
    chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def watched(maps: list[torch.Tensor], strides: list[int], margin: int) -> list[torch.Tensor]:
        inner = inner_cells(maps, strides, margin)
        seen.add((margin, *(tuple(m.shape[2:]) for m in inner)))
        return inner

    monkeypatch.setattr(features, "inner_cells", watched)
    made = chains["segmentation"]
    params = brief_params(made.source, distill={"margin": 5, "steps": 1})
    metrics = distill_features.run(params, data=made.root / "data", teacher=made.root / "teacher", out=tmp_path / "features")
    assert seen == {(5, (4, 4), (2, 2))}  # of 8 x 8 and 4 x 4
    assert metrics["explained_variance"] != made.metrics["features"]["explained_variance"]


def test_it_explains_more_of_the_teacher_the_longer_it_learns(chains: dict[str, Chain], tmp_path: Path) -> None:
    made = chains["segmentation"]
    changes = {"steps": 24, "lr": 3e-2, "batch_size": 8, "log_every": 4, "monitor_every": 1, "objectives": {"mse": 1.0, "at": 1.0}}
    distill_features.run(
        brief_params(made.source, distill=changes), data=made.root / "data", teacher=made.root / "teacher", out=tmp_path / "features"
    )
    with (tmp_path / "features/curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["explained_variance"]) > float(rows[0]["explained_variance"]) + 0.2
    losses = [float(row["mse"]) for row in rows if row["mse"]]
    assert losses[-1] < 0.7 * losses[0]


def test_what_cannot_be_is_refused_in_one_line(chain: Chain, tmp_path: Path) -> None:
    where = {"data": chain.root / "data", "teacher": chain.root / "teacher", "out": tmp_path / "features"}
    with pytest.raises(UserError, match="14 train pictures are too few to hold 8 out"):
        distill_features.run(brief_params(chain.source, distill={"monitor_images": 8}), **where)
    odd = chain.params.distill.model_copy(update={"resolution": 30})  # as a step is given it alone, not held against other settings
    with pytest.raises(UserError, match="pictures of 30x30 px do not fit the teacher: their sides must be multiples of 8"):
        distill_features.run(chain.params.model_copy(update={"distill": odd}), **where)
    other = chain.params.distill.model_copy(update={"T": 100})
    with pytest.raises(UserError, match="noise step T = 100 does not fit the teacher, which has 100 of them"):
        distill_features.run(chain.params.model_copy(update={"distill": other}), **where)
    with pytest.raises(UserError, match=r"no tap at stride 16; it has \[1, 2, 4, 8\]"):
        distill_features.run(chain.params.model_copy(update={"taps": [4, 16]}), **where)
    with pytest.raises(UserError, match="batch normalisation needs at least two pictures; raise batch_size or lower accumulate"):
        distill_features.run(brief_params(chain.source, distill={"accumulate": 4}), **where)
    assert list(tmp_path.iterdir()) == []


def test_a_student_without_the_teachers_strides_is_distilled_from_its_nearest_level(chains: dict[str, Chain], tmp_path: Path) -> None:
    """A pyramid begins at stride 4; the teacher's maps of stride 2 and 1 are regressed from there."""
    made = chains["segmentation"]
    params = brief_params(made.source, student={"backbone": "test_convnext"}, distill={"steps": 2, "monitor_every": 5})
    params = params.model_copy(update={"taps": [8, 2, 1]})
    metrics = distill_features.run(params, data=made.root / "data", teacher=made.root / "teacher", out=tmp_path / "features")
    assert set(metrics) >= {"ev_stride1", "ev_stride2", "ev_stride8"}


def test_collapse_is_a_warning(
    chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = chains["segmentation"]
    monkeypatch.setattr(distill_features, "COLLAPSED", 2.0)
    params = brief_params(made.source, distill={"steps": 1})
    distill_features.run(params, data=made.root / "data", teacher=made.root / "teacher", out=tmp_path / "features")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("step 1: the backbone gives all pictures nearly the same embedding (spread ")


def test_standardised_targets_are_measured_on_crops_of_train_pictures_drawn_by_seed_and_kept(chain: Chain, tmp_path: Path) -> None:
    params = brief_params(chain.source, distill={"whitening": "standardize", "stats_images": 5, "steps": 1})
    metrics = distill_features.run(params, data=chain.root / "data", teacher=chain.root / "teacher", out=tmp_path / "features")
    assert metrics["explained_variance"] != chain.metrics["features"]["explained_variance"]
    teacher = open_teacher(chain.root / "teacher", [4, 8], Stochastic(10))
    samples, _ = hold_out(ImageSet(chain.root / "data", "train"), params.distill.monitor_images, 32, seed=0)
    drawn = global_batch(len(samples), 5, derive_seed(0, "statistics"), step=0)
    assert len({index for index, _ in drawn}) == 5
    lesson = teacher.teach(torch.stack([samples[item]["image"] for item in drawn]), StepRandom(0, 0, 0, 1))
    statistics = json.loads((tmp_path / "features/statistics.json").read_text())
    for tap, maps in zip(teacher.taps, lesson.features, strict=True):
        np.testing.assert_allclose(statistics[tap.name]["mean"], maps.double().mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(statistics[tap.name]["std"], maps.double().std((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)
    assert not (chain.root / "features/statistics.json").exists()  # of whitening by layernorm
