"""DenseCL (Wang et al. 2021): MoCo v2, with half of the loss on single positions, matched by the backbone's own maps."""

from __future__ import annotations

from torch import Tensor, nn

from dreamteacher.methods.base import normal
from dreamteacher.methods.contrast import Momentum, Queue, ViewNetwork, full_precision, info_nce, projector, unit
from dreamteacher.methods.moco import CHANNELS, MoCo
from dreamteacher.students.backbone import Backbone

DENSE = 0.5  # weight of the dense loss, lambda of Eq 3


class DenseEncoder(nn.Module):
    """A backbone's coarsest maps with two projectors: for their average, and for each position."""

    def __init__(self, backbone: Backbone, hidden: int):
        super().__init__()
        channels = backbone.channels[-1]
        self.backbone = backbone
        self.head = projector(channels, hidden, CHANNELS)
        self.dense = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, CHANNELS, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures `(B, 3, H, W)` in [0, 1] to unit vectors: `(B, D)`, `(B, D, n)` for n positions, and the maps' own `(B, C, n)`."""
        pyramid = self.backbone(normal(images, self.backbone))
        embedding = self.head(self.backbone.embed(pyramid))
        return unit(embedding), unit(self.dense(pyramid[-1]).flatten(2)), unit(pyramid[-1].flatten(2))


def matched(keys: Tensor, maps: Tensor, key_maps: Tensor) -> Tensor:
    """For each position of a view, the key of the most similar position of the other view (Sec 3.3).

    Keys `(B, D, n)` and unit maps `(B, C, m)`, `(B, C, n)` of both views, to `(B, D, m)`.
    """
    with full_precision(maps.device):
        nearest = (maps.mT @ key_maps).argmax(2)
    return keys.gather(2, nearest[:, None].expand(-1, keys.shape[1], -1))


class Network(ViewNetwork):
    """Query encoder, its momentum encoder for the keys, and a queue for each of the two losses."""

    def __init__(self, backbone: Backbone, hidden: int, momentum: float, queue: int, temperature: float):
        super().__init__(DenseEncoder(backbone, hidden))
        self.momentum = Momentum(self.encoder, momentum)
        self.queue, self.dense_queue = Queue(queue, CHANNELS), Queue(queue, CHANNELS)
        self.temperature = temperature

    def forward(self, image: Tensor, other: Tensor) -> dict[str, Tensor]:
        """Views `(B, 3, H, W)` in [0, 1] to the losses; adds the keys to the queues."""
        query, queries, maps = self.encoder(image)
        key, keys, key_maps = self.momentum(other)
        whole = info_nce(query, key, self.queue.read(), self.temperature)
        partners = matched(keys, maps.detach(), key_maps)
        places, keys_of_places = (each.movedim(1, 2).flatten(0, 1) for each in (queries, partners))
        dense = info_nce(places, keys_of_places, self.dense_queue.read(), self.temperature)
        self.queue.add(key)
        self.dense_queue.add(unit(keys.mean(2)))
        return {"loss": (1 - DENSE) * whole + DENSE * dense, "global": whole, "dense": dense}


class DenseCL(MoCo):
    """InfoNCE of pictures and of positions."""

    network = Network
