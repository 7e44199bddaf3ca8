from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_chain import Chain, brief_params, draw

from dreamteacher.data.dataset import ImageSet, Samples
from dreamteacher.data.transforms import pretrain_crop
from dreamteacher.distillation.interpreter import load_interpreter
from dreamteacher.distillation.objectives import attention_transfer, feature_mse, layernorm_whitening, soft_label_cross_entropy
from dreamteacher.errors import UserError
from dreamteacher.stages import distill_features, distill_labels, ingest, train_interpreter, train_teacher
from dreamteacher.students.backbone import create_backbone
from dreamteacher.students.regressor import load_regressor
from dreamteacher.tasks.model import TaskModel, load_task_model, normalize
from dreamteacher.teachers import unet
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.teachers.folder import open_teacher
from dreamteacher.training.order import global_batch
from dreamteacher.training.randomness import StepRandom


def run(chain: Chain, out: Path, mode: str, **changes: dict) -> dict[str, float]:
    folders = {name: chain.root / name for name in ("data", "teacher", "features", "interpreter")}
    params = brief_params(chain.source, **changes | {"labels": {"mode": mode} | changes.get("labels", {})})
    return distill_labels.run(params, **folders, recipe=mode, seed=0, out=out)


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


def test_without_weight_of_the_labels_the_mix_is_feature_distillation(chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains["segmentation"]
    metrics = run(chain, tmp_path / "mix", "mix", labels={"label_weight": 0.0})
    assert metrics["loss"] == pytest.approx(metrics["mse"] + 10 * metrics["at"], rel=1e-5)


def test_the_margin_is_left_out_of_the_features_and_not_of_the_labels(chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains["segmentation"]
    whole, inner = (run(chain, tmp_path / str(m), "mix", distill={"margin": m}, labels={"steps": 1}) for m in (0, 4))
    assert inner["mse"] != whole["mse"]
    assert inner["at"] != whole["at"]
    assert inner["labels"] == whole["labels"]


def test_features_and_labels_may_be_read_at_different_noise(chains: dict[str, Chain], tmp_path: Path) -> None:
    """The interpreter keeps the step that it was trained at, so only the regressed targets change."""
    chain = chains["segmentation"]
    changed = run(chain, tmp_path / "mix", "mix", distill={"T": 90})
    assert changed["mse"] != chain.metrics["mix"]["mse"]
    labels = run(chain, tmp_path / "labels", "labels", distill={"T": 90})
    assert labels["loss"] == pytest.approx(chain.metrics["labels"]["loss"], rel=1e-6)


def test_inputs_that_do_not_fit_are_refused_in_one_line_before_anything_is_computed(
    chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*args, **kwargs):
        raise AssertionError("it went to work")

    chain, other = chains["segmentation"], chains["classification"]
    folders = {name: chain.root / name for name in ("data", "teacher", "features", "interpreter")}
    made = {"data": chain.root / "data", "teacher": chain.root / "teacher"}
    of_8 = chain.params.model_copy(update={"taps": [8]})
    train_interpreter.run(of_8, **made, seed=0, out=tmp_path / "interpreter")
    distill_features.run(of_8, **made, out=tmp_path / "features")
    for name, classes, labels in (
        ("three", "background\nblob\nother\n", "auto"),
        ("renamed", "background\ndrop\n", "auto"),
        ("none", "background\nblob\n", "none"),
    ):
        source = draw("segmentation", tmp_path / "pictures" / name)
        (source / "classes.txt").write_text(classes)
        ingest.run(brief_params(source, ingest={"labels": labels}), source=source, out=tmp_path / name)
    wide = brief_params(chain.source, teacher={"sample_steps": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unet.SIZES, "tiny", {**unet.SIZES["tiny"], "widths": (8, 8, 8, 24)})
        train_teacher.run(wide, data=chain.root / "data", out=tmp_path / "wide")
    monkeypatch.setattr(distill_labels, "train", train)
    student = {"width": 8, "backbone": "test_resnet"}
    taps = "was made with taps [8], here they are [4, 8]; run `dreamteacher {}` with the same taps"
    distilled = (
        "was distilled with student.{}, the settings say {}; run `dreamteacher distill-features` with these settings, or set labels."
    )
    cases: list[tuple[str, dict, dict]] = [
        (taps.format("train-interpreter"), {"interpreter": tmp_path / "interpreter"}, {}),
        (taps.format("distill-features"), {"features": tmp_path / "features"}, {}),
        (distilled.format("width = 8", 16), {}, {"student": {**student, "width": 16}}),
        (distilled.format("backbone = 'test_resnet'", "'test_convnext'"), {}, {"student": {**student, "backbone": "test_convnext"}}),
        (distilled.format("finest_stride = 4", 2), {}, {"student": {**student, "finest_stride": 2}}),
        ("was trained for 2 classes of segmentation, ", {"data": tmp_path / "three"}, {}),
        ("has 2 classes of classification; run `dreamteacher train-interpreter` with this data", {"data": other.root / "data"}, {}),
        ("was trained for 2 classes of classification, ", {"interpreter": other.root / "interpreter"}, {}),
        ("interpreter was trained with another data set than ", {"data": tmp_path / "renamed"}, {}),
        ("none has no labels; give ingest.source some", {"data": tmp_path / "none"}, {}),
        ("interpreter was made with a teacher of another size; run", {"teacher": tmp_path / "wide"}, {}),
    ]
    for mode in ("labels", "mix"):
        for line, options, changes in cases:
            with pytest.raises(UserError) as caught:
                params = brief_params(chain.source, **changes | {"labels": {"mode": mode} | changes.get("labels", {})})
                distill_labels.run(params, **folders | options, seed=0, out=tmp_path / "out")
            assert line in str(caught.value)
            assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_a_fresh_start_may_have_another_student_than_the_features(chains: dict[str, Chain], tmp_path: Path) -> None:
    student = {"backbone": "test_convnext", "width": 16}
    run(chains["segmentation"], tmp_path / "mix", "mix", labels={"start": "fresh", "steps": 1}, student=student)
    assert load_task_model(tmp_path / "mix").backbone.name == "test_convnext"


def test_its_first_loss_is_equation_6_on_the_first_batch(chain: Chain, tmp_path: Path) -> None:
    """Put together from its parts: noise, taps and soft labels of one pass of the teacher, the student on the clean pictures."""
    metrics = run(chain, tmp_path / "mix", "mix", labels={"steps": 1})
    samples = Samples(ImageSet(chain.root / "data", "train"), pretrain_crop(32))
    images = torch.stack([samples[item]["image"] for item in global_batch(14, 4, 0, 0)])
    targets = open_teacher(chain.root / "teacher", [4, 8], Stochastic(10)).teach(images, StepRandom(0, 0, 0, 1)).features
    regressor, (interpreter, _) = load_regressor(chain.root / "features").train(), load_interpreter(chain.root / "interpreter")
    torch.manual_seed(0)
    task = TaskModel(create_backbone("test_resnet"), chain.task, ["a", "b"], 32, 8)
    task.load_state_dict({key.removeprefix("task."): value for key, value in chain.begun["mix"].items() if key.startswith("task.")})
    normalized = normalize(images, regressor.backbone.mean, regressor.backbone.std)
    with torch.no_grad():
        regressed, logits, soft = regressor(normalized), task(normalized), interpreter(targets, (32, 32))
    assert metrics["mse"] == pytest.approx(feature_mse(regressed, [layernorm_whitening(t) for t in targets]).item(), rel=1e-4)
    assert metrics["at"] == pytest.approx(attention_transfer(regressed, targets).item(), rel=1e-4)
    assert metrics["labels"] == pytest.approx(soft_label_cross_entropy(logits, soft, 4.0).item(), rel=1e-4)


def test_the_mix_whitens_by_the_statistics_of_the_features_it_starts_from(chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains["segmentation"]
    changes = {"distill": {"whitening": "standardize", "steps": 1}, "labels": {"steps": 1}}
    with pytest.raises(UserError, match=r"features holds no feature statistics of these taps.*run `dreamteacher distill-features` again"):
        run(chain, tmp_path / "refused", "mix", **changes)
    made = {"data": chain.root / "data", "teacher": chain.root / "teacher"}
    distill_features.run(brief_params(chain.source, **changes), **made, out=tmp_path / "features")
    folders = made | {"features": tmp_path / "features", "interpreter": chain.root / "interpreter"}
    metrics = distill_labels.run(brief_params(chain.source, **changes), **folders, seed=0, out=tmp_path / "mix")
    assert metrics["mse"] != chain.metrics["mix"]["mse"]
    assert run(chain, tmp_path / "labels", "labels", **changes)["loss"] > 0  # which regresses nothing
