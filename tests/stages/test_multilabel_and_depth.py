"""Multilabel classification and depth estimation, from labels to metrics."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ingest_sources import facts, reasons, report, run, save_pictures
from PIL import Image
from tiny_chain import brief_params, scratch_metrics

from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.decode import BadPicture, decode
from dreamteacher.data.depth import FAR, DepthCounts, from_tiff, read_depth, to_tiff
from dreamteacher.data.items import IGNORE
from dreamteacher.data.multilabel import from_json, to_json
from dreamteacher.errors import UserError
from dreamteacher.tasks import depth, multilabel

ONLY: dict[str, Any] = {"compare": {"inits": ["scratch"]}, "export": {"init": "scratch"}}


def table(folder: Path, text: str) -> Path:
    save_pictures(folder, "train/a.png", "train/b.png", "train/c.png", "val/d.png")
    (folder / "labels.csv").write_text(text)
    return folder


def labels_of(out: Path) -> dict[str, Any]:
    train = ImageSet(out, "train")
    return {Path(name).stem: train.label(index) for index, name in enumerate(train.names)}


def test_a_column_for_each_class(tmp_path: Path) -> None:
    text = "path,dog,cat\ntrain/a.png,1,0\ntrain/b.png,1.0,\ntrain/c.png,,\nval/d.png,1,-1\nval/d.png,1,-1\n"
    run(table(tmp_path / "source", text), tmp_path / "out")
    assert (facts(tmp_path / "out")["task"], facts(tmp_path / "out")["classes"]) == ("multilabel", ["dog", "cat"])
    assert labels_of(tmp_path / "out") == {"a": (1, 0), "b": (1, IGNORE), "c": None}


@pytest.mark.parametrize(
    "text", ["train/a.png,cat;dog", "train/a.png,dog | cat", 'train/a.png,"cat, dog"', "train/a.png,cat\ntrain/a.png,dog"]
)
def test_several_names_in_a_cell_or_on_lines(tmp_path: Path, text: str) -> None:
    source = table(tmp_path / "source", f"path,label\n{text}\ntrain/b.png,cat\nval/d.png,dog\n")
    run(source, tmp_path / "out", task="multilabel")
    assert facts(tmp_path / "out")["classes"] == ["cat", "dog"]
    assert labels_of(tmp_path / "out") == {"a": (1, 1), "b": (1, 0), "c": None}


def test_a_cell_of_several_is_one_class_unless_it_is_wanted_otherwise_and_ingest_says_so(tmp_path: Path) -> None:
    run(table(tmp_path / "source", "path,label\ntrain/a.png,cat;dog\ntrain/b.png,cat\nval/d.png,cat\n"), tmp_path / "out")
    assert facts(tmp_path / "out")["classes"] == ["cat", "cat;dog"]
    assert any(
        "'cat;dog', may be several in one; if so, set ingest.task to multilabel" in line for line in report(tmp_path / "out")["summary"]
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,kind\ntrain/a.png,cat\n", r"line 2: the column 'kind' holds 'cat', .* if it holds names of classes, call it label"),
        ("path,a,a\ntrain/a.png,1,0\n", "two columns have the same name"),
        ("path,a,b\ntrain/a.png,1,0\ntrain/a.png,0,0\n", "line 3: train/a.png has other values than in a line before"),
        ("path,a,b\n,1,0\n", "line 2: there is a label without a path"),
        ("path,a,split\ntrain/a.png,1,train\n", "its column split is not read"),
        ("path,a,b\ntrain/a.png,0,0\nval/d.png,0,1\n", "no picture of train has any of the classes"),
    ],
)
def test_what_is_no_table_of_labels_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(table(tmp_path / "source", text), tmp_path / "out")


@given(st.lists(st.sampled_from([0, 1, IGNORE]), min_size=1, max_size=9))
def test_labels_are_stored_without_loss(label: list[int]) -> None:
    assert from_json(to_json(tuple(label))) == tuple(label)


def test_figures_of_several_labels_leave_out_what_is_unknown() -> None:
    score = multilabel.TASK.score(["a", "b", "c"])
    assert score.compute() == {}
    for predicted, truth in (([0.9, 0.6, 0.1], [1, 0, 0]), ([0.2, 0.9, 0.1], [0, 1, 0]), ([0.8, 0.1, 0.9], [IGNORE, 1, 0])):
        score.update(torch.tensor(predicted), torch.tensor(truth))
    figures = score.compute()
    assert figures["ap_a"] == 1
    assert figures["ap_b"] == pytest.approx((1 + 2 / 3) / 2)
    assert figures["map"] == pytest.approx((figures["ap_a"] + figures["ap_b"]) / 2)
    assert figures["f1"] == pytest.approx((1 + 0.5) / 2)
    assert "ap_c" not in figures


def test_unknown_labels_cost_nothing() -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    batch = {"label": torch.tensor([[1, IGNORE]]), "count": torch.tensor(1)}
    multilabel.TASK.loss(logits, batch, None)["loss"].backward()  # type: ignore[arg-type]
    assert logits.grad.tolist() == [[-0.5, 0]]


def chain(source: Path, tmp_path: Path, task: str, **settings: Any) -> dict[str, float]:
    params = brief_params(source, ingest={"task": task, **settings}, finetune={"accumulate": 2}, **ONLY)
    figures = scratch_metrics(params, source, tmp_path)
    assert list((tmp_path / "out/overlays").iterdir())
    return figures


def test_several_labels_go_through_the_chain(tmp_path: Path) -> None:
    names = [f"{split}/{i}.png" for split, count in (("train", 8), ("val", 3)) for i in range(count)]
    save_pictures(tmp_path / "source", *names)
    rows = [f"{name},{i % 2},{(i + 1) % 3 // 2}" for i, name in enumerate(names)]
    (tmp_path / "source/labels.csv").write_text("path,a,b\n" + "\n".join(rows) + "\n")
    figures = chain(tmp_path / "source", tmp_path, "auto")
    assert [name for name in figures if name.endswith("_mean")] == [f"{name}_mean" for name in ("map", "f1", "f1_micro", "ap_a", "ap_b")]


def draw_depth(folder: Path) -> Path:
    """Brighter is nearer; 16 bits, floats and arrays of numpy, and a strip where nothing was measured."""
    for number in range(11):
        split = "train" if number < 8 else "val"
        bright = np.random.default_rng(number).integers(1, 6, (5, 7)).repeat(10, 0).repeat(10, 1)
        metres = np.where(np.arange(70) < 5, 0, 6.0 - bright)
        for place in ("images", "depth"):
            (folder / place / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray((bright * 40).astype(np.uint8)).convert("RGB").save(folder / f"images/{split}/{number}.png")
        if number % 3 == 0:
            Image.fromarray(metres.astype(np.uint16)).save(folder / f"depth/{split}/{number}.png")
        elif number % 3 == 1:
            Image.fromarray(np.where(metres > 0, metres, np.nan).astype(np.float32)).save(folder / f"depth/{split}/{number}.tif")
        else:
            np.save(folder / f"depth/{split}/{number}.npy", metres[None])
    return folder


def test_depth_goes_through_the_chain(tmp_path: Path) -> None:
    source = draw_depth(tmp_path / "source")
    figures = chain(source, tmp_path, "depth", short_side=32)
    assert [name for name in figures if name.endswith("_mean")] == [f"{name}_mean" for name in ("delta1", "abs_rel", "rmse")]
    val = ImageSet(tmp_path / "data", "val")
    assert (val.task, val.classes, len(val.labelled())) == ("depth", [], 3)
    for index in val.labelled():
        label = val.full_size_label(index)
        assert label.shape == (50, 70)
        assert label.dtype == np.float32
        assert (label[:, :5] == 0).all()
        assert set(np.unique(label[:, 5:]).tolist()) <= {1, 2, 3, 4, 5}
    run(source, tmp_path / "auto")
    assert facts(tmp_path / "auto")["task"] is None


def test_ingest_and_evaluation_say_in_which_unit_depth_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(draw_depth(tmp_path / "source"), tmp_path / "out", task="depth")
    found = report(tmp_path / "out")
    assert found["depth"]["val"] == {"min": 1, "median": pytest.approx(3, rel=0.02), "max": 5}
    assert any(line.startswith("depth in val is 1 to 5, half of it below 2.99,") for line in found["summary"])
    score = depth.TASK.score([])
    with caplog.at_level("INFO"):
        caplog.clear()
        for _ in range(2):
            score.update(torch.tensor([[1.2, 3.0]]), torch.tensor([[250.0, 7000.0]]))
            score.compute()
    (record,) = caplog.records
    assert record.getMessage().startswith("the depth labels of the evaluation are 250 to 7000, half")


def test_the_middle_of_many_depths_is_known_without_keeping_them() -> None:
    together, apart = DepthCounts(), DepthCounts()
    values = np.random.default_rng(0).lognormal(3, 2, (40, 50)).astype(np.float32)
    values[:3] = 0
    together.add(values)
    for row in values[::-1]:
        apart.add(row)
    assert together.span() == apart.span()
    assert together.span()["median"] == pytest.approx(np.median(values[3:]), rel=0.015)
    assert DepthCounts().span() == {}


def test_depth_that_cannot_be_costs_its_picture_alone(tmp_path: Path) -> None:
    source = draw_depth(tmp_path / "source")
    np.save(source / "depth/train/2.npy", np.array(["far"]))
    (source / "depth/train/3.png").write_bytes(b"\x89PNG")
    run(source, tmp_path / "out", task="depth", max_bad_fraction=0.5)
    assert list(reasons(tmp_path / "out")) == ["images/train/2.png", "images/train/3.png"]


def test_depth_of_8_bits_is_said() -> None:
    values = np.arange(20, dtype=np.uint8).reshape(4, 5)
    picture = decode(_png(np.zeros((4, 5, 3), np.uint8)))
    assert read_depth(_png(values), picture, 1000)[1] == ("depth_of_8_bits",)
    assert read_depth(_png(values.astype(np.uint16)), picture, 1000)[1] == ()


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_depth_or_refused(data: bytes, numpy: bool) -> None:
    picture = decode(_png(np.zeros((4, 5, 3), np.uint8)))
    with pytest.raises(BadPicture):
        read_depth(b"\x93NUMPY" * numpy + data, picture, 1000)


@given(st.lists(st.floats(width=32), min_size=20, max_size=20))
def test_depth_is_read_as_it_is_and_0_where_it_cannot_be(values: list[float]) -> None:
    array, file = np.array(values, np.float32).reshape(4, 5), io.BytesIO()
    np.save(file, array)
    read, warnings = read_depth(file.getvalue(), decode(_png(np.zeros((4, 5, 3), np.uint8))), 1000)
    assert warnings == ()
    known = np.isfinite(array) & (array > 0) & (array < FAR)
    assert np.array_equal(read, np.where(known, array, 0))
    assert np.array_equal(from_tiff(to_tiff(read)), read)


def test_the_loss_of_depth_halves_a_common_factor_and_leaves_out_the_unknown() -> None:
    truth = torch.tensor([[[2.0, 4.0, 0.0, 8.0]]])
    same = truth.clamp(min=1).log()[:, None]
    loss = depth.TASK.loss
    assert loss(same, {"label": truth}, None)["loss"].item() == pytest.approx(0)  # type: ignore[arg-type]
    assert loss(same + 1, {"label": truth}, None)["loss"].item() == pytest.approx(0.5)  # type: ignore[arg-type]
    assert loss(same, {"label": truth * 0}, None)["loss"].item() == 0  # type: ignore[arg-type]


def test_figures_of_depth() -> None:
    score = depth.TASK.score([])
    score.update(torch.tensor([[1.2, 3.0, 9.0]]), torch.tensor([[1.0, 2.0, 0.0]]))
    assert score.compute() == pytest.approx({"delta1": 0.5, "abs_rel": 0.35, "rmse": (0.52) ** 0.5})


def _png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()
