"""What methods that hide parts of a picture share: masks, patches and their targets."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamteacher.errors import UserError
from dreamteacher.training.randomness import StepRandom


def hidden_count(cells: tuple[int, int], ratio: float) -> int:
    """How many of (h, w) cells are hidden: `ratio` of them, rounded, but at least one is hidden and one is seen."""
    count = cells[0] * cells[1]
    return min(max(round(ratio * count), 1), count - 1)


def random_masks(random: StepRandom, batch: int, cells: tuple[int, int], ratio: float) -> Tensor:
    """Which cells `(B, h, w)` are hidden, True: of each picture `hidden_count` of them."""
    order = random.normal((batch, cells[0] * cells[1])).argsort(1)
    masks = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    return masks.scatter(1, order[:, : hidden_count(cells, ratio)], True).view(batch, *cells)


def cells_of(resolution: int, side: int, method: str) -> tuple[int, int]:
    """(h, w) of the cells of `side` pixels in a crop.

    Raises:
        UserError: they do not fill it, or there is but one.
    """
    if resolution % side or resolution < 2 * side:
        raise UserError(
            f"distill.method = {method!r} hides cells of {side} x {side} pixels, two or more a row; "
            f"distill.resolution = {resolution} is not a multiple of {side} from {2 * side} on"
        )
    return resolution // side, resolution // side


def enlarge(masks: Tensor, side: int) -> Tensor:
    """Cells `(B, h, w)` to pixels `(B, 1, h * side, w * side)`."""
    return masks.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]


def patches(images: Tensor, side: int) -> Tensor:
    """`(B, 3, H, W)` to `(B, n, side * side * 3)`, cell by cell, row after row."""
    batch, channels, height, width = images.shape
    cut = images.reshape(batch, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels)


def standardised(targets: Tensor) -> Tensor:
    """Each patch `(B, n, P)` with mean 0 and variance 1 (He et al. 2022, Sec 3), which stresses its structure over its colour."""
    return (targets - targets.mean(2, keepdim=True)) / (targets.var(2, keepdim=True) + 1e-6).sqrt()


def where_true(masks: Tensor, count: int) -> Tensor:
    """The places in `masks.flatten()` of its True values, of which there are `count`: int64 `(count,)`, in their order.

    Indexing by a mask gives the same, but makes the host wait for the device to learn how many they are.
    """
    return torch.nonzero_static(masks.flatten(), size=count)[:, 0]


def hidden_error(predicted: Tensor, images: Tensor, masks: Tensor, hidden: int, side: int) -> Tensor:
    """Mean squared error of predicted patches `(B, n, P)` against the standardised ones of pictures, where `(B, h, w)` hides them.

    `hidden`: patches of each picture that are.
    """
    error = (predicted.float() - standardised(patches(images, side))).square().mean(2)
    return error.flatten()[where_true(masks, len(masks) * hidden)].mean()
