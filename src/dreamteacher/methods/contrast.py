"""Shared parts of the two-view methods: views, projector, momentum encoder, queue and InfoNCE."""

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

    Negatives, queues and assignments are gathered over all processes, so several processes train like one; but accumulation parts
    (`accumulate`) are independent of each other.
    """

    def transform(self) -> Transform:
        """The transform that makes two views."""
        return two_views(self.settings.resolution, AUGMENTATIONS[self.settings.augment])

    def loss(self, model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        """The losses of both views."""
        return model(batch["image"], batch["other"])

    def hidden(self, backbone: Backbone) -> int:
        """Hidden channels of the projector: as many as the embedding has, for ResNet-50 the published 2048."""
        return self.settings.projector or backbone.channels[-1]

    def momentum(self, published: float) -> float:
        """The momentum encoder's decay; as published if the setting is null."""
        return published if self.settings.momentum is None else self.settings.momentum

    def queue_size(self, published: int, samples: Samples) -> int:
        """The queue length; as published if the setting is null, but at most an epoch, or pictures would meet their own older keys."""
        return min(published, len(samples)) if self.settings.queue is None else self.settings.queue

    def queue_of_negatives(self, samples: Samples) -> int:
        """MoCo's 65,536.

        Raises:
            UserError: the setting is 0.
        """
        if (size := self.queue_size(65_536, samples)) == 0:
            raise UserError(f"distill.queue = 0 leaves {self.settings.method} without negatives; raise it, or use simclr")
        return size


def projector(inputs: int, hidden: int, outputs: int, norm: bool = False) -> nn.Sequential:
    """Two layers from `(B, inputs)` to `(B, outputs)`; `norm`: with batch normalisation, as in SimCLR, BYOL and SwAV."""
    inside = [nn.BatchNorm1d(hidden)] if norm else []
    return nn.Sequential(nn.Linear(inputs, hidden, bias=not norm), *inside, nn.ReLU(inplace=True), nn.Linear(hidden, outputs))


class Encoder(nn.Module):
    """A backbone with a projector on its embedding."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """Pictures `(B, 3, H, W)` in [0, 1] to `(B, D)`."""
        return self.head(self.backbone.embed(self.backbone(normal(images, self.backbone))))


class ViewNetwork(nn.Module):
    """Base of the networks of two-view methods: an encoder, and more."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    @property
    def backbone(self) -> Backbone:
        """The encoder's backbone."""
        return self.encoder.backbone  # type: ignore[return-value]


def unit(embeddings: Tensor) -> Tensor:
    """Unit vectors along the channels (dimension 1), in float32."""
    return F.normalize(embeddings.float(), dim=1)


class Momentum(nn.Module):
    """A momentum encoder (EMA of an encoder), for keys or targets.

    It stays in eval mode, with averaged batch-norm statistics (EMAN, Cai et al. 2021). These leak no information between pictures of a
    batch, which MoCo prevents by shuffling between GPUs, and do not depend on how a batch is split. As in `training.ema`, the decay is
    smaller in the first steps, because short runs would otherwise have random targets.
    """

    def __init__(self, encoder: nn.Module, decay: float):
        super().__init__()
        self.average = create_ema(encoder, decay).requires_grad_(False)

    def train(self, mode: bool = True) -> Momentum:
        """Always eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        """The encoder's output, without gradient."""
        return self.average.module(images)

    def update(self, encoder: nn.Module, step: int) -> None:
        """Update from the encoder's weights after optimiser step `step` (from 0)."""
        update_ema(self.average, encoder, step)


class Queue(nn.Module):
    """A ring buffer of the last `size` embeddings; initially random unit vectors."""

    def __init__(self, size: int, channels: int):
        super().__init__()
        self.values: Tensor
        self.next: Tensor
        self.register_buffer("values", unit(torch.randn(size, channels)))
        self.register_buffer("next", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def add(self, embeddings: Tensor) -> None:
        """Add the embeddings `(B, C)` of all processes; the last `size` are kept."""
        new = gather(embeddings.float())[-len(self.values) :]
        places = (self.next + torch.arange(len(new), device=new.device)) % len(self.values)
        self.values[places] = new
        self.next.copy_((self.next + len(new)) % len(self.values))

    def read(self) -> Tensor:
        """A copy of all embeddings, `(size, C)`."""
        return self.values.clone()


def full_precision(device: torch.device) -> torch.autocast:
    """Disable autocast: similarities divided by a small temperature lose too much precision in bfloat16."""
    return torch.autocast(device.type, enabled=False)


def info_nce(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE: -log softmax of each query's positive key against the negatives, averaged (van den Oord et al. 2018; MoCo's Eq 1).

    Queries `(B, C)` with their keys `(B, C)`, row by row, and negatives `(K, C)` shared by all queries; unit vectors.
    """
    with full_precision(queries.device):
        queries, keys = queries.float(), keys.float()
        own = (queries * keys).sum(1, keepdim=True)
        logits = torch.cat([own, queries @ negatives.float().T], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """NT-Xent (SimCLR's Eq 1) of unit vectors `(B, C)` each: the other view against all other views of the batch, over all processes."""
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
