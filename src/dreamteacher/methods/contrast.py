"""What methods that compare two views share: the views, projector, momentum encoder, queue and InfoNCE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.data.dataset import Samples
from dreamteacher.data.transforms import AUGMENTATIONS, Transform, two_views
from dreamteacher.errors import UserError
from dreamteacher.methods.base import Method, normal
from dreamteacher.students.backbone import Backbone
from dreamteacher.training.ema import create_ema, update_ema
from dreamteacher.training.processes import gather
from dreamteacher.training.randomness import StepRandom


class Views(Method):
    """A method that learns from two views of each picture. Its network's forward takes both, in [0, 1], and returns the losses.

    Negatives, queues and assignments are those of a part of the batch over all processes: several processes train like one, but
    with `accumulate` each part knows itself alone.
    """

    def transform(self) -> Transform:
        """Two views."""
        return two_views(self.settings.resolution, AUGMENTATIONS[self.settings.augment])

    def loss(self, model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        """Of both views."""
        return model(batch["image"], batch["other"])

    def hidden(self, backbone: Backbone) -> int:
        """Channels inside the projector: as many as the embedding has, which of ResNet-50 are the published 2048."""
        return self.settings.projector or backbone.channels[-1]

    def momentum(self, published: float) -> float:
        """The momentum encoder's decay: as published where the settings leave it open."""
        return published if self.settings.momentum is None else self.settings.momentum

    def queue_size(self, published: int, samples: Samples) -> int:
        """As published where the settings leave it open, but no larger than an epoch, or pictures would meet their own older keys."""
        return min(published, len(samples)) if self.settings.queue is None else self.settings.queue

    def queue_of_negatives(self, samples: Samples) -> int:
        """MoCo's 65,536.

        Raises:
            UserError: the settings want none.
        """
        if (size := self.queue_size(65_536, samples)) == 0:
            raise UserError(f"distill.queue = 0 leaves {self.settings.method} nothing to compare with; raise it, or take simclr")
        return size


def projector(inputs: int, hidden: int, outputs: int, norm: bool = False) -> nn.Sequential:
    """Two layers from `(B, inputs)` to `(B, outputs)`; `norm`: with batch normalisation, as SimCLR, BYOL and SwAV have it."""
    inside = [nn.BatchNorm1d(hidden)] if norm else []
    return nn.Sequential(nn.Linear(inputs, hidden, bias=not norm), *inside, nn.ReLU(inplace=True), nn.Linear(hidden, outputs))


class Encoder(nn.Module):
    """A backbone's embedding, projected."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """Pictures `(B, 3, H, W)` in [0, 1] to `(B, D)`."""
        return self.head(self.backbone.embed(self.backbone(normal(images, self.backbone))))


class ViewNetwork(nn.Module):
    """What a method of views trains: an encoder, and more."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    @property
    def backbone(self) -> Backbone:
        """That of the encoder."""
        return self.encoder.backbone  # type: ignore[return-value]


def unit(embeddings: Tensor) -> Tensor:
    """Unit vectors along the channels (dimension 1), in float32."""
    return F.normalize(embeddings.float(), dim=1)


class Momentum(nn.Module):
    """The running average of an encoder, as keys or targets.

    It stays in eval mode, with averaged statistics of batch normalisation (EMAN, Cai et al. 2021): they cannot betray which pictures lie
    in one batch, for which MoCo shuffles them between GPUs, and do not depend on how a batch is split. As with `training.ema`, the
    decay of the first steps is smaller, or else short runs would have random targets.
    """

    def __init__(self, encoder: nn.Module, decay: float):
        super().__init__()
        self.average = create_ema(encoder, decay).requires_grad_(False)

    def train(self, mode: bool = True) -> Momentum:
        """Eval mode in any case."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        """What the encoder returns, without gradient."""
        return self.average.module(images)

    def update(self, encoder: nn.Module, step: int) -> None:
        """Take in the encoder's weights after optimiser step `step` (from 0)."""
        update_ema(self.average, encoder, step)


class Queue(nn.Module):
    """The last `size` embeddings, newest over oldest; at first random unit vectors."""

    def __init__(self, size: int, channels: int):
        super().__init__()
        self.values: Tensor
        self.next: Tensor
        self.register_buffer("values", unit(torch.randn(size, channels)))
        self.register_buffer("next", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def add(self, embeddings: Tensor) -> None:
        """Put in those `(B, C)` of all processes, of which the last `size` remain."""
        new = gather(embeddings.float())[-len(self.values) :]
        places = (self.next + torch.arange(len(new), device=new.device)) % len(self.values)
        self.values[places] = new
        self.next.copy_((self.next + len(new)) % len(self.values))

    def read(self) -> Tensor:
        """All, `(size, C)`, as they are now."""
        return self.values.clone()


def full_precision(device: torch.device) -> torch.autocast:
    """Autocast off: similarities divided by a small temperature lose too much in bfloat16."""
    return torch.autocast(device.type, enabled=False)


def info_nce(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """-log of the share of each query's own key among it and the negatives, averaged (van den Oord et al. 2018; MoCo's Eq 1).

    Queries `(B, C)` and their keys `(B, C)`, row by row, and negatives `(K, C)`, which all queries have; unit vectors.
    """
    with full_precision(queries.device):
        queries, keys = queries.float(), keys.float()
        own = (queries * keys).sum(1, keepdim=True)
        logits = torch.cat([own, queries @ negatives.float().T], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's Eq 1 of unit vectors `(B, C)` each: a view's other view against all other views of the batch, of all processes."""
    with full_precision(first.device):
        first, second = first.float(), second.float()
        everyone = torch.cat([gather(first), gather(second)])
        half = len(everyone) // 2
        rank = torch.distributed.get_rank() if half > len(first) else 0
        places = torch.arange(len(first), device=first.device) + rank * len(first)
        logits = torch.cat([first, second]) @ everyone.T / temperature
        own = torch.cat([places, places + half])
        logits = logits.scatter(1, own[:, None], -torch.inf)  # not with itself
        return F.cross_entropy(logits, torch.cat([places + half, places]))
