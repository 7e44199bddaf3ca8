from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import Chain, brief_params
from dreamteacher.data.dataset import ImageSet
from dreamteacher.stages import distill_labels
from dreamteacher.students.neck import load_regressor
from dreamteacher.tasks.model import load_task_model


def run(chain: Chain, out: Path, mode: str, **changes: dict) -> dict[str, float]:
    folders = {name: chain.root / name for name in ("data", "teacher", "features", "interpreter")}
    return distill_labels.run(brief_params(chain.source, **changes), **folders, mode=mode, seed=0, out=out)


@pytest.mark.parametrize("mode", ["labels", "mix"])
def test_it_starts_from_the_distilled_backbone_and_neck(chain: Chain, mode: str) -> None:
    begun, regressor = chain.begun[mode], load_regressor(chain.root / "features").state_dict()
    for key, value in regressor.items():
        part, _, rest = key.partition(".")
        names = {"backbone": f"task.backbone.{rest}", "neck": f"task.head.neck.{rest}", "heads": key}
        name = f"neck.{rest}" if part == "neck" and chain.task == "classification" else names[part]
        if mode == "mix" or name.startswith("task.backbone") or (part == "neck" and chain.task == "segmentation"):
            assert torch.equal(begun[name], value), name
        else:
            assert name not in begun


@pytest.mark.parametrize("mode", ["labels", "mix"])
def test_fresh_starts_from_random_weights(chain: Chain, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = {}
    train = distill_labels.train

    def watched(model: torch.nn.Module, *args, **kwargs):
        begun.update({key: value.clone() for key, value in model.state_dict().items()})
        return train(model, *args, **kwargs)

    monkeypatch.setattr(distill_labels, "train", watched)
    run(chain, tmp_path / mode, mode, labels={"start": "fresh", "steps": 1})
    assert begun.keys() == chain.begun[mode].keys()
    key = next(key for key in begun if key.startswith("task.backbone") and key.endswith("weight"))
    assert not torch.equal(begun[key], chain.begun[mode][key])


@pytest.mark.parametrize("mode", ["labels", "mix"])
def test_it_leaves_a_task_model_that_has_learned(chain: Chain, mode: str) -> None:
    model = load_task_model(chain.root / mode)
    assert model.task == chain.task
    assert model.classes == (["background", "blob"] if chain.task == "segmentation" else ["green", "red"])
    state = model.state_dict()
    moved = [key for key, value in state.items() if not torch.equal(value, chain.begun[mode][f"task.{key}"])]
    assert len(moved) == len(state)


def test_every_train_picture_is_learned_from_labelled_or_not(chain: Chain, tmp_path: Path) -> None:
    assert chain.read["mix"] == set(ImageSet(chain.root / "data", "train").names)


def test_the_mix_reports_both_of_its_losses(chain: Chain) -> None:
    assert set(chain.metrics["labels"]) == {"loss"}
    mix = chain.metrics["mix"]
    assert set(mix) == {"loss", "mse", "at", "labels"}
    assert mix["loss"] == pytest.approx(mix["mse"] + 10 * mix["at"] + mix["labels"], rel=1e-5)


def test_without_weight_of_the_labels_the_mix_is_feature_distillation(chain: Chain, tmp_path: Path) -> None:
    metrics = run(chain, tmp_path / "mix", "mix", labels={"label_weight": 0.0})
    assert metrics["loss"] == pytest.approx(metrics["mse"] + 10 * metrics["at"], rel=1e-5)


def test_features_and_labels_may_be_read_at_different_noise(chain: Chain, tmp_path: Path) -> None:
    """The interpreter keeps the step that it was trained at, so only the regressed targets change."""
    changed = run(chain, tmp_path / "mix", "mix", distill={"T": 90})
    assert changed["mse"] != chain.metrics["mix"]["mse"]
    labels = run(chain, tmp_path / "labels", "labels", distill={"T": 90})
    assert labels["loss"] == pytest.approx(chain.metrics["labels"]["loss"], rel=1e-6)


def test_the_student_comes_to_agree_with_the_interpreter(chains: dict[str, Chain], tmp_path: Path) -> None:
    run(chains["segmentation"], tmp_path / "labels", "labels", labels={"steps": 40, "lr": 3e-3, "log_every": 5, "batch_size": 8})
    losses = [float(line.split(",")[1]) for line in (tmp_path / "labels/curves.csv").read_text().splitlines()[1:]]
    assert losses[-1] < losses[0] - 0.05
