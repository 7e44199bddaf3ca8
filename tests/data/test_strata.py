"""Stratified draws of labelled pictures."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreamteacher.data import strata
from dreamteacher.data.boxes import Boxes
from dreamteacher.data.dataset import ImageSet, few_labelled
from dreamteacher.data.instances import pack
from dreamteacher.errors import UserError
from dreamteacher.settings.schema import Params
from dreamteacher.stages import ingest

KINDS = 4


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """40 pictures with masks: 30 dark, 6 red, 3 green, 1 blue; a fifth show the class `rare`, one the class `once`."""
    folder = tmp_path_factory.mktemp("masks")
    hues = [(20, 20, 20)] * 30 + [(200, 30, 30)] * 6 + [(30, 200, 30)] * 3 + [(30, 30, 200)]
    for i, hue in enumerate(hues):
        pixels = np.random.default_rng(i).integers(0, 20, (24, 32, 3)) + np.array(hue)
        mask = np.zeros((24, 32), np.uint8)
        mask[4:12, 4:12] = 1
        mask[14:20, 4:12] = 2 if i % 5 == 0 else 0
        mask[14:20, 20:28] = 3 if i == 11 else 255
        for below, array in (("images", pixels.astype(np.uint8)), ("masks", mask)):
            (folder / below).mkdir(exist_ok=True)
            Image.fromarray(array).save(folder / below / f"{i:02}.png")
    (folder / "classes.txt").write_text("ground\nthing\nrare\nonce\n")
    ingest.run(Params(ingest={"val_fraction": 0}), source=folder, out=folder.with_name("of-masks"))
    return ImageSet(folder.with_name("of-masks"), "train")


def kinds(images: ImageSet, drawn: list[int]) -> Counter[int]:
    """Numbers of dark, red, green and blue pictures in a draw."""
    means = [images.read(i).image.mean(axis=(0, 1)) for i in drawn]
    return Counter(int(mean.argmax()) + 1 if mean.max() > 100 else 0 for mean in means)


def test_each_kind_of_picture_is_in_a_draw_by_cluster_whatever_the_seed(masks: ImageSet) -> None:
    for seed in range(5):
        assert set(kinds(masks, few_labelled(masks, 6, seed, "cluster"))) == set(range(KINDS))
    at_random = [len(kinds(masks, few_labelled(masks, 6, seed))) for seed in range(5)]
    assert min(at_random) < KINDS


def test_a_draw_by_cluster_has_one_of_each_and_depends_on_the_seed(masks: ImageSet) -> None:
    assert kinds(masks, few_labelled(masks, KINDS, 0, "cluster")) == dict.fromkeys(range(KINDS), 1)
    draws = {tuple(few_labelled(masks, 6, seed, "cluster")) for seed in range(5)}
    assert len(draws) > 2
    assert few_labelled(masks, 6, 3, "cluster") == few_labelled(masks, 6, 3, "cluster")
    assert few_labelled(masks, 40, 0, "cluster") == masks.labelled()


def test_each_class_of_masks_is_in_a_draw_by_class(masks: ImageSet) -> None:
    for seed in range(5):
        shown = [set(np.unique(masks.label(i)).tolist()) for i in few_labelled(masks, 5, seed, "class")]
        assert 3 in set().union(*shown)
        assert sum(2 in each for each in shown) >= 1
    assert len({tuple(few_labelled(masks, 5, seed, "class")) for seed in range(5)}) > 2
    assert few_labelled(masks, 40, 0, "class") == masks.labelled()


def test_the_default_draws_as_before(masks: ImageSet) -> None:
    """The first by hash of seed and content."""
    assert few_labelled(masks, 6, 0) == few_labelled(masks, 6, 0, "random") != few_labelled(masks, 6, 0, "class")


def labels(*classes: int, ignored: bool = False) -> Boxes:
    corners = np.tile(np.float32([0, 0, 5, 5]), (len(classes), 1))
    return Boxes(corners, np.array(classes, np.int64), np.full(len(classes), ignored))


def test_boxes_count_for_all_classes_that_they_show_and_empty_pictures_come_last() -> None:
    shown = [labels(), labels(0), labels(0, 0), labels(0, 1), labels(2, ignored=True), labels(2)]
    images: Any = SimpleNamespace(form="boxes", full_size_label=lambda i: shown[i])
    assert strata.by_class(images, [0, 1, 2, 3, 4, 5], 3) == [1, 3, 5]
    assert strata.by_class(images, [5, 4, 3, 2, 1, 0], 2) == [3, 5]
    assert strata.by_class(images, [0, 4, 3], 3) == [3, 0, 4]


def test_classes_of_objects_and_of_several_labels_count_and_depth_has_none() -> None:
    assert strata.classes_of(pack(np.array([[0, 1], [2, 2]]), np.array([0, 2])), "instances") == {0, 2}
    assert strata.classes_of(pack(np.array([[0, 1], [0, 0]]), np.array([1])), "instances") == {1}
    assert strata.classes_of((1, 0, 255, 1), "labels") == {0, 3}
    assert strata.classes_of(np.uint8([[0, 255], [3, 3]]), "mask") == {0, 3}
    assert strata.classes_of(2, "class") == {2}
    depth: Any = SimpleNamespace(form="depth", full_size_label=lambda i: np.ones((2, 2), np.float32))
    with pytest.raises(UserError, match="few_labels_by = class, but labels of the form depth have no classes"):
        strata.by_class(depth, [0], 1)


def test_a_hundred_thousand_labelled_pictures_take_no_longer_than_those_that_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    pictures = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)

    class Many:
        form = "mask"

        def __len__(self) -> int:
            return 100_000

        def labelled(self) -> list[int]:
            return list(range(100_000))

        def sha256(self, index: int) -> str:
            return f"{index:064x}"

        def read(self, index: int) -> Any:
            looked_at.append(index)
            return SimpleNamespace(image=pictures[index % 50])

        def full_size_label(self, index: int) -> np.ndarray:
            looked_at.append(index)
            return np.full((8, 8), index % 7, np.uint8)

    many: Any = Many()
    begun = time.process_time()
    for by in ("class", "cluster"):
        assert len(set(few_labelled(many, 20, 0, by))) == 20
    assert len(looked_at) == 2 * strata.CANDIDATES
    assert time.process_time() - begun < 20


def test_pictures_smaller_than_the_grid_are_described(tmp_path: Path) -> None:
    assert np.isfinite(strata.descriptor(np.full((3, 5, 3), 255, np.uint8))).all()
