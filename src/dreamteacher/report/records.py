"""Sections of the report from records: data and quarantine, drift, gates, time of each stage, versions, settings."""

from __future__ import annotations

import json
from collections import Counter, deque
from itertools import islice
from typing import Any

from dreamteacher.clock import checkpoints_of, clock_of
from dreamteacher.graph import IDENTITY
from dreamteacher.report.run import Output, Run, Table
from dreamteacher.stage import flat

REASONS, REFUSED, CLASSES = 1000, 50, 50  # maximum distinct reasons, listed bad pictures, listed classes
COUNTS = {
    "pictures": "pictures found",
    "train": "for training",
    "val": "for validation",
    "labelled_train": "labelled, training",
    "labelled_val": "labelled, validation",
    "quarantined": "quarantined",
    "duplicates": "duplicates",
    "leaks": "in both splits",
}


def data(run: Run) -> dict[str, Any]:
    """Counts, classes, notes of ingest, and quarantined pictures: counts by reason, and the first by name."""
    if not run.data:
        return {}
    report = run.data.json("report.json")
    reasons: Counter[str] = Counter()
    first: list[list[str]] = []
    for row in run.data.rows("quarantine.csv"):
        if row["reason"] in reasons or len(reasons) < REASONS:
            reasons[row["reason"]] += 1
        if len(first) < REFUSED:
            first.append([row["path"], row["reason"]])
    return {
        "counts": [(words, f"{report[name]:,}".replace(",", " ")) for name, words in COUNTS.items() if name in report],
        "classes": _class_counts(run),
        "remarks": report.get("summary", []),
        "quarantined": int(report.get("quarantined", sum(reasons.values()))),
        "reasons": Table(["reason", "pictures"], [[reason, str(n)] for reason, n in reasons.most_common(10)], frozenset({1})),
        "refused": Table(["picture", "reason"], first),
    }


def _class_counts(run: Run) -> Table | None:
    counts = (run.data.json("report.json") if run.data else {}).get("pictures_per_class_and_split") or {}
    names = list(dict.fromkeys(name for of_split in counts.values() for name in of_split))
    rows = [[name, *(str(counts.get(split, {}).get(name, 0)) for split in ("train", "val"))] for name in names[:CLASSES]]
    if len(names) > CLASSES:
        rows.append([f"{len(names) - CLASSES} more classes", "", ""])
    return Table(["class", "training pictures", "validation pictures"], rows, frozenset({1, 2})) if rows else None


def drift(run: Run) -> dict[str, Any]:
    """New data since the champion was trained, and its drift; {} if the run is not a retraining."""
    compared = run.found.get("compare-data")
    if not compared:
        return {}
    found = compared.json("drift.json")
    counts = {name: int(found["counts"].get(name, 0)) for name in ("n_new", "n_known", "n_gone")}
    rows = [
        [name, f"{each['old']:.3g}", f"{each['new']:.3g}", f"{each['shift']:.2f}", f"{each['by_chance']:.2f}",
         "yes" if each["shift"] > 3 * each["by_chance"] else "no"]
        for name, each in found["shifts"].items()
    ]  # fmt: skip
    head = ["", "known, mean", "new, mean", "shift, standard deviations", "by chance", "beyond chance (× 3)"]
    words = f"{counts['n_new']} pictures are new, {counts['n_known']} were known, {counts['n_gone']} are gone."
    return {"words": words, "table": Table(head, rows, frozenset({1, 2, 3, 4})) if rows else None}


def gates(run: Run) -> dict[str, Any]:
    """Whether the model may become champion, and each gate; {} if the run is not a retraining."""
    judged = run.found.get("gate")
    if not judged:
        return {}
    verdict = judged.json("verdict.json")
    rows = [["passed" if check["passed"] else "FAILED", check["name"], check["words"]] for check in verdict["checks"]]
    champion = f"Compared with champion version {verdict['champion']}." if verdict.get("champion") else "There was no champion yet."
    return {"passed": verdict["passed"], "champion": champion, "table": Table(["", "gate", "measured"], rows)}


def cost(run: Run) -> dict[str, Any]:
    """Time of each stage that was recorded on this machine, by descending time."""
    rows, without, total = [], [], 0.0
    devices: Counter[str] = Counter()
    for place, output in run.found.items():
        clock = clock_of(output.record["stage"], output.record["digest"])
        if not clock:
            without.append(place)
            continue
        total += clock["seconds"]
        used = clock["device"] if clock["processes"] == 1 else f"{clock['processes']} processes, {clock['device']}"
        devices[used] += 1
        rows.append((clock["seconds"], [place, output.record["stage"], duration(clock["seconds"]), _pace(output), used, clock["ended"]]))
    rows.sort(key=lambda row: -row[0])
    return {
        "total": duration(total),
        "devices": ", ".join(devices),
        "bars": [(row[0], row[2], 100 * seconds / rows[0][0] if rows[0][0] else 0.0) for seconds, row in rows[:12]],
        "table": Table(["output", "stage", "time", "pictures/s", "device", "ended, UTC"], [row for _, row in rows], frozenset({2, 3})),
        "without": without,
    }


def _pace(output: Output) -> str:
    """Average pictures per second of training, from the last line of its log."""
    log = checkpoints_of(output.record["stage"], output.record["digest"]).with_suffix(".jsonl")
    try:
        with log.open() as lines:
            last: dict[str, Any] = json.loads(deque(lines, maxlen=1)[0])
        return f"{last['pictures'] / last['seconds']:.0f}"
    except (OSError, ValueError, IndexError, KeyError, ZeroDivisionError):  # no log, or an incomplete one
        return ""


def duration(seconds: float) -> str:
    """`9.3 s`, `4 min 10 s`, `3 h 25 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def versions(run: Run) -> list[tuple[str, str]]:
    """(package, version) of the outputs; if outputs differ, with the number of outputs per version."""
    found: dict[str, Counter[str]] = {}
    for output in run.found.values():
        for package, version in {"dreamteacher": output.record["version"], **output.record["versions"]}.items():
            found.setdefault(package, Counter())[str(version)] += 1
    return [
        (package, next(iter(of)) if len(of) == 1 else ", ".join(f"{version} ({n} outputs)" for version, n in of.items()))
        for package, of in found.items()
    ]


def settings(run: Run) -> list[tuple[str, Table]]:
    """The settings of the outputs, grouped by stage and equal settings."""
    groups: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for place, output in run.found.items():
        own = {key: value for key, value in output.params.items() if key not in IDENTITY}
        key = json.dumps([output.record["stage"], own], sort_keys=True)
        groups.setdefault(key, ([], own))[0].append(place)
    return [
        (", ".join([*islice(places, 4), *([f"{len(places) - 4} more"] if len(places) > 4 else [])]),
         Table(["setting", "value"], [[name, json.dumps(value, ensure_ascii=False)] for name, value in flat(own).items()]))
        for places, own in groups.values()
    ]  # fmt: skip
