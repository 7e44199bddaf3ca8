"""Shared parts of masked prediction: masks, patches and their targets."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamteacher.errors import UserError
from dreamteacher.training.randomness import StepRandom


def hidden_count(cells: tuple[int, int], ratio: float) -> int:
    """Number of masked cells of (h, w): `ratio` of them, rounded; at least one is masked and one is visible."""
    count = cells[0] * cells[1]
    return min(max(round(ratio * count), 1), count - 1)


def random_masks(random: StepRandom, batch: int, cells: tuple[int, int], ratio: float) -> Tensor:
    """Random masks `(B, h, w)`, True for the `hidden_count` masked cells of each picture."""
    order = random.normal((batch, cells[0] * cells[1])).argsort(1)
    masks = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    return masks.scatter(1, order[:, : hidden_count(cells, ratio)], True).view(batch, *cells)


def cells_of(resolution: int, side: int, method: str) -> tuple[int, int]:
    """(h, w) of the cells of `side` pixels in a crop.

    Raises:
        UserError: they do not fill it, or there is only one.
    """
    if resolution % side or resolution < 2 * side:
        raise UserError(
            f"distill.method = {method!r} masks cells of {side} x {side} pixels, at least two per row; "
            f"distill.resolution = {resolution} is not a multiple of {side} from {2 * side} on"
        )
    return resolution // side, resolution // side


def enlarge(masks: Tensor, side: int) -> Tensor:
    """Cells `(B, h, w)` to pixels `(B, 1, h * side, w * side)`."""
    return masks.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]


def patches(images: Tensor, side: int) -> Tensor:
    """`(B, 3, H, W)` to `(B, n, side * side * 3)`, cells in row-major order."""
    batch, channels, height, width = images.shape
    cut = images.reshape(batch, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels)


def standardised(targets: Tensor) -> Tensor:
    """Each patch `(B, n, P)` with mean 0 and variance 1 (He et al. 2022, Sec 3), which emphasises structure over colour."""
    return (targets - targets.mean(2, keepdim=True)) / (targets.var(2, keepdim=True) + 1e-6).sqrt()


def where_true(masks: Tensor, count: int) -> Tensor:
    """Indices of the True values in `masks.flatten()`, of which there are `count`: int64 `(count,)`, ascending.

    Indexing by a mask gives the same, but synchronises with the device to find their number.
    """
    return torch.nonzero_static(masks.flatten(), size=count)[:, 0]


def hidden_error(predicted: Tensor, images: Tensor, masks: Tensor, hidden: int, side: int) -> Tensor:
    """Mean squared error of predicted patches `(B, n, P)` against the pictures' standardised patches, where masks `(B, h, w)` are True.

    `hidden`: number of masked patches per picture.
    """
    error = (predicted.float() - standardised(patches(images, side))).square().mean(2)
    return error.flatten()[where_true(masks, len(masks) * hidden)].mean()
