"""Optimiser and schedule from the settings."""

import math

import pytest
import timm
import torch
from torch import nn

from dreamteacher.settings.section import Training
from dreamteacher.training.optim import Rate, create_optimizer, schedule, set_lr


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm(4), nn.Linear(4, 2))


def test_biases_and_norms_are_not_decayed() -> None:
    network = model()
    decay = {
        id(parameter): group["weight_decay"]
        for group in create_optimizer(network, Training(weight_decay=0.3)).param_groups
        for parameter in group["params"]
    }
    assert {name: decay[id(parameter)] for name, parameter in network.named_parameters()} == {
        "0.weight": 0.3,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": 0.0,
        "2.bias": 0.0,
        "3.weight": 0.3,
        "3.bias": 0.0,
    }


@pytest.mark.parametrize(("name", "kind"), [("adamw", "AdamW"), ("lamb", "Lamb"), ("sgd", "SGD")])
def test_every_optimizer_lowers_the_loss(name: str, kind: str) -> None:
    torch.manual_seed(0)
    network, x = nn.Linear(4, 1), torch.randn(64, 4)
    optimizer = create_optimizer(network, Training(optimizer=name, lr=0.02, betas=(0.9, 0.95)))
    assert type(optimizer).__name__ == kind
    losses = []
    for _ in range(50):
        loss = (network(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_sgd_takes_the_first_beta_as_nesterov_momentum() -> None:
    group = create_optimizer(model(), Training(optimizer="sgd", betas=(0.8, 0.9))).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.8, True)
    assert create_optimizer(model(), Training(optimizer="sgd", betas=(0, 0.9))).param_groups[0]["nesterov"] is False


def test_learning_rate_follows_name_and_schedule() -> None:
    settings = Training(lr=0.4, warmup_steps=4, steps=104)
    optimizer = create_optimizer(model(), settings, lambda name: Rate(0.1 if name.startswith("0.") else 1.0))
    assert set_lr(optimizer, 54, settings) == pytest.approx(0.2)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([0.02, 0.02, 0.2, 0.2])


def test_what_starts_later_has_no_rate_before_and_warms_up_from_there() -> None:
    settings = Training(lr=1.0, warmup_steps=4, steps=100)
    optimizer = create_optimizer(model(), settings, lambda name: Rate(0.5, 20) if name.startswith("0.") else Rate())
    later = next(group for group in optimizer.param_groups if group["start"])

    def share(step: int) -> float:
        set_lr(optimizer, step, settings)
        return later["lr"] / (0.5 * schedule(step, 4, 100))

    assert [share(step) for step in (0, 19, 20, 21, 22, 23, 24, 99)] == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 1])


def test_frozen_parameters_are_left_out() -> None:
    network = model()
    network[0].requires_grad_(False)
    assert sum(len(group["params"]) for group in create_optimizer(network, Training()).param_groups) == 6
    with pytest.raises(ValueError, match="no trainable"):
        create_optimizer(network.requires_grad_(False), Training())


def test_schedule_is_warm_up_then_half_a_cosine() -> None:
    assert [schedule(step, 4, 104) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert schedule(54, 4, 104) == pytest.approx(0.5)
    assert schedule(29, 4, 104) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert 0 < schedule(103, 4, 104) < 0.001
    assert schedule(0, 0, 10) == 1.0


def test_warm_up_longer_than_the_run_still_ends_low() -> None:
    shares = [schedule(step, 100, 10) for step in range(10)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[-1] < 0.1
    assert schedule(0, 100, 1) == 1.0


def test_what_timm_exempts_is_not_decayed() -> None:
    """Swin names the tables of its position biases, of two dimensions, relative to itself; it lies inside our models."""
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=2, depths=(1, 1, 1, 1), embed_dim=12, num_heads=(1,) * 4
    )
    network = nn.ModuleDict({"backbone": nn.ModuleDict({"model": swin})})
    groups = create_optimizer(network, Training(weight_decay=0.3)).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    by_name = {name: decay[id(parameter)] for name, parameter in network.named_parameters()}
    assert by_name["backbone.model.layers.1.blocks.0.attn.relative_position_bias_table"] == 0.0
    assert by_name["backbone.model.layers.1.blocks.0.attn.qkv.weight"] == 0.3
    assert sum(value == 0.0 and name.endswith("_table") for name, value in by_name.items()) == 4
