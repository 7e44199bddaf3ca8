"""Checks for missing labels: of the whole data set, and of classes in the few labels."""

from __future__ import annotations

import logging
from pathlib import Path

from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.strata import classes_of
from dreamteacher.errors import UserError

log = logging.getLogger(__name__)

THINGS = {"boxes": "a box", "instances": "an object", "labels": "a class", "keypoints": "a keypoint"}  # for label formats that may be empty
MASKS = 2000  # with more masks the check is skipped: it would take minutes, and a class missing in all is unlikely


def require_labels(images: ImageSet, data: Path, purpose: str) -> str:
    """The task of the split `images` of the data set `data`. `purpose` says in the message what labels are needed for.

    Raises:
        UserError: the data set has no labels.
    """
    if images.task is None:
        raise UserError(f"{data} has no labels; give ingest.source some (masks, boxes, class folders or labels.csv) to {purpose}")
    return images.task


def check_labels(images: ImageSet, few: list[int]) -> None:
    """Warn of the classes that none of the labelled pictures `few` shows: a model that is trained on these pictures never predicts them.

    Raises:
        UserError: they show none at all, for example sparse masks after downscaling to ingest.short_side.
    """
    if images.form in ("mask", "instances") and len(few) > MASKS:
        return
    missing = set(range(len(images.classes)))
    for index in few:
        if not missing:
            return
        missing -= classes_of(images.label(index), images.form)
    if len(missing) == len(images.classes) and images.form in THINGS:
        thing = THINGS[images.form]
        raise UserError(
            f"none of the {len(few)} labelled pictures has {thing}, so there is nothing to learn; raise few_labels or label more"
        )
    if len(missing) == len(images.classes):
        raise UserError(
            f"no pixel of the {len(few)} labelled pictures has a class, so there is nothing to learn; "
            "raise few_labels or ingest.short_side, which reduces their masks, or label more"
        )
    if missing:
        unseen = [images.classes[number] for number in sorted(missing)]
        shown = ", ".join(unseen[:5]) + (f" and {len(unseen) - 5} more" if len(unseen) > 5 else "")
        verb = "is of" if images.form == "class" else "shows"
        log.warning("none of the %d labelled pictures %s class %s; raise few_labels or label more", len(few), verb, shown)
