"""A small project of its own, and the pretrain pipeline run on it once."""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from local_runs import LocalRun, run_local
from tiny_chain import brief_params, draw


@pytest.fixture(scope="module", autouse=True)
def quick_stack() -> Iterator[None]:
    """kfp asks for the stack hundreds of times a pipeline, for a function's name; inspect would look for the source of each frame besides,
    of a frame without a file in each loaded module, which takes three quarters of a compilation where as many are loaded as here."""

    def stack(context: int = 1) -> list[inspect.FrameInfo]:
        frame, found = sys._getframe(1), []
        while frame:
            found.append(inspect.FrameInfo(frame, frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name, None, None))
            frame = frame.f_back
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", stack)
        yield


@pytest.fixture(scope="session")
def small_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and settings under which the chain takes seconds."""
    folder = tmp_path_factory.mktemp("project")
    draw("segmentation", folder / "pictures")
    settings = brief_params(Path("pictures"), publish={"instances": 1}).model_dump(mode="json")
    settings["compare"] = {"inits": ["scratch", "features", "mix"], "seeds": [0]}
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="session")
def several(small_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with several recipes: of a second teacher, and of a method that needs none, which has a student of its own. Only the base of
    `mix`, `quiet`, is not compared itself."""
    folder = tmp_path_factory.mktemp("several")
    shutil.copytree(small_project / "pictures", folder / "pictures")
    settings = yaml.safe_load((small_project / "params.yaml").read_text())
    settings["teachers"]["control"] = {"kind": "pixels", "resolution": 32}
    settings["recipes"] = {
        "features": {"teacher": "teacher"},
        "quiet": {"teacher": "teacher", "distill": {"T": 5}},
        "control": {"teacher": "control"},
        "simclr": {"teacher": "none", "student": {"width": 4}, "distill": {"method": "simclr", "steps": 2}},
        "other": {"teacher": "control", "distill": {"T": 7}},
    }
    settings["label_recipes"] = {"mix": {"features": "quiet"}, "idle": {"features": "other"}}
    settings["compare"] = {"inits": ["scratch", "features", "mix", "control", "simclr"], "seeds": [0]}
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="session")
def pretrained(several: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalRun:
    """The whole pretrain pipeline, run once."""
    return run_local(several, tmp_path_factory.mktemp("runs") / "pretrain", anew=True)
