"""Builds docs/results.md and its plots from the results of `python -m benchmarks.paper` in benchmarks/results.

    python -m benchmarks.results

benchmarks/results/SET/notes.yaml has a hand-written comment for each result.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import yaml

from benchmarks import assess
from benchmarks.paper.comparison import by_pretraining, label_counts, order, table
from benchmarks.paper.plots import draw, is_drawn
from benchmarks.paper.record import read
from benchmarks.paper.settings import read_table
from dreamteacher.report.summary import markdown

PROJECT = Path(__file__).parents[1]
RESULTS, PAGE, PLOT = PROJECT / "benchmarks/results", PROJECT / "docs/results.md", "assess.svg"
HEAD = """# Results

<!-- Made by `python -m benchmarks.results`; a test compares it with benchmarks/results. -->

Each table compares initialisations of the same backbone, fine-tuned on the same labelled pictures with the same settings and evaluated on a
validation split that training never sees. Gains are paired: both models were trained on the same draw of labels with the same random
weights. `±` after a metric is the standard deviation over draws; after a gain it is half the width of the 95 % interval (Student's t), in
points. Draws alternate between the pretraining seeds. `seconds` is the time of the distillation on the given machine, without training the
teacher. `over random-teacher` is the gain over the same recipe with a generator of random weights.

An interval that contains 0 means "not shown". Intervals are not corrected for the number of rows. The results are for small pictures and
short budgets on the given machines: they say which recipe is better there, and nothing about the paper's scale.

How to run a table, and add to it: [Recipes](recipes.md#the-papers-tables).
"""
PREDICTED = """
## Predicted gains

What [`dreamteacher assess`](assess.md) predicted from short trainings from scratch, before any pretraining and without the validation
split, beside the measured gain over scratch, in points. The prediction does not know the recipe. {right} of {all} are right in sign (a gain
of at least half a point, or none), {within} lie between the predicted bounds; `± error` is the standard error over the draws.

{table}

![predicted and measured gains]({plot})
"""
NOTHING = "\nNothing has been measured yet.\n"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: %(default)s")
    options = parser.parse_args(words)
    for path in records(options.results):
        if is_drawn(content := read(path)):
            draw(content, path.with_suffix(".svg"))
    if rows := predicted(options.results):
        assess.draw(rows, options.results / PLOT)
    options.page.write_text(page(options.results, options.page.parent))
    print(f"{options.page}: {len(records(options.results))} results")


def records(results: Path) -> list[Path]:
    """The files of figures below a folder that have any, by set and name."""
    return [path for path in sorted(results.glob("*/*.json")) if _is_record(path)]


def page(results: Path, beside: Path) -> str:
    """The page in the folder `beside`, as Markdown."""
    sections = []
    last = ""
    for path in records(results):
        name = path.parent.name
        notes = yaml.safe_load((path.parent / "notes.yaml").read_text()) if (path.parent / "notes.yaml").exists() else {}
        sections += [f"\n## {name}\n"] if name != last else []
        sections.append(section(path, notes.get(path.stem), Path(os.path.relpath(path.with_suffix(".svg"), beside))))
        last = name
    if rows := predicted(results):
        right, within = (sum(row[key] for row in rows) for key in ("right", "within"))
        plot = Path(os.path.relpath(results / PLOT, beside)).as_posix()
        sections.append(PREDICTED.format(right=right, within=within, all=len(rows), table=assess.table(rows), plot=plot))
    return HEAD + ("".join(sections) or NOTHING)


def predicted(results: Path) -> list[dict[str, Any]]:
    """The gains that were predicted and measured, of all records; a record with a name of its own says so."""
    rows = []
    for path in records(results):
        own = "" if path.stem == "label-efficiency" else f", {path.stem}"
        rows += [row | {"project": row["project"] + own} for row in assess.compare_record(read(path))]
    return rows


def section(path: Path, note: str | None, plot: Path) -> str:
    """A result: title, sentence by hand, the paper's order, table, plot, and what made it."""
    content = read(path)
    described = read_table(content["table"])
    counts = label_counts(content)
    own = "" if path.stem.removesuffix("-seconds") == content["table"] else f", {path.stem}"
    parts = [f"### {described.title}{own}" + (", at equal seconds" if content["equal"] == "seconds" else "")]
    parts += [note.strip()] if note else []
    if described.paper:
        parts += [text for labels in counts if (text := order(content, described.paper, labels))]
    parts.append(markdown(_without_empty(table(content))))
    parts += [f"![gains]({plot.as_posix()})"] if is_drawn(content) else []
    for labels in counts:
        if gains := by_pretraining(content, labels):
            parts.append(f"Gain over scratch by seed of the pretraining, {labels or 'all'} labels: {'; '.join(gains)}.")
    parts += [_made(session) for session in content["sessions"]]
    parts.append(f"Figures and settings: `{path.relative_to(path.parents[1]).as_posix()}` in benchmarks/results.")
    return "\n" + "\n\n".join(parts) + "\n"


def _made(session: dict[str, Any]) -> str:
    machine, versions = session["machine"], session["versions"]
    when = session["first"] if session["first"] == session["last"] else f"{session['first']} to {session['last']}"
    made_on = f"{machine['device']} ({machine['processor']}), torch {versions['torch']}"
    return f"`{session['command']}`, {when}, commit {session['commit']}, {made_on}."


def _without_empty(lines: list[list[str]]) -> list[list[str]]:
    """The table without columns that hold nothing."""
    kept = [column for column in range(len(lines[0])) if column == 0 or any(line[column] for line in lines[1:])]
    return [[line[column] for column in kept] for line in lines]


def _is_record(path: Path) -> bool:
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return False
    return isinstance(content, dict) and bool(content.get("models")) and "table" in content


if __name__ == "__main__":
    main()
