"""The step of feature distillation (Eq 1-3), shared by distill-features and the mix of distill-labels."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from dreamteacher.distillation.objectives import ExplainedVariance, attention_transfer
from dreamteacher.distillation.terms import Compared, get_term
from dreamteacher.distillation.whitening import Whitening
from dreamteacher.errors import UserError
from dreamteacher.settings.pretraining import Distill, Student
from dreamteacher.students.backbone import Backbone
from dreamteacher.students.regressor import FeatureRegressor
from dreamteacher.teachers.base import Tap


def inner_cells(maps: list[Tensor], strides: list[int], margin: int) -> list[Tensor]:
    """Maps `(B, C_l, h_l, w_l)` at `strides` without the ceil(margin / stride) outer cells of each side; `margin` in pixels.

    Convolutions pad with zeros, so a generator's features near the border of a crop depend on that border, and differ from the features of
    the same position inside another crop.

    Raises:
        UserError: fewer than two cells would be left in a row or column.
    """
    if not margin:
        return maps
    inner = []
    for of_tap, stride in zip(maps, strides, strict=True):
        outer, (height, width) = -(-margin // stride), of_tap.shape[2:]
        if min(height, width) - 2 * outer < 2:
            raise UserError(
                f"distill.margin = {margin} leaves less than 2 x 2 of the {height} x {width} cells at stride {stride}; "
                "lower it, raise distill.resolution, or leave that stride out of taps"
            )
        inner.append(of_tap[:, :, outer : height - outer, outer : width - outer])
    return inner


@dataclass(frozen=True)
class FeatureObjective:
    """The loss of feature distillation: a weighted sum of terms of the regressed maps and the teacher's (Eq 3).

    Attributes:
        whiten: W of Eq 1.
        strides: of the taps, fine to coarse.
        weights: of each term, by its name (see `terms`); 0: it is logged, but not minimised.
        margin: width of the crops' border that is left out, pixels; see `inner_cells`.
    """

    whiten: Whitening
    strides: list[int]
    weights: dict[str, float]
    margin: int = 0

    def __call__(self, regressed: list[Tensor], features: list[Tensor]) -> dict[str, Tensor]:
        """The loss and its terms.

        Args:
            regressed: one `(B, C_l, h_l, w_l)` a tap and, with the term `global`, `(B, C_last)`: what a FeatureRegressor returns.
            features: the teacher's, one `(B, C_l, h_l, w_l)` a tap, not whitened.

        Returns:
            `loss`, each term by name, and with `at` also `at_floor`: Eq 2 for maps that equal the whitened targets, the minimum of Eq 1.
            Eq 2 compares with raw features, so both cannot be 0 at once unless whitening is only a scale.
        """
        compared = self._compare(regressed, features)
        terms = {name: get_term(name)(compared) for name in self.weights}
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        floor = {"at_floor": attention_transfer(compared.whitened, compared.raw)} if "at" in terms else {}
        return {"loss": loss, **terms, **floor}

    def compared(self, regressed: list[Tensor], features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The inner cells of the regressed maps and of the teacher's whitened maps, which should be equal."""
        compared = self._compare(regressed, features)
        return compared.regressed, compared.whitened

    def _compare(self, regressed: list[Tensor], features: list[Tensor]) -> Compared:
        maps, pooled = regressed[: len(self.strides)], regressed[len(self.strides) :]
        raw = inner_cells(features, self.strides, self.margin)
        inner = [r.float() for r in inner_cells(maps, self.strides, self.margin)]
        return Compared(inner, raw, self.whiten(raw), pooled[0].float() if pooled else None)


def feature_objective(settings: Distill, whiten: Whitening, taps: list[Tap]) -> FeatureObjective:
    """The objective of the settings `distill`.

    Raises:
        UserError: a term does not exist.
    """
    for name in settings.objectives:
        get_term(name)
    return FeatureObjective(whiten, [tap.stride for tap in taps], settings.objectives, settings.margin)


def student_options(settings: Distill) -> dict[str, bool]:
    """Options of the FeatureRegressor that depend on the settings `distill`."""
    return {"pooled": "global" in settings.objectives, "conditioned": settings.encoding == "stratified"}


def create_regressor(backbone: Backbone, taps: list[Tap], student: Student, distill: Distill) -> FeatureRegressor:
    """`backbone` with the neck of the settings `student` and heads for `taps` as the settings `distill` require."""
    channels, strides = [tap.channels for tap in taps], [tap.stride for tap in taps]
    return FeatureRegressor(backbone, channels, strides, student.width, student.neck, **student_options(distill))


class Quality:
    """Accumulates the label-free metric: explained variance of each tap on held-out pictures."""

    def __init__(self, taps: list[Tap]):
        self._explained = {f"ev_stride{tap.stride}": ExplainedVariance() for tap in taps}

    def update(self, regressed: list[Tensor], whitened: list[Tensor]) -> None:
        """Add a batch, one `(B, C_l, h_l, w_l)` per tap."""
        for explained, r, w in zip(self._explained.values(), regressed, whitened, strict=True):
            explained.update(r.float(), w)

    def compute(self) -> dict[str, float]:
        """By stride of the taps, and their mean; `explained_within`: the mean of `ExplainedVariance.within`, of taps that have it."""
        values = {name: explained.compute() for name, explained in self._explained.items()}
        values["explained_variance"] = fmean(values.values())
        within = [share for explained in self._explained.values() if (share := explained.within()) is not None]
        return values | ({"explained_within": fmean(within)} if within else {})


def embedding_spread(embedding: Tensor) -> float:
    """Measure of collapse: spread of the unit embeddings `(B, C)` around their mean, in [0, 1]; near 0 all embeddings are the same."""
    unit = torch.nn.functional.normalize(embedding.float(), dim=1)
    return float((unit - unit.mean(0)).square().sum(1).mean().sqrt())
