"""Classes without a labelled picture are reported, for each task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dreamteacher.data.boxes import Boxes
from dreamteacher.data.items import IGNORE
from dreamteacher.errors import UserError
from dreamteacher.tasks import unseen
from dreamteacher.tasks.unseen import check_labels


class Labels:
    """The part of an ImageSet that is asked for; `read` counts."""

    def __init__(self, labels: list[Any], classes: int):
        forms = {np.ndarray: "mask", Boxes: "boxes"}
        self.form, self.labels, self.read = forms.get(type(labels[0]), "class"), labels, 0
        self.classes = [f"class{number}" for number in range(classes)]

    def label(self, index: int) -> Any:
        self.read += 1
        return self.labels[index]


def mask(*values: int) -> np.ndarray:
    return np.array([values], np.uint8)


def boxes(*classes: int, ignored: int = 0) -> Boxes:
    """The last `ignored` of them are regions to ignore."""
    corners = np.tile(np.float32([1, 2, 3, 4]), (len(classes), 1))
    return Boxes(corners, np.array(classes, np.int64), np.arange(len(classes)) >= len(classes) - ignored)


@pytest.mark.parametrize(
    ("labels", "classes", "few", "line"),
    [
        ([mask(0, 1), mask(0, IGNORE), mask(2)], 3, [0, 1], "none of the 2 labelled pictures shows class class2; raise"),
        ([mask(0, 1), mask(2)], 3, [0, 1], None),
        ([mask(0)], 8, [0], "shows class class1, class2, class3, class4, class5 and 2 more; raise few_labels"),
        ([mask(IGNORE, 0)], 256, [0], "shows class class1, class2, class3, class4, class5 and 250 more"),
        ([0, 2], 3, [0, 1], "none of the 2 labelled pictures is of class class1; raise few_labels or label more"),
        ([0, 1, 255], 3, [0, 1], "is of class class2;"),
        ([1, 0], 2, [0, 1], None),
        ([boxes(0, 1), boxes(), boxes(2)], 3, [0, 1], "none of the 2 labelled pictures shows class class2; raise few_labels"),
        ([boxes(0, 1, ignored=1)], 2, [0], "shows class class1;"),
        ([boxes(0), boxes(1)], 2, [0, 1], None),
    ],
)
def test_the_class_is_named(labels: list[Any], classes: int, few: list[int], line: str | None, caplog: pytest.LogCaptureFixture) -> None:
    check_labels(Labels(labels, classes), few)  # type: ignore[arg-type]
    assert [line in record.getMessage() for record in caplog.records if line] == ([True] if line else [])
    assert bool(caplog.records) == bool(line)


def test_labels_that_show_no_class_are_refused() -> None:
    """Reduced to ingest.short_side a sparse mask may lose all it has."""
    with pytest.raises(UserError, match=r"no pixel of the 2 labelled pictures has a class, .* raise few_labels or ingest\.short_side"):
        check_labels(Labels([mask(IGNORE), mask(IGNORE, IGNORE)], 2), [0, 1])  # type: ignore[arg-type]


def test_no_more_masks_are_read_than_needed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """With all pictures labelled there may be a million; once every class was seen, or with too many to read, none more is read."""
    images = Labels([mask(0), mask(1), *[mask(0)] * 50], 2)
    check_labels(images, list(range(52)))  # type: ignore[arg-type]
    assert images.read == 2
    monkeypatch.setattr(unseen, "MASKS", 10)
    many = Labels([mask(0)] * 11, 2)
    check_labels(many, list(range(11)))  # type: ignore[arg-type]
    assert (many.read, caplog.records) == (0, [])
