"""BYOL (Grill et al. 2020): predict a momentum encoder's projection of the other view, without negatives."""

from __future__ import annotations

import math

from torch import Tensor, nn

from dreamteacher.data.dataset import Samples
from dreamteacher.methods.contrast import Encoder, Momentum, ViewNetwork, Views, projector, unit
from dreamteacher.students.backbone import Backbone

FIRST_MOMENTUM = 0.996  # initial value; a cosine schedule raises it to 1 at the last step
CHANNELS = 256  # of projections


def regression(predicted: Tensor, target: Tensor) -> Tensor:
    """Eq 2: squared distance of the unit vectors `(B, C)` each, 2 - 2 cos, averaged over pictures."""
    return (unit(predicted) - unit(target)).square().sum(1).mean()


class Network(ViewNetwork):
    """Encoder with predictor, and its momentum encoder for the targets."""

    def __init__(self, backbone: Backbone, hidden: int, momentum: float):
        super().__init__(Encoder(backbone, projector(backbone.channels[-1], hidden, CHANNELS, norm=True)))
        self.predictor = projector(CHANNELS, hidden, CHANNELS, norm=True)
        self.momentum = Momentum(self.encoder, momentum)

    def forward(self, image: Tensor, other: Tensor) -> dict[str, Tensor]:
        """Views `(B, 3, H, W)` in [0, 1] to the symmetric loss."""
        pairs = (image, other), (other, image)
        first, second = (regression(self.predictor(self.encoder(seen)), self.momentum(hidden)) for seen, hidden in pairs)
        return {"loss": first + second}


class BYOL(Views):
    """Eq 2 of both views."""

    def build(self, backbone: Backbone, samples: Samples) -> nn.Module:
        """Projector and predictor; published hidden width: 4096, twice ResNet-50's embedding."""
        return Network(backbone, self.settings.projector or 2 * backbone.channels[-1], self.momentum(FIRST_MOMENTUM))

    def after_step(self, model: nn.Module, step: int) -> None:
        """Update the momentum encoder, with increasing decay."""
        assert isinstance(model, Network)
        first = self.momentum(FIRST_MOMENTUM)
        model.momentum.average.decay = 1 - (1 - first) * (math.cos(math.pi * step / self.settings.steps) + 1) / 2
        model.momentum.update(model.encoder, step)
