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
from components.list_passes import list_passes
from components.list_recipes import list_recipes
from dreamteacher.stages.find_commit import resolve
from helpers import NUCLEI
from pipelines import pretrain
from pipelines.resources import Profile

ALWAYS = {"find-commit", "publish", "record", "finish"}  # what looks at a branch, or has its effect outside
LISTS = {"list-recipes", "list-passes"}  # of no weight: they look a list up, and compute nothing
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
    (folder / "params.yaml").write_text(NUCLEI.read_text())
    return folder


def find_commit(inputs: Values) -> Values:
    words = {"overrides" if name == "settings" else name: value for name, value in inputs.items()}
    found = asdict(resolve(**words))
    return {name: value for name, value in found.items() if name != "settings"} | found["settings"]


# Steps whose output parameters decide what runs.
COMPUTED = {
    "find-commit": find_commit,
    "list-recipes": lambda inputs: {"Output": list_recipes.python_func(**inputs)},
    "list-passes": lambda inputs: dict(zip(("seeds", "mixed"), list_passes.python_func(**inputs), strict=True)),
}


@pytest.fixture
def kfp(spec: dict[str, Any], project: Path) -> Kfp:
    """That ran the pipeline once."""
    made = Kfp(COMPUTED)
    assert ran(made, spec, project) == ALL | ALWAYS | {"fetch-data"}
    return made


def ran(kfp: Kfp, spec: dict[str, Any], project: Path, *settings: str) -> set[str]:
    return {step for step in kfp.run(spec, arguments(project, *settings)) if step.split()[0] not in LISTS}


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
    assert ran(kfp, spec, project, *settings) == ALWAYS | again


def test_a_picture_more_runs_everything_and_a_note_nothing(kfp: Kfp, spec: dict[str, Any], project: Path):
    (project / "README.md").write_text("mended")
    assert ran(kfp, spec, project) == ALWAYS
    (project / "samples/nuclei/b.png").write_bytes(b"another")
    assert ran(kfp, spec, project) == ALL | ALWAYS | {"fetch-data"}


def test_a_new_seed_runs_only_its_own_fine_tunings(kfp: Kfp, spec: dict[str, Any], project: Path):
    started = kfp.run(spec, arguments(project, "compare.seeds=[0, 1, 2, 3]"))
    assert sorted(each for each in started if each in FINETUNE) == sorted(FINETUNE)  # one pass of each, not four


KARRAS = ("teachers.karras={kind: edm, pretrained: null}", "recipes.karras={teacher: karras}")


@pytest.mark.parametrize(
    ("settings", "inits", "again"),
    [
        (["recipes.noisy={teacher: own, distill: {T: 150}}"], "noisy", {"distill-features noisy", "finetune noisy"}),
        (["recipes.narrow={teacher: own, student: {width: 16}}"], "narrow", {"distill-features narrow", "finetune narrow"}),
        (KARRAS, "karras", {"train-teacher", "distill-features karras", "finetune karras"}),
        (["recipes.simclr={teacher: none, distill: {method: simclr}}"], "simclr",
         {"train-teacher", "distill-features simclr", "finetune simclr"}),
        (["label_recipes.labels={features: features, labels: {mode: labels}}"], "labels",
         {"train-interpreter labels", "distill-labels labels", "finetune labels"}),
        (["recipes.base={teacher: own, distill: {T: 9}}", "label_recipes.labels={features: base}"], "labels",
         {"distill-features base", "train-interpreter labels", "distill-labels labels", "finetune labels"}),
    ],
)  # fmt: skip
def test_one_recipe_more_runs_itself_and_what_compares_it(
    kfp: Kfp, spec: dict[str, Any], project: Path, settings: list[str], inits: str, again: set[str]
):
    assert ran(kfp, spec, project, *settings) == ALWAYS  # it is not compared
    settings = [*settings, f"compare.inits=[scratch, features, mix, {inits}]"]
    assert ran(kfp, spec, project, *settings) == ALWAYS | again | AFTER_FINETUNE
    assert ran(kfp, spec, project, *settings) == ALWAYS


def test_what_differs_in_one_recipe_runs_that_one_again(kfp: Kfp, spec: dict[str, Any], project: Path):
    more = ["recipes.noisy={teacher: own, distill: {T: 150}}", "compare.inits=[scratch, features, mix, noisy]"]
    kfp.run(spec, arguments(project, *more))
    again = ran(kfp, spec, project, *more, "recipes.noisy.distill.T=151")
    assert again == ALWAYS | AFTER_FINETUNE | {"distill-features noisy", "finetune noisy"}


def test_another_image_is_another_key(kfp: Kfp, spec: dict[str, Any], project: Path):
    other = json.loads(json.dumps(spec).replace(IMAGE, "registry.example/image:git-5d6e7f8"))
    assert ran(kfp, other, project) == ALL | ALWAYS | {"fetch-data"}


def test_the_server_calls_a_run_running_whose_groups_end_with_steps_of_the_cache_or_a_loop_without_items(
    kfp: Kfp, spec: dict[str, Any], project: Path
):
    """finish decides by the effects then (test_finish.py)."""
    assert kfp.ended == "COMPLETE"
    ran(kfp, spec, project)
    assert kfp.ended == "RUNNING"
    unlabelled = Kfp(COMPUTED)
    ran(unlabelled, spec, project, "compare.inits=[scratch, features]", "export.init=features")
    assert unlabelled.ended == "RUNNING"
