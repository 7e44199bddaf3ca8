"""Each method learns, saves only a timm backbone, and resumes without a difference."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save
from tiny_method import BASELINES, SIDE, VIEWS, Scenes, create, learn
from torch import Tensor, nn

from dreamteacher.errors import Interrupted, UserError
from dreamteacher.methods.base import Method, get_method
from dreamteacher.methods.contrast import Momentum
from dreamteacher.methods.swav import sinkhorn
from dreamteacher.students.backbone import load_backbone
from dreamteacher.training.randomness import StepRandom
from helpers import install_package


def batch(count: int = 8) -> dict[str, Tensor]:
    items = [Scenes()[i, i] for i in range(count)]
    return {name: torch.stack([item[name] for item in items]) for name in ("image", "other")}


@pytest.mark.parametrize("name", BASELINES)
def test_the_loss_falls_and_pictures_stay_apart(name: str, tmp_path: Path) -> None:
    """Where there is a momentum encoder, its keys look alike at first, and the loss rises before it falls."""
    settings = {"queue": 32, "prototypes": 8, "momentum": 0.9, "lr": 1e-3, "resolution": 64 if name == "spark" else 32}
    settings |= {"steps": 88 if name in ("moco", "densecl", "byol") else 32}
    trained = learn(name, tmp_path, **settings)
    losses = [row["loss"] for row in trained.history]
    assert losses[-1] < 0.95 * max(losses) and losses[-1] < losses[len(losses) // 2]
    method, _ = create(name, **settings)
    with torch.no_grad():
        figures = method.measure(method.kept(trained.model), [(batch()["image"], StepRandom(0, 0, 0, 1))])
    assert figures["embedding_spread"] > 0.02


@pytest.mark.parametrize("name", BASELINES)
def test_the_gradient_reaches_the_whole_backbone(name: str) -> None:
    method, network = create(name)
    backbone = network.train().backbone
    assert isinstance(backbone, nn.Module)
    for parameter in backbone.parameters():
        if not parameter.any():  # at first the last norm of a residual branch multiplies by 0
            nn.init.constant_(parameter, 0.5)
    method.loss(network, batch(), StepRandom(0, 0, 0, 1))["loss"].backward()
    still = [key for key, value in backbone.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    # Softmax does not see what is added to all keys; MAE sees no maps, from which a pyramid could be made.
    assert [key for key in still if not key.endswith("qkv.bias") and not (name == "mae" and key.startswith("pyramid."))] == []


@pytest.mark.parametrize("name", BASELINES)
def test_every_method_keeps_a_timm_backbone_alone_and_starts_from_one(name: str, tmp_path: Path) -> None:
    method, network = create(name)
    method.save(method.kept(network), tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True)
    for key, value in network.backbone.model.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(model.state_dict()[key], value), key
    assert [path.name for path in tmp_path.iterdir()] == ["backbone"]
    other, fresh = create(name)
    with torch.no_grad():
        next(fresh.backbone.parameters()).add_(1)  # type: ignore[union-attr]
    other.go_on_from(tmp_path, fresh)
    loaded = load_backbone(tmp_path / "backbone").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in fresh.backbone.state_dict().items())  # type: ignore[union-attr]
    _, larger = create(name, backbone="test_vit2" if name == "mae" else "test_byobnet")
    with pytest.raises(UserError, match=r"has another backbone than student\.backbone"):
        other.go_on_from(tmp_path, larger)


@pytest.mark.parametrize("name", ["moco", "byol", "swav", "densecl", "spark"])
def test_a_stopped_run_ends_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    """Momentum encoders, queues and their places are part of the checkpoint."""
    settings = {"steps": 8, "queue": 40, "prototypes": 8, "ema": 0.9, "checkpoint_every": 100, "resolution": 64 if name == "spark" else 32}
    method, _ = create(name, **settings)

    def stop_at_5(model: nn.Module, part: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        if random.step == 4:
            signal.raise_signal(signal.SIGTERM)
        return method.loss(model, part, random)

    if name == "swav":
        method.build(create(name, **settings)[1].backbone, Scenes())  # type: ignore[arg-type]
    with pytest.raises(Interrupted, match="at step 5"):
        learn(name, tmp_path / "stopped", stop_at_5, **settings)
    resumed, whole = learn(name, tmp_path / "stopped", **settings), learn(name, tmp_path / "whole", **settings)
    for one, other in ((resumed.model, whole.model), (resumed.ema, whole.ema)):
        assert one is not None and other is not None
        assert save(one.state_dict()) == save(other.state_dict())
    assert resumed.history == whole.history


def test_averages_follow_the_backbone_alone(tmp_path: Path) -> None:
    trained = learn("byol", tmp_path, steps=4, ema=0.9)
    assert trained.ema is not None
    backbone = trained.model.backbone
    assert isinstance(backbone, nn.Module)
    assert trained.ema.state_dict().keys() == backbone.state_dict().keys()


def test_the_records_count_pictures_and_seconds_also_over_a_stop(tmp_path: Path) -> None:
    settings = {"steps": 12, "checkpoint_every": 100}
    method, _ = create("simclr", **settings)

    def stop_at_6(model: nn.Module, part: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        if random.step == 5:
            signal.raise_signal(signal.SIGTERM)
        return method.loss(model, part, random)

    with pytest.raises(Interrupted):
        learn("simclr", tmp_path, stop_at_6, **settings)
    first = records(tmp_path)
    learn("simclr", tmp_path, **settings)
    rows = records(tmp_path)
    assert [row["pictures"] for row in rows] == [4 * 16, 8 * 16, 12 * 16]
    assert rows[: len(first)] == first
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert rows[-1]["seconds"] - rows[-2]["seconds"] == pytest.approx(4 * 16 / rows[-1]["img_per_s"], rel=1e-3, abs=1e-3)


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_momentum_encoder_is_the_average_of_weights_and_statistics_and_never_trains() -> None:
    method, network = create("byol", steps=100)
    assert isinstance(network.momentum, Momentum) and isinstance(network.encoder, nn.Module)
    average, encoder = network.momentum.average.module, network.encoder
    network.train()
    assert not any(module.training for module in average.modules())
    before = {key: value.clone() for key, value in average.state_dict().items()}
    method.loss(network, batch(), StepRandom(0, 0, 0, 1))  # moves the running statistics
    assert all(torch.equal(value, average.state_dict()[key]) for key, value in before.items())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1)
    method.after_step(network, 30)
    decay = 31 / 40  # of so early a step, not yet 0.996
    for key, value in average.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, decay * before[key] + (1 - decay) * encoder.state_dict()[key])
    assert not any(parameter.requires_grad for parameter in network.momentum.parameters())


def test_byol_averages_ever_more_slowly() -> None:
    method, network = create("byol", steps=10_000)
    assert isinstance(network.momentum, Momentum)
    for step, decay in ((0, 0.996), (5_000, 0.998), (10_000, 1.0)):
        method.after_step(network, step)
        assert math.isclose(network.momentum.average.decay, decay, abs_tol=1e-9)


def test_a_queue_holds_as_many_embeddings_as_published_but_none_twice() -> None:
    for name, attribute, settings, size in (
        ("moco", "queue", {}, 64),
        ("densecl", "dense_queue", {}, 64),
        ("moco", "queue", {"queue": 200}, 200),
    ):
        assert len(getattr(create(name, **settings)[1], attribute).values) == size
    assert len(create("swav")[1].queues) == 2  # type: ignore[arg-type]
    assert len(create("swav", queue=0)[1].queues) == 0  # type: ignore[arg-type]


def test_the_oldest_keys_leave_the_queue_first() -> None:
    _, network = create("moco", queue=5)
    queue = network.queue
    keys = torch.arange(7.0)[:, None].expand(-1, 128)
    queue.add(keys[:3])  # type: ignore[operator]
    queue.add(keys[3:6])  # type: ignore[operator]
    assert queue.values[:, 0].tolist() == [5, 1, 2, 3, 4]  # type: ignore[union-attr,index]
    queue.add(torch.arange(10.0, 20)[:, None].expand(-1, 128))  # type: ignore[operator]
    assert sorted(queue.values[:, 0].tolist()) == [15, 16, 17, 18, 19]  # type: ignore[union-attr,index]


def test_prototypes_stay_for_the_first_tenth_and_queues_count_once_they_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    from dreamteacher.methods import swav

    assigned: list[int] = []
    monkeypatch.setattr(swav, "sinkhorn", lambda scores: assigned.append(len(scores)) or sinkhorn(scores))
    method, network = create("swav", steps=100, queue=32, prototypes=4)
    for step, moves, together in ((0, False, 8), (9, True, 8)):
        network.zero_grad()
        method.loss(network, batch(), StepRandom(0, step * 10, 0, 1))["loss"].backward()
        gradient = network.prototypes.grad
        assert (gradient is not None and bool(gradient.any())) == moves
        assert assigned[-1] == together + (32 if step else 0)


@pytest.mark.parametrize("name", VIEWS)
def test_both_views_come_from_the_method_s_transform(name: str) -> None:
    import numpy as np

    from dreamteacher.data.dataset import Sample

    method, _ = create(name, augment="overhead")
    torch.manual_seed(0)
    views = method.transform()(Sample(np.full((100, 90, 3), 128, np.uint8), 1, "x"))
    assert {key: tuple(value.shape) for key, value in views.items()} == {"image": (3, SIDE, SIDE), "other": (3, SIDE, SIDE)}


@pytest.mark.parametrize(
    ("name", "backbone", "settings", "message"),
    [
        ("mae", "test_resnet", {}, "'mae' needs a plain vision transformer, such as vit_small_patch16_224, which 'test_resnet' is not"),
        ("spark", "test_vit", {}, "'spark' needs a convolutional backbone for pictures of any size, which 'test_vit' is not"),
        (
            "spark",
            "",
            {"resolution": 32},
            "'spark' masks cells of 32 x 32 pixels, at least two per row; distill.resolution = 32 is not a mult",
        ),
        ("moco", "", {"queue": 0}, "queue = 0 leaves moco without negatives; raise it, or use simclr"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name: str, backbone: str, settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create(name, backbone, **settings)


def test_one_picture_at_once_is_refused_where_the_projector_has_batch_normalisation(tmp_path: Path) -> None:
    """Even if the backbone itself has no batch normalisation."""
    with pytest.raises(UserError, match="batch normalisation needs at least two pictures; raise batch_size or lower accumulate"):
        learn("simclr", tmp_path, backbone="test_convnext", batch_size=2, accumulate=2)


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"no method is called 'simcrl'.*simclr"):
        get_method("simcrl")


def test_a_method_of_another_package_is_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = "[dreamteacher.methods]\nbrightness = toy_method:Brightness\nwrong = toy_method:Other\nlost = toy_lost:Method\n"
    install_package(monkeypatch, tmp_path, entries, toy_method=TOY)
    kind = get_method("brightness")
    assert issubclass(kind, Method) and not kind.needs_teacher
    with pytest.raises(UserError, match=r"distill\.method = 'wrong' leads to .*Other.*, which is no subclass of dreamteacher\.methods"):
        get_method("wrong")
    with pytest.raises(UserError, match="method 'lost' cannot be loaded"):
        get_method("lost")


TOY = """
from torch import nn

from dreamteacher.methods.base import Method


class Network(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.read = backbone, nn.Linear(backbone.channels[-1], 1)

    def forward(self, images):
        return self.read(self.backbone.embed(self.backbone(images)))[:, 0]


class Brightness(Method):
    def build(self, backbone, samples):
        return Network(backbone)

    def loss(self, model, batch, random):
        return {"loss": (model(batch["image"]) - batch["image"].mean((1, 2, 3))).square().mean()}


class Other:
    pass
"""
