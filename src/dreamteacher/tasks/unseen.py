"""Classes that the few labels leave out."""

from __future__ import annotations

import logging

import numpy as np

from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.items import IGNORE

log = logging.getLogger(__name__)

MASKS = 2000  # of more masks none is read: it would take minutes, and a class that they all lack is unlikely


def warn_of_unseen(images: ImageSet, few: list[int]) -> None:
    """Warn of the classes that none of the labelled pictures `few` shows: a model that is trained on these pictures never predicts them."""
    if images.task == "segmentation" and len(few) > MASKS:
        return
    missing = set(range(len(images.classes)))
    for index in few:
        if not missing:
            return
        label = images.label(index)
        missing -= set(np.unique(label).tolist()) - {IGNORE} if isinstance(label, np.ndarray) else {label}
    if missing:
        unseen = [images.classes[number] for number in sorted(missing)]
        shown = ", ".join(unseen[:5]) + (f" and {len(unseen) - 5} more" if len(unseen) > 5 else "")
        verb = "shows" if images.task == "segmentation" else "is of"
        log.warning("none of the %d labelled pictures %s class %s; raise few_labels or label more", len(few), verb, shown)
