"""Losses (Sec 3.1 and 3.2): whitening, Eq 1 to 3, 5 and 6, and terms of later work. Pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SIMILARITY_SIDE = 16  # longest side of the maps whose positions are compared with each other


def layernorm_whitening(features: Tensor) -> Tensor:
    """W of Eq 1 for one tap `(B, C, h, w)`: zero mean, unit variance over (C, h, w) of each picture.

    The paper does not give the axes. Over channels alone, every pixel would have the same energy, and Eq 1 would contradict the energy map
    of Eq 2.
    """
    return F.layer_norm(features, features.shape[1:])


def standardize_whitening(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Standardise each channel of `(B, C, h, w)` by the teacher's measured `mean` and `std`, both `(C,)`."""
    return (features - mean[:, None, None]) / std[:, None, None]


def feature_mse(regressed: list[Tensor], whitened: list[Tensor]) -> Tensor:
    """Eq 1 of one `(B, C_l, h_l, w_l)` per tap, averaged over all elements of a tap and over taps."""
    return torch.stack([F.mse_loss(r, w) for r, w in zip(regressed, whitened, strict=True)]).mean()


def attention_map(features: Tensor) -> Tensor:
    """Q / ||Q||_2 of Eq 2 with p = 2: `(B, C, h, w)` to unit vectors `(B, h*w)` of summed squares."""
    return F.normalize(features.square().sum(1).flatten(1), dim=1)


def attention_transfer(regressed: list[Tensor], target: list[Tensor]) -> Tensor:
    """Eq 2: distance of the attention maps of the regressed and the raw (not whitened) features, averaged over taps and pictures."""
    distances = [(attention_map(r) - attention_map(t)).norm(dim=1).mean() for r, t in zip(regressed, target, strict=True)]
    return torch.stack(distances).mean()


def cosine_distance(regressed: list[Tensor], whitened: list[Tensor]) -> Tensor:
    """1 - cosine of the channel vectors `(C,)` at each position, averaged over positions, pictures and taps, in [0, 2]."""
    distances = [1 - F.cosine_similarity(r, w, dim=1).mean() for r, w in zip(regressed, whitened, strict=True)]
    return torch.stack(distances).mean()


def smooth_l1(regressed: list[Tensor], whitened: list[Tensor]) -> Tensor:
    """Huber loss of one `(B, C_l, h_l, w_l)` per tap, quadratic below an error of 1, averaged as in `feature_mse`."""
    return torch.stack([F.smooth_l1_loss(r, w) for r, w in zip(regressed, whitened, strict=True)]).mean()


def self_similarity(features: Tensor) -> Tensor:
    """Cosine similarities between the positions of each picture: `(B, C, h, w)` to `(B, n, n)`.

    Maps with more than SIMILARITY_SIDE squared positions are first pooled to that size, as the matrix grows quadratically.
    """
    if max(features.shape[2:]) > SIMILARITY_SIDE:
        height, width = (min(side, SIMILARITY_SIDE) for side in features.shape[2:])
        features = F.adaptive_avg_pool2d(features, (height, width))
    unit = F.normalize(features.flatten(2), dim=1)
    with torch.autocast(features.device.type, enabled=False):
        return unit.transpose(1, 2) @ unit


def relational(regressed: list[Tensor], whitened: list[Tensor]) -> Tensor:
    """Mean squared difference of the self-similarities, averaged over pictures and taps (Gram anchoring of DINOv3, arXiv 2508.10104)."""
    differences = [F.mse_loss(self_similarity(r), self_similarity(w)) for r, w in zip(regressed, whitened, strict=True)]
    return torch.stack(differences).mean()


def soft_label_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, tau: float) -> Tensor:
    """Eq 5: H(P_tau^g, P_tau^r), logits `(B, K)` or `(B, K, H, W)`, averaged over pictures and pixels."""
    soft = (teacher_logits.float() / tau).softmax(1)
    return -(soft * (student_logits.float() / tau).log_softmax(1)).sum(1).mean()


def soft_label_dice(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """1 - Dice of two soft segmentations, logits `(B, K, H, W)`, averaged over pictures and classes.

    With squares in the denominator, as in V-Net (Milletari et al. 2016), so that it is 0 for equal inputs, also for soft labels.
    """
    student, teacher = student_logits.float().softmax(1), teacher_logits.float().softmax(1)
    overlap, total = (student * teacher).sum((2, 3)), (student.square() + teacher.square()).sum((2, 3))
    return 1 - ((2 * overlap + 1) / (total + 1)).mean()


class ExplainedVariance:
    """Share of the variance of one tap's targets that the regressor explains; 1 is perfect, 0 no better than each channel's mean."""

    def __init__(self) -> None:
        self._count = 0
        self._residual, self._sum, self._squares = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        self._residual_within, self._squares_within = (torch.zeros((), dtype=torch.float64) for _ in range(2))

    def update(self, regressed: Tensor, whitened: Tensor) -> None:
        """Add a batch, both `(B, C, h, w)`; sums are kept per channel, in float64."""
        residual = regressed - whitened
        self._count += whitened.numel() // whitened.shape[1]
        self._residual = self._residual + residual.square().sum(dtype=torch.float64).cpu()
        self._sum = self._sum + whitened.sum((0, 2, 3), dtype=torch.float64).cpu()
        self._squares = self._squares + whitened.square().sum((0, 2, 3), dtype=torch.float64).cpu()
        self._residual_within = self._residual_within + _around_own_mean(residual)
        self._squares_within = self._squares_within + _around_own_mean(whitened)

    def compute(self) -> float:
        """Over all pictures so far: of the variance between pictures and between the positions of each."""
        total = (self._squares - self._sum.square() / self._count).sum()
        return float(1 - self._residual / total)

    def within(self) -> float | None:
        """Only of the variance within each picture, between positions, which a regressor that only distinguishes pictures cannot explain.

        None if there is none, as in maps of one cell.
        """
        return float(1 - self._residual_within / self._squares_within) if self._squares_within else None


def _around_own_mean(maps: Tensor) -> Tensor:
    """Sum of the squares of `(B, C, h, w)` around the mean of each picture's channel, in float64."""
    return (maps - maps.mean((2, 3), keepdim=True)).square().sum(dtype=torch.float64).cpu()
