"""SwAV (Caron et al. 2020): predict the other view's prototype assignment, with equally used prototypes."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.data.dataset import Samples
from dreamteacher.methods.contrast import Encoder, Queue, ViewNetwork, Views, full_precision, projector, unit
from dreamteacher.students.backbone import Backbone
from dreamteacher.training.processes import gather
from dreamteacher.training.randomness import StepRandom

TEMPERATURE, EPSILON, ITERATIONS = 0.1, 0.05, 3  # of the softmax; of Sinkhorn-Knopp
CHANNELS, PROTOTYPES, QUEUE = 128, 3000, 3840
FROZEN = 313  # first steps with frozen prototypes, at most a tenth of the run


@torch.no_grad()
def sinkhorn(scores: Tensor) -> Tensor:
    """Assignments of N embeddings to K prototypes from their similarities `(N, K)` (Eq 3-5): rows sum to 1, columns about to N / K."""
    scores = scores.float() / EPSILON
    shares = (scores - scores.max()).exp()
    for _ in range(ITERATIONS):
        shares = shares / shares.sum(0, keepdim=True) / shares.shape[1]
        shares = shares / shares.sum(1, keepdim=True) / shares.shape[0]
    return shares * shares.shape[0]


class Network(ViewNetwork):
    """Encoder, prototypes, and the last embeddings of each view."""

    def __init__(self, backbone: Backbone, hidden: int, prototypes: int, queue: int, temperature: float):
        super().__init__(Encoder(backbone, projector(backbone.channels[-1], hidden, CHANNELS, norm=True)))
        self.prototypes = nn.Parameter(unit(torch.randn(prototypes, CHANNELS)))
        self.queues = nn.ModuleList(Queue(queue, CHANNELS) for _ in range(2) if queue)
        self.temperature = temperature

    def forward(self, image: Tensor, other: Tensor, frozen: bool = False, queued: bool = False) -> dict[str, Tensor]:
        """Views `(B, 3, H, W)` in [0, 1] to the loss; `frozen`: the prototypes are frozen; `queued`: the queues are full and used."""
        embeddings = [unit(self.encoder(view)) for view in (image, other)]
        prototypes = unit(self.prototypes.detach() if frozen else self.prototypes)
        with full_precision(image.device):
            scores = [each @ prototypes.T for each in embeddings]
            codes = [self._assign(each, prototypes, view if queued else None) for view, each in enumerate(scores)]
            crossed = zip(scores, reversed(codes), strict=True)
            loss = torch.stack([-(code * F.log_softmax(s / self.temperature, 1)).sum(1).mean() for s, code in crossed]).mean()
        for queue, each in zip(self.queues, embeddings, strict=False):
            cast(Queue, queue).add(each)
        return {"loss": loss}

    @torch.no_grad()
    def _assign(self, scores: Tensor, prototypes: Tensor, queue: int | None) -> Tensor:
        """The codes `(B, K)` of this process, assigned jointly with those of all processes and a queue."""
        everyone = gather(scores)
        start = torch.distributed.get_rank() * len(scores) if len(everyone) > len(scores) else 0
        if queue is not None:
            everyone = torch.cat([everyone, cast(Queue, self.queues[queue]).read() @ prototypes.T])
        return sinkhorn(everyone)[start : start + len(scores)]


class SwAV(Views):
    """Swapped prediction of two views (no multi-crop, for the same budget in pictures as the others)."""

    queue: int

    def build(self, backbone: Backbone, samples: Samples) -> nn.Module:
        """Projector and prototypes."""
        self.queue = self.queue_size(QUEUE, samples)
        prototypes = self.settings.prototypes or max(2, min(PROTOTYPES, len(samples) // 10))
        return Network(backbone, self.hidden(backbone), prototypes, self.queue, self.settings.temperature or TEMPERATURE)

    def loss(self, model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        """Of both views."""
        frozen = random.step < min(FROZEN, self.settings.steps // 10)
        queued = 0 < self.queue <= random.step * self.settings.batch_size
        return model(batch["image"], batch["other"], frozen, queued)
