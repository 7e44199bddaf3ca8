"""The plan of an assessment: the trainings that fit into its time budget."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from dreamteacher.assessment.changes import Change

MIN_STEPS = 50  # per training; fewer are useless
DRAWS_PER_CHANGE = 2  # at most


@dataclass(frozen=True)
class Point:
    """One training from scratch with `labels` labelled pictures of a draw; `change`: a key of `changes.changes`, or empty."""

    labels: int
    draw: int
    change: str = ""

    @property
    def key(self) -> str:
        """For file names."""
        return "-".join(filter(None, [str(self.labels), str(self.draw), self.change]))


@dataclass(frozen=True)
class Plan:
    """The trainings, of `steps` steps each. seconds: estimate of all; needed: estimate with the requested number of steps."""

    steps: int
    points: list[Point]
    seconds: float
    needed: float


@dataclass(frozen=True)
class Speed:
    """Measured seconds of a training step, of scoring a model on the held-out pictures, and of starting a training."""

    step: float
    score: float
    start: float = 0.0


def curve_sizes(few: int, pool: int, least: int) -> list[int]:
    """Numbers of labels on the learning curve: `few`, half and a quarter, two and four times, and `pool`; none but `few` below `least`.

    If `few` < `pool`, the quarter is left out.
    """
    wanted = {few * 2**times for times in (1, 2)} | {few // 2**times for times in (0, 1, 2)} | {pool}
    if few < pool:  # larger numbers are more informative
        wanted.discard(few // 4)
    found = sorted(n for n in wanted if n == few or least <= n <= pool)
    # Numbers within 25 % of the next are redundant; `few` and the last are kept.
    return [n for n, after in [*pairwise(found), (found[-1], None)] if after is None or n == few or after > 1.25 * n]


def make_plan(few: int, numbers: list[int], draws: int, tried: dict[str, Change], speed: Speed, *, steps: int, seconds: float) -> Plan:
    """The largest of several plans that fits into `seconds` with `steps` steps per training; else the smallest, with fewer steps.

    Args:
        few: labels with which changes are tried, one of `numbers`.
        numbers: of labels on the learning curve, see `curve_sizes`.
        draws: maximum number of draws.
        tried: changes, the most informative first.
        speed: of trainings.
        steps: requested steps per training.
        seconds: time budget.
    """
    fewest = sorted({numbers[0], few, numbers[-1], *([numbers[-2]] if few == numbers[-1] else [])}) if len(numbers) > 1 else numbers
    choices = [
        (numbers, draws, list(tried), DRAWS_PER_CHANGE),
        (numbers, draws, list(tried)[:2], DRAWS_PER_CHANGE),
        (numbers, draws, list(tried)[:1], DRAWS_PER_CHANGE),
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
    fitting = max(MIN_STEPS, _two_digits((seconds - fixed) / (work * speed.step)))
    steps = min(steps, fitting)
    return Plan(steps, points, fixed + work * steps * speed.step, needed)


def _two_digits(value: float) -> int:
    """Round down to two significant digits: 1278 to 1200."""
    if value < 10:
        return max(1, int(value))
    digits = 10 ** (len(str(int(value))) - 2)
    return int(value) // digits * digits
