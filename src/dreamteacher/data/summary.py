"""The summary of ingest and report.json: what was found in a source, and probable mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dreamteacher.data.decode import WARNINGS
from dreamteacher.data.depth import describe_span
from dreamteacher.data.instance_labels import object_classes
from dreamteacher.data.items import IGNORE, Found
from dreamteacher.data.tally import SPLITS, Tally
from dreamteacher.settings.downstream import Ingest

MIN_LABELLED_VAL = 20  # below it metrics depend on single pictures
THIN = 0.9  # share of the pixels of a class
MAX_CLASSES = 8  # listed with a line each
COUNT_MESSAGES = {  # key of Found.counts (and report.json) -> message, which follows the number
    "unprintable_names": "files were passed over, as their names hold control characters or are not UTF-8",
    "repeated_names": "files of shards were passed over, as one of that name came before",
    "labels_away": "labels in shards do not lie next to their picture, and were passed over; write KEY.jpg and KEY.cls one after the other",
    "beside_masks": "files beside masks or pictures (colours, overlays, instances, depth) were passed over",
    "left_out_as_test": "pictures of the test split were left out",
    "outside_of_splits": "pictures lie neither in train nor in val; they are for training",
    "boxes_without_picture": "pictures with boxes, or files of boxes, have no picture here",
    "annotations_without_box": "annotations of COCO files have neither bbox nor segmentation, and were dropped",
    "categories_of_one_name": "categories of COCO files have the name of another in the same file, and are one class with it",
    "boxes_of_no_entry": "boxes name an image_id that `images` lacks, and were dropped",
    "labels_without_picture": "lines of the table of labels name no picture",
    "masks_without_picture": "masks belong to no picture",
    "folders_without_class": "folders are not in classes.txt; their pictures have no label",
}
COPIES = {  # key of Tally.counts -> message
    "labels_lost": "labels were dropped, as a copy without a label had been kept",
    "label_conflicts": "copies have another label than the picture that was kept",
}
FOLDERS = {
    "system": "folders of the system were not entered",
    "unreadable": "folders were not entered, as they may not be read",
    "empty": "folders are empty, so if they are classes, the set does not know them",
}
LABEL_LIKE = {  # suffix -> label formats that are not read
    ".txt": "text that is no YOLO label of a picture",
    ".json": "labelme, or COCO without boxes",
    ".xml": "XML that is no Pascal VOC label of a picture",
    ".csv": "a table of another name or place than SOURCE/labels.csv, or metadata.csv without labels",
    ".tsv": "a table",
    ".jsonl": "a table",
    ".parquet": "a table",
    ".npy": "arrays",
    ".mat": "arrays",
}
READ = (
    "labels are read from masks (masks/A.png for images/A.jpg), boxes (COCO files, Annotations/A.xml, labels/A.txt, A.json of labelme), "
    "class folders, "
    "labels.csv (columns path, label), metadata.csv or metadata.jsonl (file_name, and label or objects), and, in shards, "
    "KEY.mask.png, KEY.boxes.json or KEY.cls"
)


def class_names(found: Found, tally: Tally) -> list[str]:
    """Class names by id; numbers if the source has no names; empty without labels or classes."""
    if not tally.task or tally.task == "depth":
        return []
    if found.classes and tally.task == "instances" and found.labels != "boxes":
        return object_classes(found.classes)
    if found.classes:
        return found.classes.mask_names if tally.masks else found.classes.names
    most = max(max(tally.classes[split], default=-1) for split in SPLITS) + 1
    return [str(i) for i in range(tally.n_classes or most)]


def make_report(found: Found, tally: Tally, lines: list[str]) -> dict[str, Any]:
    """The content of report.json; `lines` are those of `summarise`."""
    counts, names = tally.counts, class_names(found, tally)
    weights = {split: _weights(tally, split, len(names)) for split in SPLITS}  # pixels, boxes or pictures per class
    report: dict[str, Any] = {name: counts[name] for name in ("pictures", "incoming", "quarantined", "duplicates", "leaks", "near_copies")}
    report |= {name: counts[name] for name in (*SPLITS, *(f"labelled_{split}" for split in SPLITS))}
    report |= found.counts | {name: counts[name] for name in COPIES}
    report |= {name: counts[name] for name in ("reduced", "files_of_many", "pictures_in_them")}
    report |= {
        "ignored_files": sum(n for n, _ in found.skipped.by_suffix.values()),
        "passed_over": _with_examples(found.skipped.by_suffix),
        "folders_passed_over": _with_examples(found.skipped.folders),
        "incoming_passed_over": _with_examples(found.arrived.skipped.by_suffix) if found.arrived else {},
        "warnings": dict(sorted(tally.warnings.items())),
        "labels": found.labels,
        "labels_found_in": found.where if tally.task else None,
        "labels_per_class": {name: int(weights["train"][i] + weights["val"][i]) for i, name in enumerate(names)},
        "labels_per_class_and_split": {
            split: {name: int(weights[split][i]) for i, name in enumerate(names)} for split in SPLITS if tally.task
        },
        "pictures_per_class_and_split": {
            split: dict(zip(names, _padded(tally.labels_of(split), len(names)).tolist(), strict=True)) for split in SPLITS if tally.task
        },
    }
    if depths := {split: span for split in SPLITS if (span := tally.depths[split].span())}:
        report["depth"] = depths
    return report | {"summary": lines, "examples": tally.examples}


def _with_examples(counts: dict[str, tuple[int, str]]) -> dict[str, dict[str, int | str]]:
    return {kind: {"count": n, "example": name} for kind, (n, name) in sorted(counts.items())}


def summarise(settings: Ingest, found: Found, tally: Tally) -> list[str]:
    """The lines of the summary."""
    return [
        *_labels(found, tally),
        *_reductions(settings, found, tally),
        *_label_warnings(settings, found, tally),
        *_file_warnings(found, tally),
    ]


def _labels(found: Found, tally: Tally) -> Iterator[str]:
    """Task, location of the labels, classes with their counts."""
    if not tally.task:
        if not found.wanted:
            yield "labels were not looked for, as ingest.labels is none"
            return
        like = found.skipped.words(set(LABEL_LIKE))
        kinds = ", ".join(LABEL_LIKE[suffix] for suffix in LABEL_LIKE if suffix in found.skipped.by_suffix)
        found_here = f" ({like} may be labels in a form that is not read: {kinds})" if like else ""
        yield f"no label was found{found_here}; {READ}"
        return
    counts, names = tally.counts, class_names(found, tally)
    yield (
        f"{tally.task}: {counts['labelled_train']} of {counts['train']} train pictures and {counts['labelled_val']} of {counts['val']} val "
        f"pictures are labelled, by {found.where}"
    )
    for split in SPLITS:
        if span := tally.depths[split].span():
            yield f"depth in {split} is {describe_span(span)}, in the unit of the maps, which rmse has too"
        if middles := tally.depths[split].unit_mismatch():
            yield "the middle depth of a map in {} is from {:.3g} to {:.3g}; are all maps in one unit?".format(split, *middles)
    if without := " and ".join(f"{n} of {split}" for split in SPLITS if (n := counts[f"without_boxes_{split}"])):
        yield f"labelled pictures without {tally.one_object}, which are taken to show none of the classes: {without}"
    weights = {split: _weights(tally, split, len(names)) for split in SPLITS}
    pictures = {split: _padded(tally.labels_of(split), len(names)) for split in SPLITS}
    order = sorted(range(len(names)), key=lambda i: (-weights["train"][i], i))
    shown = order if len(order) <= MAX_CLASSES else order[: MAX_CLASSES - 1]
    for i in shown:
        yield f"class {names[i]}: " + ", ".join(_class_in(split, i, weights, pictures, tally) for split in SPLITS if counts[split])
    if rest := order[len(shown) :]:
        yield f"{len(rest)} more classes, of which {names[rest[-1]]} has least: " + ", ".join(
            _class_in(split, rest[-1], weights, pictures, tally) for split in SPLITS if counts[split]
        )


def _class_in(split: str, i: int, weights: dict[str, np.ndarray], pictures: dict[str, np.ndarray], tally: Tally) -> str:
    if tally.has_boxes:
        return f"{weights[split][i]} {tally.objects_noun} in {pictures[split][i]} pictures of {split}"
    share = f" with {weights[split][i] / max(weights[split].sum(), 1):.2%} of the pixels" if tally.masks and pictures[split][i] else ""
    return f"{pictures[split][i]} pictures of {split}{share}"


def _reductions(settings: Ingest, found: Found, tally: Tally) -> Iterator[str]:
    counts = tally.counts
    if counts["reduced"]:
        ((width, height), _), *_ = tally.sizes.most_common(1)
        kept = counts["train"] + counts["val"]
        yield (
            f"{counts['reduced']} of {kept} pictures were reduced to a short side of {settings.short_side} px (ingest.short_side), most "
            f"often from {width} x {height}"
        )
    if tally.masks and counts["reduced"]:
        before, after = tally.source_values, tally.mask_values["train"] + tally.mask_values["val"]
        shares = [values / max(values.sum(), 1) for values in (before, after)]
        for i, name in enumerate(class_names(found, tally)):
            lost = 1 - shares[1][i] / shares[0][i] if before[i] else 0.0
            if not (lost >= 0.5 or tally.vanished[i] > 0.1 * tally.shown[i]):
                continue
            gone = f" and is gone from {tally.vanished[i]} of {tally.shown[i]} masks" if tally.vanished[i] else ""
            share = f"{max(lost, 0):.0%} of its share of the pixels"
            yield f"class {name!r} lost {share}{gone} by this; raise ingest.short_side (null: keep sizes)"


def _label_warnings(settings: Ingest, found: Found, tally: Tally) -> Iterator[str]:
    if not tally.task:
        return
    names, measured = class_names(found, tally), bool(tally.counts["labelled_val"])
    train, val = (_padded(tally.labels_of(split), len(names)) for split in SPLITS)
    for chosen, text in (
        ((train == 0) & (val > 0), "labels in val and none in train, so measured and never learnt"),
        ((train == 0) & (val == 0), "no label at all, so never learnt"),
        ((train > 0) & (val == 0) & measured, "labels in train and none in val, so learnt and never measured"),
    ):
        if chosen.any():
            which = [name for name, is_one in zip(names, chosen, strict=True) if is_one]
            yield f"classes with {text}: {', '.join(which[:5])}{f' and {len(which) - 5} more' if len(which) > 5 else ''}"
    n_val = tally.counts["labelled_val"]
    if not found.has_val and measured and n_val < MIN_LABELLED_VAL:
        yield (
            f"{n_val} labelled pictures were drawn for val, and all figures rest on them; raise ingest.val_fraction "
            f"({settings.val_fraction:g}) or put labelled pictures of each class into a folder val/"
        )
    if n := tally.counts["other_palettes"]:
        yield f"{n} masks give a colour of their palette another number than masks before do; are the numbers or the colours the classes?"
    for i, name in enumerate(names if tally.masks else []):
        if tally.source_values[i] >= MIN_LABELLED_VAL and tally.thin[i] > THIN * tally.source_values[i]:
            yield (
                f"class {name!r} is nearly everywhere a thin line between a lower and a higher number, as where masks were resized with "
                "smoothing; resize them with nearest neighbour"
            )
    n_white, others = tally.counts["masks_of_0_and_255"], tally.counts["masks_without_255"]
    if n_white and others and n_white + others == tally.counts["labelled_train"] + tally.counts["labelled_val"]:
        yield (
            f"{n_white} masks hold only 0 and 255, and the other {others} have no 255, which means unknown; if it is the object in those, "
            "write its class id in all masks"
        )
    values = tally.mask_values["train"] + tally.mask_values["val"]
    unknown = values[IGNORE] / max(values.sum(), 1)
    if unknown > 0.5:
        yield f"{unknown:.0%} of the masks' pixels are {IGNORE}, which means unknown; is it meant as a class?"


def _file_warnings(found: Found, tally: Tally) -> Iterator[str]:
    counts = tally.counts
    if counts["files_of_many"]:
        yield (
            f"{counts['files_of_many']} files hold {counts['pictures_in_them']} frames or pages, and only the first of each was taken; "
            "save the others as files of their own if they are to be used"
        )
    if not found.has_val and counts["alike_across_splits"] > max(2, counts["val"] / 2):
        yield (
            f"{counts['alike_across_splits']} pictures of train and val that follow each other by name look alike, as frames of a video "
            "do, so that figures would be too good; put whole videos or scenes into a folder val/"
        )
    if counts["near_copies"]:
        named = tally.examples["near_copies"]
        yield (
            f"{counts['near_copies']} pictures of val look the same as one of train, saved or resized again or the next frame (such as "
            f"{named[0]['path']} and {named[0]['same_as']}; report.json names {len(named)}), so that figures would be too good; "
            "remove them from train or from val"
        )
    if tally.shared_origins:
        n, of_val, of_train = tally.shared_origins
        yield (
            f"by their names {n} pictures of val come from what pictures of train come from, an original that was augmented, a video or a "
            f"patient (such as {of_val} and {of_train}), so that figures would be too good; put all of one into train or into val"
        )
    yield from _left_out(found, "")
    if found.arrived:
        yield from _left_out(found.arrived, "incoming ")
    for name, text in COPIES.items():
        if counts[name]:
            yield f"{counts[name]} {text}"
    for name, n in sorted(tally.warnings.items()):
        yield f"{n} {WARNINGS[name]}"
    yield from found.notes


def _left_out(found: Found, which: str) -> Iterator[str]:
    """Skipped files and folders, and other counts. which: "incoming " or empty."""
    if n := sum(count for count, _ in found.skipped.by_suffix.values()):
        yield f"{n} {which}files were passed over: {found.skipped.words()}"
    for kind, text in FOLDERS.items():
        if kind in found.skipped.folders and (kind != "empty" or found.labels == "folders"):
            count, example = found.skipped.folders[kind]
            yield f"{count} {which}{text} (such as {example})"
    for name, text in COUNT_MESSAGES.items():
        if found.counts.get(name):
            example = f" (such as {found.examples[name]})" if name in found.examples else ""
            yield f"{found.counts[name]} {which}{text}{example}"


def _weights(tally: Tally, split: str, n: int) -> np.ndarray:
    """int64 (n): pixels of masks, boxes, or pictures per class."""
    if tally.has_boxes:
        return np.array([tally.boxes[split][i] for i in range(n)], np.int64)
    return tally.mask_values[split][:n] if tally.masks else _padded(tally.labels_of(split), n)


def _padded(values: np.ndarray, n: int) -> np.ndarray:
    return np.pad(values[:n], (0, max(n - len(values), 0)))
