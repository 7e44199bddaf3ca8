"""What a run has made, as a page shows it: outputs of stages by the places where they lie, and those that are missing."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamteacher.report.paired import Row
from dreamteacher.report.summary import TITLES, headline

METRICS, ROWS = "metrics.json", "per_model.csv"  # of evaluate
REFERENCE = "scratch"  # what all others are compared with


@dataclass(frozen=True)
class Output:
    """A complete output of a stage, and its stage.json."""

    folder: Path
    record: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        """Its figures."""
        return dict(self.record["metrics"])

    @property
    def params(self) -> dict[str, Any]:
        """The settings that made it, and what else tells it from others of its stage."""
        return dict(self.record["params"])

    def json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file; {} where there is none."""
        path = self.folder / name
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def rows(self, name: str) -> Iterator[dict[str, str]]:
        """The lines of a CSV file; none where there is no such file."""
        path = self.folder / name
        if path.exists():
            with path.open(newline="") as file:
                yield from csv.DictReader(file)

    def curve(self, column: str, name: str = "curves.csv") -> list[tuple[float, float]]:
        """(step, value) of the records that have `column`."""
        return [(float(row["step"]), float(row[column])) for row in self.rows(name) if row.get(column)]

    def pictures(self, pattern: str) -> list[Path]:
        """PNG files by a pattern, in the order of the numbers in their names."""
        return sorted(self.folder.glob(pattern), key=lambda path: (len(path.name), path.name))


@dataclass(frozen=True)
class Run:
    """The outputs of a run by their places below `artifacts`, such as finetuned/scratch/0.

    Attributes:
        found: those that are complete.
        missing: places of those that the settings name and that are not there, with the commands that make them.
        notes: what else a reader must know before anything is read from the figures.
        teacher_of: {recipe: its teacher's name}.
    """

    found: dict[str, Output]
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    teacher_of: dict[str, str] = field(default_factory=dict)

    def below(self, place: str) -> dict[str, Output]:
        """{name: output} of all that lies below a place."""
        return {name.removeprefix(f"{place}/"): output for name, output in self.found.items() if name.startswith(f"{place}/")}

    @property
    def data(self) -> Output | None:
        """The data set."""
        return self.found.get("data")

    @property
    def description(self) -> dict[str, Any]:
        """dataset.json of the data set: task (null without labels), classes, counts; {} without one."""
        return self.data.json("dataset.json") if self.data else {}

    @property
    def evaluation(self) -> Output | None:
        """The comparison of the fine-tuned models."""
        return self.found.get("evaluation")

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """metrics.json of the evaluation; {} without one."""
        return self.evaluation.json(METRICS) if self.evaluation else {}

    @property
    def models(self) -> list[Row]:
        """The figures of each model; none without an evaluation."""
        return list(self.evaluation.rows(ROWS)) if self.evaluation else []

    @property
    def figure(self) -> str:
        """The key of the figure that counts; "" without an evaluation."""
        return headline(self.results) if self.results else ""

    @property
    def title(self) -> str:
        """Of that figure, in print."""
        return TITLES.get(self.figure, self.figure)


@dataclass(frozen=True)
class Table:
    """Rows of text below a head; `numbers` are the columns that hold figures, `best` the row that stands out."""

    head: list[str]
    rows: list[list[str]]
    numbers: frozenset[int] = frozenset()
    best: int | None = None
