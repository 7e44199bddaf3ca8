from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_chain import Chain, brief_params

from dreamteacher.data.dataset import ImageSet
from dreamteacher.errors import UserError
from dreamteacher.settings.file import load_params
from dreamteacher.stages import ingest, train_teacher
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.teachers.folder import find_pretrained, open_teacher, read_facts
from dreamteacher.tracking import Tracker
from dreamteacher.training.randomness import StepRandom
from helpers import NUCLEI, PROJECT


def test_the_teacher_is_a_diffusers_pipeline_with_its_taps(chain: Chain) -> None:
    pipeline = DDPMPipeline.from_pretrained(chain.root / "teacher")
    assert pipeline.unet.config.sample_size == 16
    assert pipeline.scheduler.config.num_train_timesteps == 100
    facts = json.loads((chain.root / "teacher/teacher.json").read_text())
    assert [(tap["stride"], tap["channels"]) for tap in facts["taps"]] == [(1, 8), (2, 8), (4, 8), (8, 16)]
    assert (facts["kind"], facts["resolution"]) == ("ddpm", 16)


def test_it_shows_what_it_dreams(chain: Chain) -> None:
    with Image.open(chain.root / "teacher/samples.png") as grid:
        assert grid.size == (2 * 18 + 2, 16 + 4)  # two pictures of 16 px with 2 px between and around
        assert np.asarray(grid)[2:18, 2:18].std() > 0


def test_it_shows_on_the_way_what_it_dreams_and_the_teacher_is_the_same(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = {}

    def artifact(tracker: Tracker, path: Path, folder: str = "") -> None:
        logged[f"{folder}/{path.name}"] = path.read_bytes()

    monkeypatch.setattr(Tracker, "artifact", artifact)
    params = brief_params(chain.source, teacher={"sample_every": 1})
    train_teacher.run(params, data=chain.root / "data", out=tmp_path / "teacher")
    assert set(logged) == {*(f"samples/samples_00000{step}.png" for step in (1, 2, 3)), "/samples.png", "/stage.json"}
    assert len(set(logged.values())) == 5  # each another picture
    for name in ("unet/diffusion_pytorch_model.safetensors", "teacher.json", "samples.png", "curves.csv"):
        assert (tmp_path / "teacher" / name).read_bytes() == (chain.root / "teacher" / name).read_bytes(), name


def test_the_averaged_weights_become_the_teacher(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    train = train_teacher.train

    def watched(*args, **kwargs):
        kept.append(train(*args, **kwargs))
        return kept[0]

    monkeypatch.setattr(train_teacher, "train", watched)
    train_teacher.run(chain.params, data=chain.root / "data", out=tmp_path / "teacher")
    saved = DDPMPipeline.from_pretrained(tmp_path / "teacher").unet.state_dict()
    averaged, last = kept[0].ema.state_dict(), kept[0].model.state_dict()
    assert all(torch.equal(saved[key], averaged[key]) for key in saved)
    assert not all(torch.equal(saved[key], last[key]) for key in saved)


def test_a_resolution_that_the_network_cannot_halve_is_refused_and_nothing_is_left(chain: Chain, tmp_path: Path) -> None:
    odd = chain.params.teacher.model_copy(update={"resolution": 18})  # as a step is given it alone, not held against other settings
    with pytest.raises(UserError, match=r"teacher\.resolution = 18 does not fit the 'tiny' U-Net: take a multiple of 8"):
        train_teacher.run(chain.params.model_copy(update={"teacher": odd}), data=chain.root / "data", out=tmp_path / "teacher")
    assert list(tmp_path.iterdir()) == []


def test_it_learns_to_tell_noise_from_pictures(chains: dict[str, Chain], tmp_path: Path) -> None:
    """An untrained network predicts nothing: error 1 of epsilon. Near 0 the noise is known."""
    params = brief_params(Path("pictures"), teacher={"prediction": "epsilon", "steps": 24, "lr": 1e-2, "log_every": 1, "batch_size": 8})
    metrics = train_teacher.run(params, data=chains["segmentation"].root / "data", out=tmp_path / "teacher")
    assert metrics["loss"] < 0.8


@pytest.fixture
def halved(chain: Chain, tmp_path: Path) -> Path:
    """The chain's teacher with weights in half precision, as one that is shipped."""
    folder = tmp_path / "halved"
    shutil.copytree(chain.root / "teacher", folder, ignore=shutil.ignore_patterns("stage.json"))
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    save_file({key: value.half() for key, value in load_file(file).items()}, file)
    return folder


def test_a_pretrained_teacher_is_taken_as_it_is(chain: Chain, halved: Path, tmp_path: Path) -> None:
    trained_on = json.loads((halved / "teacher.json").read_text())["trained_on"]
    params = brief_params(chain.source, teacher={"pretrained": str(halved), "steps": 1_000_000})
    metrics = train_teacher.run(params, data=chain.root / "data", out=tmp_path / "teacher")
    assert 0 < metrics["loss"] < 2
    ours, theirs = (load_file(place / "unet/diffusion_pytorch_model.safetensors") for place in (tmp_path / "teacher", halved))
    assert all(value.dtype == torch.float32 and torch.equal(value, theirs[key].float()) for key, value in ours.items())
    facts = json.loads((tmp_path / "teacher/teacher.json").read_text())
    assert facts["trained_on"] == trained_on == {"pictures": 14, "digest": ImageSet(chain.root / "data", "train").digest()}
    assert [tap["stride"] for tap in facts["taps"]] == [1, 2, 4, 8]
    assert (tmp_path / "teacher/samples.png").exists()


def test_another_schedule_size_or_name_of_a_pretrained_teacher_is_refused_in_one_line(chain: Chain, halved: Path, tmp_path: Path) -> None:
    def message(**teacher) -> str:
        with pytest.raises(UserError) as error:
            train_teacher.run(brief_params(chain.source, teacher=teacher), data=chain.root / "data", out=tmp_path / "teacher")
        return str(error.value)

    assert "prediction_type = v_prediction, not epsilon; set teacher.prediction alike" in message(
        pretrained=str(halved), prediction="epsilon"
    )
    assert "teacher.pretrained = 'cells' is neither a teacher's folder nor one of ['bccd', 'nuclei', 'nuclei-256']" in message(
        pretrained="cells"
    )
    assert "of another size than teacher.size" in message(pretrained="nuclei", T_train=1000)  # the tests' U-Net is a slim one


@pytest.mark.parametrize(("name", "settings"), [("nuclei", NUCLEI), ("bccd", PROJECT / "params.yaml")])
def test_the_teacher_of_a_sample_was_trained_on_its_train_pictures_alone(name: str, settings: Path, tmp_path: Path) -> None:
    ingest.run(load_params(settings), source=PROJECT / "samples" / name, out=tmp_path / "data")
    trained_on = read_facts(find_pretrained(name))["trained_on"]
    train = ImageSet(tmp_path / "data", "train")
    assert trained_on == {"pictures": len(train), "digest": train.digest()}


@pytest.mark.parametrize("name", ["bccd", "nuclei", "nuclei-256"])
def test_a_teacher_of_the_package_teaches_and_fits_into_five_megabytes(name: str) -> None:
    folder = find_pretrained(name)
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 5_000_000
    features = open_teacher(folder, None, Stochastic(50)).teach(torch.rand(1, 3, 64, 64), StepRandom(0, 0, 0, 1, "cpu")).features
    assert [maps.shape[2] for maps in features] == [64, 32, 16, 8, 4]
    assert all(maps.isfinite().all() and maps.std() > 0 for maps in features)
