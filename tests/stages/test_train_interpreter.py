from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_chain import Chain, brief_params, draw

from dreamteacher.cluster.launch import PROCESSES, launch
from dreamteacher.data.dataset import ImageSet, Samples, few_labelled
from dreamteacher.data.items import IGNORE
from dreamteacher.data.transforms import pretrain_crop
from dreamteacher.distillation.interpreter import load_interpreter
from dreamteacher.errors import UserError
from dreamteacher.stages import finetune, ingest, train_interpreter
from dreamteacher.teachers.encodings import Stochastic, get_encoding
from dreamteacher.teachers.folder import open_teacher
from dreamteacher.training.randomness import StepRandom, derive_seed


def test_it_learns_from_the_few_labels_that_the_seed_draws(chain: Chain) -> None:
    images, val = ImageSet(chain.root / "data", "train"), ImageSet(chain.root / "data", "val")
    assert chain.read["interpreter"] == {images.names[i] for i in few_labelled(images, 6, 0)}
    assert chain.read["interpreter, trained"] == {val.names[i] for i in val.labelled()}
    assert chain.metrics["interpreter"]["n_labels"] == 6


def test_it_leaves_an_interpreter_of_the_task(chain: Chain) -> None:
    interpreter, facts = load_interpreter(chain.root / "interpreter")
    assert interpreter.dense == (chain.task == "segmentation")
    assert (facts["strides"], get_encoding(facts["encoding"])) == ([4, 8], Stochastic(10))
    assert facts["shape"]["tap_channels"] == [8, 16]
    before = chain.begun["interpreter"]
    assert all(not torch.equal(value, before[key]) for key, value in interpreter.state_dict().items())


def test_it_comes_to_read_the_labels(chains: dict[str, Chain], tmp_path: Path) -> None:
    made = chains["segmentation"]
    changes = {"steps": 24, "lr": 3e-2, "dropout": 0.0, "log_every": 4, "resolution": 32, "batch_size": 6}
    params = brief_params(made.source, interpreter=changes)
    train_interpreter.run(params, data=made.root / "data", teacher=made.root / "teacher", seed=0, out=tmp_path / "interpreter")
    losses = [float(line.split(",")[1]) for line in (tmp_path / "interpreter/curves.csv").read_text().splitlines()[1:]]
    assert losses[-1] < 0.8 * losses[0]


def counted(chain: Chain, folder: Path) -> dict[str, float]:
    """The figure of the interpreter in `folder`, by a confusion matrix counted here."""
    val, (interpreter, facts) = ImageSet(chain.root / "data", "val"), load_interpreter(folder)
    generator = open_teacher(chain.root / "teacher", facts["strides"], get_encoding(facts["encoding"]), torch.device("cpu"))
    crops = Samples(val, pretrain_crop(16), val.labelled())
    items = [crops[i, derive_seed("interpreter's figure", 0, i)] for i in range(len(crops))]
    lesson = generator.teach(torch.stack([item["image"] for item in items]), StepRandom(0, 0, 0, 1))
    predicted = interpreter(lesson.features, (16, 16)).argmax(1)
    truth = torch.stack([item["label"] for item in items])
    known = truth != IGNORE
    confusion = np.zeros((2, 2))
    np.add.at(confusion, (truth[known].numpy(), predicted[known].numpy()), 1)
    hits = confusion.diagonal()
    seen = confusion.sum(1) > 0
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    return {"val_miou": iou[seen].mean()} if chain.task == "segmentation" else {"val_top1": hits.sum() / confusion.sum()}


def test_its_figure_is_what_it_reads_from_validation_pictures(chain: Chain) -> None:
    found = {name: value for name, value in chain.metrics["interpreter"].items() if name.startswith("val_")}
    assert found == pytest.approx(counted(chain, chain.root / "interpreter"), abs=1e-6)


def test_of_two_processes_one_measures_though_the_other_has_ended(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROCESSES, "2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    inputs = {name: str(chain.root / name) for name in ("data", "teacher")}
    found = launch("train-interpreter", chain.params, inputs, str(tmp_path / "two"), recipe="mix", seed=0)
    assert {name: found[name] for name in found if name.startswith("val_")} == pytest.approx(counted(chain, tmp_path / "two"), abs=1e-6)


def test_labelled_crops_are_mirrored_as_the_settings_say(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(train_interpreter, "pretrain_crop", lambda *args: used.append(args) or pretrain_crop(*args))
    for mirror in (True, False):
        params = brief_params(chain.source, interpreter={"steps": 1, "mirror": mirror})
        options = {"data": chain.root / "data", "teacher": chain.root / "teacher", "seed": 0}
        train_interpreter.run(params, **options, out=tmp_path / str(mirror))
    assert used == [(16, True), (16, True), (16, False), (16, False)]  # to learn from, and to measure on


def test_another_seed_draws_other_labels_and_weights(chain: Chain, tmp_path: Path) -> None:
    train_interpreter.run(chain.params, data=chain.root / "data", teacher=chain.root / "teacher", seed=1, out=tmp_path / "interpreter")
    assert (tmp_path / "interpreter/interpreter.safetensors").read_bytes() != (
        chain.root / "interpreter/interpreter.safetensors"
    ).read_bytes()
    assert json.loads((tmp_path / "interpreter/stage.json").read_text())["params"]["seed"] == 1


def test_more_labels_than_there_are_is_refused(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="few_labels = 11, but only 10 of 14 pictures have a label"):
        train_interpreter.run(
            chain.params.model_copy(update={"few_labels": 11}),
            data=chain.root / "data",
            teacher=chain.root / "teacher",
            seed=0,
            out=tmp_path / "interpreter",
        )


def test_fewer_labels_than_classes_are_told(chains: dict[str, Chain], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = chains["classification"]
    params = made.params.model_copy(update={"few_labels": 1})
    options = {"data": made.root / "data", "seed": 0}
    train_interpreter.run(params, **options, teacher=made.root / "teacher", out=tmp_path / "interpreter")
    finetune.run(params, **options, init="scratch", out=tmp_path / "scratch")
    train_interpreter.run(made.params, **options, teacher=made.root / "teacher", out=tmp_path / "of_all_classes")
    (first, second) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert first == second
    assert first.startswith("none of the 1 labelled pictures is of class ")
    assert first.endswith("; raise few_labels or label more")


def test_data_without_labels_is_refused(chains: dict[str, Chain], tmp_path: Path) -> None:
    made = chains["segmentation"]
    source = draw("segmentation", tmp_path / "pictures")
    params = brief_params(source, ingest={"labels": "none"})
    ingest.run(params, source=source, out=tmp_path / "data")
    with pytest.raises(UserError, match="has no labels"):
        train_interpreter.run(params, data=tmp_path / "data", teacher=made.root / "teacher", seed=0, out=tmp_path / "interpreter")
