"""Keypoints at the client: equal to the evaluation, unchanged through NAME-pictures' tensors, drawn with their skeleton, counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreamteacher.serving.answers import Keypoints, to_answer
from dreamteacher.serving.contract import VERSION_KEY, Contract
from dreamteacher.serving.rendering import rendering_of
from dreamteacher.tasks.keypoints import TASK

NAMES = ("nose", "left_eye", "right_eye")
CONTRACT = Contract(
    "keypoints", NAMES, (0.5,) * 3, (0.25,) * 3, 64, 32, None, None, "bilinear", (4, 8, 16, 32), skeleton=((0, 1), (0, 2))
)  # fmt: skip


@pytest.fixture
def outputs() -> dict[str, torch.Tensor]:
    """Of a head for a picture of 40 x 50, padded to 64 x 64: two objects."""
    found = {"centres": torch.full((1, 16, 16), -9.0), "points": torch.zeros(6, 16, 16), "seen": torch.zeros(3, 16, 16)}
    for row, column, heat in ((3, 4, 2.0), (8, 10, -0.2)):
        found["centres"][0, row, column] = heat
        found["points"][:, row, column] = torch.tensor([column, row, column + 1, row - 2, column - 1, row - 2]) / 16
        found["seen"][:, row, column] = torch.tensor([3.0, 1.0, -2.0])
    return found


def answer_of(outputs: dict[str, torch.Tensor], size: tuple[int, int]) -> Keypoints:
    served = dict(zip(TASK.served, TASK.serve({name: values[None] for name, values in outputs.items()}), strict=True))
    answer = to_answer(CONTRACT, {name: values[0].numpy() for name, values in served.items()}, (40, 50), size)
    assert isinstance(answer, Keypoints)
    return answer


def test_keypoint_answers_are_those_of_evaluation_in_the_pictures_own_size(outputs: dict[str, torch.Tensor]) -> None:
    answer, expected = answer_of(outputs, (80, 100)), TASK.decode(outputs, (40, 50), (80, 100)).numpy()
    assert answer.scores.tolist() == expected[:, 0].tolist()
    assert answer.scores.tolist() == pytest.approx([0.880797, 0.450166], abs=1e-5)  # the sigmoids of 2 and -0.2
    assert np.array_equal(answer.points, expected[:, 1:].reshape(2, 3, 3)[:, :, :2])
    assert answer.points[0].tolist() == [[32, 24], [40, 8], [24, 8]]  # cells of 4 px, in a picture of twice the size
    assert (answer.classes, answer.skeleton) == (NAMES, ((0, 1), (0, 2)))


def test_keypoint_answers_survive_conversion_to_tensors_also_without_objects(outputs: dict[str, torch.Tensor]) -> None:
    for given in (outputs, outputs | {"centres": torch.full((1, 16, 16), -9.0)}):
        answer = answer_of(given, (40, 50))
        tensors = answer.to_tensors()
        (kind, sizes), *_ = Keypoints.tensors(3).values()
        assert (kind, list(tensors["objects"].shape)) == ("TYPE_FP32", sizes)
        again = Keypoints.of_tensors(tensors, CONTRACT)
        for name in ("points", "seen", "scores"):
            assert np.array_equal(getattr(again, name), getattr(answer, name))


def test_the_contract_carries_the_skeleton_and_says_nothing_of_it_elsewhere() -> None:
    metadata = CONTRACT.to_metadata()
    assert Contract.from_metadata(metadata, "it") == CONTRACT
    assert metadata[VERSION_KEY] == "1"
    plain = replace(CONTRACT, skeleton=()).to_metadata()
    assert "skeleton" not in plain
    assert Contract.from_metadata(plain, "it").skeleton == ()


def test_keypoint_answers_are_counted_listed_and_drawn(outputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    answer, rendering = answer_of(outputs, (40, 50)), rendering_of(Keypoints)
    assert rendering.words(answer) == "2 objects with 2, 2 of 3 keypoints"
    assert rendering.values(answer) == {"nose": 2, "left_eye": 2, "right_eye": 0}
    first = rendering.listed(answer)["objects"][0]
    assert first == {
        "score": pytest.approx(0.8808),
        "keypoints": {
            "nose": {"x": 16, "y": 12, "seen": pytest.approx(0.9526)},
            "left_eye": {"x": 20, "y": 4, "seen": pytest.approx(0.7311)},
            "right_eye": {"x": 12, "y": 4, "seen": pytest.approx(0.1192)},
        },
    }
    grey = np.full((40, 50, 3), 128, np.uint8)
    files = rendering.save(answer, grey, tmp_path / "a")
    drawn = np.asarray(Image.open(files["overlay"]))
    assert drawn.shape == (400, 500, 3)
    changed = (drawn != 128).any(2)
    assert changed[80, 180]  # on the line from the nose to the left eye, which is sure enough
    assert not changed[80, 140]  # not on that to the right one
