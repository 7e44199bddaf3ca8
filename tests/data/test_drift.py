import numpy as np
import pytest

from dreamteacher.data.drift import mean_shift


@pytest.mark.parametrize("columns", [1, 64])
def test_sets_drawn_alike_differ_by_what_chance_explains(columns):
    random = np.random.default_rng(0)
    squares = []
    for _ in range(2000):
        old, new = random.standard_normal((50, columns)), random.standard_normal((20, columns))
        shift = mean_shift(3 + 7 * old, 3 + 7 * new)
        squares.append((shift.shift / shift.by_chance) ** 2)
    assert np.mean(squares) == pytest.approx(1, abs=0.15)


def test_a_shift_is_in_units_of_the_old_spread():
    old = np.array([[0.0], [2.0]])  # mean 1, standard deviation 1
    shift = mean_shift(old, np.array([[4.0], [4.0]]))
    assert (shift.old, shift.new, shift.shift) == (1, 4, 3)
    assert mean_shift(np.ones((3, 1)), np.ones((2, 1))).shift == 0
    assert np.isfinite(mean_shift(np.ones((3, 1)), np.zeros((2, 1))).shift)


def test_directions_are_not_lost_among_many_columns():
    old = np.random.default_rng(0).standard_normal((100, 8))
    assert mean_shift(old, old + np.eye(8)[0]).shift == pytest.approx(1 / old.var(0).sum() ** 0.5)
