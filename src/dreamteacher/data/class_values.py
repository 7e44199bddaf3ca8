"""Labels that are measured values or identities (ages, counts, ids), which would silently become classes."""

from __future__ import annotations

from collections.abc import Iterator

from dreamteacher.data.class_list import NUMBER
from dreamteacher.errors import UserError

MIN_LABELS = 10  # labels from which their variety tells
MAX_VARIETY = 0.5  # share of different numbers among labels above which numbers are values
SPREAD = 2  # numbers up to this times their count may be ids with gaps


def refuse_values(values: list[str], n_labels: int, where: str, *, are_named: bool) -> None:
    """Refuse labels that have too few pictures each to be classes.

    Args:
        values: the different labels.
        n_labels: number of labelled pictures.
        where: of the labels.
        are_named: classes.txt names the classes, so that numbers are meant as such.

    Raises:
        UserError: every label is different, or more than MAX_VARIETY of them are different numbers with gaps.
    """
    if n_labels < MIN_LABELS:
        return
    if len(values) == n_labels:
        raise UserError(
            f"{where}: each of its {n_labels} labels is another, such as {values[0]!r}, and a class needs several pictures; write classes, "
            "or remove it"
        )
    if are_named or len(values) <= MAX_VARIETY * n_labels or not all(map(NUMBER.fullmatch, values)):
        return
    numbers = sorted(float(value) for value in values)
    if numbers[0] in (0, 1) and numbers[-1] - numbers[0] == len(numbers) - 1:  # 0..K-1 or 1..K, as of classes with few labels
        return
    raise UserError(
        f"{where}: its {n_labels} labels are {len(values)} different numbers, such as {values[0]}, as ages, counts or ids are, and a class "
        "needs several pictures; write the names of classes, such as ranges, into labels.csv, or set ingest.labels to none"
    )


def notes_on_values(names: list[str], file: str) -> Iterator[str]:
    """A note on numbers in `file` that were taken as the classes `names` and may be values."""
    if fractions := [name for name in names if NUMBER.fullmatch(name) and not float(name).is_integer()]:
        yield f"{fractions[0]!r} in {file} and {len(fractions) - 1} other fractions are taken as classes; values are not learnt as such"
    elif names and all(map(NUMBER.fullmatch, names)) and max(numbers := [int(float(name)) for name in names]) >= SPREAD * len(names):
        yield (
            f"the numbers in {file}, from {min(numbers)} to {max(numbers)}, are taken as {len(names)} classes; values such as ages or "
            "counts are not learnt as such"
        )
