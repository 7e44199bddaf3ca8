"""Stage ingest: a folder, a list or shards of any pictures -> one checked data set with a manifest."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dreamteacher.data.decode import BadPicture
from dreamteacher.data.items import IGNORE, Found, Item
from dreamteacher.data.prepare import Prepared, prepare
from dreamteacher.data.seen import Kept, Seen
from dreamteacher.data.shards import ShardSet
from dreamteacher.data.sources import find, fingerprint, inputs_of
from dreamteacher.errors import UserError
from dreamteacher.params import Ingest, Params
from dreamteacher.stage import open_stage

COLUMNS = ("path", "sha256", "width", "height", "mode", "split", "label", "shard", "offset", "length", "label_offset", "label_length")
EXAMPLES = 1000  # duplicates and leaks that report.json names; all are counted
SPLITS = ("train", "val")
ODDITIES = {  # of report.json: what is said of them at the end, as they may be a mistake
    "ignored_files": "files were passed over, as their names do not end as pictures' do",
    "unprintable_names": "files were passed over, as their names hold control characters or are not UTF-8",
    "repeated_names": "files of shards were passed over, as one of that name came before",
    "left_out_as_test": "pictures of the test split were left out",
    "labels_without_picture": "lines of labels.csv name no picture",
    "masks_without_picture": "masks belong to no picture",
    "folders_without_class": "folders are not in classes.txt; their pictures have no label",
    "labels_lost": "labels were dropped, as a copy without a label had been kept",
    "label_conflicts": "copies have another label than the picture that was kept",
}


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
    place = str(source or settings.source)
    inputs = inputs_of(place)
    recorded = params.section("ingest")
    recorded["ingest"]["source"] = Path(place).name if inputs else place  # what a local source holds counts, not where it lies
    if incoming:
        more = {f"incoming/{name}": path for name, path in inputs_of(str(incoming)).items()}
        recorded["incoming"] = Path(incoming).name if more else str(incoming)
        inputs |= more
    recorded["contents"] = [fingerprint(str(each)) for each in (place, incoming) if each]
    with open_stage("ingest", params=recorded, inputs=inputs, out=out, overwrite=overwrite) as stage, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # oddities of metadata; what matters is quarantined
        if not stage.done:
            max_bytes = settings.max_pixels * 8 + 1_000_000
            found = find(place, settings.labels, max_bytes)
            if incoming:
                arrived = find(str(incoming), "none", max_bytes, may_be_empty=True).items
                found.items = chain(found.items, (replace(item, name=f"incoming/{item.name}", incoming=True) for item in arrived))
            tally = _write_pictures(settings, found, stage.tmp)
            _write_facts(settings, found, tally, stage.tmp)
            stage.metrics = tally.metrics()
        return stage.metrics


@dataclass
class _Tally:
    """What was counted on the way; whole numbers, so that the order of adding does not show."""

    counts: Counter[str] = field(default_factory=Counter)
    classes: Counter[int] = field(default_factory=Counter)
    mask_values: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    histogram: np.ndarray = field(default_factory=lambda: np.zeros((3, 256), np.int64))
    tasks: set[str] = field(default_factory=set)
    reasons: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))  # examples: of the source, of what came in
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"duplicates": [], "leaks": []})
    manifest: Any = field(default_factory=hashlib.sha256)

    def add(self, picture: Prepared, split: str) -> None:
        self.counts[split] += 1
        if split == "train":
            self.histogram += picture.histogram
        if picture.label:
            self.counts[f"labelled_{split}"] += 1
            self.tasks.add("classification" if picture.label[0] == "cls" else "segmentation")
            self.mask_values += picture.mask_values
            if picture.cls is not None:
                self.classes[picture.cls] += 1

    def reject(self, item: Item, reason: str) -> None:
        self.counts["quarantined"] += 1
        self.counts["incoming_quarantined"] += item.incoming
        reasons = self.reasons[item.incoming]
        if len(reasons) < 3:
            reasons.append(f"{item.name}: {reason}")

    def drop(self, name: str, picture: Prepared, kind: str, other: Kept) -> None:
        self.counts[kind] += 1
        lost = picture.label is not None and picture.label_hash != other.label
        self.counts["label_conflicts" if other.label else "labels_lost"] += lost
        if len(self.examples[kind]) < EXAMPLES:
            example = {"path": name, "same_as": other.name, "labelled": picture.label is not None}
            self.examples[kind].append(example | ({"label_lost": True} if lost else {}))

    def metrics(self) -> dict[str, float]:
        names = {f"n_{name}": self.counts[name] for name in (*SPLITS, "quarantined", "duplicates", "leaks")}
        return {name: float(value) for name, value in names.items()} | {
            "n_labelled": float(self.counts["labelled_train"] + self.counts["labelled_val"])
        }


def _write_pictures(settings: Ingest, found: Found, out: Path) -> _Tally:
    """The one pass over the pictures: shards, manifest.csv and quarantine.csv."""
    tally = _Tally()
    (out / "shards").mkdir()
    limits: dict[str, Any] = {"max_pixels": settings.max_pixels, "min_side": settings.min_side, "short_side": settings.short_side}
    pictures = _show_progress(_in_threads(partial(_try_prepare, classes=found.classes, **limits), found.items), tally.counts)
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
            row = _row(item.name, picture, split, shards[split])
            manifest.writerow(row)
            tally.manifest.update(("\x1f".join(row) + "\n").encode())
    return tally


def _row(name: str, picture: Prepared, split: str, shards: ShardSet) -> list[str]:
    """Store a picture with its label; returns its line of the manifest."""
    files = {picture.suffix: picture.data} | ({picture.label[0]: picture.label[1]} if picture.label else {})
    digest = picture.hashes[0].hex()
    shard, places = shards.write(digest[:20], files)
    label = "" if not picture.label else "mask" if picture.cls is None else picture.cls
    label_place = places[picture.label[0]] if picture.label else ("", "")
    values = (name, digest, picture.width, picture.height, picture.mode, split, label, shard, *places[picture.suffix], *label_place)
    return [str(value) for value in values]


def _write_facts(settings: Ingest, found: Found, tally: _Tally, out: Path) -> None:
    """Refuse what nobody should train on, then dataset.json and report.json."""
    counts = tally.counts
    came, came_bad = counts["incoming"], counts["incoming_quarantined"]
    # What came in has a quota of its own: among a million old pictures a week of broken ones would not show.
    parts = ((counts["pictures"] - came, counts["quarantined"] - came_bad, "pictures"), (came, came_bad, "incoming pictures"))
    for (seen, bad, what), reasons in zip(parts, tally.reasons, strict=True):
        if bad > settings.max_bad_fraction * seen:
            share = f"{bad} of {seen} {what} cannot be used, more than ingest.max_bad_fraction = {settings.max_bad_fraction:g}"
            raise UserError(f"{share}: {'; '.join(reasons)}{' ...' if bad > len(reasons) else ''}; remove them or raise the limit")
    shards, damaged = found.counts.get("shards", 0), found.counts.get("damaged_shards", 0)
    if damaged > settings.max_bad_fraction * shards:  # nobody knows how many pictures were in there
        share = f"{damaged} of {shards} shards are damaged, more than ingest.max_bad_fraction = {settings.max_bad_fraction:g}"
        raise UserError(f"{share}: {'; '.join(tally.reasons[0])}; fetch them again or raise the limit")
    if not counts["train"]:
        raise UserError(
            f"no picture is left to train on ({counts['pictures']} seen, {counts['val']} in val); add pictures or lower ingest.val_fraction"
        )
    if len(tally.tasks) > 1:
        raise UserError("some pictures have a mask and some a class; set ingest.labels to masks or folders to choose one kind")
    wanted = SPLITS if found.has_val or settings.val_fraction else ("train",)
    bare = next((split for split in wanted if not counts[f"labelled_{split}"]), None)
    if tally.tasks and bare:
        raise UserError(
            f"there are {counts['labelled_train'] + counts['labelled_val']} labels, and none in {bare}: nothing could be "
            f"{'trained' if bare == 'train' else 'measured'} by them; put pictures into folders train/ and val/ with labels in both, "
            f"change ingest.val_fraction ({settings.val_fraction:g}), or set ingest.labels to none"
        )
    if tally.mask_values[IGNORE] and not tally.mask_values[1:IGNORE].any():
        raise UserError("the masks hold only 0 and 255, and 255 means unknown: write class ids (1 for the object, not 255) and start again")
    task = next(iter(tally.tasks), None)
    classes = (found.classes or [str(i) for i in range(max(tally.classes, default=-1) + 1)]) if task else []
    numbers = {name: counts[name] for name in (*SPLITS, *(f"labelled_{split}" for split in SPLITS))}
    mean, std = _mean_and_std(tally.histogram)
    facts = {"task": task, "classes": classes, "counts": numbers, "channels": 3, "mean": mean, "std": std}
    _save_json(out / "dataset.json", facts | {"hash": tally.manifest.hexdigest()})
    weights = tally.mask_values if task == "segmentation" else tally.classes  # pixels or pictures of each class
    report: dict[str, Any] = (
        {name: counts[name] for name in ("pictures", "incoming", "quarantined", "duplicates", "leaks")} | numbers | found.counts
    )
    report |= {name: counts[name] for name in ("labels_lost", "label_conflicts")}
    _say_what_is_odd(report, tally.mask_values)
    report |= {"labels": found.labels, "labels_per_class": {name: int(weights[i]) for i, name in enumerate(classes)}}
    _save_json(out / "report.json", report | {"examples": tally.examples})


def _say_what_is_odd(report: dict[str, Any], mask_values: np.ndarray) -> None:
    """One line for each kind, to stderr; report.json has the same."""
    for name, text in ODDITIES.items():
        if report.get(name):
            print(f"ingest: {report[name]} {text}", file=sys.stderr)
    unknown = mask_values[IGNORE] / max(mask_values.sum(), 1)
    if unknown > 0.5:
        print(f"ingest: {unknown:.0%} of the masks' pixels are {IGNORE}, which means unknown; is it meant as a class?", file=sys.stderr)


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
    """Count the pictures that pass, in one line that changes on a terminal, else in a line every ten seconds."""
    console = Console(stderr=True)
    start = last = time.monotonic()
    with console.status("ingest: looking through the source") as status:
        for entry in pictures:
            counts["pictures"] += 1
            yield entry
            now = time.monotonic()
            if now - last > (0.2 if console.is_terminal else 10):
                last = now
                speed = f"{counts['pictures'] / (now - start):.0f}/s"
                line = f"ingest: {counts['pictures']} pictures, {speed}, {counts['quarantined']} quarantined"
                if console.is_terminal:
                    status.update(line)
                else:
                    print(line, file=sys.stderr, flush=True)


def _save_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
