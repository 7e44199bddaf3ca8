from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_chain import INITS, Chain, brief_params

import dreamteacher
from dreamteacher.data.dataset import ImageSet, few_labelled
from dreamteacher.data.transforms import AUGMENTATIONS
from dreamteacher.errors import UserError
from dreamteacher.stages import finetune
from dreamteacher.students.backbone import load_backbone
from dreamteacher.tasks.base import get_task
from dreamteacher.tasks.model import load_task_model


def begun(chain: Chain, init: str) -> dict[str, torch.Tensor]:
    return chain.begun[f"finetune/{init}"]


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key.startswith(prefix)}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_every_init_sees_the_same_few_labels(chain: Chain) -> None:
    images = ImageSet(chain.root / "data", "train")
    few = {images.names[i] for i in few_labelled(images, 6, 0)}
    for init in INITS:
        assert chain.read[f"finetune/{init}"] == few, init
        assert chain.metrics[f"finetune/{init}"]["n_labels"] == 6
    assert chain.read["interpreter"] == few


def test_features_begin_with_the_distilled_backbone_and_the_head_of_scratch(chain: Chain) -> None:
    distilled = load_backbone(chain.root / "features/backbone").state_dict()
    assert equal(part(begun(chain, "features"), "backbone."), {f"backbone.{key}": value for key, value in distilled.items()})
    assert equal(part(begun(chain, "features"), "head."), part(begun(chain, "scratch"), "head."))
    assert not equal(part(begun(chain, "features"), "backbone."), part(begun(chain, "scratch"), "backbone."))


@pytest.mark.parametrize("init", ["labels", "mix"])
def test_label_distilled_models_begin_with_their_neck_and_head(chain: Chain, init: str) -> None:
    assert equal(begun(chain, init), load_task_model(chain.root / init).state_dict())
    assert not equal(part(begun(chain, init), "head."), part(begun(chain, "scratch"), "head."))


@pytest.mark.parametrize("init", INITS)
def test_the_model_opens_by_itself(chain: Chain, init: str) -> None:
    model = dreamteacher.load(chain.root / "finetune" / init)
    assert (model.task, model.size, model.training) == (chain.task, 32, False)
    logits = model(torch.zeros(1, 3, 64, 96))
    assert logits.shape == ((1, 2, 64, 96) if chain.task == "segmentation" else (1, 2))
    assert not equal(model.state_dict(), begun(chain, init))


def test_a_pretrained_backbone_may_learn_more_slowly(chain: Chain, tmp_path: Path) -> None:
    """Adam's first steps are as long as the rate, so a rate a thousand times lower shows."""
    params = brief_params(chain.source, finetune={"backbone_lr_scale": 1e-3})
    options = {"data": chain.root / "data", "seed": 0}
    finetune.run(params, **options, init="features", backbone=chain.root / "features", out=tmp_path / "features")
    finetune.run(params, **options, init="scratch", out=tmp_path / "scratch")

    def way(folder: Path, init: str) -> float:
        after, before = load_task_model(folder).backbone.model, begun(chain, init)
        return sum(float((p.detach() - before[f"backbone.model.{name}"]).abs().sum()) for name, p in after.named_parameters())

    assert way(tmp_path / "features", "features") < 0.01 * way(chain.root / "finetune/features", "features")
    assert way(tmp_path / "scratch", "scratch") == pytest.approx(way(chain.root / "finetune/scratch", "scratch"))


def test_which_others_are_compared_is_no_part_of_a_result(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "train", None)
    params = brief_params(chain.source, compare={"seeds": [0, 1, 2, 3]})
    metrics = finetune.run(params, data=chain.root / "data", init="scratch", seed=0, out=chain.root / "finetune/scratch")
    assert metrics == chain.metrics["finetune/scratch"]


def test_pictures_are_augmented_as_the_settings_say(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used, task = [], get_task(chain.task)
    crop = task.crop
    monkeypatch.setattr(task, "crop", lambda *args: used.append(args) or crop(*args))
    params = brief_params(chain.source, finetune={"steps": 1, "augment": "overhead"})
    finetune.run(params, data=chain.root / "data", init="scratch", seed=0, out=tmp_path / "model")
    assert used == [(32, AUGMENTATIONS["overhead"])]
    assert brief_params(chain.source).finetune.augment == "natural"


def test_what_does_not_fit_is_refused_in_one_line(chain: Chain, tmp_path: Path) -> None:
    options = {"data": chain.root / "data", "seed": 0, "out": tmp_path / "out"}
    with pytest.raises(UserError, match="init mix needs --backbone: the output of distill-features or distill-labels"):
        finetune.run(chain.params, init="mix", **options)
    wide = brief_params(chain.source, student={"width": 16})
    with pytest.raises(UserError, match=r"does not fit student\.backbone = 'resnet10t'.*run `dreamteacher distill-features` again"):
        finetune.run(
            brief_params(chain.source, student={"backbone": "resnet10t"}), init="features", backbone=chain.root / "features", **options
        )
    if chain.task == "segmentation":
        with pytest.raises(
            UserError,
            match=r"student\.width = 16, student\.neck = 'fpn-ppm' and the 2 classes of the data; run `dreamteacher distill-labels` again",
        ):
            finetune.run(wide, init="mix", backbone=chain.root / "mix", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_head_of_other_classes_does_not_fit_though_they_are_as_many(chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains["segmentation"]
    data = shutil.copytree(chain.root / "data", tmp_path / "data")
    (data / "stage.json").unlink()
    facts = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(facts | {"classes": facts["classes"][::-1]}))
    with pytest.raises(UserError, match=r"mix/?.* does not fit .* and the 2 classes of the data; run `dreamteacher distill-labels` again"):
        finetune.run(chain.params, data=data, init="mix", backbone=chain.root / "mix", seed=0, out=tmp_path / "out")


def test_it_comes_to_fit_the_few_labels(chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains["segmentation"]
    params = brief_params(chain.source, finetune={"steps": 24, "lr": 1e-2, "log_every": 4, "batch_size": 6})
    finetune.run(params, data=chain.root / "data", init="mix", backbone=chain.root / "mix", seed=0, out=tmp_path / "model")
    losses = [float(line.split(",")[1]) for line in (tmp_path / "model/curves.csv").read_text().splitlines()[1:]]
    assert losses[-1] < 0.8 * losses[0]


def test_imagenet_begins_with_timm_s_weights(chains: dict[str, Chain], tmp_path: Path) -> None:
    """From a Hugging Face cache as a download leaves it, so that the test needs no network. A process of its own, as the cache's place is
    read once."""
    chain = chains["segmentation"]
    torch.manual_seed(99)
    weights = timm.create_model("test_resnet").state_dict()
    repository = tmp_path / "hub" / f"models--{timm.get_pretrained_cfg('test_resnet').hf_hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(weights, repository / "snapshots" / ("0" * 40) / "model.safetensors")
    body = (
        "import sys, torch; from pathlib import Path\n"
        "from dreamteacher.settings.schema import Params; from dreamteacher.stages import finetune\n"
        "train = finetune.train\n"
        "def watched(model, *args, **kwargs):\n"
        "    torch.save(model.backbone.model.state_dict(), 'begun.pt')\n"
        "    return train(model, *args, **kwargs)\n"
        "finetune.train = watched\n"
        "params = Params.model_validate_json(Path('params.json').read_text())\n"
        "finetune.run(params, data=Path(sys.argv[1]), init='imagenet', seed=0, out=Path('imagenet'))\n"
    )
    (tmp_path / "params.json").write_text(chain.params.model_dump_json())
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", body, str((chain.root / "data").absolute())]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    begun_with = torch.load(tmp_path / "begun.pt", weights_only=True)
    assert len(begun_with) > 10
    assert all(torch.equal(value, weights[key]) for key, value in begun_with.items())
    assert dreamteacher.load(tmp_path / "imagenet").task == chain.task
