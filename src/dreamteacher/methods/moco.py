"""MoCo v2 (He et al. 2020, Chen et al. 2020b): contrast a momentum encoder's key of the other view with a queue of earlier keys."""

from __future__ import annotations

from torch import Tensor, nn

from dreamteacher.data.dataset import Samples
from dreamteacher.methods.contrast import Encoder, Momentum, Queue, ViewNetwork, Views, info_nce, projector, unit
from dreamteacher.students.backbone import Backbone

TEMPERATURE, MOMENTUM = 0.2, 0.999
CHANNELS = 128  # of queries and keys


class Network(ViewNetwork):
    """Query encoder, its momentum encoder for the keys, and their queue."""

    def __init__(self, backbone: Backbone, hidden: int, momentum: float, queue: int, temperature: float):
        super().__init__(Encoder(backbone, projector(backbone.channels[-1], hidden, CHANNELS)))
        self.momentum = Momentum(self.encoder, momentum)
        self.queue = Queue(queue, CHANNELS)
        self.temperature = temperature

    def forward(self, image: Tensor, other: Tensor) -> dict[str, Tensor]:
        """Views `(B, 3, H, W)` in [0, 1] to the loss; adds the keys to the queue."""
        keys = unit(self.momentum(other))
        loss = info_nce(unit(self.encoder(image)), keys, self.queue.read(), self.temperature)
        self.queue.add(keys)
        return {"loss": loss}


class MoCo(Views):
    """InfoNCE against the queue."""

    network: type[nn.Module] = Network

    def build(self, backbone: Backbone, samples: Samples) -> nn.Module:
        """A projector on the embedding, and the momentum encoder."""
        momentum = self.momentum(MOMENTUM)
        queue, temperature = self.queue_of_negatives(samples), self.settings.temperature or TEMPERATURE
        return self.network(backbone, self.hidden(backbone), momentum, queue, temperature)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Update the momentum encoder."""
        momentum, encoder = model.momentum, model.encoder
        assert isinstance(momentum, Momentum) and isinstance(encoder, nn.Module)
        momentum.update(encoder, step)
