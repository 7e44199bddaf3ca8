"""The labelled train pictures of each draw of an assessment, and its held-out pictures."""

from __future__ import annotations

from pathlib import Path

from dreamteacher.assessment.plan import curve_sizes
from dreamteacher.data.dataset import ImageSet, few_labelled
from dreamteacher.data.holdout import hold_out, is_crossed
from dreamteacher.errors import UserError
from dreamteacher.settings.schema import Params


class Draws:
    """Draws of labelled pictures for training, with held-out ones for the metric.

    Attributes:
        images: the train split.
        labelled: number of its labelled pictures.
        pool: number of labelled pictures that are available to every draw; the others are held out.
        few: number of labels of fine-tuning in the chain.
        measured: number of labels in the trainings here: `few`, at most `pool`.
        numbers: numbers of labels on the learning curve, including `measured`.
        crossed: each draw holds out another fold (see `holdout.is_crossed`).
    """

    def __init__(self, params: Params, images: ImageSet, data: Path):
        """`images` of the data set `data`.

        Raises:
            UserError: fewer pictures are labelled than few_labels, or too few to hold some out.
        """
        self.images, self.crossed, self._by = images, is_crossed(images), params.few_labels_by
        self._parts = [hold_out(images, draw) for draw in range(params.assess.draws)]
        self.labelled, self.pool = len(images.labelled()), min(len(pool) for pool, _ in self._parts)
        self.few = params.few_labels or self.labelled
        self.measured = min(self.few, self.pool)
        least = max(2, len(images.classes)) if images.form == "class" else 2
        if self.few > self.labelled:
            few_labelled(images, self.few, 0)  # raises
        if self.pool < 2 * least or not all(held for _, held in self._parts):
            raise UserError(
                f"{data}: {self.labelled} labelled train pictures are too few to hold some out and draw a learning curve from the others; "
                f"label {max(2 * least + 2, 6)} at least"
            )
        self.numbers = curve_sizes(self.measured, self.pool, least)

    def few_of(self, draw: int, n: int) -> list[int]:
        """The first `n` pictures of a draw; a larger `n` gives a superset."""
        return few_labelled(self.images, n, draw, self._by, among=self._parts[draw][0])

    def held_out(self, draw: int) -> list[int]:
        """The held-out pictures of a draw."""
        return self._parts[draw][1]
