from __future__ import annotations

import pytest
import torch
from torch import nn

from dreamteacher.settings.downstream import Finetune
from dreamteacher.students.backbone import create_backbone
from dreamteacher.students.layer_decay import layer_scales
from dreamteacher.tasks.finetuning import freeze_backbone, pretrained_rates
from dreamteacher.tasks.model import TaskModel
from dreamteacher.training.optim import Rate


def model(backbone: str) -> TaskModel:
    torch.manual_seed(0)
    return TaskModel(create_backbone(backbone), "segmentation", ["a", "b"], 32, 8)


def test_by_default_all_learns_at_one_rate_from_the_first_step() -> None:
    network = model("test_vit")
    rate = pretrained_rates(network, Finetune(), distilled=True)
    assert {rate(name) for name, _ in network.named_parameters()} == {Rate(1.0, 0)}


@pytest.mark.parametrize(("distilled", "pyramid"), [(True, Rate(0.5)), (False, Rate())])
def test_rates_follow_the_layers_and_the_head_comes_first(distilled: bool, pyramid: Rate) -> None:
    network = model("test_vit")
    rate = pretrained_rates(network, Finetune(backbone_lr_scale=0.5, layer_decay=0.7, head_steps=9), distilled=distilled)
    scales = layer_scales(network.backbone.model, 0.7)
    for name, _ in network.named_parameters():
        if name.startswith("backbone.model."):
            assert rate(name) == Rate(0.5 * scales[name.removeprefix("backbone.model.")], 9)
        elif name.startswith("backbone.pyramid."):  # of timm's weights it is random
            assert rate(name) == pyramid
        else:
            assert rate(name) == Rate()


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_a_frozen_backbone_gets_no_gradient_and_stays_in_eval_mode(backbone: str) -> None:
    network = model(backbone).train()
    wrapped = nn.DataParallel(network)  # has its model in `.module`, as DDP does
    timm = [p for name, p in network.named_parameters() if name.startswith("backbone.model.")]
    rest = [p for name, p in network.named_parameters() if not name.startswith("backbone.model.")]
    freeze_backbone(wrapped, True)
    network.train()  # as after an evaluation
    assert not any(module.training for module in network.backbone.model.modules())
    assert network.head.training and network.backbone.training
    network(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is None for p in timm)
    assert all(p.grad is not None for p in rest)
    freeze_backbone(wrapped, False)
    assert all(module.training for module in network.modules())
    network(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is not None for p in timm)
    network.eval()
    freeze_backbone(wrapped, True)
    freeze_backbone(wrapped, False)
    assert not any(module.training for module in network.modules())
