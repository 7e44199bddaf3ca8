"""Which trainings an assessment consists of, so that they fit into its minutes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from dreamteacher.assessment.changes import Change

LEAST_STEPS = 50  # of a training; with fewer nothing is learnt
OF_CHANGES = 2  # draws with which a change is tried, at most


@dataclass(frozen=True)
class Point:
    """One training from scratch with `labels` labelled pictures of a draw; `change` is a name of `changes`, or nothing."""

    labels: int
    draw: int
    change: str = ""

    @property
    def key(self) -> str:
        """For file names."""
        return "-".join(filter(None, [str(self.labels), str(self.draw), self.change]))


@dataclass(frozen=True)
class Plan:
    """The trainings, each of `steps` steps without its change. seconds: all of them take, about; needed: with all the steps asked for."""

    steps: int
    points: list[Point]
    seconds: float
    needed: float


@dataclass(frozen=True)
class Speed:
    """Seconds, measured here: of one step; of scoring one held-out model; `start`: of a training apart from its steps."""

    step: float
    score: float
    start: float = 0.0


def sizes(few: int, pool: int, least: int) -> list[int]:
    """Numbers of labels of the learning curve: `few`, halves of it and its doubles, and all of `pool`; but `few` none below `least`.

    More than two doubles are left out between `few` and `pool`, more than two halves below.
    """
    wanted = {few * 2**times for times in (1, 2)} | {few // 2**times for times in (0, 1, 2)} | {pool}
    if few < pool:  # what matters then lies above
        wanted.discard(few // 4)
    found = sorted(n for n in wanted if n == few or least <= n <= pool)
    # Two numbers within a quarter of each other tell the same; the last and `few` itself stay.
    return [n for n, after in [*pairwise(found), (found[-1], None)] if after is None or n == few or after > 1.25 * n]


def make_plan(few: int, numbers: list[int], draws: int, tried: dict[str, Change], speed: Speed, *, steps: int, seconds: float) -> Plan:
    """The richest of several plans whose trainings of `steps` steps fit into `seconds`; else the poorest, with fewer steps.

    Args:
        few: labels with which changes are tried, one of `numbers`.
        numbers: of the learning curve, see `sizes`.
        draws: at most.
        tried: changes, the most telling first.
    """
    fewest = sorted({numbers[0], few, numbers[-1], *([numbers[-2]] if few == numbers[-1] else [])}) if len(numbers) > 1 else numbers
    choices = [
        (numbers, draws, list(tried), OF_CHANGES),
        (numbers, draws, list(tried)[:2], OF_CHANGES),
        (numbers, draws, list(tried)[:1], OF_CHANGES),
        (numbers, min(draws, 2), list(tried)[:1], 1),
        (fewest, min(draws, 2), list(tried)[:1], 1),
    ]
    for labels, times, names, often in choices:
        points = [Point(n, draw) for draw in range(times) for n in labels]
        points += [Point(few, draw, name) for name in names for draw in range(min(often, times))]
        work = sum(tried[point.change].cost if point.change else 1.0 for point in points)
        fixed = len(points) * (speed.score + speed.start)
        needed = fixed + work * steps * speed.step
        if needed <= seconds:
            return Plan(steps, points, needed, needed)
    fitting = max(LEAST_STEPS, _two_digits((seconds - fixed) / (work * speed.step)))
    steps = min(steps, fitting)
    return Plan(steps, points, fixed + work * steps * speed.step, needed)


def _two_digits(value: float) -> int:
    """Rounded down to a number that people would write: 1278 to 1200."""
    if value < 10:
        return max(1, int(value))
    digits = 10 ** (len(str(int(value))) - 2)
    return int(value) // digits * digits
