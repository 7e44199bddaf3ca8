"""A method on a tiny backbone and on pictures that differ: what the tests of methods share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
from torch import Tensor, nn

from dreamteacher.methods.base import BUILT_IN, Method, get_method
from dreamteacher.settings.schema import Params
from dreamteacher.students.backbone import Backbone
from dreamteacher.tracking import Tracker
from dreamteacher.training.loop import train
from dreamteacher.training.run import Step, Trained

BASELINES = [name for name in BUILT_IN if name not in ("features", "team")]
VIEWS = ("simclr", "moco", "byol", "swav", "densecl")
SIDE = 64
DEFAULTS: dict[str, Any] = {
    "steps": 24,
    "batch_size": 16,
    "warmup_steps": 4,
    "log_every": 4,
    "lr": 2e-3,
    "resolution": SIDE,
    "precision": "fp32",
}


class Scenes(torch.utils.data.Dataset):
    """64 pictures, each a coarse pattern of its own; two views are two crops of it with noise that the seed draws."""

    in_memory = True

    def __init__(self, side: int = SIDE):
        self.side = side

    def __len__(self) -> int:
        return 64

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        index, seed = item
        coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(index))
        picture = nn.functional.interpolate(coarse, (self.side + 8, self.side + 8), mode="bilinear")[0]
        draw = torch.Generator().manual_seed(seed)
        views = []
        for _ in range(2):
            top, left = torch.randint(0, 9, (2,), generator=draw).tolist()
            noise = 0.02 * torch.randn(3, self.side, self.side, generator=draw)
            views.append((picture[:, top : top + self.side, left : left + self.side] + noise).clamp(0, 1))
        return dict(zip(("image", "other"), views, strict=True))


def create(name: str, backbone: str = "", **settings: Any) -> tuple[Method, nn.Module]:
    """A method with its network, the same for the same arguments."""
    params = Params.model_validate({"student": {"width": 8}, "distill": {**DEFAULTS, "method": name, **settings}})
    method = get_method(name)(params, None, Path(), torch.device("cpu"))
    torch.manual_seed(0)
    architecture = backbone or ("test_vit" if name == "mae" else "test_resnet")
    model = timm.create_model(architecture, num_classes=0, **({"dynamic_img_size": True} if "vit" in architecture else {}))
    return method, method.build(Backbone(model, architecture), Scenes())  # type: ignore[arg-type]


def learn(name: str, folder: Path, step: Step | None = None, **settings: Any) -> Trained:
    """The method in the real loop, with checkpoints in `folder`."""
    method, network = create(name, **settings)
    place = SimpleNamespace(title=name, checkpoints=folder, tracker=Tracker())
    hooks: dict[str, Any] = {"after_step": method.after_step, "kept": method.kept}
    return train(network, step or method.loss, Scenes(method.settings.resolution), method.settings, place, seed=3, **hooks)
