"""How tasks are found by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreamteacher.errors import UserError
from dreamteacher.tasks import classification, segmentation
from dreamteacher.tasks.base import BUILT_IN, get_task

ELSEWHERE = """
from dreamteacher.tasks.classification import Classification

class Mine(Classification):
    figure, title = "mine", "mine"

TASK = Mine()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Another package's module, with an entry point `my-task`."""
    (tmp_path / "tasks_of_mine.py").write_text(ELSEWHERE)
    (tmp_path / "mine-1.0.dist-info").mkdir()
    (tmp_path / "mine-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (tmp_path / "mine-1.0.dist-info/entry_points.txt").write_text("[dreamteacher.tasks]\nmy-task = tasks_of_mine:TASK\n")
    monkeypatch.syspath_prepend(tmp_path)
    get_task.cache_clear()
    return "tasks_of_mine"


def test_built_in_tasks_have_names() -> None:
    assert {name: get_task(name) for name in BUILT_IN} == {"segmentation": segmentation.TASK, "classification": classification.TASK}


def test_others_are_found_by_entry_point_or_place(package: str) -> None:
    assert get_task("my-task").figure == "mine"
    assert get_task(f"{package}:TASK") is get_task("my-task")


def test_what_is_no_task_is_refused_in_one_line(package: str) -> None:
    for name, line in {
        "segmentatoin": "no task is called 'segmentatoin'; name segmentation, or your own as package.module:OBJECT",
        "my_task": "name my-task, or",
        "x": "name segmentation or classification or my-task, or",
        f"{package}:OTHER": f"'{package}:OTHER' cannot be loaded (module '{package}' has no attribute 'OTHER'); install its package, or",
        "no_such_module:TASK": "cannot be loaded (No module named 'no_such_module'); install its package, or put it on PYTHONPATH",
        f"{package}:Mine": f"which task '{package}:Mine' names, is no instance of a subclass of dreamteacher.tasks.base.Task",
    }.items():
        with pytest.raises(UserError) as caught:
            get_task(name)
        assert line in str(caught.value), name
