"""SimCLR (Chen et al. 2020): contrast the other view of a picture with the views of all other pictures of the batch."""

from __future__ import annotations

from torch import Tensor, nn

from dreamteacher.data.dataset import Samples
from dreamteacher.methods.contrast import Encoder, ViewNetwork, Views, nt_xent, projector, unit
from dreamteacher.students.backbone import Backbone

TEMPERATURE = 0.1  # of their runs on ImageNet
CHANNELS = 128  # of the embeddings that are compared


class Network(ViewNetwork):
    """The encoder alone."""

    def __init__(self, backbone: Backbone, hidden: int, temperature: float):
        super().__init__(Encoder(backbone, projector(backbone.channels[-1], hidden, CHANNELS, norm=True)))
        self.temperature = temperature

    def forward(self, image: Tensor, other: Tensor) -> dict[str, Tensor]:
        """Views `(B, 3, H, W)` in [0, 1] to the loss; each view has its own batch statistics."""
        return {"loss": nt_xent(unit(self.encoder(image)), unit(self.encoder(other)), self.temperature)}


class SimCLR(Views):
    """NT-Xent of both views."""

    def build(self, backbone: Backbone, samples: Samples) -> nn.Module:
        """A projector on the embedding."""
        return Network(backbone, self.hidden(backbone), self.settings.temperature or TEMPERATURE)
