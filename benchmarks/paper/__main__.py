"""A table of the paper, or a comparison of ours, on a set of pictures: recipes side by side over paired draws of labels.

    python -m benchmarks.paper tab09-objectives                          # on the sample
    python -m benchmarks.paper baselines camvid --source data/camvid --minutes 50
    python -m benchmarks.paper baselines camvid --source data/camvid --equal seconds

TABLE is a settings file in benchmarks/paper/tables, whose groups take the place of those of SET: a settings file in benchmarks/paper/sets
(`python -m benchmarks.datasets` writes the pictures), or a settings file of your own.

Each draw of labels has its own random weights, and every initialisation is trained on the same draws. Draw d starts from the pretraining of
seed d modulo the number of --pretraining-seeds. The chain's own stages run, each once for all tables and sessions with the same --work.
The command may be stopped at any time, and goes on when it is given again; --minutes stops it between two stages (exit code 75).

The figures go to --out/SET/TABLE.json as they come, where several sessions and machines add to them; `python -m benchmarks.results` makes
plots and docs/results.md of them. With --equal seconds each recipe's steps are those that fit into the seconds of the first recipe's
distillation, measured on this machine, and the file is TABLE-seconds.json. With --assess MINUTES the record also gets what `dreamteacher
assess` predicts from so many minutes of short trainings, which docs/results.md compares with what came.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.paper.budget import equal_seconds, with_steps
from benchmarks.paper.chain import Chain, OutOfTime
from benchmarks.paper.comparison import table
from benchmarks.paper.external import External
from benchmarks.paper.record import KEY, Record, describe_session, read, without_paths
from benchmarks.paper.settings import common, definition, read_table, resolve, set_names, short_name, table_names
from dreamteacher.errors import Interrupted, UserError
from dreamteacher.report.paired import Row
from dreamteacher.report.summary import markdown
from dreamteacher.tasks.base import get_task

ASSESSED = ("figure", "budget", "scratch", "spread", "headroom", "prediction")  # kept of assess.json
DRAWS, PRETRAINING_SEEDS = range(10), (0, 1)
STOPPED = 75  # EX_TEMPFAIL: give the command again


def main(words: list[str] | None = None) -> None:
    options = parse(words)
    os.environ.setdefault("DREAMTEACHER_TRACKING", "off")
    try:
        path = run(options, sys.argv[1:] if words is None else words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(128 + stop.signum) from stop
    if read(path)["models"]:
        print(markdown(table(read(path))))


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=table_names())
    parser.add_argument(
        "data_set", metavar="SET", nargs="?", default="nuclei", help=f"{', '.join(set_names())}, or FILE.yaml (default: nuclei)"
    )
    parser.add_argument("--source", type=Path, help="the set's pictures (default: ingest.source of its settings)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; may be given again")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(DRAWS), help="draws of labels (default: 0 to 9)")
    parser.add_argument("--pretraining-seeds", type=int, nargs="+", default=list(PRETRAINING_SEEDS), help="default: 0 1")
    parser.add_argument("--labels", type=_count, nargs="+", help="numbers of labels, or `all` (default: few_labels; of curves the set's)")
    parser.add_argument("--only", nargs="+", metavar="INIT", help="these initialisations alone (default: all of the table)")
    parser.add_argument("--equal", choices=("pictures", "seconds"), default="pictures", help="budget (default: %(default)s)")
    parser.add_argument(
        "--external", action="append", default=[], metavar="NAME=COMMAND",
        help="one more: a command that reads pictures in {data} and leaves timm weights of {backbone} in {out}",
    )  # fmt: skip
    parser.add_argument("--assess", type=float, metavar="MINUTES", help="first predict the gains, see docs/assess.md")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no stage after so long; 0: ingest alone (default: no limit)"
    )
    parser.add_argument("--as", dest="name", help="name of the result (default: TABLE)")
    parser.add_argument("--work", type=Path, default=Path("artifacts/paper"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="say what is left to do")
    return parser.parse_args(words)


def run(options: argparse.Namespace, words: list[str]) -> Path:
    """All models of the table that the record lacks; returns the record's path.

    Raises:
        UserError: settings are impossible, or the record is of others.
        SystemExit: the time is over.
    """
    described, name = read_table(options.table), short_name(options.data_set)
    params, counts = resolve(described, options.data_set, options.source, options.set)
    external = dict(_external(word, [*params.recipes, *params.label_recipes]) for word in options.external)
    inits = _chosen(options, [*params.compare.inits, *external])
    path = options.out / name / f"{options.name or options.table + ('-seconds' if options.equal == 'seconds' else '')}.json"
    labels = options.labels or (counts if described.curve else [params.few_labels])
    todo = _missing(read(path)["models"], options, inits, labels)
    if options.dry_run:
        print("\n".join(["to do:", *map(_words, todo)]))
        return path
    chain = Chain(params, options.work / name, external, time.monotonic() + 60 * options.minutes)
    try:
        budget = _set_budget(chain, read(path).get("budget", {})) if options.equal == "seconds" else {}
        made = {init: definition(chain.params, init) for init in params.compare.inits}
        made |= {init: {"command": without_paths(each.command)} for init, each in external.items()}
        head = {"table": options.table, "set": name, "control": described.control, "equal": options.equal, **_facts(chain)}
        record = Record(path, head, made, budget, describe_session(words))
        assessed = [row["labels"] for row in read(path)["assessments"]]
        for count in [count for count in labels if options.assess and count not in assessed]:
            facts = chain.assess(count, len(options.seeds), options.assess)
            record.add("assessments", {"labels": count, **{name: facts[name] for name in ASSESSED}})
        for number, key in enumerate(todo, start=1):
            begin, init, seed = time.monotonic(), key["init"], key["pretraining"]
            figures = chain.figures(init, seed, key["draw"], key["labels"])
            if before := chain.pretraining(init, seed):
                record.add("pretraining", {"init": init, "pretraining": seed, **before})
            record.add("models", key | figures)
            took = time.monotonic() - begin
            print(f"[{number}/{len(todo)}] {_words(key)}: {100 * figures[head['figure']]:.1f} ({took:.0f} s)", flush=True)
    except OutOfTime:
        print(f"the {options.minutes:g} minutes are over; the same command goes on", file=sys.stderr)
        raise SystemExit(STOPPED) from None
    return path


def _chosen(options: argparse.Namespace, inits: list[str]) -> list[str]:
    if unknown := [name for name in options.only or [] if name not in inits]:
        raise UserError(f"--only {unknown[0]}: {options.table} has {', '.join(inits)}")
    return [name for name in inits if not options.only or name in options.only]


def _missing(models: list[Row], options: argparse.Namespace, inits: list[str], labels: list[int | None]) -> list[dict[str, Any]]:
    """The keys of the models that are not there yet, draw by draw, so that a session that is stopped leaves whole pairs."""
    seeds = options.pretraining_seeds
    keys = [
        {"init": init, "labels": count, "draw": draw, "pretraining": seeds[draw % len(seeds)]}
        for draw in options.seeds
        for count in labels
        for init in inits
    ]
    there = [{name: row[name] for name in KEY} for row in models]
    return [key for key in keys if key not in there]


def _set_budget(chain: Chain, known: dict[str, Any]) -> dict[str, Any]:
    """Give each recipe, and each program of others, the seconds of the first recipe."""
    budget = equal_seconds(chain, known)
    chain.params = with_steps(chain.params, budget["steps"])
    seconds = budget["seconds_per_step"][budget["reference"]] * budget["steps"][budget["reference"]]
    chain.external = {name: replace(each, seconds=seconds) for name, each in chain.external.items()}
    return budget


def _facts(chain: Chain) -> dict[str, Any]:
    """What figures are measured of: the task's figure, the pictures, the settings that all share."""
    train, val = chain.images("train"), chain.images("val")
    data = {"task": train.task, "classes": train.classes, "labelled": len(train.labelled())}
    data |= {"train": train.digest(), "val": val.digest()}
    return {"figure": get_task(str(train.task)).figure, "data": data, "settings": common(chain.params)}


def _words(key: dict[str, Any]) -> str:
    return f"{key['init']}, {key['labels'] or 'all'} labels, draw {key['draw']}, pretraining {key['pretraining']}"


def _count(text: str) -> int | None:
    return None if text == "all" else int(text)


def _external(text: str, taken: list[str]) -> tuple[str, External]:
    name, sep, command = text.partition("=")
    if not sep or not command.strip() or not name.isidentifier():
        raise UserError(f"--external {text}: write it as NAME=COMMAND, such as 'mine=train.py {{data}} {{out}}'")
    if name in taken:
        raise UserError(f"--external {name}: the table has a recipe of this name; take another")
    return name, External(command)


if __name__ == "__main__":
    main()
