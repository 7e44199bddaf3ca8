"""Stage ingest: a folder, a list or shards of any pictures -> one checked data set with a manifest."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dreamteacher.data.decode import BadPicture
from dreamteacher.data.items import AUTO, KINDS_OF_TASK, Found, Item
from dreamteacher.data.near_copies import NearCopies
from dreamteacher.data.places import Place, fingerprint, inputs_of, locate
from dreamteacher.data.prepare import Prepared, prepare
from dreamteacher.data.quiet import quiet_c_libraries
from dreamteacher.data.refusals import refuse
from dreamteacher.data.seen import Kept, Seen
from dreamteacher.data.shards import ShardSet
from dreamteacher.data.sources import find
from dreamteacher.data.summary import class_names, make_report, summarise
from dreamteacher.data.tally import SPLITS, Tally
from dreamteacher.data.trees import Folder
from dreamteacher.errors import UserError, resource_errors_in_one_line
from dreamteacher.settings.downstream import Ingest
from dreamteacher.settings.schema import Params
from dreamteacher.stage import open_stage

COLUMNS = ("path", "sha256", "width", "height", "mode", "split", "label", "shard", "offset", "length", "label_offset", "label_length")


def run(
    params: Params, *, out: Path, source: Path | str | None = None, incoming: Path | str | None = None, overwrite: bool = False
) -> dict[str, float]:
    """Read every picture of `source` (default: ingest.source), keep the good ones once, and write the data set to `out`.

    `incoming` is a second place, which may be empty: its pictures join the train split without labels, so that what arrives by
    itself never changes the validation split. They are named incoming/NAME.

    A picture is quarantined (quarantine.csv) if it cannot be used, dropped as a duplicate if its file or its pixels are in its
    split already, and dropped from train, whichever came first, if it is in val. Memory does not grow with the set.

    Returns:
        n_train, n_val, n_labelled (of both splits), n_quarantined, n_duplicates, n_leaks.

    Raises:
        UserError: no source, no usable train picture, labels that cannot be understood, or more than ingest.max_bad_fraction of the
            pictures, or of those that came in, quarantined; nothing is written then.
    """
    settings = params.ingest
    task = _labels_as_of(settings.task)
    with resource_errors_in_one_line("ingest"):
        place = locate(settings.source if source is None else str(source))
        beside = locate(str(incoming), "retrain.incoming") if incoming else None
        inputs = inputs_of(place)
        _refuse_results_among_pictures(out, place, beside)
        recorded = params.section("ingest")
        # what a local source holds counts, not where it lies
        recorded["ingest"]["source"] = Path(place.source).name if inputs else place.source
        if beside:
            more = {f"incoming/{name}": path for name, path in inputs_of(beside).items()}
            recorded["incoming"] = Path(beside.source).name if more else beside.source
            inputs |= more
        if contents := [mark for each in (place, beside) if each and (mark := fingerprint(each))]:
            recorded["contents"] = contents
    with open_stage("ingest", params=recorded, inputs=inputs, out=out, overwrite=overwrite) as stage, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # oddities of metadata; what matters is quarantined
        if not stage.done:
            max_bytes = settings.max_pixels * 8 + 1_000_000
            with quiet_c_libraries():
                found = find(place, settings.labels, max_bytes, task=task)
                if beside:
                    found.arrived = find(beside, "none", max_bytes, may_be_empty=True)
                    arrived = (replace(item, name=f"incoming/{item.name}", incoming=True) for item in found.arrived.items)
                    found.items = chain(found.items, arrived)
                tally = _write_pictures(settings, found, stage.tmp)
            refuse(settings, found, tally)
            _write_facts(settings, found, tally, stage.tmp)
            stage.metrics = tally.metrics()
        return stage.metrics


def _write_pictures(settings: Ingest, found: Found, out: Path) -> Tally:
    """The one pass over the pictures: shards, manifest.csv and quarantine.csv."""
    tally, near = Tally(), NearCopies()
    (out / "shards").mkdir()
    limits = {name: getattr(settings, name) for name in ("max_pixels", "min_side", "short_side")} | {"task": found.task}
    work = partial(_try_prepare, classes=found.classes, body=found.body, **limits)
    pictures = _show_progress(_in_threads(work, found.items), tally.counts)
    with ExitStack() as files:
        seen = files.enter_context(Seen())
        shards = {s: files.enter_context(ShardSet(out / "shards", s, settings.shard_mb * 1_000_000)) for s in SPLITS}
        good, bad = (files.enter_context((out / name).open("w", newline="")) for name in ("manifest.csv", "quarantine.csv"))
        manifest, quarantine = csv.writer(good, lineterminator="\n"), csv.writer(bad, lineterminator="\n")
        manifest.writerow(COLUMNS)
        quarantine.writerow(("path", "reason"))
        for item, picture in pictures:
            tally.counts["incoming"] += item.incoming
            if isinstance(picture, BadPicture):
                tally.reject(item, picture.reason)
                quarantine.writerow((item.name, picture.reason))
                continue
            split = item.split or "train"
            if item.incoming:
                split = "train"
            elif not found.has_val:
                split = _split_of(picture, settings.val_fraction)
            other = seen.find(picture.hashes)
            seen.keep(picture.hashes, other or Kept(split, item.name, picture.label_hash))
            if other:
                # find() gives the val split first, so a picture that is in both is met in val before it is met in train
                tally.drop(item.name, picture, "leaks" if (other.split, split) == ("val", "train") else "duplicates", other)
                continue
            tally.add(picture, split)
            near.add(split, picture.thumbnail, picture.hashes[0])
            row = _row(item.name, picture, split, shards[split])
            manifest.writerow(row)
            tally.manifest.update(("\x1f".join(row) + "\n").encode())
        tally.shared_origins = seen.shared_origins()
        for of_val, of_train in near.pairs():
            tally.add_near_copy(seen.name_of(of_val), seen.name_of(of_train))
    return tally


def _row(name: str, picture: Prepared, split: str, shards: ShardSet) -> list[str]:
    """Store a picture with its label; returns its line of the manifest."""
    files = {picture.suffix: picture.data}
    if picture.label:  # what is measured by is stored at its own size
        files[picture.label[0]] = picture.full_label if split == "val" and picture.full_label else picture.label[1]
    digest = picture.hashes[0].hex()
    shard, places = shards.write(digest[:20], files)
    label = "" if not picture.label else picture.cls if picture.cls is not None else picture.label[0].partition(".")[0]
    label_place = places[picture.label[0]] if picture.label else ("", "")
    values = (name, digest, picture.width, picture.height, picture.mode, split, label, shard, *places[picture.suffix], *label_place)
    return [str(value) for value in values]


def _write_facts(settings: Ingest, found: Found, tally: Tally, out: Path) -> None:
    """dataset.json and report.json, and on stderr what was understood."""
    counts = tally.counts
    numbers = {name: counts[name] for name in (*SPLITS, *(f"labelled_{split}" for split in SPLITS))}
    mean, std = _mean_and_std(tally.histogram)
    task = tally.task if settings.task in (AUTO, *KINDS_OF_TASK) else tally.task and settings.task
    facts: dict[str, Any] = {"task": task, "classes": class_names(found, tally), "counts": numbers, "channels": 3, "mean": mean, "std": std}
    facts |= {"skeleton": found.body.skeleton} if found.body else {}
    _save_json(out / "dataset.json", facts | {"hash": tally.manifest.hexdigest()})
    lines = summarise(settings, found, tally)
    _save_json(out / "report.json", make_report(found, tally, lines))
    for line in lines:
        print(f"ingest: {line}", file=sys.stderr)


def _refuse_results_among_pictures(out: Path, *places: Place | None) -> None:
    """Else they would be pictures of the next run, which would never find its source unchanged."""
    for place in places:
        if place and isinstance(place.tree, Folder) and not place.listing and place.tree.root.resolve() in out.resolve().parents:
            raise UserError(f"--out {out} lies in {place.source}, among the pictures; name a folder outside")


def _labels_as_of(task: str) -> str:
    """The task of ours whose labels a task learns from, or AUTO.

    Raises:
        UserError: there is no such task, or it does not say.
    """
    if task in (AUTO, *KINDS_OF_TASK):
        return task
    from dreamteacher.tasks.base import get_task  # which imports torch

    labels = get_task(task).labels
    if labels not in KINDS_OF_TASK:
        raise UserError(
            f"task {task!r} does not say whose labels it learns from: give it an attribute `labels`, one of {', '.join(KINDS_OF_TASK)}"
        )
    return labels


def _split_of(picture: Prepared, val_fraction: float) -> str:
    """By the decoded pixels, so that a picture stays where it is when others are added, and its copies come along."""
    return "val" if int.from_bytes(picture.hashes[1][:8]) < val_fraction * 2**64 else "train"


def _mean_and_std(histogram: np.ndarray) -> tuple[list[float], list[float]]:
    """Of each channel's values / 255, from whole-number sums; a constant channel's std is 1/255 (it is divided by)."""
    values, n = np.arange(256), histogram.sum(axis=1)
    mean = (histogram @ values) / n
    std = np.sqrt(np.maximum((histogram @ values**2) / n - mean**2, 1))
    return [[round(float(v), 6) for v in part / 255] for part in (mean, std)]  # type: ignore[return-value]


def _try_prepare(item: Item, **settings: Any) -> Prepared | BadPicture:
    try:
        return prepare(item, **settings)
    except BadPicture as error:
        return error


def _in_threads(work: Callable[[Item], Prepared | BadPicture], items: Iterator[Item]) -> Iterator[tuple[Item, Prepared | BadPicture]]:
    """(item, its result) in order, a few at a time (decoding and hashing release Python's lock)."""
    threads = min(4, os.cpu_count() or 1)  # each holds one decoded picture
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        for item, future in waiting:
            yield item, future.result()


def _show_progress(pictures: Iterator[tuple[Item, Any]], counts: Counter[str]) -> Iterator[tuple[Item, Any]]:
    """Count the pictures that pass, in one line that changes on a terminal, else in a line every half minute."""
    console = Console(stderr=True)
    start = last = time.monotonic()
    with console.status("ingest: looking through the source") as status:
        for entry in pictures:
            counts["pictures"] += 1
            yield entry
            now = time.monotonic()
            if now - last > (0.2 if console.is_terminal else 30):
                last = now
                speed = f"{counts['pictures'] / (now - start):.0f}/s"
                line = f"ingest: {counts['pictures']} pictures, {speed}, {counts['quarantined']} quarantined"
                if console.is_terminal:
                    status.update(line)
                else:
                    print(line, file=sys.stderr, flush=True)


def _save_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
