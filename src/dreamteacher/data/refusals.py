"""Checks of a complete ingest: data that is unfit for training is refused, and nothing is written."""

from __future__ import annotations

import numpy as np

from dreamteacher.data.items import IGNORE, Found
from dreamteacher.data.summary import class_names
from dreamteacher.data.tally import SPLITS, Tally
from dreamteacher.errors import UserError
from dreamteacher.settings.downstream import Ingest


def refuse(settings: Ingest, found: Found, tally: Tally) -> None:
    """Check the counts against what training needs.

    Raises:
        UserError: too many bad pictures or shards, no train picture, labels of two kinds, no labels in train or in val, or only one class.
    """
    counts = tally.counts
    came, came_bad = counts["incoming"], counts["incoming_quarantined"]
    # Incoming pictures have their own quota: among a million old pictures, a week of broken ones would not be noticed.
    parts = ((counts["pictures"] - came, counts["quarantined"] - came_bad, "pictures"), (came, came_bad, "incoming pictures"))
    for (seen, bad, what), reasons in zip(parts, tally.reasons, strict=True):
        if bad > settings.max_bad_fraction * seen:
            share = f"{bad} of {seen} {what} cannot be used, more than ingest.max_bad_fraction = {settings.max_bad_fraction:g}"
            raise UserError(f"{share}: {'; '.join(reasons)}{' ...' if bad > len(reasons) else ''}; remove them or raise the limit")
    shards, damaged = found.counts.get("shards", 0), found.counts.get("damaged_shards", 0)
    if damaged > settings.max_bad_fraction * shards:  # the number of lost pictures is unknown
        share = f"{damaged} of {shards} shards are damaged, more than ingest.max_bad_fraction = {settings.max_bad_fraction:g}"
        raise UserError(f"{share}: {'; '.join(tally.reasons[0])}; fetch them again or raise the limit")
    if not counts["train"]:
        raise UserError(
            f"no picture is left to train on ({counts['pictures']} seen, {counts['val']} in val); add pictures or lower ingest.val_fraction"
            f"{_skipped_files(found)}"
        )
    if len(tally.tasks) > 1:
        raise UserError("labels are of several kinds (masks, boxes, classes); set ingest.labels to masks, boxes or folders to choose one")
    _refuse_useless_labels(settings, found, tally)


def _skipped_files(found: Found) -> str:
    """A list of skipped files, which may hold the missing data, such as train.zip."""
    return f"; passed over: {found.skipped.words()}" if found.skipped.by_suffix else ""


def _refuse_useless_labels(settings: Ingest, found: Found, tally: Tally) -> None:
    counts, unknown = tally.counts, tally.warnings["mask_is_unknown"] + tally.warnings["mask_vanished"]
    wanted = SPLITS if found.has_val or settings.val_fraction else ("train",)
    empty = next((split for split in wanted if not counts[f"labelled_{split}"]), None)
    if empty and (tally.tasks or unknown):
        reduced = ", some once they were reduced to ingest.short_side" if tally.warnings["mask_vanished"] else ""
        nothing = "maps without a distance above 0" if found.task == "depth" else f"masks that are {IGNORE}, unknown, everywhere"
        without = f" ({nothing} are none: {unknown}{reduced})" if unknown else ""
        others = "".join(f"; {note}" for note in found.notes if "ingest.task" in note)
        raise UserError(
            f"there are {counts['labelled_train'] + counts['labelled_val']} labels, and none in {empty}{without}: nothing could be "
            f"{'trained' if empty == 'train' else 'measured'} by them; put pictures into folders train/ and val/ with labels in both, "
            f"change ingest.val_fraction ({settings.val_fraction:g}), or set ingest.labels to none{_skipped_files(found)}{others}"
        )
    if counts["other_palettes"] > settings.max_bad_fraction * (counts["labelled_train"] + counts["labelled_val"]):
        raise UserError(
            f"{counts['other_palettes']} masks give a colour of their palette another number than masks before do, so the numbers are no "
            "classes: write the colour of each class behind its name in classes.txt, such as: road #804080, or, if they are, save masks as "
            "grey"
        )
    values = tally.mask_values["train"] + tally.mask_values["val"]
    if values[IGNORE] and values[0] and not values[1:IGNORE].any():
        raise UserError(
            "the masks hold only 0 and 255, and 255 means unknown: write class ids (1 for the object, not 255), or name the colours in "
            "classes.txt, such as: background #000000 in its first line and object #ffffff in its second"
        )
    numbered = counts["labelled_train"] + counts["labelled_val"] - counts["without_boxes_train"] - counts["without_boxes_val"]
    if tally.task == "instances" and 2 * tally.warnings["one_number_in_pieces"] > numbered:
        raise UserError(
            f"{tally.warnings['one_number_in_pieces']} of {numbered} masks hold one number in several pieces, so they do not tell objects "
            "apart: give each object its own number (scipy.ndimage.label, where they do not touch), or set ingest.task to segmentation"
        )
    if tally.has_boxes:
        if empty_split := next((split for split in wanted if not tally.boxes[split]), None):
            raise UserError(
                f"no labelled picture of {empty_split} has {tally.one_object}, so nothing could be "
                f"{'learnt' if empty_split == 'train' else 'measured'}; "
                f"label more, put pictures with {tally.objects_noun} into {empty_split}/, or set ingest.labels to none"
                + (
                    " (of several classes in classes.txt an object is 1000 x the line of its class, from 0, + its number)"
                    if tally.task == "instances" and found.labels != "boxes"
                    else ""
                )
            )
    elif tally.task == "multilabel":
        if empty_split := next((split for split in wanted if not tally.classes[split]), None):
            raise UserError(f"no picture of {empty_split} has any of the classes; label more, or set ingest.labels to none")
    elif tally.tasks and tally.task != "depth":
        (ids,) = np.nonzero(tally.labels_of("train"))
        if len(ids) == 1:
            name = class_names(found, tally)[ids[0]]
            where = "train" if len(np.nonzero(tally.labels_of("val"))[0]) else "all"
            raise UserError(
                f"{where} labels are of one class, {name!r}: nothing can be learnt from them; label pictures of another class too, or set "
                "ingest.labels to none"
            )
