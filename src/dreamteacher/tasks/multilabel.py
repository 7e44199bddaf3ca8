"""Multi-label classification: a linear head on the pooled embedding, binary cross entropy, mean average precision and F1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dreamteacher.data.items import IGNORE
from dreamteacher.settings.downstream import Finetune
from dreamteacher.settings.pretraining import Interpreter
from dreamteacher.tasks.base import Size, count_known
from dreamteacher.tasks.classification import PictureTask

if TYPE_CHECKING:
    from dreamteacher.report.figures import Panel

LIKELY = 0.5  # probability threshold of a label


class Precisions:
    """`map` and `f1`, means over the classes that occur, `f1_micro` over all labels, and `ap_CLASS` of the classes that occur. F1 uses a
    threshold of 0.5; unknown labels are ignored."""

    def __init__(self, classes: list[str]):
        self.classes = classes
        self._predicted: list[Tensor] = []
        self._truth: list[Tensor] = []

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Probabilities (K,), and 1, 0 or IGNORE (K,)."""
        self._predicted.append(predicted.float().cpu())
        self._truth.append(truth.cpu())

    def compute(self) -> dict[str, float]:
        """Figures of all pictures so far."""
        from torchmetrics.functional.classification import binary_average_precision, binary_f1_score

        truth = torch.stack(self._truth) if self._truth else torch.zeros(0, len(self.classes))
        seen = ((truth == 1).any(0)).nonzero().flatten().tolist()
        if not seen:
            return {}
        predicted = torch.stack(self._predicted)
        precision = {i: float(binary_average_precision(predicted[:, i], truth[:, i], ignore_index=IGNORE)) for i in seen}
        f1 = [float(binary_f1_score(predicted[:, i], truth[:, i], LIKELY, ignore_index=IGNORE)) for i in seen]
        micro = float(binary_f1_score(predicted.flatten(), truth.flatten(), LIKELY, ignore_index=IGNORE))
        means = {"map": sum(precision.values()) / len(seen), "f1": sum(f1) / len(seen), "f1_micro": micro}
        return means | {f"ap_{self.classes[i]}": value for i, value in precision.items()}


class MultiLabel(PictureTask):
    """Any number of classes for a picture."""

    figure, title, classifies = "map", "mAP", None
    count = staticmethod(count_known)

    def loss(self, outputs: Tensor, batch: dict[str, Tensor], settings: Finetune | Interpreter) -> dict[str, Tensor]:
        """Binary cross entropy of `(B, K)` logits and labels, a mean over the known ones."""
        known = (batch["label"] != IGNORE).float()
        total = F.binary_cross_entropy_with_logits(outputs.float(), batch["label"].float() * known, known, reduction="sum")
        return {"loss": total / batch["count"].clamp(min=1)}

    def decode(self, output: Tensor, own: Size, size: Size) -> Tensor:
        """Probabilities, `(K,)`, of logits."""
        return output.sigmoid()

    def score(self, classes: list[str]) -> Precisions:
        """Of pictures."""
        return Precisions(classes)

    def agreement(self, exact: Tensor, rounded: Tensor) -> tuple[int, int]:
        """Over the labels of all pictures: on the same side of LIKELY."""
        equal = ((exact > 0) == (rounded > 0)) & rounded.isfinite()
        return int(equal.sum()), equal.numel()

    def draw(self, image: np.ndarray, labels: dict[str, Any], classes: list[str]) -> list[Panel]:
        """The picture with its classes as text above."""
        lines = []
        for name, label in labels.items():
            values = np.asarray(label)
            chosen = [classes[i] for i in np.flatnonzero((values >= LIKELY) & (values <= 1))]
            lines.append(f"{name}: {', '.join(chosen) or 'none'}")
        return [("\n".join(lines), image)]


TASK = MultiLabel()
