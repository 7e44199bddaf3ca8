"""Faster and Mask R-CNN on our pyramid: equality with torchvision, training, and unsupported settings."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dreamteacher.data.boxes import MAX_OVERLAP, MIN_SCORE
from dreamteacher.data.instances import pack, unpack
from dreamteacher.data.items import IGNORE
from dreamteacher.data.transforms import AUGMENTATIONS
from dreamteacher.errors import UserError
from dreamteacher.serving.export import export
from dreamteacher.settings.downstream import Finetune
from dreamteacher.settings.schema import Params
from dreamteacher.stages.export_onnx import Served
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks import faster_rcnn, mask_rcnn
from dreamteacher.tasks.base import get_task, of_picture
from dreamteacher.tasks.batched_boxes import align_boxes, pool_boxes, spans, unknown_share
from dreamteacher.tasks.model import TaskModel, load_task_model, save_task_model

SIDE = 64
TASKS = {"faster-rcnn": "detection", "mask-rcnn": "instances"}
NONE = [-1.0] * 6
ROWS = torch.tensor([[[8.0, 8, 24, 24, 0, 0], [30, 34, 60, 62, 1, 0]], [[40.0, 4, 56, 20, 1, 0], NONE]])
HEADS = pytest.mark.parametrize("head", TASKS)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer candidates and proposals, for what takes many steps or pictures."""
    monkeypatch.setattr(faster_rcnn, "CANDIDATES", 200)
    for kind in (faster_rcnn.FasterRcnnHead, mask_rcnn.MaskRcnnHead):
        monkeypatch.setattr(kind, "proposals", 50)


def create(head: str, classes: int = 2, **options: Any) -> TaskModel:
    torch.manual_seed(0)
    names = [f"class {number}" for number in range(classes)]
    return TaskModel(create_backbone("test_resnet"), TASKS[head], names, SIDE, 16, head=head, **options)


def sure(model: TaskModel) -> TaskModel:
    """With random weights of a size at which much is found."""
    with torch.no_grad():
        model.head.rpn.head.cls_logits.weight.normal_(std=0.3)
        model.head.rpn.head.bbox_pred.weight.normal_(std=0.05)
        model.head.roi.box_predictor.cls_score.weight.normal_(std=0.5)
        model.head.roi.box_predictor.bbox_pred.weight.normal_(std=0.3)
        if TASKS[model.head_name] == "instances":
            model.head.roi.mask_predictor.mask_fcn_logits.weight.normal_(std=3)
            model.head.roi.mask_predictor.mask_fcn_logits.bias.fill_(1)
    return model.eval()


def maps_of(rows: Tensor) -> Tensor:
    """The boxes as maps of objects (B, SIDE, SIDE)."""
    labels = []
    for boxes in rows:
        real = boxes[boxes[:, 4] >= 0]
        numbers = np.zeros((SIDE, SIDE), np.int64)
        for number, (x1, y1, x2, y2) in enumerate(real[:, :4].long().tolist(), 1):
            numbers[y1:y2, x1:x2] = number
        labels.append(pack(numbers, real[:, 4].numpy()))
    return torch.from_numpy(np.stack(labels))


def batch_of(head: str, rows: Tensor = ROWS) -> dict[str, Tensor]:
    """Each object a square of its class' colour."""
    pictures = torch.zeros(len(rows), 3, SIDE, SIDE)
    for picture, boxes in zip(pictures, rows, strict=True):
        for x1, y1, x2, y2, cls, _ in boxes[boxes[:, 4] >= 0].long().tolist():
            picture[cls, y1:y2, x1:x2] = 1.0
    return {"image": pictures, "label": rows if TASKS[head] == "detection" else maps_of(rows)}


def losses_of(model: TaskModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(1)  # of the samples
    return model.get_task().loss(model(batch["image"], batch["label"]), batch, Finetune())


class Levels(nn.Module):
    """Backbone and neck as torchvision wants them."""

    out_channels = 16

    def __init__(self, model: TaskModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        levels = self.model.head.neck(self.model.backbone(images))
        named = OrderedDict((str(number), level) for number, level in enumerate(levels))
        named["pool"] = levels[-1][:, :, ::2, ::2]
        return named


def by_torchvision(model: TaskModel, images: Tensor) -> list[dict[str, Tensor]]:
    """torchvision's own Faster or Mask R-CNN, with the modules of ours that hold weights."""
    head = model.head
    rpn = RegionProposalNetwork(
        head.rpn.anchor_generator, head.rpn.head, 0.7, 0.3, 256, 0.5,
        {"training": 1000, "testing": 1000}, {"training": head.proposals, "testing": head.proposals}, 0.7,
    )  # fmt: skip
    masks = (head.roi.mask_roi_pool, head.roi.mask_head, head.roi.mask_predictor) if head.roi.has_mask() else ()
    regions = RoIHeads(
        head.roi.box_roi_pool, head.roi.box_head, head.roi.box_predictor, 0.5, 0.5, 128, 0.25, None, MIN_SCORE, MAX_OVERLAP, 100, *masks
    )
    unchanged = GeneralizedRCNNTransform(SIDE, SIDE, [0.0] * 3, [1.0] * 3)
    with torch.no_grad():
        return GeneralizedRCNN(Levels(model), rpn, regions, unchanged).eval()(list(images))


@HEADS
def test_it_finds_what_torchvisions_own_finds_with_the_same_weights(head: str) -> None:
    model, images = sure(create(head)), torch.randn(3, 3, SIDE, SIDE)
    with torch.no_grad():
        outputs = model(images)
    for place, expected in enumerate(by_torchvision(model, images)):
        scores, found = of_picture(outputs, place)["scores"], of_picture(outputs, place)
        assert len(expected["boxes"]) > 3
        if head == "faster-rcnn":
            detections = model.get_task().decode(found, (SIDE, SIDE), (SIDE, SIDE))
            assert torch.allclose(detections[:, :4], expected["boxes"], atol=1e-3)
            assert torch.equal(detections[:, 4].long(), expected["labels"] - 1)
            assert torch.allclose(detections[:, 5], expected["scores"], atol=1e-5)
        else:
            some = len(expected["boxes"])
            assert torch.allclose(found["boxes"].T[:some] * SIDE, expected["boxes"], atol=1e-3)
            assert torch.equal(scores.argmax(0)[:some], expected["labels"] - 1)
            assert torch.allclose(scores.amax(0)[:some], expected["scores"], atol=1e-5)


def test_masks_are_those_of_torchvision() -> None:
    """Before they are spread over the picture, which torchvision does with boxes of whole pixels."""
    model, images = sure(create("mask-rcnn")), torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        found, levels = of_picture(model(images), 0), Levels(model)(images)
        count = int((found["scores"].amax(0) > 0).sum())
        boxes, labels = found["boxes"].T[:count] * SIDE, found["scores"].argmax(0)[:count]
        features = model.head.roi.mask_head(model.head.roi.mask_roi_pool(levels, [boxes], [(SIDE, SIDE)]))
        expected = model.head.roi.mask_predictor(features).sigmoid()[torch.arange(count), labels + 1]
    assert found["masks"].shape == (200, 28, 28)
    assert count > 3
    assert torch.allclose(found["masks"][:count], expected, atol=1e-5)
    assert (found["masks"][count:] == 0).all()


@HEADS
@pytest.mark.usefixtures("few")
def test_it_learns_to_find_objects(head: str) -> None:
    model, batch = create(head), batch_of(head)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    first = losses_of(model.train(), batch)["loss"].item()
    for _ in range(90):  # at 50 some machines have not come below a third, at 90 all are below a sixth
        loss = losses_of(model, batch)["loss"]
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < first / 3, losses_of(model, batch)
    with torch.no_grad():
        outputs = model.eval()(batch["image"])
    score = model.get_task().score(model.classes)
    for place in range(2):
        label = batch["label"][place] if head == "mask-rcnn" else ROWS[place][ROWS[place][:, 4] >= 0]
        score.update(model.get_task().decode(of_picture(outputs, place), (SIDE, SIDE), (SIDE, SIDE)), label)
    assert score.compute()["ap50"] > 0.9


@HEADS
def test_pictures_without_objects_are_learned_from_and_rows_that_fill_up_are_none(head: str) -> None:
    model = create(head).train()
    empty = losses_of(model, batch_of(head, torch.tensor([[NONE], [NONE]])))
    assert all(value.isfinite() for value in empty.values())
    assert empty["objectness"] > 0
    assert [empty[name].item() for name in ("rpn_box_reg", "box_reg")] == [0, 0]
    padded = {"image": batch_of(head)["image"], "label": batch_of(head, torch.cat([ROWS, ROWS.new_full((2, 3, 6), -1)], 1))["label"]}
    assert losses_of(model, padded)["loss"].item() == pytest.approx(losses_of(model, batch_of(head))["loss"].item(), rel=1e-4)


@HEADS
def test_unknown_regions_are_no_mistake(head: str) -> None:
    """Where all is unknown, what the model says of the proposals hardly counts; where nothing is, it does."""
    model, known = create(head).train(), batch_of(head, torch.tensor([[NONE]] * 2))
    everything = torch.tensor([[[-1.0, -1, SIDE + 1, SIDE + 1, 0, 1]]] * 2)
    hidden = everything if head == "faster-rcnn" else torch.full((2, SIDE, SIDE), IGNORE)
    gradients = []
    for label in (hidden, known["label"]):
        losses = losses_of(model, {"image": known["image"] + 0.5, "label": label})
        assert all(value.isfinite() for value in losses.values())
        losses["objectness"].backward()
        gradients.append(model.head.rpn.head.cls_logits.weight.grad.clone())
        model.zero_grad()
    anchors = model.head.rpn.anchor_generator.of_levels([torch.empty(1, 1, SIDE // s, SIDE // s) for s in (4, 8, 16, 32, 64)])
    target = model.head.targets(hidden, (SIDE, SIDE))
    labels, _ = model.head.rpn.assign_targets_to_anchors([torch.cat(anchors)] * 2, target)
    assert (labels[0] == 0).sum() < 100 < (labels[0] == -1).sum()
    assert not torch.allclose(*gradients)


@HEADS
@pytest.mark.usefixtures("few")
def test_sizes_of_the_outputs_depend_on_the_classes_alone(head: str) -> None:
    for classes in (1, 5):
        model = create(head, classes).eval()
        for height, width in ((32, 32), (96, 64)):
            with torch.no_grad():
                outputs = model(torch.zeros(2, 3, height, width))
            boxes = {"faster-rcnn": 50 * classes, "mask-rcnn": min(50 * classes, 200)}[head]
            assert outputs["scores"].shape == (2, classes, boxes)
            assert outputs["boxes"].shape == (2, 4, boxes)
            assert 0 <= outputs["boxes"].min() <= outputs["boxes"].max() <= 1
            decoded = model.get_task().decode(of_picture(outputs, 0), (height, width), (2 * height, 2 * width))
            assert len(decoded) <= (100 if head == "faster-rcnn" else 2 * height)


@HEADS
def test_in_bf16_boxes_stay_exact(head: str) -> None:
    model, batch = sure(create(head)), batch_of(head)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch["image"])
    assert {values.dtype for values in outputs.values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model.train(), batch)
    assert all(loss.isfinite() for loss in losses.values())


@HEADS
@pytest.mark.parametrize(("neck", "finest"), [("fpn", 4), ("pafpn", 2)])
def test_anchors_follow_the_strides(head: str, neck: str, finest: int) -> None:
    torch.manual_seed(0)
    model = TaskModel(create_backbone("test_resnet", finest=finest), TASKS[head], ["a"], SIDE, 16, head=head, neck=neck).eval()
    strides = [*model.backbone.strides, 64]
    assert model.head.rpn.anchor_generator.strides == strides
    anchors = model.head.rpn.anchor_generator.of_levels([torch.empty(1, 1, SIDE // stride, SIDE // stride) for stride in strides])
    for of_level, stride in zip(anchors, strides, strict=True):
        square = of_level[1]
        assert square.tolist() == [-1.5 * stride, -1.5 * stride, 2.5 * stride, 2.5 * stride]
    with torch.no_grad():
        assert model(torch.zeros(1, 3, SIDE, SIDE))["scores"].isfinite().all()


def test_pooling_of_a_batch_is_torchvisions() -> None:
    head = create("faster-rcnn").head
    levels = [torch.randn(2, 16, 256 // stride, 256 // stride) for stride in (4, 8, 16, 32)]
    boxes = torch.rand(2, 50, 2) * 100
    boxes = torch.cat([boxes, boxes + torch.rand(2, 50, 2) * 150], 2)
    expected = head.roi.box_roi_pool({str(i): level for i, level in enumerate(levels)}, list(boxes), [(256, 256)] * 2)
    assert torch.allclose(pool_boxes(head.roi.box_roi_pool, levels, boxes), expected, atol=1e-5)


def test_what_is_unknown_of_a_box_is_counted_in_pixels() -> None:
    unknown = spans(torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 10]]), (30, 30))
    assert int(unknown.sum()) == 100 + 10 * 5
    shares = unknown_share(torch.tensor([[0.0, 0, 10, 10], [-10, -10, 10, 20], [20, 20, 30, 30], [40, 40, 50, 50]]), unknown)
    assert shares.tolist() == [1, 0.5, 0, 0]


@HEADS
@pytest.mark.usefixtures("few")
def test_the_onnx_file_computes_the_same_for_any_batch_and_size(head: str, tmp_path: Path) -> None:
    model = sure(create(head))
    task = model.get_task()
    options: dict[str, Any] = {"size": SIDE, "opset": 17, "metadata": {}, "align": task.align}
    done = export(Served(model), tmp_path / "model.onnx", task.served, tolerance=1e-4, **options)
    assert done.fixed_because is None
    assert 0 < done.parity < 1e-5


@HEADS
@pytest.mark.usefixtures("few")
def test_of_equal_scores_the_onnx_file_chooses_the_same(head: str, tmp_path: Path) -> None:
    """All anchors of a level score alike, as where a picture has one colour; there are more than are chosen."""
    model = sure(create(head))
    nn.init.zeros_(model.head.rpn.head.cls_logits.weight)
    task = model.get_task()
    options: dict[str, Any] = {"size": SIDE, "opset": 17, "metadata": {}, "align": task.align}
    done = export(Served(model), tmp_path / "model.onnx", task.served, tolerance=1e-4, **options)
    assert done.fixed_because is None
    assert done.parity < 1e-5


def test_boxes_in_another_order_are_the_same_and_others_are_not() -> None:
    random = np.random.default_rng(0)
    ours = [random.random((1, 2, 50), np.float32), random.random((1, 4, 50), np.float32), random.random((1, 50, 3, 3), np.float32)]
    order = random.permutation(50)
    theirs = [ours[0][:, :, order], ours[1][:, :, order], ours[2][:, order]]
    theirs[0][:, :, 7] = 0  # one is missing
    for one, other in zip(align_boxes(theirs, ours), ours, strict=True):
        assert np.array_equal(one, other)
    theirs[0][:, :, :15] = 0
    assert align_boxes(theirs, ours) is theirs
    some = [values.copy() for values in ours]
    some[0][:, :, 5], some[2][:, 5] = 0, 0  # too unlikely a box for a mask, but the best of its picture, for which one is computed
    none = [some[0], some[1], ours[2]]
    assert np.array_equal(align_boxes(none, some)[2], some[2])
    none[2] = np.zeros_like(ours[2])
    assert not np.array_equal(align_boxes(none, some)[2], some[2])
    same = [np.zeros_like(ours[0]), np.zeros_like(ours[1])]  # a picture in which nothing is
    assert np.array_equal(align_boxes(same, same)[1], same[1])
    moved = [ours[0], ours[1] + 1e-3, ours[2]]
    assert np.abs(align_boxes(moved, ours)[1] - ours[1]).max() == pytest.approx(1e-3, rel=1e-2)


@HEADS
def test_half_precision_agrees_with_itself_in_any_order(head: str) -> None:
    model = sure(create(head))
    with torch.no_grad():
        model.head.roi.box_predictor.cls_score.weight.normal_(std=3)
        outputs = model(torch.randn(2, 3, SIDE, SIDE))
    task = model.get_task()
    same, found = task.agreement(outputs, {name: values.clone() for name, values in outputs.items()})
    assert same == found > 0
    broken = {name: torch.full_like(values, torch.nan) for name, values in outputs.items()}
    assert task.agreement(outputs, broken) == (0, found)


@HEADS
def test_it_is_saved_with_its_head(head: str, tmp_path: Path) -> None:
    model, images = sure(create(head, neck="fpn")), torch.randn(1, 3, SIDE, SIDE)
    save_task_model(model, tmp_path)
    loaded = load_task_model(tmp_path)
    assert (loaded.head_name, loaded.task) == (head, TASKS[head])
    with torch.no_grad():
        for name, values in model(images).items():
            assert torch.equal(loaded(images)[name], values)


def test_a_head_of_another_task_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"'mask-rcnn' is a head for instances, and the labels are for detection; set it to auto or faster"):
        get_task("detection", "mask-rcnn")
    with pytest.raises(UserError, match=r"'faster-rcnn' is a head for detection, and the labels are for depth; set it to auto$"):
        get_task("depth", "faster-rcnn")
    with pytest.raises(ValueError, match=r"there is no head 'faster-rcn'; name faster-rcnn"):
        Finetune(head="faster-rcn")
    with pytest.raises(ValueError, match=r"'mask-rcnn' is a head for instances, and ingest.task is 'detection'; set it to auto"):
        Params(ingest={"task": "detection"}, finetune={"head": "mask-rcnn"})  # type: ignore[arg-type]
    for head, name in TASKS.items():
        with pytest.raises(UserError, match=r"needs crops of a multiple of 32 pixels, and finetune.resolution is 40"):
            get_task(name, head).crop(40, AUGMENTATIONS["natural"])


def test_what_was_found_is_drawn_as_the_task_does() -> None:
    model, batch = sure(create("mask-rcnn")), batch_of("mask-rcnn")
    with torch.no_grad():
        outputs = model(batch["image"])
    found = model.get_task().decode(of_picture(outputs, 0), (60, 50), (120, 100)).numpy()
    assert found.shape == (120, 100)
    numbers, _, scores = unpack(found)
    assert numbers.max() == len(scores) > 0
    panels = model.get_task().draw(np.zeros((120, 100, 3), np.uint8), {"scratch": found}, model.classes)
    assert [name for name, _ in panels] == ["picture", "scratch"]
    assert panels[1][1].any()
