"""The model card: model, data, metrics and usage in one page."""

import json

import pytest

from dreamteacher.report.card import LENGTH, model_card

FINETUNE = {"steps": 300, "batch_size": 16, "lr": 0.001, "resolution": 64}


def contract(**more):
    facts = {
        "task": "segmentation", "classes": ["background", "nucleus"], "init": "mix", "seed": 0,
        "architecture": "resnet18", "strides": [4, 8],
        "size": 128, "short_side": 256, "scale_to": None,
        "data_hash": "d" * 64, "git_revision": "c" * 40, "dreamteacher_version": "1.2",
        "counts": {"train": 40, "val": 10, "labelled_train": 30, "labelled_val": 9}, "trained": {"few_labels": 20, "finetune": FINETUNE},
    } | more  # fmt: skip
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def figures(*classes, kind="iou", name="miou"):
    def of(value):
        named = {f"{kind}_{each}": value - 0.1 for each in classes}
        return {
            f"{key}_{what}": number for key, mean in ({name: value} | named).items() for what, number in (("mean", mean), ("std", 0.01))
        }

    return {init: of(value) | {"n_seeds": 3} for init, value in (("scratch", 0.8), ("features", 0.82), ("mix", 0.85))}


def test_the_card_says_what_the_model_is_how_good_from_what_and_how_to_use_it():
    text = model_card("cells", contract(), figures("background", "nucleus"), 3.2e-6)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[:3] == ["# cells", "", "Segmentation of background, nucleus. Initialisation `mix`, seed 0."]
    for line in (
        "| scratch | 80.0 ± 1.0 | 3 | - | - |",
        "| mix | 85.0 ± 1.0 | 3 | - | - |",
        "| nucleus | 70.0 ± 1.0 | 75.0 ± 1.0 |",
        f"| data | `{'d' * 64}` |",
        "| train | 40 pictures, 30 of them labelled, of which fine-tuning saw 20 (`few_labels`) |",
        "| validation | 10 pictures, 9 of them labelled |",
        "| pictures | reduced to a short side of 256 px (`ingest.short_side`) |",
        "| fine-tuning | `steps` 300, `batch_size` 16, `lr` 0.001, `resolution` 64 |",
        "| ONNX | checked at 128 x 128, \\|onnxruntime - torch\\| at most 3.2e-06 |",
        "dreamteacher predict IMAGE --url HOST:PORT --model cells --out predictions",
    ):
        assert line in lines, line
    assert "Apache-2.0" in text
    assert "ImageNet" not in text


def test_a_model_from_imagenet_weights_says_that_they_have_a_licence():
    assert "timm's ImageNet weights" in model_card("cells", contract(init="imagenet"), figures(), 1e-6)


def test_classification_has_its_own_metrics():
    of_task = contract(task="classification", classes=["a|b", "c"], scale_to=64, short_side=None)
    text = model_card("cells", of_task, figures("a|b", "c", kind="accuracy", name="top1"), 1e-6)
    assert "top-1 mean ± std" in text
    assert "| a\\|b" in text
    assert "in their own size, then scaled to 64 px" in text


def test_a_metric_of_another_task_is_shown_by_its_key():
    text = model_card("cells", contract(task="mine:TASK"), figures(name="fit"), 1e-6)
    assert "fit mean ± std" in text
    assert "of each class" not in text


@pytest.mark.parametrize("count", [1, 30, 2000])
@pytest.mark.parametrize("length", [1, 300])
def test_any_number_of_classes_fits_into_mlflows_column(count, length):
    classes = [f"{number}{'x' * length}" for number in range(count)]
    text = model_card("cells", contract(classes=classes), figures(*classes), 1e-6)
    assert len(text) <= LENGTH
    assert text.startswith("# cells")
