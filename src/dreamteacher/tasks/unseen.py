"""Classes that the few labels leave out."""

from __future__ import annotations

import logging

import numpy as np

from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.items import IGNORE
from dreamteacher.errors import UserError

log = logging.getLogger(__name__)

MASKS = 2000  # of more masks none is read: it would take minutes, and a class that they all lack is unlikely


def check_labels(images: ImageSet, few: list[int]) -> None:
    """Warn of the classes that none of the labelled pictures `few` shows: a model that is trained on these pictures never predicts them.

    Raises:
        UserError: they show none at all, as sparse masks may after they were reduced to ingest.short_side.
    """
    if images.masks and len(few) > MASKS:
        return
    missing = set(range(len(images.classes)))
    for index in few:
        if not missing:
            return
        label = images.label(index)
        missing -= set(np.unique(label).tolist()) - {IGNORE} if isinstance(label, np.ndarray) else {label}
    if len(missing) == len(images.classes):
        raise UserError(
            f"no pixel of the {len(few)} labelled pictures has a class, so there is nothing to learn; "
            "raise few_labels or ingest.short_side, which reduces their masks, or label more"
        )
    if missing:
        unseen = [images.classes[number] for number in sorted(missing)]
        shown = ", ".join(unseen[:5]) + (f" and {len(unseen) - 5} more" if len(unseen) > 5 else "")
        verb = "shows" if images.masks else "is of"
        log.warning("none of the %d labelled pictures %s class %s; raise few_labels or label more", len(few), verb, shown)
