"""What a second run takes from KFP's cache, against what dvc.yaml would run again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.compiler import Compiler
from kfp_cache import Kfp, Values

from components import IMAGE
from dreamteacher.stages.find_commit import resolve
from helpers import PROJECT
from pipelines import pretrain
from pipelines.resources import Profile

ALWAYS = {"find-commit", "publish", "record", "finish"}  # what looks at a branch, or has its effect outside
AFTER_FINETUNE = {"evaluate", "export-onnx", "report"}
FINETUNE = {"finetune scratch", "finetune features", "finetune mix"}
MIX = {"train-interpreter mix", "distill-labels mix", "finetune mix"}
FEATURES = {"distill-features features", "distill-labels mix", "finetune features", "finetune mix"}
ALL = {"ingest", "train-teacher", *FEATURES, *MIX, *FINETUNE, *AFTER_FINETUNE}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("compiled") / "pretrain.yaml"
    Compiler().compile(pretrain.build(Profile("single-gpu", IMAGE).apply), str(file))
    found: dict[str, Any] = next(yaml.safe_load_all(file.read_text()))
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "samples/nuclei").mkdir(parents=True)
    (folder / "samples/nuclei/a.png").write_bytes(b"picture")
    (folder / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    return folder


def find_commit(inputs: Values) -> Values:
    words = {"overrides" if name == "settings" else name: value for name, value in inputs.items()}
    found = asdict(resolve(**words))
    return {name: value for name, value in found.items() if name != "settings"} | found["settings"]


@pytest.fixture
def kfp(spec: dict[str, Any], project: Path) -> Kfp:
    """That ran the pipeline once."""
    made = Kfp(find_commit)
    assert set(made.run(spec, arguments(project))) == ALL | ALWAYS | {"fetch-data"}
    return made


def arguments(project: Path, *settings: str) -> Values:
    return {"git_url": str(project), "data_rev": "", "settings": list(settings)}


@pytest.mark.parametrize(
    ("settings", "again"),
    [
        ([], set()),
        (["finetune.steps=7"], FINETUNE | AFTER_FINETUNE),
        (["distill.T=77"], FEATURES | AFTER_FINETUNE),
        # KFP can hand no single one of a loop's models to export-onnx, so it runs where DVC would see that its model is the same.
        (["labels.tau=2.0"], {"distill-labels mix", "finetune mix"} | AFTER_FINETUNE),
        (["interpreter.width=32"], MIX | AFTER_FINETUNE),
        (["teacher.samples=4"], ALL - {"ingest", "finetune scratch"}),
        (["evaluate.overlays=2"], {"evaluate", "report"}),
        (["export.size=160"], {"export-onnx"}),
        (["publish.instances=2"], set()),
        (["retrain.min_new_images=7"], set()),
        (["compare.seeds=[0, 1]"], AFTER_FINETUNE),
        (["ingest.short_side=64"], ALL),
    ],
)
def test_another_setting_runs_what_depends_on_it(kfp: Kfp, spec: dict[str, Any], project: Path, settings: list[str], again: set[str]):
    assert set(kfp.run(spec, arguments(project, *settings))) == ALWAYS | again


def test_a_picture_more_runs_everything_and_a_note_nothing(kfp: Kfp, spec: dict[str, Any], project: Path):
    (project / "README.md").write_text("mended")
    assert set(kfp.run(spec, arguments(project))) == ALWAYS
    (project / "samples/nuclei/b.png").write_bytes(b"another")
    assert set(kfp.run(spec, arguments(project))) == ALL | ALWAYS | {"fetch-data"}


def test_a_new_seed_runs_its_own_passes_alone(kfp: Kfp, spec: dict[str, Any], project: Path):
    ran = kfp.run(spec, arguments(project, "compare.seeds=[0, 1, 2, 3]"))
    assert sorted(each for each in ran if each in FINETUNE) == sorted(FINETUNE)  # one pass of each, not four


def test_another_image_is_another_key(kfp: Kfp, spec: dict[str, Any], project: Path):
    other = json.loads(json.dumps(spec).replace(IMAGE, "registry.example/image:git-5d6e7f8"))
    assert set(kfp.run(other, arguments(project))) == ALL | ALWAYS | {"fetch-data"}
