"""What a record of figures says: means, spreads, paired gains with their intervals, and whether the paper's order holds."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

from dreamteacher.report.paired import Row, gain_over, points
from dreamteacher.report.summary import TITLES

SCRATCH = "scratch"
VERDICTS = {"gain": "re-established", "loss": "refuted"}  # of a pair that the paper has in this order; else within noise


def of_labels(content: dict[str, Any], labels: int | None) -> list[Row]:
    """The models of a record that were trained on so many labels, with a `seed` that numbers their pairs of draw and pretraining."""
    rows = [row for row in content["models"] if row["labels"] == labels]
    pairs = sorted({(row["draw"], row["pretraining"]) for row in rows})
    return [row | {"seed": pairs.index((row["draw"], row["pretraining"]))} for row in rows]


def label_counts(content: dict[str, Any]) -> list[int | None]:
    """The numbers of labels in a record, all of them (None) last."""
    counts = {row["labels"] for row in content["models"]}
    return sorted(counts, key=lambda count: (count is None, count or 0))


def inits(content: dict[str, Any], rows: list[Row]) -> list[str]:
    """The initialisations that have figures among `rows`, in the table's order."""
    return [init for init in content["inits"] if any(row["init"] == init for row in rows)]


def values(rows: list[Row], figure: str, init: str) -> list[float]:
    """In per cent."""
    return [100 * row[figure] for row in rows if row["init"] == init and figure in row]


def table(content: dict[str, Any]) -> list[list[str]]:
    """A line for each initialisation and number of labels: mean and sample standard deviation over the draws, paired gains, budgets."""
    figure, control = content["figure"], content["control"]
    title = TITLES.get(figure, figure)
    lines = [["", "labels", title, f"over {SCRATCH}", f"over {control}", "frozen, linear", "draws", "pictures", "seconds"]]
    for labels in label_counts(content):
        rows = of_labels(content, labels)
        for init in inits(content, rows):
            of_init = values(rows, figure, init)
            gains = [gain.short if (gain := gain_over(rows, figure, init, other)) and other != init else "" for other in (SCRATCH, control)]
            frozen = mean_and_spread(values(rows, f"linear_{figure}", init))
            budget = [_budget(content, init, name) for name in ("pictures", "seconds")]
            lines.append([init, str(labels or "all"), mean_and_spread(of_init), *gains, frozen, str(len(of_init)), *budget])
    return lines


def mean_and_spread(numbers: list[float]) -> str:
    """`79.7 ± 0.4`."""
    return f"{fmean(numbers):.1f}" + (f" ± {stdev(numbers):.1f}" if len(numbers) > 1 else "") if numbers else ""


def by_pretraining(content: dict[str, Any], labels: int | None) -> list[str]:
    """`features +3.1, +4.4`: the mean gain over scratch of each seed of the pretraining, where there are several."""
    rows = of_labels(content, labels)
    seeds = sorted({row["pretraining"] for row in rows})
    found = []
    for init in inits(content, rows):
        of_seed = [gain_over([row for row in rows if row["pretraining"] == seed], content["figure"], init, SCRATCH) for seed in seeds]
        if init != SCRATCH and len(seeds) > 1 and all(of_seed):
            found.append(f"{init} {', '.join(points(gain.mean) for gain in of_seed if gain)}")
    return found


def order(content: dict[str, Any], paper: dict[str, Any], labels: int | None) -> str:
    """Whether the paper's best row is above each other one here, too, in a sentence; "" where they were not measured.

    It is re-established where the interval lies above 0, refuted where it lies below, else within noise.
    """
    rows = of_labels(content, labels)
    there = [name for name in sorted(paper["rows"], key=paper["rows"].get, reverse=True) if name in inits(content, rows)]
    gains = {other: gain_over(rows, content["figure"], there[0], other) for other in there[1:]}
    pairs = [
        f"{there[0]} over {other}: paper {points((paper['rows'][there[0]] - paper['rows'][other]) / 100)}, here {gain.short} "
        f"({VERDICTS.get(gain.verdict, 'within noise')})"
        for other, gain in gains.items()
        if gain
    ]
    if not pairs:
        return ""
    found = {VERDICTS.get(gain.verdict, "within noise") for gain in gains.values() if gain}
    whole = found.pop() if len(found) == 1 else "refuted in part" if "refuted" in found else "re-established in part"
    figures = ", ".join(f"{name} {paper['rows'][name]:.1f}" for name in there)
    return f"The paper's order ({paper['figure']}: {figures}) is {whole}. {'; '.join(pairs)}."


def _budget(content: dict[str, Any], init: str, name: str) -> str:
    """The mean over the seeds of the pretraining."""
    found = [row[name] for row in content["pretraining"] if row["init"] == init and name in row]
    return f"{fmean(found):,.0f}" if found else ""
