"""The graph of a run can be read at a glance: named groups of a few steps, each of which fits a screen."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.compiler import Compiler
from kfp_layout import layers

from components import IMAGE
from pipelines import NAMES
from pipelines.resources import Profile

SCREEN, ZOOM, TASKS = (1400, 900), 0.6, 6
# Of the layers where steps take the lists that a group made: KFP 2.17 could give a group only one artifact of each (kfp_cache.py).
ZOOM_OF_LISTS = {"comp-exit-handler-1": 0.44}
WIDER = 1.21  # what grandalf makes of the widest layer, beside the 3150 px of dagre 0.8.5


@pytest.fixture(scope="module", params=NAMES)
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file: Path = tmp_path_factory.mktemp("compiled") / "package.yaml"
    Compiler().compile(import_module(f"pipelines.{request.param}").build(Profile("single-gpu", IMAGE).apply), str(file))
    found: dict[str, Any] = next(yaml.safe_load_all(file.read_text()))
    return found


def test_each_layer_fits_the_screen(spec: dict[str, Any]) -> None:
    too_large = {
        name: (tasks, width, height)
        for name, (tasks, width, height) in layers(spec).items()
        if tasks > TASKS or width * (zoom := ZOOM_OF_LISTS.get(name, ZOOM)) > SCREEN[0] * WIDER or height * zoom > SCREEN[1]
    }
    assert not too_large


def test_groups_and_loops_have_names(spec: dict[str, Any]) -> None:
    dags = [spec["root"]["dag"], *(each["dag"] for each in spec["components"].values() if "dag" in each)]
    names = {task["taskInfo"]["name"] for dag in dags for task in dag["tasks"].values()}
    assert not [name for name in names if re.search(r"-\d+$", name)]  # for-loop-1
    assert {"chain", "prepare", "train", "teachers", "recipes", "fine-tune-features"} <= names


def test_a_step_shows_its_output_and_one_page_or_table(spec: dict[str, Any]) -> None:
    steps = {name: each["outputDefinitions"].get("artifacts", {}) for name, each in spec["components"].items() if "executorLabel" in each}
    shown = {name: sorted(each["artifactType"]["schemaTitle"] for each in outputs.values()) for name, outputs in steps.items()}
    assert not {name: types for name, types in shown.items() if len(types) > 2}
    assert {name for name, types in shown.items() if "system.Metrics" in types} == {"comp-publish"}  # once a run: what Compare Runs shows
