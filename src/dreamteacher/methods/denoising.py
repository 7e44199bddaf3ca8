"""Denoising, the control for diffusion teachers: backbone and neck, as a U-Net, predict the noise in a picture (Brempong et al. 2022)."""

from __future__ import annotations

from torch import Tensor, nn

from dreamteacher.data.dataset import Samples
from dreamteacher.methods.base import Method, normal
from dreamteacher.settings.pretraining import Student
from dreamteacher.students.backbone import Backbone
from dreamteacher.students.necks import create_neck
from dreamteacher.training.randomness import StepRandom

NOISE = 0.22  # standard deviation, for pictures of unit scale; values from 0.2 to 0.3 were about equally good


class Pixels(nn.Module):
    """Pyramid to pixels, through the student's neck."""

    def __init__(self, backbone: Backbone, student: Student):
        super().__init__()
        stride = backbone.strides[0]
        self.neck = create_neck(student.neck, backbone.channels, student.width)
        self.predict = nn.Sequential(nn.Conv2d(student.width, 3 * stride**2, 1), nn.PixelShuffle(stride))

    def forward(self, pyramid: list[Tensor], size: tuple[int, ...]) -> Tensor:
        """Of pictures of `size` (H, W): `(B, 3, H, W)`."""
        return self.predict(self.neck(pyramid)[0])[:, :, : size[0], : size[1]]


class Network(nn.Module):
    """Backbone and decoder."""

    def __init__(self, backbone: Backbone, student: Student):
        super().__init__()
        self.backbone, self.decoder = backbone, Pixels(backbone, student)

    def forward(self, normalized: Tensor) -> Tensor:
        """Noisy pictures `(B, 3, H, W)` to the noise."""
        return self.decoder(self.backbone(normalized), normalized.shape[2:])


class Denoising(Method):
    """Mean squared error of the noise."""

    backbone: Backbone

    def build(self, backbone: Backbone, samples: Samples) -> nn.Module:
        """With the student's neck as the decoder."""
        self.backbone = backbone
        return Network(backbone, self.params.student)

    def loss(self, model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        """Predict the noise from sqrt(1 - s^2) x + s noise, which has unit variance."""
        images = normal(batch["image"], self.backbone)
        noise = random.normal(images.shape)
        predicted = model((1 - NOISE**2) ** 0.5 * images + NOISE * noise)
        return {"loss": (predicted.float() - noise).square().mean()}
