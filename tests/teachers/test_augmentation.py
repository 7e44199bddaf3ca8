"""Each augmentation against numpy, and its frequency."""

from __future__ import annotations

import math

import pytest
import torch

from dreamteacher.teachers.augmentation import PARAMETERS, draw_parameters, transform
from dreamteacher.training.randomness import StepRandom


def images(side: int = 16) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def changed(pictures: torch.Tensor, **values: float) -> torch.Tensor:
    names = ("left", "up", "scale", "cosine", "sine", "along", "across", "right", "down")
    return transform(pictures, torch.tensor([[values.get(name, 0.0) for name in names]] * len(pictures)))


def close(first: torch.Tensor, second: torch.Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4)


def test_no_parameters_change_nothing_to_the_bit() -> None:
    assert torch.equal(changed(images()), images())
    mixed = torch.zeros(2, PARAMETERS)
    mixed[1, 0] = 1
    result = transform(images(), mixed)
    assert torch.equal(result[0], images()[0])
    close(result[1], images()[1].flip(-1))


def test_flips_turns_and_shifts_by_whole_pixels_move_pixels() -> None:
    close(changed(images(), left=1), images().flip(-1))
    close(changed(images(), up=1), images().flip(-2))
    close(changed(images(), cosine=-1, sine=1), torch.rot90(images(), 1, (2, 3)))  # counterclockwise
    close(changed(images(), cosine=-2), images().flip(-1, -2))
    close(changed(images(), right=0.25)[..., 4:], images()[..., :-4])
    close(changed(images(), right=0.25)[..., :4], images()[..., :4].flip(-1))  # by reflection
    close(changed(images(), down=0.25)[..., 4:, :], images()[..., :-4, :])


def test_scale_makes_larger_and_stretch_doubles_one_way_and_halves_the_other() -> None:
    blurred = torch.nn.functional.interpolate(images(4), size=(64, 64), mode="bicubic")
    twice = torch.nn.functional.interpolate(blurred[..., 16:48, 16:48], size=(64, 64), mode="bilinear")
    inner = slice(4, -4)
    assert (changed(blurred, scale=math.log(2)) - twice)[..., inner, inner].abs().max() < 0.02
    wide = changed(blurred, along=math.log(2))  # to the right
    column = blurred.mean(1)[:, 31:33].mean(1)  # the middle row is stretched about the middle of the picture
    expected = torch.nn.functional.interpolate(column[:, None, 16:48], size=64, mode="linear")[:, 0]
    assert (wide.mean(1)[:, 31:33].mean(1) - expected)[:, inner].abs().max() < 0.05


def test_an_eighth_of_the_pictures_gets_each_change_of_the_strength_of_the_paper() -> None:
    parameters = draw_parameters(20_000, StepRandom(0, 0, 0, 1))
    assert parameters.shape == (20_000, PARAMETERS)
    made = {
        name: parameters[:, columns].ne(0).any(1)
        for name, columns in {"scale": [2], "turn": [3, 4], "stretch": [5, 6], "shift": [7, 8]}.items()
    }
    for name, which in made.items():
        assert float(which.float().mean()) == pytest.approx(0.12, abs=0.01), name
    for column in (0, 1):
        assert float(parameters[:, column].mean()) == pytest.approx(0.06, abs=0.01)  # of those chosen one half is flipped
    assert float(parameters[made["scale"], 2].std()) == pytest.approx(0.2 * math.log(2), rel=0.05)
    assert float(parameters[made["shift"]][:, 7:].std()) == pytest.approx(0.125, rel=0.05)
    turned = parameters[made["turn"]]
    torch.testing.assert_close((turned[:, 3] + 1).square() + turned[:, 4].square(), torch.ones(len(turned)))
    assert torch.equal(parameters, draw_parameters(20_000, StepRandom(0, 0, 0, 1)))
