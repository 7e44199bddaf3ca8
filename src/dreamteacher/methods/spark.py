"""SparK (Tian et al. 2023): masked prediction for convolutional backbones, with sparse convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dreamteacher.data.dataset import Samples
from dreamteacher.errors import UserError
from dreamteacher.methods.base import Method, normal
from dreamteacher.methods.denoising import Pixels
from dreamteacher.methods.masking import cells_of, hidden_count, hidden_error, patches, random_masks, where_true
from dreamteacher.settings.pretraining import Student
from dreamteacher.students.backbone import Backbone
from dreamteacher.training.randomness import StepRandom

MASK_RATIO = 0.6


class SparseConvolutions(TorchFunctionMode):
    """Context in which visible positions never depend on masked ones, as with sparse convolutions (Sec 3.1).

    Dense convolutions would leak the mask pattern, layer by layer, into visible positions, and its statistics into batch normalisation. So
    masked positions are zeroed before convolutions and pooling, and batch normalisation uses only visible ones. Global averages, as in
    squeeze-and-excitation, and batch normalisation synchronised between GPUs still include masked positions.
    """

    SPREADING = (F.conv2d, torch.max_pool2d, F.avg_pool2d)

    def __init__(self, seen: Tensor, count: int):
        """`seen`: bool `(B, h, w)`, the visible cells; `count`: their number per picture."""
        super().__init__()
        self.seen, self.count = seen, count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Call `func` on the visible positions."""
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._batch_norm(func, *args, **kwargs)
        if func in self.SPREADING:
            args = (args[0] * self.at(args[0].shape[2:]), *args[1:])
        return func(*args, **kwargs)

    def at(self, size: tuple[int, ...]) -> Tensor:
        """Bool `(B, 1, *size)`."""
        return F.interpolate(self.seen[:, None].float(), size).bool()

    def _batch_norm(self, func: Any, maps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen = self.at(maps.shape[2:])[:, 0]
        places = self._places(seen)
        # The gradients of index_select and index_copy, unlike those of indexing and masked_scatter, do not synchronise.
        values = func(maps.movedim(1, -1).flatten(0, 2).index_select(0, places), *args, **kwargs)
        whole = values.new_zeros(seen.numel(), values.shape[1]).index_copy(0, places, values)
        return whole.unflatten(0, seen.shape).movedim(-1, 1)

    def _places(self, seen: Tensor) -> Tensor:
        """Indices of True in `seen.flatten()`; without synchronisation, unless a cell does not cover a whole number of positions."""
        down, across = (divmod(seen.shape[axis], self.seen.shape[axis]) for axis in (1, 2))
        if down[1] or across[1]:
            return seen.flatten().nonzero()[:, 0]
        return where_true(seen, len(seen) * self.count * down[0] * across[0])


class Network(nn.Module):
    """Backbone, mask embeddings at each level, and a decoder."""

    def __init__(self, backbone: Backbone, student: Student):
        super().__init__()
        self.backbone = backbone
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in backbone.channels)
        self.hidden = nn.ParameterList(nn.Parameter(0.02 * torch.randn(1, channels, 1, 1)) for channels in backbone.channels)
        self.decoder = Pixels(backbone, student)

    def forward(self, images: Tensor, masks: Tensor, hidden: int) -> Tensor:
        """Pictures `(B, 3, H, W)` in [0, 1] with masks `(B, h, w)`, True for the `hidden` masked cells, to predictions of all pixels."""
        sparse = SparseConvolutions(~masks, masks[0].numel() - hidden)
        with sparse:
            levels = [norm(maps) for norm, maps in zip(self.norms, self.backbone(normal(images, self.backbone)), strict=True)]
        filled = [torch.where(sparse.at(maps.shape[2:]), maps, hidden) for maps, hidden in zip(levels, self.hidden, strict=True)]
        return self.decoder(filled, images.shape[2:])


class SparK(Method):
    """Squared error of the masked cells' standardised pixels. The decoder is the student's neck instead of a separate U-Net decoder."""

    cell: int

    def build(self, backbone: Backbone, samples: Samples) -> nn.Module:
        """Cells have the coarsest stride, so that each position of each level is either visible or masked.

        Raises:
            UserError: the backbone is not convolutional, or distill.resolution does not fit its coarsest stride.
        """
        attention = next((type(each).__name__ for each in backbone.modules() if "attention" in type(each).__name__.lower()), None)
        if attention or backbone.tile:
            raise UserError(
                f"distill.method = 'spark' needs a convolutional backbone for pictures of any size, which {backbone.name!r} is not; "
                "take mae, simmim, or another student.backbone"
            )
        self.cell = backbone.strides[-1]
        cells_of(self.settings.resolution, self.cell, "spark")
        return Network(backbone, self.params.student)

    def loss(self, model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        """The loss of the masked cells only."""
        images = batch["image"]
        cells = cells_of(images.shape[2], self.cell, "spark")
        ratio = self.settings.mask_ratio or MASK_RATIO
        masks, hidden = random_masks(random, len(images), cells, ratio), hidden_count(cells, ratio)
        return {"loss": hidden_error(patches(model(images, masks, hidden), self.cell), images, masks, hidden, self.cell)}
