"""The outputs of a run for its report: complete ones by path, and missing ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamteacher.report.paired import Row
from dreamteacher.report.summary import TITLES, main_metric
from dreamteacher.settings.presets import UNTRAINED_KINDS

METRICS, ROWS = "metrics.json", "per_model.csv"  # of evaluate
REFERENCE = "scratch"  # the initialisation with which all others are compared


@dataclass(frozen=True)
class Output:
    """A complete stage output and its stage.json."""

    folder: Path
    record: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        """Its metrics."""
        return dict(self.record["metrics"])

    @property
    def params(self) -> dict[str, Any]:
        """Its settings and identity within the stage."""
        return dict(self.record["params"])

    def json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file; {} if it does not exist."""
        path = self.folder / name
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def rows(self, name: str) -> Iterator[dict[str, str]]:
        """The rows of a CSV file; none if it does not exist."""
        path = self.folder / name
        if path.exists():
            with path.open(newline="") as file:
                yield from csv.DictReader(file)

    def curve(self, column: str, name: str = "curves.csv") -> list[tuple[float, float]]:
        """[(step, value)] of the rows that have `column`."""
        return [(float(row["step"]), float(row[column])) for row in self.rows(name) if row.get(column)]

    def pictures(self, pattern: str) -> list[Path]:
        """PNG files that match a pattern, in numerical order."""
        return sorted(self.folder.glob(pattern), key=lambda path: (len(path.name), path.name))


@dataclass(frozen=True)
class Run:
    """The outputs of a run by their paths below `artifacts`, such as finetuned/scratch/0.

    Attributes:
        found: complete outputs.
        missing: {path: command that makes it} of outputs that the settings name and that do not exist.
        notes: caveats for the reader.
        teacher_of: {recipe: its teacher's name}.
        base_of: {recipe with labels: the recipe without labels that it starts from}.
    """

    found: dict[str, Output]
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    teacher_of: dict[str, str] = field(default_factory=dict)
    base_of: dict[str, str] = field(default_factory=dict)

    def below(self, place: str) -> dict[str, Output]:
        """{name: output} of all outputs below a path."""
        return {name.removeprefix(f"{place}/"): output for name, output in self.found.items() if name.startswith(f"{place}/")}

    @property
    def data(self) -> Output | None:
        """The data set; None without one."""
        return self.found.get("data")

    @property
    def description(self) -> dict[str, Any]:
        """dataset.json of the data set: task (null without labels), classes, counts; {} without one."""
        return self.data.json("dataset.json") if self.data else {}

    @property
    def evaluation(self) -> Output | None:
        """The evaluation of the fine-tuned models; None without one."""
        return self.found.get("evaluation")

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """metrics.json of the evaluation; {} without one."""
        return self.evaluation.json(METRICS) if self.evaluation else {}

    @property
    def models(self) -> list[Row]:
        """The metrics of each model; empty without an evaluation."""
        return list(self.evaluation.rows(ROWS)) if self.evaluation else []

    @property
    def controls(self) -> list[str]:
        """The compared recipes, with or without labels, whose teacher is untrained: random weights, or the pictures themselves."""
        untrained = {name for name, output in self.below("teachers").items() if output.params["teacher"]["kind"] in UNTRAINED_KINDS}
        return [init for init in self.results if self.teacher_of.get(self.base_of.get(init, init)) in untrained]

    @property
    def metric(self) -> str:
        """The key of the main metric; "" without an evaluation."""
        return main_metric(self.results) if self.results else ""

    @property
    def title(self) -> str:
        """The display name of the main metric."""
        return TITLES.get(self.metric, self.metric)


@dataclass(frozen=True)
class Table:
    """Rows of text below a header; `numbers` are numeric columns, `best` is the highlighted row."""

    head: list[str]
    rows: list[list[str]]
    numbers: frozenset[int] = frozenset()
    best: int | None = None
