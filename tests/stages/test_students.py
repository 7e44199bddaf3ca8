"""Other necks and plain transformers through the whole chain, and fine-tuning options that preserve pretrained weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from tiny_chain import Chain, brief_params
from torch import nn

from dreamteacher.errors import UserError
from dreamteacher.onnx_files import INPUT
from dreamteacher.stage import read_stage
from dreamteacher.stages import distill_features, distill_labels, evaluate, export_onnx, finetune
from dreamteacher.students.backbone import BACKBONE_FOLDER, load_backbone
from dreamteacher.students.regressor import load_regressor
from dreamteacher.tasks.base import get_task
from dreamteacher.tasks.model import load_task_model


def start_of(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Is filled with the weights that the next fine-tuning begins with."""
    begun: dict[str, torch.Tensor] = {}
    train = finetune.train

    def watched(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        begun.clear()
        begun.update({key: value.clone() for key, value in model.state_dict().items()})
        return train(model, *args, **kwargs)

    monkeypatch.setattr(finetune, "train", watched)
    return begun


@pytest.mark.parametrize(
    ("task", "student"),
    [
        ("segmentation", {"backbone": "test_resnet", "neck": "fpn"}),
        ("segmentation", {"backbone": "test_resnet", "neck": "fpn-attention"}),
        ("segmentation", {"backbone": "test_resnet", "neck": "pafpn", "finest_stride": 2}),
        ("segmentation", {"backbone": "test_vit", "neck": "fpn-ppm"}),
        ("classification", {"backbone": "test_vit", "neck": "pafpn"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_a_student_goes_the_whole_way(task: str, student: dict[str, Any], chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains[task]
    params = brief_params(chain.source, student={"width": 8, **student}, compare={"inits": ["features", "mix"]})
    data, teacher = chain.root / "data", chain.root / "teacher"
    made = distill_features.run(params, data=data, teacher=teacher, out=tmp_path / "features")
    assert made["embedding_spread"] > 0
    distilled = {"teacher": teacher, "features": tmp_path / "features", "interpreter": chain.root / "interpreter"}
    distill_labels.run(params, data=data, **distilled, seed=0, out=tmp_path / "mix")
    for init in ("features", "mix"):
        finetune.run(params, data=data, init=init, seed=0, backbone=tmp_path / init, out=tmp_path / f"finetuned/{init}/0")
        assert read_stage(tmp_path / f"finetuned/{init}/0")["params"]["student"]["neck"] == student["neck"]
    assert json.loads((tmp_path / "features/regressor.json").read_text())["neck"] == student["neck"]
    assert json.loads((tmp_path / "mix/task.json").read_text())["neck"] == student["neck"]

    places = {"out": tmp_path / "evaluation", "metrics": tmp_path / "metrics.json", "plots": tmp_path / "plots"}
    evaluate.run(params, data=data, teachers=chain.root, backbones=tmp_path, finetuned=tmp_path / "finetuned", **places)
    exported = export_onnx.run(params, data=data, finetuned=tmp_path / "finetuned/mix/0", out=tmp_path / "onnx")
    assert exported["dynamic_size"] == 1
    model, pictures = load_task_model(tmp_path / "finetuned/mix/0"), torch.randn(3, 3, 96, 32)
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(session.run(None, {INPUT: pictures.numpy()})[0]), model(pictures), rtol=1e-3, atol=1e-4)


def test_another_neck_than_the_features_were_distilled_with_is_refused(chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains["segmentation"]
    params = brief_params(chain.source, student={"neck": "fpn"}, finetune={"carry_neck": True})
    folders = {name: chain.root / name for name in ("data", "teacher", "features", "interpreter")}
    with pytest.raises(UserError, match=r"was distilled with student\.neck = 'fpn-ppm', the settings say 'fpn'; run"):
        distill_labels.run(params, **folders, seed=0, out=tmp_path / "mix")
    options = {"data": chain.root / "data", "seed": 0, "out": tmp_path / "model"}
    for init in ("features", "mix"):
        with pytest.raises(UserError, match=r"does not fit .*student\.neck = 'fpn' and the 2 classes"):
            finetune.run(params, **options, init=init, backbone=chain.root / init)


def test_features_of_an_earlier_version_have_the_neck_that_there_was(
    chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, read = chains["segmentation"], distill_labels.read_stage

    def without_neck(folder: Path) -> dict[str, Any]:
        record = read(folder)
        if record["stage"] == "distill-features":
            record["params"]["student"].pop("neck")
        return record

    monkeypatch.setattr(distill_labels, "read_stage", without_neck)
    folders = {name: chain.root / name for name in ("data", "teacher", "features", "interpreter")}
    params = brief_params(chain.source, labels={"steps": 1})
    assert distill_labels.run(params, **folders, seed=0, out=tmp_path / "mix")["loss"] > 0


def test_the_neck_is_carried_over_from_the_regressor(chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, begun = chains["segmentation"], start_of(monkeypatch)
    params = brief_params(chain.source, finetune={"carry_neck": True, "steps": 1})
    finetune.run(params, data=chain.root / "data", init="features", backbone=chain.root / "features", seed=0, out=tmp_path / "model")
    regressor, plain = load_regressor(chain.root / "features"), chain.begun["finetune/features"]
    for key, value in regressor.neck.state_dict().items():
        assert torch.equal(begun[f"head.neck.{key}"], value), key
    for key in plain:  # all else as without it
        assert key.startswith("head.neck.") or torch.equal(begun[key], plain[key]), key
    assert any(not torch.equal(begun[key], plain[key]) for key in plain)


def test_where_task_or_pretraining_has_no_neck_the_backbone_alone_is_carried(
    chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = start_of(monkeypatch)
    densecl = tmp_path / "densecl"
    chain = chains["segmentation"]
    params = brief_params(chain.source, distill={"method": "densecl", "steps": 1}, finetune={"carry_neck": True, "steps": 1})
    distill_features.run(params, data=chain.root / "data", out=densecl)
    for task, pretrained in (("classification", chains["classification"].root / "features"), ("segmentation", densecl)):
        chain = chains[task]
        options = {"data": chain.root / "data", "seed": 0, "out": tmp_path / task}
        finetune.run(brief_params(chain.source, finetune={"carry_neck": True, "steps": 1}), **options, init="features", backbone=pretrained)
        for key, value in load_backbone(pretrained / BACKBONE_FOLDER).state_dict().items():
            assert torch.equal(begun[f"backbone.{key}"], value), key


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_the_backbone_stays_as_it_is_while_the_head_learns(
    backbone: str, chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, begun = chains["segmentation"], start_of(monkeypatch)
    student = {"backbone": backbone, "width": 8}
    pretrained = chain.root / "features"
    if backbone == "test_vit":
        pretrained = tmp_path / "features"
        params = brief_params(chain.source, student=student)
        distill_features.run(params, data=chain.root / "data", teacher=chain.root / "teacher", out=pretrained)

    def after(head_steps: int, init: str) -> dict[str, torch.Tensor]:
        params = brief_params(chain.source, student=student, finetune={"head_steps": head_steps, "ema": None})
        folder = tmp_path / f"{init}-{head_steps}"
        options = {} if init == "scratch" else {"backbone": pretrained}
        finetune.run(params, data=chain.root / "data", init=init, seed=0, out=folder, **options)
        return load_task_model(folder).state_dict()

    frozen = after(4, "features")
    timm = [key for key in frozen if key.startswith("backbone.model.")]  # statistics of batch norms among them
    assert all(torch.equal(frozen[key], begun[key]) for key in timm)
    rest = [key for key in frozen if key not in timm and "num_batches" not in key]
    assert any("pyramid" in key for key in rest) == (backbone == "test_vit")
    assert all(not torch.equal(frozen[key], begun[key]) for key in rest)
    assert any(not torch.equal(after(3, "features")[key], begun[key]) for key in timm)
    scratch, as_ever = after(4, "scratch"), after(0, "scratch")
    assert all(torch.equal(value, as_ever[key]) for key, value in scratch.items())


@pytest.mark.parametrize("stopped", [2, 3, 5])
def test_a_run_stopped_before_at_or_after_the_backbone_is_freed_ends_with_the_same_bytes(
    stopped: int, chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = chains["segmentation"]
    settings = {"head_steps": 3, "steps": 7, "checkpoint_every": 1, "layer_decay": 0.5, "ema": 0.9, "log_every": 1}
    params = brief_params(chain.source, finetune=settings)
    options = {"data": chain.root / "data", "init": "features", "seed": 0, "backbone": chain.root / "features"}
    task, steps = get_task("segmentation"), []
    loss = task.loss

    def failing(*args: Any) -> dict[str, torch.Tensor]:
        steps.append(len(steps))
        if len(steps) > stopped:
            raise RuntimeError("the machine is gone")
        return loss(*args)

    finetune.run(params, **options, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(task, "loss", failing)
        with pytest.raises(RuntimeError, match="gone"):
            finetune.run(params, **options, out=tmp_path / "resumed")
    seen: list[Any] = []
    monkeypatch.setattr(task, "loss", lambda *args: seen.append(0) or loss(*args))
    finetune.run(params, **options, out=tmp_path / "resumed")
    assert len(seen) == 7 - stopped
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "resumed" / path.relative_to(tmp_path / "whole")).read_bytes(), path


def norms(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key.endswith(("running_mean", "running_var"))}


def test_pretrained_batch_norms_keep_the_statistics_of_all_pictures(
    chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, begun = chains["segmentation"], start_of(monkeypatch)
    recipes = {"scratch": None, "features": chain.root / "features", "mix": chain.root / "mix"}

    def changed(init: str, **settings: Any) -> set[str]:
        """The parts of the model whose statistics fine-tuning changed."""
        params = brief_params(chain.source, finetune={"ema": None, **settings})
        out = tmp_path / f"{init}-{len(settings)}-{settings.get('norm_eval')}"
        options = {"backbone": recipes[init]} if recipes[init] else {}
        finetune.run(params, data=chain.root / "data", init=init, seed=0, out=out, **options)
        after = norms(load_task_model(out).state_dict())
        parts = {"backbone": "backbone.", "neck": "head.neck.", "fuse": "head."}
        differ = [
            next(part for part, start in parts.items() if key.startswith(start)) for key in after if not torch.equal(after[key], begun[key])
        ]
        return set(differ)

    everything = {"backbone", "neck", "fuse"}
    assert changed("mix") == changed("features") == everything
    assert changed("mix", norm_eval=True) == set()
    assert changed("features", norm_eval=True) == {"neck", "fuse"}
    assert changed("features", norm_eval=True, carry_neck=True) == {"fuse"}
    assert changed("scratch", norm_eval=True) == everything


def test_early_layers_learn_more_slowly(chains: dict[str, Chain], tmp_path: Path) -> None:
    """Adam's first step is as long as the rate."""
    chain = chains["segmentation"]
    params = brief_params(chain.source, finetune={"layer_decay": 0.1, "steps": 1, "weight_decay": 0.0, "ema": None, "clip": None})
    options = {"data": chain.root / "data", "init": "features", "seed": 0, "backbone": chain.root / "features"}
    finetune.run(params, **options, out=tmp_path / "model")
    before, after = load_backbone(chain.root / "features/backbone").model, load_task_model(tmp_path / "model").backbone.model

    def way(name: str) -> float:
        return (after.get_parameter(name) - before.get_parameter(name)).abs().max().item()

    assert way("conv1.0.weight") < 0.02 * way("layer4.0.conv1.weight")
    assert way("layer4.0.conv1.weight") == pytest.approx(0.1 * params.finetune.lr, rel=0.01)


def test_more_head_steps_than_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"finetune\.head_steps = 9 is more than finetune\.steps = 4; lower it"):
        brief_params(Path("none"), finetune={"head_steps": 9})
