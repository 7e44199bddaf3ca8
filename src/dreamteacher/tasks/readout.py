"""Linear and kNN probes of a frozen backbone's features, trained on the few labels."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.items import IGNORE
from dreamteacher.errors import UserError
from dreamteacher.students.backbone import Backbone
from dreamteacher.tasks.base import Task, get_task
from dreamteacher.tasks.model import normalize
from dreamteacher.tasks.scoring import whole_batches
from dreamteacher.training.randomness import derive_seed

SUPPORT_PIXELS, QUERY_PIXELS = 4096, 8192  # drawn from all labelled train pictures, and from all validation pictures
# Channels whose std is below this share of their level's upper quartile are dropped (if most are dead, below its square times the largest
# std). In a scratch ResNet-18 on the sample a fifth of the channels are such dead ReLUs. After standardisation, a query that activates one
# would be thousands of standard deviations away, and this channel alone would decide. Without them none is beyond 40, and clipping
# changes the metrics by less than 0.2 points.
NEARLY_DEAD = 0.1
TEMPERATURE = 0.07  # temperature of the neighbours' votes (Wu et al. 2018)
L2 = 1e-2  # regularisation of the linear probe, on standardised features
ITERATIONS = 50
CHUNK = 2048


def read_out(
    backbone: Backbone,
    train: ImageSet,
    few: list[int],
    val: ImageSet,
    *,
    size: int,
    k: int,
    batch_size: int,
    device: torch.device,
    among: list[int] | None = None,
) -> dict[str, float]:
    """Train on the pictures `few` of `train` (the support), measure on all labelled ones of `val` (the queries).

    For tasks that classify pixels, the features are a fixed random sample of pixels of the pyramid, all levels interpolated to the pixel
    and concatenated; so metrics are estimates on that sample, which is the same for every backbone. Pictures and masks have the size
    stored by ingest, even if `scoring.score` measures at a mask's own, larger size. For tasks that classify pictures, the features are the
    pooled embeddings.

    Args:
        backbone: frozen here; it is put in eval mode on `device`.
        train: the split of `few`; its task classifies pixels or pictures.
        few: indices of the labelled pictures to train on.
        val: the split to measure on.
        size: side of the crops that the task is trained on, pixels.
        k: number of neighbours.
        batch_size: pictures per batch.
        device: compute device.
        among: only these labelled pictures of `val` are the queries; None: all.

    Returns:
        The task's main metric of both probes: `linear_FIGURE` and `knn_FIGURE`.

    Raises:
        UserError: no pixel of the support, or of the queries, has a class.
    """
    task = get_task(str(train.task))
    backbone = backbone.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    read = partial(_features, backbone, task, size=task.picture_size(size), batch_size=batch_size, device=device)
    support, labels = read(train, few, pixels=SUPPORT_PIXELS)
    queries, truth = read(val, val.labelled() if among is None else among, pixels=QUERY_PIXELS)
    if not len(labels) or not len(truth):
        of = "validation masks" if len(labels) else f"{len(few)} labelled pictures"
        raise UserError(
            f"no pixel of the {of} has a class at the size to which ingest.short_side downscales them, so the features cannot be probed; "
            "raise ingest.short_side or label more"
        )
    levels = backbone.channels if task.classifies == "pixels" else backbone.channels[-1:]
    support, queries = standardize(support, queries, levels)
    predictions = {
        "linear": linear(support, labels, queries, len(train.classes)),
        "knn": nearest(support, labels, queries, len(train.classes), k),
    }
    figures = {}
    for name, predicted in predictions.items():
        total = task.score(train.classes)
        total.update(predicted, truth)
        figures[f"{name}_{task.figure}"] = total.compute()[task.figure]
    return figures


def standardize(support: Tensor, queries: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
    """Standardise `(N, C)` and `(M, C)` by the support's mean and std per channel, and drop nearly dead channels.

    `levels`: number of channels of each pyramid level, in order, since levels differ in scale; their sum is C.
    """
    mean, std = support.mean(0), support.std(0, correction=0)
    live = torch.cat([part > NEARLY_DEAD * max(part.quantile(0.75), NEARLY_DEAD * part.max()) for part in std.split(levels)])
    return (support[:, live] - mean[live]) / std[live], (queries[:, live] - mean[live]) / std[live]


def linear(support: Tensor, labels: Tensor, queries: Tensor, classes: int) -> Tensor:
    """The class of each of `(M, C)` queries by multinomial logistic regression with L2 on `(N, C)` support features and `(N,)` labels."""
    weight = torch.zeros(support.shape[1], classes, device=support.device, requires_grad=True)
    bias = torch.zeros(classes, device=support.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(support @ weight + bias, labels) + L2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (queries @ weight + bias).argmax(1).detach()


@torch.inference_mode()
def nearest(support: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int) -> Tensor:
    """The class of each of `(M, C)` queries by the votes of its `k` nearest by cosine among `(N, C)`, each weighing exp(cosine / 0.07)."""
    bank = F.normalize(support, dim=1).T
    predicted = []
    for part in F.normalize(queries, dim=1).split(CHUNK):
        cosine, index = (part @ bank).topk(min(k, bank.shape[1]), dim=1)
        votes = torch.zeros(len(part), classes, device=part.device)
        votes.scatter_add_(1, labels[index], (cosine / TEMPERATURE).exp())
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


@torch.no_grad()
def _features(
    backbone: Backbone,
    task: Task,
    images: ImageSet,
    indices: list[int],
    *,
    pixels: int,
    size: int | None,
    batch_size: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """`(N, C)` features and `(N,)` labels; N: the pictures, or about `pixels` over all of them."""
    each = max(1, pixels // len(indices))
    features, labels = [], []
    for batch_indices, batch in whole_batches(images, indices, batch_size, size):
        pictures = batch["image"].to(device, memory_format=torch.channels_last)
        pyramid = backbone(normalize(pictures, backbone.mean, backbone.std))
        if task.classifies == "pictures":
            features.append(backbone.embed(pyramid).float())
            labels.append(batch["label"])
            continue
        for place, index in enumerate(batch_indices):
            mask = batch["label"][place]
            counted = (mask != IGNORE).nonzero()
            generator = torch.Generator().manual_seed(derive_seed("pixels", images.sha256(index)))
            chosen = counted[torch.randperm(len(counted), generator=generator)[:each]]
            features.append(pixel_features([level[place] for level in pyramid], chosen, mask.shape))
            labels.append(mask[chosen[:, 0], chosen[:, 1]])
    return torch.cat(features), torch.cat(labels).to(device)


def pixel_features(pyramid: list[Tensor], pixels: Tensor, size: torch.Size) -> Tensor:
    """Levels `(C_l, h_l, w_l)` of a picture of `size` (H, W), each interpolated to `pixels` (N, 2: row, column): `(N, sum of C_l)`."""
    scale = torch.tensor(size, device=pixels.device)
    places = ((pixels + 0.5) / scale * 2 - 1).flip(1)[None, :, None].to(pyramid[0])
    read = [F.grid_sample(level[None], places, padding_mode="border", align_corners=False)[0, :, :, 0] for level in pyramid]
    return torch.cat(read).T.float()
