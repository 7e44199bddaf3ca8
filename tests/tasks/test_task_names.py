"""How tasks are found by their names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamteacher.errors import UserError
from dreamteacher.settings.downstream import HEADS, Finetune
from dreamteacher.tasks.base import BUILT_IN, get_task
from helpers import install_package

ELSEWHERE = """
from dreamteacher.tasks.classification import Classification

class Mine(Classification):
    figure, title = "mine", "mine"

TASK = Mine()
"""
HEAD = """
from dreamteacher.tasks.detection import Detection

class Wide(Detection):
    of = "detection"

TASK = Wide()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another package's module, with an entry point `my-task`."""
    entries = "[dreamteacher.tasks]\nmy-task = tasks_of_mine:TASK\nlost = tasks_of_mine:OTHER\nclass = tasks_of_mine:Mine\n"
    entries += "gone = no_such_module:TASK\n[dreamteacher.heads]\nwide = heads_of_mine:TASK\n"
    install_package(monkeypatch, tmp_path, entries, tasks_of_mine=ELSEWHERE, heads_of_mine=HEAD)
    get_task.cache_clear()
    yield
    get_task.cache_clear()


def test_built_in_tasks_have_names() -> None:
    assert {name: type(get_task(name)).__module__ for name in BUILT_IN} == {name: f"dreamteacher.tasks.{name}" for name in BUILT_IN}


def test_others_are_found_by_entry_point(package: None) -> None:
    assert get_task("my-task").figure == "mine"


def test_heads_are_found_by_entry_point_and_belong_to_a_task(package: None) -> None:
    assert type(get_task("detection", Finetune(head="wide").head)).__name__ == "Wide"
    assert {head: get_task(task, head).of for head, task in HEADS.items()} == HEADS
    with pytest.raises(UserError, match=r"'wide' is a head for detection, and the labels are for instances; set it to auto or mask-rcnn"):
        get_task("instances", "wide")
    with pytest.raises(ValueError, match=r"there is no head 'wid'; name wide"):
        Finetune(head="wid")


def test_what_is_no_task_is_refused_in_one_line(package: None) -> None:
    for name, line in {
        "segmentatoin": "no task is called 'segmentatoin'; name segmentation, or install the package that offers it",
        "my_task": "name my-task, or",
        "x": "name class or classification or depth or detection or gone or instances or keypoints or lost or multilabel or my-task or "
        "segmentation, or",
        "tasks_of_mine:TASK": "no task is called 'tasks_of_mine:TASK'",  # a file from elsewhere must not import what it likes
        "lost": "'lost' cannot be loaded (module 'tasks_of_mine' has no attribute 'OTHER'); install tasks_of_mine:OTHER again",
        "gone": "cannot be loaded (No module named 'no_such_module'); install no_such_module:TASK again",
        "class": "what task 'class' names is no instance of a subclass of dreamteacher.tasks.base.Task",
    }.items():
        with pytest.raises(UserError) as caught:
            get_task(name)
        assert line in str(caught.value), name
