"""Imported teachers in the chain: teacher, features, labels, fine-tuning, evaluation, ONNX."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from adm_reference import ADM
from diffusers_models import MODELS
from tiny_chain import Chain, brief_params

from dreamteacher import cli
from dreamteacher.errors import UserError
from dreamteacher.settings.schema import Params
from dreamteacher.stages import distill_features, distill_labels, evaluate, export_onnx, finetune, train_interpreter, train_teacher
from dreamteacher.teachers.folder import read_facts
from dreamteacher.teachers.importing import import_teacher


def imported(name: str, folder: Path) -> tuple[str, Path]:
    """A model with random weights, and its kind."""
    torch.manual_seed(0)
    folder.mkdir()
    if name == "adm":
        torch.save(ADM(32, (1, 1, 2), 1, (4,), classes=3).state_dict(), folder / "model.pt")
        options = ["use_new_attention_order=False", "num_head_channels=16", "noise_schedule=linear", "licence=MIT"]
        import_teacher("adm", str(folder / "model.pt"), folder / "teacher", options)
        return "adm", folder / "teacher"
    options = MODELS[name](folder)
    import_teacher("diffusers", str(folder / "source"), folder / "teacher", [*options, "licence=CreativeML Open RAIL-M"])
    return "diffusers", folder / "teacher"


def params_of(chain: Chain, kind: str, pretrained: Path | None) -> Params:
    teacher = {"kind": kind, "pretrained": pretrained and str(pretrained), "steps": 1_000_000}
    params = brief_params(chain.source, teacher=teacher, compare={"inits": ["scratch", "mix"], "seeds": [0]})
    return params.model_copy(update={"taps": "auto"})


@pytest.mark.parametrize("name", ["adm", "pixels", "unconditional_latents", "stable_diffusion_1", "dit", "stable_diffusion_3"])
def test_a_whole_chain_runs_on_an_imported_teacher(name: str, chains: dict[str, Chain], tmp_path: Path) -> None:
    chain, (kind, pretrained) = chains["segmentation"], imported(name, tmp_path / "foreign")
    params, data = params_of(chain, kind, pretrained), chain.root / "data"
    at = {part: tmp_path / part for part in ("teacher", "features", "interpreter", "mix")}
    assert train_teacher.run(params, data=data, out=at["teacher"]) == {"loss": 0.0}
    assert read_facts(at["teacher"]) == read_facts(pretrained)
    assert read_facts(at["teacher"])["licence"]
    metrics = distill_features.run(params, data=data, teacher=at["teacher"], out=at["features"])
    assert np.isfinite(list(metrics.values())).all()
    train_interpreter.run(params, data=data, teacher=at["teacher"], seed=0, out=at["interpreter"])
    folders = {part: at[part] for part in ("teacher", "features", "interpreter")}
    distill_labels.run(params, data=data, **folders, seed=0, out=at["mix"])
    finetuned = tmp_path / "finetuned"
    for init, backbone in (("scratch", None), ("mix", at["mix"])):
        finetune.run(params, data=data, init=init, seed=0, backbone=backbone, out=finetuned / init / "0")
    arguments = {"teachers": tmp_path, "backbones": tmp_path, "finetuned": finetuned}
    places = {"out": tmp_path / "evaluation", "metrics": tmp_path / "metrics.json", "plots": tmp_path / "plots"}
    evaluate.run(params, data=data, **arguments, **places)
    assert list((tmp_path / "plots").glob("pca/features_*.png"))  # the teacher's features of whole pictures
    export_onnx.run(params, data=data, finetuned=finetuned / "mix/0", out=tmp_path / "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx")
    side = params.export.size
    assert np.isfinite(session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, side, side), np.float32)})[0]).all()


def test_a_kind_that_is_only_imported_is_not_trained(chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains["segmentation"]
    message = r"kind 'diffusers' is not trained here; make its folder by `dreamteacher import-teacher diffusers SOURCE --out FOLDER`"
    with pytest.raises(UserError, match=message):
        train_teacher.run(params_of(chain, "diffusers", None), data=chain.root / "data", out=tmp_path / "teacher")
    _, pretrained = imported("pixels", tmp_path / "foreign")
    with pytest.raises(UserError, match=r"is a teacher of kind 'diffusers'; set teacher\.kind alike"):
        train_teacher.run(params_of(chain, "adm", pretrained), data=chain.root / "data", out=tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()


def test_taps_steps_and_sizes_are_held_against_the_folder(chains: dict[str, Chain], tmp_path: Path) -> None:
    """Whatever teacher.size says: 200 noise steps, decoder levels at strides 1, 2 and 4."""
    chain, (kind, pretrained) = chains["segmentation"], imported("pixels", tmp_path / "foreign")
    params = params_of(chain, kind, pretrained)

    def refused(line: str, taps: list[int], **distill: int) -> None:
        changed = params.model_copy(update={"taps": taps, "distill": params.distill.model_copy(update=distill)})
        with pytest.raises(UserError, match=line):
            distill_features.run(changed, data=chain.root / "data", teacher=pretrained, out=tmp_path / "features")

    refused(r"the teacher has no tap at stride 8; it has \[1, 2, 4\]", [8])
    refused("T = 200 does not fit the teacher, which has 200 of them", [4], T=200)
    refused("pictures of 30x30 px do not fit the teacher: their sides must be multiples of 4", [4], resolution=30)
    assert json.loads((pretrained / "teacher.json").read_text())["steps"] == 200


def test_a_folder_that_holds_another_teacher_than_its_digest_says_is_refused(
    chains: dict[str, Chain], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DVC and KFP know the path alone; by the digest, import-teacher's, they see another teacher in it."""
    chain, source = chains["segmentation"], tmp_path / "model.pt"
    torch.save(ADM(32, (1, 1, 2), 1, (4,), classes=3).state_dict(), source)
    options = [f"--option={option}" for option in ("use_new_attention_order=False", "num_head_channels=16", "noise_schedule=linear")]
    digests = []
    for _ in range(2):
        assert cli.main(["import-teacher", "adm", str(source), "--out", str(tmp_path / "teacher"), *options]) == 0
        settings = yaml.safe_load(capsys.readouterr().out.partition("\n\n")[2])["teacher"]
        assert (settings["kind"], settings["pretrained"]) == ("adm", str(tmp_path / "teacher"))
        digests.append(settings["digest"])
        if len(digests) == 1:
            shutil.rmtree(tmp_path / "teacher")
            torch.manual_seed(1)
            torch.save(ADM(32, (1, 1, 2), 1, (4,), classes=3).state_dict(), source)
    params = params_of(chain, "adm", tmp_path / "teacher")
    named = [params.model_copy(update={"teacher": params.teacher.model_copy(update={"digest": digest})}) for digest in digests]
    with pytest.raises(UserError, match=f"not the teacher that teacher.digest names; if it is meant, set teacher.digest: {digests[1]}"):
        train_teacher.run(named[0], data=chain.root / "data", out=tmp_path / "out")
    assert train_teacher.run(named[1], data=chain.root / "data", out=tmp_path / "out") == {"loss": 0.0}
