"""Synthesising and encoding teachers through the whole chain."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_chain import Chain, brief_params

from dreamteacher.errors import Interrupted, UserError
from dreamteacher.settings.schema import Params
from dreamteacher.stages import distill_features, distill_labels, evaluate, export_onnx, finetune, train_interpreter, train_teacher
from dreamteacher.teachers.biggan import save_teacher
from dreamteacher.teachers.biggan_network import BigGAN
from dreamteacher.teachers.folder import read_facts, write_json
from dreamteacher.teachers.importing import import_teacher
from dreamteacher.teachers.stylegan2 import SIZES
from dreamteacher.training.randomness import StepRandom


@pytest.fixture(autouse=True)
def slim_gan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", (8, 2, 64, 8))


def settings(chain: Chain, **teacher: Any) -> Params:
    compare = {"inits": ["scratch", "features"]}
    teacher = {"resolution": 32, "r1_gamma": 1.0, **teacher}
    return brief_params(chain.source, teacher=teacher, compare=compare, export={"init": "features", "size": 32})


def from_features_to_onnx(params: Params, chain: Chain, teacher: Path, root: Path) -> None:
    """Distillation, fine-tuning, evaluation with its drawings, and ONNX files."""
    data = chain.root / "data"
    metrics = distill_features.run(params, data=data, teacher=teacher, out=root / "features")
    assert metrics["explained_variance"] < 1 and metrics["embedding_spread"] > 0
    for init, options in (("scratch", {}), ("features", {"backbone": root / "features"})):
        finetune.run(params, data=data, init=init, seed=0, out=root / f"finetuned/{init}/0", **options)
    places = {"metrics": root / "metrics.json", "plots": root / "plots"}
    places |= {"teachers": teacher.parent, "backbones": root}
    evaluate.run(params, data=data, finetuned=root / "finetuned", out=root / "eval", **places)
    assert (root / "plots/pca/features_0.png").exists()
    assert export_onnx.run(params, data=data, finetuned=root / "finetuned/features/0", out=root / "onnx")["parity_max"] < 1e-3


def test_a_stylegan2_is_trained_and_teaches_by_its_own_pictures(chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains["segmentation"]
    params = settings(chain, kind="stylegan2")
    train_teacher.run(params, data=chain.root / "data", out=tmp_path / "teacher")
    facts = json.loads((tmp_path / "teacher/teacher.json").read_text())
    assert (facts["kind"], [tap["stride"] for tap in facts["taps"]]) == ("stylegan2", [1, 2, 4, 8])
    assert facts["trained_on"]["pictures"] == 14
    assert (tmp_path / "teacher/samples.png").exists()
    header, *rows = (tmp_path / "teacher/curves.csv").read_text().splitlines()
    assert header.startswith("step,loss,generator,discriminator,r1,p,") and len(rows) == 2
    from_features_to_onnx(params, chain, tmp_path / "teacher", tmp_path)
    train_teacher.run(params, data=chain.root / "data", start=tmp_path / "teacher", out=tmp_path / "longer")


def test_a_killed_training_ends_with_the_same_bytes(chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ADA's state, the mean of w and the lazy step go on where they were."""
    monkeypatch.setattr("dreamteacher.teachers.ada.EVERY", 2)
    monkeypatch.setattr("dreamteacher.teachers.stylegan2.LAZY", 3)
    monkeypatch.setattr("dreamteacher.teachers.ada.PICTURES", 40)
    chain = chains["segmentation"]
    params = settings(chain, kind="stylegan2", steps=8, checkpoint_every=3, ada_target=0.0)
    data = chain.root / "data"
    train_teacher.run(params, data=data, out=tmp_path / "whole")

    class Killed(Exception):
        pass

    from dreamteacher.teachers.stylegan2 import Players

    forward = Players.forward

    def dies(self: Players, images: torch.Tensor, random: StepRandom) -> dict[str, torch.Tensor]:
        if random.step == 5:
            raise Killed
        return forward(self, images, random)

    monkeypatch.setenv("DREAMTEACHER_CHECKPOINTS", str(tmp_path / "checkpoints"))
    with monkeypatch.context() as patch:
        patch.setattr(Players, "forward", dies)
        with pytest.raises((Killed, Interrupted)):
            train_teacher.run(params, data=data, out=tmp_path / "killed")
    train_teacher.run(params, data=data, out=tmp_path / "killed")
    for file in ("generator.safetensors", "discriminator.safetensors"):
        one, two = load_file(tmp_path / "whole" / file), load_file(tmp_path / "killed" / file)
        assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert (tmp_path / "whole/curves.csv").read_text() == (tmp_path / "killed/curves.csv").read_text()
    with (tmp_path / "whole/curves.csv").open(newline="") as file:
        assert float(list(csv.DictReader(file))[-1]["p"]) > 0  # it has adapted


def test_no_interpreter_reads_a_generator_that_cannot_encode_labelled_pictures(chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains["segmentation"]
    params = settings(chain, kind="stylegan2")
    train_teacher.run(params, data=chain.root / "data", out=tmp_path / "teacher")
    with pytest.raises(UserError, match=r"teacher makes pictures of its own and cannot encode labelled ones.+drop label_recipes"):
        train_interpreter.run(params, data=chain.root / "data", teacher=tmp_path / "teacher", seed=0, out=tmp_path / "interpreter")
    assert not (tmp_path / "interpreter").exists()
    distilled = {"features": chain.root / "features", "interpreter": chain.root / "interpreter"}
    with pytest.raises(UserError):
        distill_labels.run(params, data=chain.root / "data", teacher=tmp_path / "teacher", **distilled, seed=0, out=tmp_path / "mix")


def test_an_imported_biggan_teaches_by_its_own_pictures(chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains["classification"]
    torch.manual_seed(0)
    layers = [["wide", 16, 16], ["attention", 16], ["wide", 16, 8], ["wide", 8, 8]]
    network = BigGAN(layers, latent=8, chunk=2, classes=3, class_width=4)
    (tmp_path / "imported").mkdir()
    save_teacher(network, tmp_path / "imported", "biggan")
    write_json(tmp_path / "imported", read_facts(tmp_path / "imported") | {"source": "elsewhere"})
    params = settings(chain, kind="biggan", pretrained=str(tmp_path / "imported")).model_copy(update={"taps": [2, 4]})
    train_teacher.run(params, data=chain.root / "data", out=tmp_path / "teacher")
    from_features_to_onnx(params, chain, tmp_path / "teacher", tmp_path)
    with pytest.raises(UserError, match=r"a teacher of kind 'biggan' is not trained here; make its folder by `dreamteacher import-teacher"):
        train_teacher.run(settings(chain, kind="biggan"), data=chain.root / "data", out=tmp_path / "other")


def test_a_model_of_timm_teaches_and_is_interpreted(chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains["segmentation"]
    import_teacher("timm", "test_vit", tmp_path / "imported", ["pretrained=false"])
    params = settings(chain, kind="timm", pretrained=str(tmp_path / "imported")).model_copy(update={"taps": "auto"})
    data = chain.root / "data"
    train_teacher.run(params, data=data, out=tmp_path / "teacher")
    from_features_to_onnx(params, chain, tmp_path / "teacher", tmp_path)
    train_interpreter.run(params, data=data, teacher=tmp_path / "teacher", seed=0, out=tmp_path / "interpreter")
    folders = {"teacher": tmp_path / "teacher", "features": tmp_path / "features", "interpreter": tmp_path / "interpreter"}
    assert distill_labels.run(params, data=data, **folders, seed=0, out=tmp_path / "mix")["loss"] > 0
